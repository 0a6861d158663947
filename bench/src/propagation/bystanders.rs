//! Two observers of a change: a watch of etcd, and an xDS client.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use etcd_client::WatchStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

use super::HERE;
use crate::proxy;

/// A change that a request has shown must have arrived here too.
const TIME_MAX: Duration = Duration::from_secs(5);

/// Each reports the time of an event. They end with this.
pub(super) struct Bystanders {
    watched: UnboundedReceiver<Instant>,
    pushed: UnboundedReceiver<Instant>,
    _tasks: JoinSet<Result<()>>,
}

impl Bystanders {
    pub(super) async fn start(
        mut etcd: etcd_client::Client,
        key: &str,
        xds: SocketAddr,
        cluster: &str,
    ) -> Result<Bystanders> {
        let mut tasks = JoinSet::new();
        let (tell, watched) = unbounded_channel();
        let events = etcd.watch(key, None).await?;
        tasks.spawn(watch(events, tell));
        let (tell, mut pushed) = unbounded_channel();
        tasks.spawn(proxy::subscribe(xds, HERE, cluster.to_owned(), tell));
        // Present resources are pushed at once.
        next(&mut pushed).await?;
        Ok(Bystanders {
            watched,
            pushed,
            _tasks: tasks,
        })
    }

    /// Forgets earlier events.
    pub(super) fn forget(&mut self) {
        while self.watched.try_recv().is_ok() {}
        while self.pushed.try_recv().is_ok() {}
    }

    /// The time at which etcd reported the next change.
    pub(super) async fn watched(&mut self) -> Result<Instant> {
        next(&mut self.watched).await.context("no event from etcd")
    }

    /// The time at which the control plane pushed the next endpoints.
    pub(super) async fn pushed(&mut self) -> Result<Instant> {
        next(&mut self.pushed).await.context("nothing over xDS")
    }
}

async fn next(from: &mut UnboundedReceiver<Instant>) -> Result<Instant> {
    let next = tokio::time::timeout(TIME_MAX, from.recv()).await;
    next?.context("the bystander is gone")
}

async fn watch(mut events: WatchStream, tell: UnboundedSender<Instant>) -> Result<()> {
    while events.message().await?.is_some() {
        tell.send(Instant::now())?;
    }
    Ok(())
}
