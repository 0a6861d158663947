//! `tidegate`: the command line of the control plane and of the agent.

use std::{
    ffi::OsString,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use clap::{Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use registry::store::{EmbeddedOptions, EmbeddedStore, EtcdOptions, EtcdStore, Store};
use tokio::{
    net::{TcpListener, TcpSocket},
    signal::unix::SignalKind,
    sync::mpsc,
};
use tonic::service::Routes;
use tracing::{error, info, warn};
use xds::{csds, transport::Services};
use xds_server::{
    access::AccessRules,
    admin::{self, Admin, LeaseOwners},
    agent_port,
    applied::{self, Applied},
    authority::{
        self, Agreements, Authorities, Boottime, HopKeys,
        peers::{self, Network, Peers, Reach},
    },
    compaction::Compactor,
    conditions::{self, Code, page},
    config::{Config, Listen, PortConfig, StoreConfig},
    connections::{Admission, Listener, Refusals},
    discovery::{ZoneViews, proxies::Proxies},
    feed::{self, Sources},
    last_good::{self, Keeper, LastGood},
    load_reports::{LoadReports, Loads},
    logging::{self, LeftOut},
    memory,
    metrics::Metrics,
    mode::Mode,
    operate::{Operation, failure},
    proxy_port, reload,
    replicas::Replicas,
    start::Start,
    tls::{Acceptor, Dialer, Port, Tls},
};

/// Keeps a service that runs in several data centres correct and available while one of them fails.
///
/// Log lines go to standard error; RUST_LOG chooses them (default: info).
#[derive(Parser)]
#[command(version, max_term_width = 100, after_help = failure::EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the control plane: watch the store, serve xDS to the proxies.
    Serve {
        /// The YAML file with topology and services. Changes to it take effect while running; what is wrong in it is
        /// reported and ignored.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The zone that this replica speaks for: it grants writes to that zone's proxies. In place of `authority.zones`.
        #[arg(long, value_name = "ZONE")]
        zone: Option<String>,
        /// Write the addresses that are listened on to this file, as JSON, once they are: for ports chosen by the kernel.
        #[arg(long, value_name = "FILE")]
        addresses_file: Option<PathBuf>,
        /// On SIGTERM, first move the cells to a standby zone that no other replica of this zone can grant writes for. Without
        /// it they stay, and the zone has as long to come back as a session lasts.
        #[arg(long)]
        hand_over: bool,
        /// Log as JSON.
        #[arg(long)]
        log_json: bool,
    },
    /// Run the agent: probe instances beside it, keep them registered, drain them on SIGTERM.
    Agent {
        /// The agent's YAML file. Changes to it take effect with a restart.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Check the file and end: exit status 0 if it is good, 1 with file, line and field if not.
        #[arg(long)]
        check: bool,
        /// Leave the records to the next agent on SIGTERM, for as long as their lease lasts: for an upgrade beside instances
        /// that go on. Drain them by `POST /v1/drain/...` before these end.
        #[arg(long)]
        keep: bool,
        /// Write the address that is listened on to this file, as JSON: for a port chosen by the kernel.
        #[arg(long, value_name = "FILE")]
        addresses_file: Option<PathBuf>,
        /// Log as JSON.
        #[arg(long)]
        log_json: bool,
    },
    /// Check a configuration file and end: exit status 0 if `serve` would start by it, 1 with file, line and field if not.
    Check {
        /// The YAML file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// As `serve` is to have it.
        #[arg(long, value_name = "ZONE")]
        zone: Option<String>,
    },
    /// The codes of conditions and safety rules, and what to do about each.
    Codes {
        /// Explain this one: TG2001, or its name.
        code: Option<Code>,
        /// Print the page of the documentation.
        #[arg(long, conflicts_with = "code")]
        markdown: bool,
    },
    #[command(flatten)]
    Operate(Operation),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Check { config, zone } => check(&config, zone.as_deref()),
        Command::Agent {
            config,
            check: true,
            ..
        } => agent::check(&config).map(|good| println!("{good}")),
        Command::Agent {
            config,
            keep,
            addresses_file,
            log_json,
            ..
        } => {
            let (_, _lines) = logging::begin(log_json);
            agent(agent::Options {
                config: &config,
                addresses_file: addresses_file.as_deref(),
                keep,
            })
        }
        Command::Serve {
            config,
            zone,
            addresses_file,
            hand_over,
            log_json,
        } => {
            let (left_out, _lines) = logging::begin(log_json);
            let leaving = match hand_over {
                true => Leaving::HandingOver,
                false => Leaving::ToComeBack,
            };
            serve(config, zone, addresses_file, leaving, left_out)
        }
        Command::Codes { code, markdown } => {
            print!("{}", codes(code, markdown));
            Ok(())
        }
        Command::Operate(operation) => operate(&operation),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tidegate: {error:#}");
            ExitCode::from(failure::exit_code(&error))
        }
    }
}

fn check(config: &Path, zone: Option<&str>) -> anyhow::Result<()> {
    let (config, _) = reload::read(config)?;
    for warning in &config.warnings {
        println!("warning: {warning}");
    }
    Start::of(&config, zone, state_directory().as_deref())?;
    let mesh = &config.mesh;
    println!(
        "good: {} zones, {} services. The filter and the certificates that it names were not looked at",
        mesh.topology.zones().len(),
        mesh.services.len()
    );
    Ok(())
}

fn codes(code: Option<Code>, markdown: bool) -> String {
    match (code, markdown) {
        (Some(code), _) => page::explain(code),
        (None, true) => page::markdown(),
        (None, false) => page::list(),
    }
}

#[tokio::main]
async fn operate(operation: &Operation) -> anyhow::Result<()> {
    operation.run().await
}

#[tokio::main]
async fn agent(options: agent::Options<'_>) -> anyhow::Result<()> {
    agent::run(options, agent_port::serve).await
}

#[tokio::main]
async fn serve(
    path: PathBuf,
    zone: Option<String>,
    addresses_file: Option<PathBuf>,
    leaving: Leaving,
    left_out: LeftOut,
) -> anyhow::Result<()> {
    allow_many_files();
    let (config, text) = reload::read(&path)?;
    let Start { zones, state } = Start::of(&config, zone.as_deref(), state_directory().as_deref())?;
    let terms = config.mesh.authority.as_ref().map(|a| a.terms.clone());
    let store = open_store(&config.store).await?;
    let metrics = Metrics::default();
    let ports = Ports::open(&config.listen, &metrics)?;
    let (xds_address, admin_address) = ports.addresses()?;
    let fences = terms.is_some();
    let (peers, network) = start_peers(
        &config,
        fences,
        xds_address,
        ports.dialer.clone(),
        metrics.clone(),
    );
    let fence_store = store.clone();
    let compactor = compacts(&config.store).zip(store.etcd.clone());
    let store = store.shared;

    let (keeper, last_good) = open_state(state.as_deref(), &metrics)?;
    let mode = Mode::new(metrics.clone());
    tokio::spawn(mode.clone().probe_writes(Arc::clone(&store)));
    tokio::spawn(mode.clone().watch_alarms(Arc::clone(&store)));
    let proxies = Proxies::default();
    let loads = Loads::default();
    let mut registry = metrics.registry();
    registry.register_collector(Box::new(loads.clone()));
    registry.register_collector(Box::new(left_out));
    let registry = Arc::new(registry);
    let (xds_config, xds_port) = (config.xds, config.listen.xds);
    let is_shared = matches!(config.store, StoreConfig::Etcd { .. });
    let agreements = Agreements::default();
    if terms.is_some() {
        tokio::spawn(authority::slew::watch(agreements.clone(), metrics.clone()));
    }
    let meshes = reload::follow(path, config, text, agreements.clone(), metrics.clone());
    tokio::spawn(memory::give_back());
    let gate = AccessRules::new(meshes.clone());
    let hop_keys = HopKeys::new(meshes.clone(), gate.clone());
    tokio::spawn(authority::watch_guard(
        meshes.clone(),
        xds_port,
        metrics.conditions.clone(),
    ));
    if is_shared {
        let store = Arc::clone(&store);
        let replicas = Replicas::new(store, process_name(), draw(), mode.clone(), &metrics);
        tokio::spawn(replicas.run(meshes.clone()));
    }
    let rules = authority::follow(meshes.clone(), authority::remembered(last_good.as_ref()));
    let (facts, told) = mpsc::channel(authority::FACTS_MAX);
    let feed = feed::start(Sources {
        store: Arc::clone(&store),
        meshes,
        facts: terms.is_some().then_some(facts),
        last_good,
        keeper: keeper.clone(),
        mode: mode.clone(),
        metrics: metrics.clone(),
    });
    if let Some((keep, etcd)) = compactor {
        let compactor = Compactor::new(etcd, keep, process_name(), mode.clone(), metrics.clone());
        tokio::spawn(compactor.run(feed.followed.clone()));
    }
    let authorities = match &terms {
        None => Authorities::none(),
        Some(terms) => authority::start(authority::Sources {
            store: Box::new(move |request_timeout| fence_store.within(request_timeout)),
            peers,
            facts: told,
            zones,
            terms: terms.clone(),
            agreements: agreements.clone(),
            rules,
            overviews: feed.overviews.clone(),
            refusals: {
                let proxies = proxies.clone();
                Box::new(move |node| proxies.clients().refusal_of(node))
            },
            clock: Arc::new(Boottime),
            draw: Box::new(draw),
            process: process_name(),
            mode: mode.clone(),
            metrics: metrics.clone(),
        }),
    };
    let views = ZoneViews::new(feed.snapshots.clone(), proxies.clone(), metrics.clone())
        .among(authorities.homes().clone());
    let load_reports = LoadReports::new(
        feed.snapshots.clone(),
        loads,
        xds_config.load_report_interval,
    )
    .among(authorities.homes().clone());
    let applied = Applied::default();
    let fence = authority::service(authorities.clone(), gate.clone(), hop_keys, metrics.clone());
    tokio::spawn(conditions::proxies::watch(
        proxies.clone(),
        applied.clone(),
        feed.snapshots.clone(),
        metrics.clone(),
    ));
    let others = Routes::new(fence)
        .add_service(load_reports.behind(gate.clone()).into_service())
        .add_service(peers::service(network))
        .add_service(applied::service(applied.clone()))
        .add_service(csds::service(proxies.clients().clone()));
    let router = Admin {
        store,
        mode,
        authorities: authorities.clone(),
        agreements: agreements.clone(),
        feed,
        proxies,
        applied,
        counts: metrics,
        metrics: registry,
        gate: gate.clone(),
        owners: LeaseOwners::default(),
    }
    .router();
    let discovery = views.behind(gate).into_server();
    let xds_server = proxy_port::serve(ports.xds, Services::new(discovery, others));
    let admin_server = admin::serve(ports.admin, router);

    info!(xds = %xds_address, admin = %admin_address, "listening");
    if let Some(file) = addresses_file {
        write_addresses(&file, xds_address, admin_address)?;
    }
    let mut terminate = tokio::signal::unix::signal(SignalKind::terminate())?;
    let mut interrupt = tokio::signal::unix::signal(SignalKind::interrupt())?;
    let servers = async {
        tokio::select! {
            () = xds_server => Err(anyhow::anyhow!("the xDS server ended")),
            () = admin_server => Err(anyhow::anyhow!("the admin server ended")),
        }
    };
    tokio::pin!(servers);
    let ended = tokio::select! {
        ended = &mut servers => ended,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    info!("stopping; the proxies keep what they have");
    if let Some(configured) = terms.filter(|_| ended.is_ok()) {
        let terms = agreements.terms(&configured);
        // Until nothing that was granted here is in use any more, so that no other zone has to wait for it. Proxies are sent
        // to another replica of the zone. A second signal ends it at once, which is as safe.
        let enough = terms.stretch(terms.grant_ttl + terms.write_drain_waited);
        let enough = Duration::from_micros(enough) + Duration::from_secs(1);
        let leave = async {
            if leaving == Leaving::HandingOver {
                // What has not moved by then is left as it is, and taken over later.
                let _ = tokio::time::timeout(enough, authorities.hand_over()).await;
            }
            let _ = tokio::time::timeout(enough, authorities.stop()).await;
        };
        tokio::select! {
            () = leave => {}
            _ = &mut servers => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
    // Streams to proxies never end by themselves, so there is nothing else to wait for.
    keeper.stop().await;
    ended
}

/// What becomes of the cells of a process that ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leaving {
    /// They stay.
    ToComeBack,
    /// They move to another zone first.
    HandingOver,
}

/// Where systemd has a service keep its state.
fn state_directory() -> Option<OsString> {
    #[allow(clippy::disallowed_methods, reason = "systemd names the directory so")]
    std::env::var_os("STATE_DIRECTORY")
}

/// A number that no other incarnation has: std seeds each hasher from the system's randomness.
fn draw() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}

/// `host:process id`, for people.
fn process_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}:{}", host.trim(), std::process::id())
}

/// The way to other replicas. One process that has a store of its own needs none.
fn start_peers(
    config: &Config,
    fences: bool,
    xds_address: SocketAddr,
    dialer: Dialer,
    metrics: Metrics,
) -> (Peers, Network) {
    let StoreConfig::Etcd { endpoints, .. } = &config.store else {
        return (Peers::none(), Network::none());
    };
    if !fences {
        return (Peers::none(), Network::none());
    }
    let listen = &config.listen;
    let (advertise, name) = (
        listen.advertise.as_deref(),
        listen.advertise_name.as_deref(),
    );
    let mut reach = Reach::of(xds_address, advertise, name, endpoints);
    if name.is_none() {
        reach.server_name = dialer.own_name(&reach.server_name);
    }
    info!(
        address = reach.address,
        server_name = reach.server_name,
        "other replicas reach this one here"
    );
    Peers::start(reach, dialer, metrics)
}

/// The store, as the whole process shares it.
#[derive(Clone)]
struct OpenStore {
    shared: Arc<dyn Store>,
    etcd: Option<EtcdStore>,
}

impl OpenStore {
    /// The same one, asked with less patience.
    fn within(&self, request_timeout: Duration) -> Arc<dyn Store> {
        match &self.etcd {
            Some(etcd) => Arc::new(etcd.within(request_timeout)),
            None => Arc::clone(&self.shared),
        }
    }
}

async fn open_store(config: &StoreConfig) -> anyhow::Result<OpenStore> {
    Ok(match config {
        StoreConfig::Embedded { path } => {
            let store = EmbeddedStore::open(EmbeddedOptions::new(path)).await;
            OpenStore {
                shared: Arc::new(store.context("store.embedded")?),
                etcd: None,
            }
        }
        StoreConfig::Etcd { endpoints, .. } => {
            let store = EtcdStore::new(EtcdOptions::new(endpoints.clone())).await;
            let store = store.context("store.etcd")?;
            OpenStore {
                shared: Arc::new(store.clone()),
                etcd: Some(store),
            }
        }
    })
}

/// How long etcd's history is kept, where this process compacts it.
fn compacts(config: &StoreConfig) -> Option<Duration> {
    match config {
        StoreConfig::Etcd { keep_history, .. } => *keep_history,
        StoreConfig::Embedded { .. } => None,
    }
}

/// What was known before, and who keeps what is known from now on. A file that is no state is put aside.
fn open_state(
    path: Option<&Path>,
    metrics: &Metrics,
) -> anyhow::Result<(Keeper, Option<LastGood>)> {
    let Some(path) = path else {
        warn!(
            "no last good state is kept: after a start without the store nothing can be served, and an emptied store is not noticed. Name a file in `state.path`, or make the directory /var/lib/tidegate"
        );
        return Ok((Keeper::none(), None));
    };
    let file = path.display();
    let last_good = match last_good::read(path) {
        Ok(Some(state)) => {
            info!(%file, records = state.entries.len(), revision = state.revision.0, age = ?state.age(), "last good state read");
            Some(state)
        }
        Ok(None) => {
            info!(%file, "no last good state yet");
            None
        }
        Err(error) => {
            match last_good::set_aside(path) {
                Ok(aside) => {
                    error!(%file, aside = %aside.display(), "the last good state {error}. It is put aside; starting without it");
                }
                Err(aside) => {
                    error!(%file, "the last good state {error}. It cannot be put aside ({aside}), so nothing is kept; starting without it");
                    return Ok((Keeper::none(), None));
                }
            }
            None
        }
    };
    let keeper = Keeper::start(path.to_owned(), last_good.clone(), metrics.clone());
    Ok((keeper, last_good))
}

/// What is listened on.
struct Ports {
    xds: Listener,
    admin: Listener,
    /// Connects to what other replicas have in place of `xds`.
    dialer: Dialer,
}

impl Ports {
    fn open(config: &Listen, metrics: &Metrics) -> anyhow::Result<Ports> {
        let files = config.tls.clone();
        let tls = files.map(|files| Tls::start(files, metrics.clone()));
        let tls = tls.transpose()?;
        let open = |port: Port, of: PortConfig| {
            let (name, address) = (port.as_str(), of.address);
            let tcp = listen(address);
            let tcp = tcp.with_context(|| format!("listen.{name}: cannot listen on {address}"))?;
            let tls = tls.as_ref().filter(|_| of.is_tls);
            anyhow::Ok(Listener {
                tcp,
                port,
                acceptor: tls.map_or_else(Acceptor::plain, |tls| tls.acceptor(port)),
                admission: Admission::new(config.limits),
                refusals: Refusals::default(),
                metrics: metrics.clone(),
            })
        };
        let encrypts = tls.as_ref().filter(|_| config.xds.is_tls);
        Ok(Ports {
            dialer: encrypts.map_or_else(Dialer::plain, Tls::dialer),
            xds: open(Port::Xds, config.xds)?,
            admin: open(Port::Admin, config.admin)?,
        })
    }

    fn addresses(&self) -> std::io::Result<(SocketAddr, SocketAddr)> {
        Ok((self.xds.tcp.local_addr()?, self.admin.tcp.local_addr()?))
    }
}

/// Connections that may wait to be taken, as far as the kernel allows (`net.core.somaxconn`): after a restart all proxies
/// come at once, and those that find no room wait for a second before they try again.
const BACKLOG: u32 = 65_535;

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Each proxy is an open file. What the process may have is seldom what it begins with.
fn allow_many_files() {
    let resource = Resource::RLIMIT_NOFILE;
    let raised = getrlimit(resource).and_then(|(_, hard)| setrlimit(resource, hard, hard));
    if let Err(error) = raised {
        warn!(%error, "cannot raise the number of files that may be open");
    }
}

/// Under another name first: who waits for the file never reads half of it.
fn write_addresses(file: &Path, xds: SocketAddr, admin: SocketAddr) -> anyhow::Result<()> {
    let text = serde_json::json!({ "xds": xds, "admin": admin }).to_string();
    let partial = file.with_extension("partial");
    std::fs::write(&partial, text)
        .and_then(|()| std::fs::rename(&partial, file))
        .with_context(|| format!("cannot write {}", file.display()))
}
