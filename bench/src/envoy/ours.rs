//! A real `tidegate serve` on a real etcd.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use e2e::config::{Config, StoreConfig};
use e2e::control_plane::ControlPlane;
use e2e::etcd::Etcd;
use e2e::registry::{Health, Instance, InstanceName};
use e2e::wait::eventually;
use etcd_client::{KvClient, Txn, TxnOp};
use serde_json::json;

use super::PATIENCE;
use super::shape::{HERE, NEAR, PROBE, Places, Shape, host};

/// etcd rejects a transaction of more than 128 operations.
const OPS_MAX: usize = 100;

pub(super) struct Ours {
    control_plane: ControlPlane,
    kv: KvClient,
    _etcd: Etcd,
    places: Places,
    at: usize,
}

impl Ours {
    pub(super) async fn start(directory: &Path, shape: Shape, places: Places) -> Result<Ours> {
        let etcd = Etcd::start(directory, 1).await?;
        let mut kv = etcd.client().await?.kv_client();
        let puts = shape.groups().flat_map(|group| {
            let at = group.addresses.into_iter().enumerate();
            let (service, zone) = (group.service, group.zone);
            at.map(move |(index, address)| {
                let name = InstanceName::new(&service, zone, &format!("instance-{index:02}"));
                put(&name, &Instance::at(address))
            })
        });
        let mut some = Vec::with_capacity(OPS_MAX);
        for put in puts.chain([put(
            &InstanceName::new(PROBE, NEAR, "near"),
            &Instance::at(places.near),
        )]) {
            some.push(put?);
            if some.len() == OPS_MAX {
                let full = std::mem::replace(&mut some, Vec::with_capacity(OPS_MAX));
                kv.txn(Txn::new().and_then(full)).await?;
            }
        }
        kv.txn(Txn::new().and_then(some)).await?;
        let services = shape.names().chain([PROBE.to_owned()]).map(
            |name| json!({ "name": name, "routes": [{ "host": host(&name), "prefix": "/" }] }),
        );
        let store = StoreConfig::Etcd {
            endpoints: etcd.endpoints(),
        };
        let config = Config {
            bare: true,
            ..Config::new(store, services.collect())
        };
        let control_plane = ControlPlane::launch(directory, config).await?;
        let mut ours = Ours {
            control_plane,
            kv,
            _etcd: etcd,
            places,
            at: 0,
        };
        ours.place(0).await?;
        let registry = ours.control_plane.registry();
        let registered = f64::from(shape.instances() + 2);
        let ready = eventually(PATIENCE, "all instances to be taken in", async || {
            registry.ready().await?;
            let known = registry.metric("tidegate_instances").await?;
            ensure!(known >= registered, "{known} of {registered}");
            Ok(())
        });
        let process = ours.control_plane.process();
        process.unless_it_ends(ready).await?;
        Ok(ours)
    }

    pub(super) fn xds(&self) -> SocketAddr {
        self.control_plane.xds()
    }

    pub(super) async fn place(&mut self, at: usize) -> Result<()> {
        self.at = at;
        self.plan(false).await
    }

    pub(super) async fn plan(&mut self, away: bool) -> Result<()> {
        let address = self.places.here.get(self.at).context("no such place")?;
        let mut instance = Instance::at(*address);
        if away {
            instance.health = Health::Unhealthy;
        }
        let put = put(&InstanceName::new(PROBE, HERE, "here"), &instance)?;
        self.kv.txn(Txn::new().and_then(vec![put])).await?;
        Ok(())
    }
}

fn put(name: &InstanceName, instance: &Instance) -> Result<TxnOp> {
    Ok(TxnOp::put(name.key(), serde_json::to_vec(instance)?, None))
}
