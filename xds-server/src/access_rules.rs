//! The access rules of the configuration in force.

use std::{net::SocketAddr, sync::Arc};

use tokio::sync::watch;

use crate::{
    config::Mesh,
    net::access::{Access, Caller, NotPermitted},
};

/// The rules in force. A change of the configuration applies from the next request or stream on.
/// Cheap to clone.
#[derive(Clone, Default)]
pub struct AccessRules {
    /// None: there are no rules.
    meshes: Option<watch::Receiver<Arc<Mesh>>>,
    /// Proxies come from other machines, so that plain text proves nothing.
    is_remote: bool,
}

impl AccessRules {
    pub fn new(meshes: watch::Receiver<Arc<Mesh>>) -> AccessRules {
        AccessRules {
            meshes: Some(meshes),
            is_remote: false,
        }
    }

    /// The rules of a port that listens on this address.
    pub fn on(self, address: SocketAddr) -> AccessRules {
        AccessRules {
            is_remote: !address.ip().is_loopback(),
            ..self
        }
    }

    /// Whether `caller` may hold grants of this zone as a guest. Somebody else sets guests up, so a
    /// name is not believed without a certificate, but on the machine itself.
    pub fn guest_grants(&self, caller: &Caller, zone: &str) -> Result<(), NotPermitted> {
        if self.is_remote && *caller == Caller::Plain {
            return Err(NotPermitted::PlainGuest {
                zone: zone.to_owned(),
            });
        }
        self.rules().guest_grants(caller, zone)
    }

    /// Whether `caller` may hold leases, which belong to no zone.
    pub fn lease(&self, caller: &Caller) -> Result<(), NotPermitted> {
        let mesh = self.meshes.as_ref().map(|meshes| meshes.borrow().clone());
        let topology = mesh.as_ref().map(|mesh| &mesh.topology);
        let zones = topology
            .iter()
            .flat_map(|topology| topology.zones().map(|zone| topology.zone_name(zone)));
        self.rules().lease(caller, zones)
    }

    /// The current mesh; none if there are no rules.
    pub fn mesh(&self) -> Option<Arc<Mesh>> {
        let meshes = self.meshes.as_ref();
        meshes.map(|meshes| Arc::clone(&meshes.borrow()))
    }

    /// The current rules.
    pub fn rules(&self) -> Arc<Access> {
        let meshes = self.meshes.as_ref();
        meshes.map_or_else(Arc::default, |meshes| Arc::clone(&meshes.borrow().access))
    }
}
