//! The processes that run during the second act.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use e2e::cells::Cells;
use e2e::config::{Config, StoreConfig, ZONES};
use e2e::control_plane::ControlPlane;
use e2e::envoy::{Envoy, Options};
use e2e::etcd::Etcd;
use e2e::history::{Authority, Collector, History, check};
use e2e::registry::{Instance, InstanceName};
use e2e::relay::Relay;
use e2e::stage::witness::{CELLS, Spans, authority, cell_key};
use e2e::upstream::Server;
use e2e::wait::{PATIENCE, eventually};
use e2e::workdir::Workdir;
use e2e::write_log::{Reader, WriteLog};
use serde_json::json;

use crate::expect::Verdict;
use crate::screen::Screen;
use crate::stage::SERVICE;

/// Short, so that viewers do not wait long.
pub(super) const SPANS: Spans = Spans {
    session_ttl_ms: 4_000,
    grant_ttl_ms: 1_500,
    write_drain_ms: 1_000,
};

/// One zone's part.
struct Zone {
    name: &'static str,
    ingress: SocketAddr,
    gateway: Envoy,
    control_plane: ControlPlane,
    writes: Reader,
    _server: Server,
}

/// Three zones and their common processes. The fields are dropped in order, users before their
/// dependencies.
pub(super) struct Stage {
    zones: Vec<Zone>,
    /// The connection from the first zone's control plane to etcd.
    relay: Relay,
    seen: Collector,
    authority: Authority,
    _etcd: Etcd,
    _workdir: Workdir,
}

impl Stage {
    pub(super) async fn set(screen: &mut Screen) -> Result<Stage> {
        let workdir = Workdir::temporary()?;
        screen.say("starting etcd, and a control plane in every zone");
        let etcd = Etcd::start(workdir.path(), 1).await?;
        let relay = Relay::start(etcd.members()[0].address()).await?;
        let mut stage = Stage {
            zones: vec![],
            seen: Collector::default(),
            authority: Authority::new(etcd.endpoints()),
            relay,
            _etcd: etcd,
            _workdir: workdir,
        };
        for (index, (name, region)) in ZONES.into_iter().enumerate() {
            let endpoints = match index {
                0 => vec![format!("http://{}", stage.relay.address())],
                _ => stage._etcd.endpoints(),
            };
            let zone = stage.start(name, region, endpoints).await?;
            stage.zones.push(zone);
        }
        screen.say("registering instances and gateways");
        for zone in &stage.zones {
            let gateway = InstanceName::new("gateway", zone.name, "one");
            stage.register(&gateway, zone.ingress).await?;
        }
        Ok(stage)
    }

    async fn start(
        &self,
        name: &'static str,
        region: &str,
        endpoints: Vec<String>,
    ) -> Result<Zone> {
        let directory = self._workdir.path().join(name);
        fs::create_dir_all(&directory)?;
        let service = json!({
            "name": SERVICE,
            "routes": [{ "prefix": "/orders" }],
            "fenced": true,
            "cell_key": cell_key(),
        });
        let mut config = Config::new(StoreConfig::Etcd { endpoints }, vec![service]);
        let mut authority = authority(SPANS, "enforce");
        // The zone that this replica serves.
        authority["zones"] = json!([name]);
        for at in 0..CELLS.len() {
            authority["cells"][at]["forward"] = json!("region");
        }
        config.authority = Some(authority);
        let control_plane = ControlPlane::start(&directory, config).await?;
        let log = directory.join("writes");
        let instance = InstanceName::new(SERVICE, name, "one");
        let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let writes = Some(WriteLog::open(&log)?);
        let server = Server::start_with(instance.clone(), any_port, writes).await?;
        register(&control_plane, &instance, server.address()).await?;
        let options = Options::gateway(region, name);
        let gateway = Envoy::start(&directory, &options, control_plane.xds()).await?;
        Ok(Zone {
            name,
            ingress: gateway.ingress().await?,
            gateway,
            control_plane,
            writes: Reader::new(log),
            _server: server,
        })
    }

    async fn register(&self, name: &InstanceName, at: SocketAddr) -> Result<()> {
        let first = self.zones.first().context("no zone")?;
        register(&first.control_plane, name, at).await
    }

    /// The gateways' zones and addresses.
    pub(super) fn gateways(&self) -> impl Iterator<Item = (&'static str, SocketAddr)> {
        self.zones.iter().map(|zone| (zone.name, zone.ingress))
    }

    /// Cuts the first zone's control plane off from etcd, or reconnects it.
    pub(super) fn cut(&self, cut: bool) {
        self.relay.cut(cut);
    }

    /// A control plane that is never cut off.
    fn cells(&self) -> Result<Cells> {
        let last = self.zones.last().context("no zone")?;
        Ok(Cells::new(last.control_plane.admin()))
    }

    /// The epoch of each cell.
    pub(super) async fn epochs(&self) -> Result<[u64; CELLS.len()]> {
        let cells = self.cells()?;
        eventually(PATIENCE, "epochs", async || {
            let mut epochs = [0; CELLS.len()];
            for (epoch, (cell, ..)) in epochs.iter_mut().zip(CELLS) {
                *epoch = cells.get(cell).await?.epoch;
                ensure!(*epoch > 0, "none yet");
            }
            Ok(epochs)
        })
        .await
    }

    pub(super) async fn move_to(&self, cell: &str, zone: &str) -> Result<()> {
        let cells = self.cells()?;
        eventually(PATIENCE, "the move", async || {
            cells.move_to(cell, zone, "the demo").await
        })
        .await
    }

    pub(super) async fn override_to(&self, cell: &str, zone: &str) -> Result<()> {
        let cells = self.cells()?;
        eventually(PATIENCE, "the override", async || {
            cells.override_to(cell, zone, "the demo").await
        })
        .await
    }

    /// Whether two zones ever wrote at once, by all writes that the instances have seen so far.
    pub(super) async fn judge(&mut self) -> Result<Verdict> {
        for zone in &mut self.zones {
            self.seen.add(zone.writes.more()?);
        }
        self.authority.read().await?;
        let report = check(&History {
            writes: self.seen.writes().to_vec(),
            authority: self.authority.records().clone(),
            pauses: vec![],
        });
        Ok(Verdict {
            passed: report.violations() == 0 && report.writes > 0,
            text: format!("no two zones ever wrote at once: {report}"),
        })
    }

    pub(super) fn logs(&self) -> String {
        let processes = self.zones.iter().flat_map(|zone| {
            [
                zone.control_plane.process().tail(),
                zone.gateway.process().tail(),
            ]
        });
        processes.collect::<Vec<_>>().join("\n")
    }
}

async fn register(control_plane: &ControlPlane, name: &InstanceName, at: SocketAddr) -> Result<()> {
    let record = Instance::at(at);
    // Permanently: this act is not about registration.
    let put = control_plane.registry().put(name, &record, None).await?;
    ensure!(put.status.is_success(), "{}", put.text());
    Ok(())
}
