//! The cost of a change in the control plane with thousands of proxies, compared with
//! go-control-plane in the same run.
//!
//! Both servers have the same endpoints and as many simulated proxies; each has a delta stream on
//! its own connection and acknowledges at once. One endpoint moves at a time, then one of every
//! cluster at once. The two servers take turns, so that a busy machine slows both. A time ends with
//! the last proxy's receipt, CPU time with the last acknowledgement. Ours gets a change from a real
//! etcd, and the time begins just before the put; the peer gets it directly.
//!
//! With `--peer istio` the other server is istiod, which gets each change from a Kubernetes API
//! server. Its own work for a sidecar's clusters and routes is left out: the proxies ask for
//! endpoints alone.

mod contender;
mod fleet;
mod flood;
mod istio;
mod link;
mod report;
mod servers;
mod wire;
mod world;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use e2e::figures::Figure;
use e2e::workdir::Workdir;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use self::istio::Istio;
use contender::{Contender, Reconnected, Seen, ensure_alike};
use servers::{Ours, Peer, Server, Shape};

use crate::against::Against;

/// The number of assignments that each proxy subscribes to.
const CLUSTERS: usize = 20;
const WARM_UP: usize = 5;
/// A burst of large resources to thousands of proxies is a gigabyte.
const BURSTS: usize = 3;
/// Other file descriptors: of the runtime, of etcd's client, of logs.
const OTHER_FILES: u64 = 200;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// `xds`: the number of proxies
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1_000, 5_000],
          value_parser = clap::value_parser!(u32).range(1..=50_000))]
    streams: Vec<u32>,
    /// `xds`: the size of resources
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Size::Small, Size::Large])]
    sizes: Vec<Size>,
    /// `xds`: how often the servers take turns
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    turns: u32,
    /// `xds`: the proxies connect with TLS and present certificates; without go-control-plane
    #[arg(long)]
    tls: bool,
    /// `xds`: how many changes are watched during 1,000 others each second
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    flood_changes: u32,
    /// `xds`: omit the worlds without proxies
    #[arg(long)]
    no_worlds: bool,
    /// `xds`: omit worlds of more instances
    #[arg(long, default_value_t = 100_000)]
    world_max: usize,
    /// The benchmark's call of itself: one world, in a separate process
    #[arg(long, hide = true)]
    pub(crate) world_of: Option<usize>,
}

impl Options {
    /// Enough to see that it works.
    pub(crate) fn smoke() -> Options {
        Options {
            streams: vec![20],
            sizes: vec![Size::Small],
            turns: 1,
            flood_changes: 5,
            tls: false,
            no_worlds: false,
            world_max: 1_000,
            world_of: None,
        }
    }
}

/// The size of one assignment.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Size {
    #[value(name = "0.7kb")]
    Small,
    #[value(name = "10kb")]
    Large,
}

impl Size {
    fn shape(self) -> Shape {
        Shape {
            clusters: CLUSTERS,
            endpoints: match self {
                Size::Small => 20,
                Size::Large => 340,
            },
        }
    }

    /// The ending of its figures' names.
    fn suffix(self) -> &'static str {
        match self {
            Size::Small => "",
            Size::Large => "_10kb",
        }
    }
}

/// The figures with this number of proxies.
struct Case {
    streams: usize,
    size: Size,
    tls: bool,
    against: Against,
    ours: Seen,
    peer: Option<Seen>,
    reconnected: Reconnected,
}

impl Case {
    /// The ending of its figures' names.
    fn suffix(&self) -> String {
        let tls = if self.tls { "_tls" } else { "" };
        format!("{}{tls}", self.size.suffix())
    }
}

pub(crate) use world::measure as measure_world;

/// Measures beside this peer.
pub(crate) async fn run(options: &Options, against: Against) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    if !options.no_worlds {
        figures.extend(world::run(options.world_max).await?);
    }
    let most = options.streams.iter().max().copied().unwrap_or_default();
    raise_limit(u64::from(most))?;
    if against == Against::GoControlPlane && e2e::paths::xds_peer().is_none() {
        println!(
            "\nxds: go-control-plane is left out, since it could not be built: `cargo xtask setup --bench` says why"
        );
    }
    for size in &options.sizes {
        for streams in &options.streams {
            let case = case(*streams as usize, *size, options, against).await;
            let case = case.with_context(|| format!("with {streams} proxies"))?;
            report::print(&case);
            figures.extend(report::figures(&case));
        }
    }
    Ok(figures)
}

/// Both servers' connections end here, and each server has one side of them; children inherit the
/// limit.
fn raise_limit(streams: u64) -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = 2 * streams + OTHER_FILES;
    ensure!(
        hard >= wanted,
        "{streams} proxies on two servers take {wanted} open files, the limit is {hard}: raise it (`ulimit -Hn`), or use \
         fewer `--streams`"
    );
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

async fn case(streams: usize, size: Size, options: &Options, against: Against) -> Result<Case> {
    let Options { turns, tls, .. } = *options;
    println!("\nxds: connecting {streams} proxies to each server");
    let (workdir, shape) = (Workdir::temporary()?, size.shape());
    let server = Server::Ours(Box::new(Ours::start(workdir.path(), shape, tls).await?));
    let mut ours = Contender::subscribe(server, shape, streams).await?;
    let server = match (tls, against) {
        (true, _) => None,
        (false, Against::GoControlPlane) => {
            let peer = Peer::start(workdir.path(), shape).await?;
            peer.map(Server::Peer)
        }
        (false, Against::Istio) => {
            let istio = Istio::start(workdir.path(), shape).await?;
            Some(Server::Istio(Box::new(istio)))
        }
    };
    let mut peer = match server {
        None => None,
        Some(server) => Some(Contender::subscribe(server, shape, streams).await?),
    };
    // istiod adds metadata to each endpoint.
    if let Some(peer) = peer.as_ref().filter(|_| against == Against::GoControlPlane) {
        ensure_alike(&ours.seen, &peer.seen)?;
    }
    let ticks = if streams > 1_000 { 10 } else { 20 };
    println!("xds: {turns} turns of {ticks} changes");
    for contender in [Some(&mut ours), peer.as_mut()].into_iter().flatten() {
        contender.ticks(WARM_UP).await?;
        contender.forget();
    }
    for turn in 0..turns as usize {
        let mut order = [Some(&mut ours), peer.as_mut()];
        if turn % 2 == 1 {
            order.reverse();
        }
        for contender in order.into_iter().flatten() {
            contender.ticks(ticks).await?;
            if turn < BURSTS {
                contender.burst().await?;
            }
        }
    }
    for contender in [Some(&mut ours), peer.as_mut()].into_iter().flatten() {
        if against == Against::GoControlPlane {
            contender.flood(options.flood_changes as usize).await?;
        }
        contender.finish()?;
    }
    // It ends before ours reconnects all its proxies.
    let peer = peer.map(|contender| contender.seen);
    let reconnected = ours.reconnect().await?;
    Ok(Case {
        streams,
        size,
        tls,
        against,
        ours: ours.seen,
        peer,
        reconnected,
    })
}
