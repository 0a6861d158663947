//! The listening ports.

use std::net::SocketAddr;

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpSocket};
use tracing::warn;

use crate::{
    config::{Listen, PortConfig},
    metrics::Metrics,
    net::connections::{Admission, Listener, Refusals},
    net::tls::{Acceptor, Dialer, Port, Tls},
};

/// The two ports, with the requirements of each for clients.
pub(super) struct Ports {
    pub(super) xds: Listener,
    pub(super) admin: Listener,
    /// Connects to other replicas' counterpart of `xds`.
    pub(super) dialer: Dialer,
}

impl Ports {
    pub(super) fn open(config: &Listen, metrics: &Metrics) -> anyhow::Result<Ports> {
        let files = config.tls.clone();
        let tls = files.map(|files| Tls::start(files, metrics.clone()));
        let tls = tls.transpose()?;
        let open = |port: Port, of: PortConfig| {
            let (name, address) = (port.as_str(), of.address);
            let tcp = listen(address);
            let tcp = tcp.with_context(|| format!("listen.{name}: cannot listen on {address}"))?;
            let tls = tls.as_ref().filter(|_| of.is_tls);
            anyhow::Ok(Listener {
                tcp,
                port,
                acceptor: tls.map_or_else(Acceptor::plain, |tls| tls.acceptor(port)),
                admission: Admission::new(config.limits),
                refusals: Refusals::default(),
                metrics: metrics.clone(),
            })
        };
        let encrypts = tls.as_ref().filter(|_| config.xds.is_tls);
        Ok(Ports {
            dialer: encrypts.map_or_else(Dialer::plain, Tls::dialer),
            xds: open(Port::Xds, config.xds)?,
            admin: open(Port::Admin, config.admin)?,
        })
    }

    pub(super) fn addresses(&self) -> std::io::Result<(SocketAddr, SocketAddr)> {
        Ok((self.xds.tcp.local_addr()?, self.admin.tcp.local_addr()?))
    }
}

/// The backlog of connections, as far as the kernel allows (`net.core.somaxconn`). After a restart
/// all proxies connect at once, and a proxy without a place waits for a second before it retries.
const BACKLOG: u32 = 65_535;

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Each proxy uses a file descriptor. The soft limit of a process is usually below its hard limit.
pub(super) fn allow_many_files() {
    let resource = Resource::RLIMIT_NOFILE;
    let raised = getrlimit(resource).and_then(|(_, hard)| setrlimit(resource, hard, hard));
    if let Err(error) = raised {
        warn!(%error, "cannot raise the limit of open files");
    }
}
