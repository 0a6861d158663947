//! The services, their instances, and their addresses: the same for all contenders.

use std::net::{Ipv4Addr, SocketAddr};

use e2e::config::ZONES;

/// The zone of the Envoys.
pub(super) const HERE: &str = ZONES[0].0;
/// Another zone of its region.
pub(super) const NEAR: &str = ZONES[1].0;
/// The service with real instances.
pub(super) const PROBE: &str = "probe";
/// The number of a service's instances in a zone.
const INSTANCES: u32 = 20;
const PORT: u16 = 8080;

#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) services: u32,
}

/// The addresses of the probe's instances.
#[derive(Clone, Copy)]
pub(super) struct Places {
    /// The two addresses of the local zone's instance.
    pub(super) here: [SocketAddr; 2],
    pub(super) near: SocketAddr,
}

/// The instances of a service in a zone.
pub(super) struct Group {
    pub(super) service: String,
    pub(super) zone: &'static str,
    pub(super) addresses: Vec<SocketAddr>,
}

impl Shape {
    /// All services except the probe.
    pub(super) fn names(self) -> impl Iterator<Item = String> {
        (0..self.services).map(service)
    }

    /// The instances of all services except the probe.
    pub(super) fn groups(self) -> impl Iterator<Item = Group> {
        (0..self.services).flat_map(|index| {
            ZONES.iter().zip(0..).map(move |((zone, _), at)| Group {
                service: service(index),
                zone,
                addresses: (0..INSTANCES)
                    .map(|instance| {
                        let number = (index * ZONES.len() as u32 + at) * INSTANCES + instance;
                        // From 10.0.1.0, each with its own address.
                        let address = Ipv4Addr::from(0x0a00_0100 + number);
                        SocketAddr::from((address, PORT))
                    })
                    .collect(),
            })
        })
    }

    pub(super) fn instances(self) -> u32 {
        self.services * ZONES.len() as u32 * INSTANCES
    }
}

fn service(index: u32) -> String {
    format!("service-{index:05}")
}

/// The virtual host of a service.
pub(super) fn host(service: &str) -> String {
    format!("{service}.example")
}
