//! A thousand changes a second, while one cluster is watched.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use etcd_client::{KvClient, Txn, TxnOp};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::servers::{Shape, put};

/// The size of a batch and the interval of batches: 1,000 changes a second.
const BATCH: usize = 10;
const INTERVAL: Duration = Duration::from_millis(10);
/// The ports of endpoints that move here; those of other changes are lower.
const PORT_MIN: u16 = 30_000;

/// How a batch of changes reaches a server.
pub(super) enum Way {
    Etcd(Box<KvClient>),
    Control(TcpStream),
}

impl Way {
    /// Moves the first endpoint of each of these clusters.
    async fn send(&mut self, clusters: &[usize], port: u16) -> Result<()> {
        match self {
            Way::Etcd(kv) => {
                let puts = clusters.iter().map(|cluster| put(*cluster, 0, port));
                let puts = puts.collect::<Result<Vec<TxnOp>>>()?;
                kv.txn(Txn::new().and_then(puts)).await?;
            }
            Way::Control(control) => {
                let lines = clusters
                    .iter()
                    .map(|cluster| format!("one {cluster} {port}\n"));
                control.write_all(lines.collect::<String>().as_bytes())?;
            }
        }
        Ok(())
    }
}

/// Changes that continue until it is stopped.
pub(super) struct Flood {
    enough: Arc<AtomicBool>,
    sent: JoinHandle<Result<usize>>,
    begun: Instant,
}

impl Flood {
    /// Moves endpoints of all clusters except the last.
    pub(super) fn begin(mut way: Way, shape: Shape) -> Flood {
        let enough = Arc::new(AtomicBool::new(false));
        let heard = Arc::clone(&enough);
        let sent = tokio::spawn(async move {
            let mut ticks = interval(INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let (mut sent, mut port) = (0, PORT_MIN);
            while !heard.load(Ordering::Relaxed) {
                ticks.tick().await;
                let clusters = (sent..sent + BATCH).map(|at| at % (shape.clusters - 1));
                way.send(&clusters.collect::<Vec<_>>(), port).await?;
                sent += BATCH;
                port = port.checked_add(1).unwrap_or(PORT_MIN);
            }
            Ok(sent)
        });
        Flood {
            enough,
            sent,
            begun: Instant::now(),
        }
    }

    /// The changes per second.
    pub(super) async fn end(self) -> Result<f64> {
        self.enough.store(true, Ordering::Relaxed);
        let seconds = self.begun.elapsed().as_secs_f64();
        Ok(self.sent.await?? as f64 / seconds)
    }
}
