//! A TCP relay that can be cut: its bytes stop without a close, like a pulled cable. Reconnected,
//! it continues where it stopped.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// Dropping it drops all its connections.
pub struct Relay {
    address: SocketAddr,
    open: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl Relay {
    /// Relays everything that connects to [`address`](Relay::address).
    pub async fn start(to: SocketAddr) -> Result<Relay> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.context("a port for the relay")?;
        let address = listener.local_addr()?;
        let (open, gate) = watch::channel(true);
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                connections.spawn(relay(near, to, gate.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Relay {
            address,
            open,
            accepting,
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts or reconnects it.
    pub fn cut(&self, cut: bool) {
        self.open.send_replace(!cut);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // The task owns all connections.
        self.accepting.abort();
    }
}

async fn relay(near: TcpStream, to: SocketAddr, gate: watch::Receiver<bool>) {
    let mut opened = gate.clone();
    if opened.wait_for(|open| *open).await.is_err() {
        return;
    }
    let Ok(far) = TcpStream::connect(to).await else {
        return;
    };
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    // When one direction ends, the other has no peer.
    tokio::select! {
        () = pass(near_in, far_out, gate.clone()) => {}
        () = pass(far_in, near_out, gate) => {}
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut gate: watch::Receiver<bool>) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let opened = gate.wait_for(|open| *open).await.is_ok();
        if !opened || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
    // The end of a stream is relayed like data: not while it is cut.
    let _ = gate.wait_for(|open| *open).await;
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn what_is_cut_is_silent_and_goes_on_when_it_is_joined() -> Result<()> {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let relay = Relay::start(server.local_addr()?).await?;
        let mut near = TcpStream::connect(relay.address()).await?;
        let (mut far, _) = server.accept().await?;
        let mut byte = [0];
        near.write_all(b"a").await?;
        far.read_exact(&mut byte).await?;

        relay.cut(true);
        near.write_all(b"b").await?;
        let silent = tokio::time::timeout(Duration::from_millis(50), far.read_exact(&mut byte));
        assert!(silent.await.is_err(), "{byte:?}");
        relay.cut(false);
        far.read_exact(&mut byte).await?;
        assert_eq!(&byte, b"b");
        Ok(())
    }
}
