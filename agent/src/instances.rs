//! The agent's instances: one table that probes, loads and drains write and the registrar reads.

use std::collections::BTreeMap;

use registry::record::{Health, Instance, InstanceKey};
use tokio::sync::watch;

use crate::health::ProbeVerdict;
use crate::load::Load;

/// The state of one instance.
#[derive(Clone, Debug, PartialEq)]
pub struct Known {
    /// The record as configured: address, port, weight, capacity.
    pub configured: Instance,
    /// None until the probes have agreed for the first time.
    pub verdict: Option<ProbeVerdict>,
    /// The reason of the last failed probe, while the instance is unhealthy.
    pub reason: Option<String>,
    /// An operator asked for it, by HTTP or by ending the agent.
    pub draining: bool,
    pub load: Load,
}

impl Known {
    /// Before the first probe.
    pub fn new(configured: Instance) -> Known {
        Known {
            configured,
            verdict: None,
            reason: None,
            draining: false,
            load: Load::default(),
        }
    }

    /// The record that should be in the registry. None without a verdict: the instance may be up or
    /// down.
    ///
    /// Draining goes before unhealthy: it was said on purpose.
    pub fn record(&self) -> Option<Instance> {
        let health = match (self.verdict?, self.draining) {
            (_, true) => Health::Draining,
            (ProbeVerdict::Healthy, false) => Health::Healthy,
            (ProbeVerdict::Unhealthy, false) => Health::Unhealthy,
        };
        Some(Instance {
            health,
            load1_per_core: self.load.load1_per_core,
            in_flight: self.load.in_flight.unwrap_or(0),
            app_load: self.load.app_load,
            ..self.configured.clone()
        })
    }
}

/// All instances by key.
pub type Table = BTreeMap<InstanceKey, Known>;

/// The table, and the news that it has changed.
#[derive(Clone, Debug)]
pub struct Instances {
    table: watch::Sender<Table>,
}

impl Instances {
    /// A table of these instances; none comes or goes later.
    pub fn new(table: Table) -> Instances {
        Instances {
            table: watch::Sender::new(table),
        }
    }

    /// The table now and as it changes.
    pub fn subscribe(&self) -> watch::Receiver<Table> {
        self.table.subscribe()
    }

    /// A copy of the table.
    pub fn snapshot(&self) -> Table {
        self.table.borrow().clone()
    }

    /// Changes one instance. Subscribers are woken only if that changed something. False if there
    /// is no such instance.
    pub fn update(&self, key: &InstanceKey, change: impl FnOnce(&mut Known)) -> bool {
        let mut found = false;
        self.table.send_if_modified(|table| {
            let Some(known) = table.get_mut(key) else {
                return false;
            };
            found = true;
            let before = known.clone();
            change(known);
            *known != before
        });
        found
    }

    /// Has all of them drain.
    pub fn drain_all(&self) {
        self.table.send_modify(|table| {
            for known in table.values_mut() {
                known.draining = true;
            }
        });
    }
}
