//! Whether a connection opens. The kernel opens connections for a process that hangs, too: a probe
//! that asks for an answer sees more.

use std::net::SocketAddr;

use async_trait::async_trait;
use tokio::net::TcpStream;

use super::{Probe, ProbeError};

/// Connects and closes.
pub struct TcpProbe {
    address: SocketAddr,
}

impl TcpProbe {
    pub fn new(address: SocketAddr) -> TcpProbe {
        TcpProbe { address }
    }
}

#[async_trait]
impl Probe for TcpProbe {
    fn kind(&self) -> &'static str {
        "tcp"
    }

    async fn look(&self) -> Result<(), ProbeError> {
        let connected = TcpStream::connect(self.address).await;
        connected
            .map(drop)
            .map_err(|error| ProbeError::connecting(&error))
    }
}
