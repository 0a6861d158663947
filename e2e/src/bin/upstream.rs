//! A sample service for the demo and for `docker compose`: answers HTTP and gRPC with its name,
//! keeps itself registered with the control plane, and on SIGTERM leaves without a failed request.

#![allow(
    clippy::disallowed_methods,
    reason = "a program of the harness: it uses the network"
)]

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use e2e::registry::{InstanceName, Registry};
use e2e::upstream::{Server, Upstream};
use e2e::write_log::WriteLog;
use tokio::signal::unix::{SignalKind, signal};

/// A sample service that registers with Tidegate.
#[derive(Parser)]
struct Arguments {
    /// The service of this instance
    #[arg(long)]
    service: String,
    /// The zone of this instance
    #[arg(long)]
    zone: String,
    /// Its name, unique in service and zone
    #[arg(long)]
    instance: String,
    /// The control plane's admin address, host and port; without it an agent has to register the
    /// instance
    #[arg(long, value_name = "HOST:PORT")]
    register: Option<String>,
    /// Where to listen; with port 0 the kernel chooses a free port
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// The address at which proxies reach it [default: this host's address on the route to the
    /// control plane]
    #[arg(long)]
    advertise: Option<IpAddr>,
    /// Seconds without a keepalive after which the registration expires
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    ttl_s: u64,
    /// Append a line to this file when a write begins, and when it ends; only without --register
    #[arg(long, value_name = "FILE", conflicts_with = "register")]
    write_log: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    // First, so that no signal is lost.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let name = InstanceName::new(&arguments.service, &arguments.zone, &arguments.instance);
    let Some(register) = &arguments.register else {
        let writes = arguments.write_log.as_deref().map(WriteLog::open);
        let server =
            Server::start_with(name.clone(), arguments.listen, writes.transpose()?).await?;
        println!("{} listens on {}", name.key(), server.address());
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        server.close().await;
        return Ok(());
    };
    let admin = tokio::net::lookup_host(register)
        .await
        .with_context(|| register.clone())?
        .next()
        .with_context(|| format!("{register} has no address"))?;
    let advertised = match arguments.advertise {
        Some(address) => address,
        None => address_towards(admin)?,
    };
    let upstream = Upstream::start(
        name.clone(),
        arguments.listen,
        Registry::new(admin),
        advertised,
        Duration::from_secs(arguments.ttl_s),
    )
    .await?;
    println!("{} listens on {}", name.key(), upstream.server().address());
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    println!("draining");
    upstream.drain().await
}

/// This host's address on the route to `peer`. Connecting a UDP socket sends nothing.
fn address_towards(peer: SocketAddr) -> Result<IpAddr> {
    let any: IpAddr = match peer {
        SocketAddr::V4(_) => [0, 0, 0, 0].into(),
        SocketAddr::V6(_) => [0; 16].into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(peer)?;
    Ok(socket.local_addr()?.ip())
}
