//! Real systems that Tidegate is a guest of, or is measured beside: a Kubernetes API server, and
//! Istio on it. `cargo xtask setup --istio` builds them.

mod agent;
pub mod istio;
pub mod kubelet;
pub mod kubernetes;
pub mod objects;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::{Context, Result};

/// How long one of them may take to start. They take some seconds of a core.
pub const START_TIME_MAX: Duration = Duration::from_secs(90);

/// How often a program is started anew: between the kernel giving a port and the program taking it,
/// another may.
const START_ATTEMPTS: usize = 3;

/// An address on loopback that nobody listens at.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// Gives addresses that nobody listens at to a program that cannot have the kernel choose.
async fn with_addresses<const N: usize, T>(
    start: impl AsyncFn([SocketAddr; N]) -> Result<T>,
) -> Result<T> {
    let mut last = None;
    for _ in 0..START_ATTEMPTS {
        // All stay open until all ports are known, so that no port is given twice.
        let mut listeners = vec![];
        let mut addresses = [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)); N];
        for address in &mut addresses {
            let listener = TcpListener::bind(*address)?;
            *address = listener.local_addr()?;
            listeners.push(listener);
        }
        drop(listeners);
        match start(addresses).await {
            Ok(started) => return Ok(started),
            Err(error) => last = Some(error),
        }
    }
    Err(last.context("no attempt")?)
}
