//! The processes that run during the demo.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::client::Request;
use e2e::config::ZONES;
use e2e::envoy::Options;
use e2e::mesh::{Builder, Mesh};
use e2e::process::Process;
use e2e::workdir::Workdir;
use e2e::{mesh, paths};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::Store;
use crate::screen::Screen;

pub(crate) const SERVICE: &str = "orders";
const INSTANCES_PER_ZONE: usize = 2;

/// How long an instance may take to shut down: it drains first.
const LEAVE_MAX: Duration = Duration::from_secs(15);

/// The mesh and the upstreams, which are processes here: they can be stopped like those of a data
/// centre.
pub(crate) struct Stage {
    upstreams: BTreeMap<&'static str, Vec<Process>>,
    pub(crate) mesh: Mesh,
}

impl Stage {
    /// Starts everything, and reports each step.
    pub(crate) async fn set(store: Store, screen: &mut Screen) -> Result<Stage> {
        let store = match store {
            Store::Embedded => {
                screen.say("starting the control plane on the embedded store");
                mesh::Store::Embedded
            }
            Store::Etcd => {
                screen.say("starting etcd and the control plane");
                mesh::Store::Etcd(1)
            }
        };
        let orders = json!({
            "name": SERVICE,
            "routes": [{ "prefix": "/orders" }],
            "weights": { "zone": 80, "region": 20 },
        });
        let mesh = Builder::new(Workdir::temporary()?)
            .store(store)
            .service(orders)
            .start()
            .await?;
        let mut stage = Stage {
            upstreams: BTreeMap::new(),
            mesh,
        };
        for (zone, region) in ZONES {
            screen.say(&format!("starting the gateway Envoy of {zone} ({region})"));
            stage.mesh.add_envoy(Options::gateway(region, zone)).await?;
        }
        for (zone, _) in ZONES {
            screen.say(&format!(
                "starting {INSTANCES_PER_ZONE} instances of {SERVICE} in {zone}"
            ));
            stage.bring_up(zone).await?;
        }
        Ok(stage)
    }

    /// Starts a zone's instances and waits until its gateway sends them requests.
    pub(crate) async fn bring_up(&mut self, zone: &'static str) -> Result<()> {
        let instances = (1..=INSTANCES_PER_ZONE)
            .map(|index| self.start_instance(zone, &format!("{SERVICE}-{zone}-{index}")))
            .collect::<Result<_>>()?;
        self.upstreams.insert(zone, instances);
        let what = format!("a request that an instance in {zone} answers");
        let request = Request::get("/orders").home(zone);
        self.mesh
            .eventually(zone, &what, request, |reply| {
                let answered = reply.echo()?.zone;
                ensure!(answered == zone, "{answered} answered");
                Ok(())
            })
            .await?;
        Ok(())
    }

    /// Asks a zone's instances to shut down, all at once, and waits until they have.
    pub(crate) async fn take_down(&mut self, zone: &str) -> Result<()> {
        let instances = self.upstreams.remove(zone).unwrap_or_default();
        for instance in &instances {
            instance.signal(Signal::SIGTERM)?;
        }
        for instance in &instances {
            let status = instance.ended(LEAVE_MAX).await?;
            ensure!(status.success(), "{status}\n{}", instance.tail());
        }
        Ok(())
    }

    fn start_instance(&self, zone: &str, instance: &str) -> Result<Process> {
        let admin = self.mesh.control_plane.admin().to_string();
        let arguments = [
            "--service",
            SERVICE,
            "--zone",
            zone,
            "--instance",
            instance,
            "--register",
            &admin,
        ]
        .map(str::to_owned);
        let directory = self.mesh.workdir().path();
        Process::start(directory, instance, &paths::upstream()?, &arguments)
            .with_context(|| instance.to_owned())
    }
}
