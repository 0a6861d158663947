//! The sample upstream: a small service that answers with its name, and keeps itself registered.
//!
//! [`Server`] and [`Registration`] can be used alone; [`Upstream`] combines them, and leaves
//! without a failed request. The binary `upstream` and the tests run the same code.

mod registration;
mod server;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::{Instant, sleep, timeout};

use crate::registry::{Health, Instance, InstanceName, Registry};
use crate::wait::PATIENCE;

pub use registration::Registration;
pub use server::{Conduct, Server};

/// The time without a request after which a draining upstream assumes that all proxies have learned
/// of it. The way from the registry to the last proxy takes milliseconds.
const QUIET: Duration = Duration::from_millis(500);
/// The longest that a draining upstream waits for that.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// A server that is registered.
pub struct Upstream {
    server: Server,
    registration: Registration,
}

impl Upstream {
    /// Listens, then keeps `name` registered at the address of `advertised` with the server's port.
    pub async fn start(
        name: InstanceName,
        listen: SocketAddr,
        registry: Registry,
        advertised: std::net::IpAddr,
        ttl: Duration,
    ) -> Result<Upstream> {
        let server = Server::start(name.clone(), listen).await?;
        let address = SocketAddr::new(advertised, server.address().port());
        let registration = Registration::start(registry, name, Instance::at(address), ttl);
        Ok(Upstream {
            server,
            registration,
        })
    }

    /// Starts on a free port of loopback, and waits until it is registered.
    pub async fn start_registered(name: InstanceName, registry: &Registry) -> Result<Upstream> {
        let localhost = Ipv4Addr::LOCALHOST;
        let ttl = Duration::from_secs(5);
        let listen = (localhost, 0).into();
        let upstream =
            Upstream::start(name, listen, registry.clone(), localhost.into(), ttl).await?;
        let registered = timeout(PATIENCE, upstream.registration.registered()).await;
        registered.context("not registered in time").flatten()?;
        Ok(upstream)
    }

    pub fn server(&self) -> &Server {
        &self.server
    }

    pub fn registration(&self) -> &Registration {
        &self.registration
    }

    /// Leaves so that no request fails: drains, completes its requests, and ends.
    pub async fn drain(self) -> Result<()> {
        // Without a control plane there is no registry to notify, and waiting is all that is
        // possible.
        let told = self.registration.set_health(Health::Draining).await;
        self.wait_until_quiet().await;
        let gone = self.registration.end().await;
        self.server.close().await;
        told.and(gone)
    }

    async fn wait_until_quiet(&self) {
        let begin = Instant::now();
        let mut served = self.server.served();
        let mut since = begin;
        while begin.elapsed() < DRAIN_MAX {
            let now = self.server.served();
            if now != served || self.server.in_flight() > 0 {
                served = now;
                since = Instant::now();
            } else if since.elapsed() >= QUIET {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}
