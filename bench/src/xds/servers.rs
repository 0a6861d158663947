//! The two measured servers, and how each gets a change.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use e2e::certificates::{self, Ca};
use e2e::config::{Config, StoreConfig, region_of};
use e2e::control_plane::ControlPlane;
use e2e::etcd::Etcd;
use e2e::paths;
use e2e::process::Process;
use e2e::registry::{Health, Instance, InstanceName};
use e2e::wait::{PATIENCE, eventually};
use etcd_client::{KvClient, Txn, TxnOp};
use serde::Deserialize;
use serde_json::json;

use super::fleet::Interest;
use super::flood::Way;
use super::istio::{self, Istio};
use super::link::{SERVER_NAME, Security};
use crate::usage::Usage;

/// The zone of all proxies and endpoints.
pub(super) const ZONE: &str = "shanghai-a";

/// The port of every endpoint that has not moved.
pub(super) const PORT: u16 = 8080;
/// etcd rejects a transaction of more than 128 operations.
const OPS_MAX: usize = 100;

/// The resources that both serve.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) clusters: usize,
    /// The number of endpoints in each of them.
    pub(super) endpoints: usize,
}

impl Shape {
    /// The names of the resources.
    pub(super) fn names(&self) -> Vec<String> {
        let names = (0..self.clusters).map(|cluster| format!("{}/{ZONE}", service(cluster)));
        names.collect()
    }
}

pub(super) fn service(cluster: usize) -> String {
    format!("service-{cluster:05}")
}

/// The endpoints that move to another port.
#[derive(Clone, Copy)]
pub(super) enum Change {
    /// The first one of this cluster.
    One(usize),
    /// The first one of every cluster.
    All,
}

/// One of the measured servers.
pub(super) enum Server {
    Ours(Box<Ours>),
    Peer(Peer),
    Istio(Box<Istio>),
}

impl Server {
    pub(super) fn xds(&self) -> SocketAddr {
        match self {
            Server::Ours(ours) => ours.control_plane.xds(),
            Server::Peer(peer) => peer.addresses.xds,
            Server::Istio(istio) => istio.xds(),
        }
    }

    /// What a proxy says it is, and what it subscribes to.
    pub(super) fn interest(&self, shape: Shape) -> Interest {
        let is_istio = matches!(self, Server::Istio(_));
        Interest {
            node: if is_istio { istio::NODE } else { "simulated" },
            region: region_of(ZONE).to_owned(),
            zone: ZONE.to_owned(),
            names: match is_istio {
                true => istio::names(shape),
                false => shape.names(),
            },
            repeats: is_istio,
        }
    }

    /// The security of the proxies' connections.
    pub(super) fn security(&self) -> Result<Security> {
        let certificates = match self {
            Server::Ours(ours) => ours.certificates.as_deref(),
            Server::Peer(_) | Server::Istio(_) => None,
        };
        certificates.map_or(Ok(Security::PlainText), Security::tls)
    }

    pub(super) fn usage(&self) -> Usage {
        Usage::of(match self {
            Server::Ours(ours) => ours.control_plane.process().pid(),
            Server::Peer(peer) => peer.process.pid(),
            Server::Istio(istio) => istio.process().pid(),
        })
    }

    /// Makes a change: ours gets it from etcd, the peer over its control connection.
    pub(super) async fn change(&mut self, change: Change) -> Result<()> {
        match self {
            Server::Ours(ours) => ours.change(change).await,
            Server::Peer(peer) => peer.change(change),
            Server::Istio(istio) => istio.change(change).await,
        }
    }

    /// Another way for changes besides [`change`](Server::change).
    pub(super) fn way(&self) -> Result<Way> {
        Ok(match self {
            Server::Ours(ours) => Way::Etcd(Box::new(ours.kv.clone())),
            Server::Peer(peer) => Way::Control(peer.control.try_clone()?),
            Server::Istio(_) => bail!("an API server does not take a thousand changes a second"),
        })
    }

    /// The end of its output, for a failure.
    pub(super) fn tail(&self) -> String {
        match self {
            Server::Ours(ours) => ours.control_plane.process().tail(),
            Server::Peer(peer) => peer.process.tail(),
            Server::Istio(istio) => istio.process().tail(),
        }
    }
}

/// A real `tidegate serve` on a real etcd.
pub(super) struct Ours {
    control_plane: ControlPlane,
    kv: KvClient,
    _etcd: Etcd,
    /// The proxies' certificates; none with plaintext.
    certificates: Option<PathBuf>,
    shape: Shape,
    moves: u16,
}

impl Ours {
    pub(super) async fn start(directory: &Path, shape: Shape, tls: bool) -> Result<Ours> {
        let etcd = Etcd::start(directory, 1).await?;
        let mut kv = etcd.client().await?.kv_client();
        let at = |cluster| (0..shape.endpoints).map(move |index| (cluster, index));
        let all: Vec<(usize, usize)> = (0..shape.clusters).flat_map(at).collect();
        for some in all.chunks(OPS_MAX) {
            let puts = some
                .iter()
                .map(|(cluster, index)| put(*cluster, *index, PORT));
            let puts = puts.collect::<Result<Vec<TxnOp>>>()?;
            kv.txn(Txn::new().and_then(puts)).await?;
        }
        let services = (0..shape.clusters).map(|cluster| {
            let name = service(cluster);
            json!({ "name": name, "routes": [{ "prefix": format!("/{name}") }] })
        });
        let store = StoreConfig::Etcd {
            endpoints: etcd.endpoints(),
        };
        let mut config = Config::new(store, services.collect());
        let mut certificates = None;
        if tls {
            let ca = Ca::new("bench")?;
            let of = |name| directory.join(name);
            ca.issue(&of("server"), SERVER_NAME, &[&ca])?;
            ca.issue(&of("proxy"), "spiffe://bench/proxy", &[&ca])?;
            config.listen = certificates::listen(&of("server"), &["admin"]);
            certificates = Some(of("proxy"));
        }
        Ok(Ours {
            control_plane: ControlPlane::start(directory, config).await?,
            kv,
            _etcd: etcd,
            certificates,
            shape,
            moves: 0,
        })
    }

    async fn change(&mut self, change: Change) -> Result<()> {
        self.moves += 1;
        let port = PORT + self.moves;
        let puts = match change {
            Change::One(cluster) => vec![put(cluster, 0, port)?],
            Change::All => (0..self.shape.clusters)
                .map(|cluster| put(cluster, 0, port))
                .collect::<Result<_>>()?,
        };
        self.kv.txn(Txn::new().and_then(puts)).await?;
        Ok(())
    }

    /// Kills it, like a crash.
    pub(super) fn kill(&self) -> Result<()> {
        self.control_plane.process().kill()
    }

    /// Restarts it at its address, and waits until it listens.
    pub(super) async fn begin(&mut self) -> Result<()> {
        self.control_plane.begin().await
    }
}

/// The put of one instance's record.
pub(super) fn put(cluster: usize, index: usize, port: u16) -> Result<TxnOp> {
    let name = InstanceName::new(&service(cluster), ZONE, &format!("instance-{index:05}"));
    let instance = Instance {
        address: format!("10.{}.{}.{}", cluster % 250, index / 250, index % 250),
        port,
        health: Health::Healthy,
        weight: 1,
        load1_per_core: None,
    };
    Ok(TxnOp::put(name.key(), serde_json::to_vec(&instance)?, None))
}

/// go-control-plane's LinearCache, see `peer/main.go`.
pub(super) struct Peer {
    process: Process,
    addresses: Addresses,
    control: TcpStream,
    moves: u16,
}

#[derive(Deserialize)]
struct Addresses {
    xds: SocketAddr,
    control: SocketAddr,
}

impl Peer {
    /// None if the program is missing: provisioning has reported the cause.
    pub(super) async fn start(directory: &Path, shape: Shape) -> Result<Option<Peer>> {
        let Some(program) = paths::xds_peer() else {
            return Ok(None);
        };
        let file = directory.join("peer.json");
        let arguments = [
            format!("--clusters={}", shape.clusters),
            format!("--endpoints={}", shape.endpoints),
            format!("--region={}", region_of(ZONE)),
            format!("--zone={ZONE}"),
            format!("--addresses-file={}", file.display()),
        ];
        let process = Process::start(directory, "go-control-plane", &program, &arguments)?;
        let listens = eventually(PATIENCE, "go-control-plane to listen", async || {
            let text = fs::read_to_string(&file).context("no addresses file")?;
            let addresses: Addresses = serde_json::from_str(&text).context(text)?;
            Ok(addresses)
        });
        let addresses = process.unless_it_ends(listens).await?;
        let control = TcpStream::connect(addresses.control)?;
        control.set_nodelay(true)?;
        Ok(Some(Peer {
            process,
            addresses,
            control,
            moves: 0,
        }))
    }

    fn change(&mut self, change: Change) -> Result<()> {
        self.moves += 1;
        let port = PORT + self.moves;
        let line = match change {
            Change::One(cluster) => format!("one {cluster} {port}\n"),
            Change::All => format!("all {port}\n"),
        };
        Ok(self.control.write_all(line.as_bytes())?)
    }
}
