//! Keeps an instance registered: a lease, its keepalive, and a new lease when the old one has
//! expired.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::registry::{Health, Instance, InstanceName, Registry, success};

/// Between two attempts to register, while the control plane does not answer.
const RETRY: Duration = Duration::from_millis(250);

/// An instance that stays registered until [`end`](Registration::end). Dropping it only stops the
/// keepalives, like the death of a process.
pub struct Registration {
    record: Arc<Record>,
    registered: watch::Receiver<bool>,
    keeper: JoinHandle<()>,
}

struct Record {
    registry: Registry,
    name: InstanceName,
    ttl: Duration,
    state: Mutex<State>,
}

struct State {
    instance: Instance,
    lease: Option<String>,
}

impl Registration {
    /// Registers in the background, however long that takes.
    pub fn start(
        registry: Registry,
        name: InstanceName,
        instance: Instance,
        ttl: Duration,
    ) -> Registration {
        let lease = None;
        let record = Arc::new(Record {
            registry,
            name,
            ttl,
            state: Mutex::new(State { instance, lease }),
        });
        let (tell, registered) = watch::channel(false);
        let keeper = tokio::spawn(keep(record.clone(), tell));
        Registration {
            record,
            registered,
            keeper,
        }
    }

    /// Waits until the control plane has accepted the record.
    pub async fn registered(&self) -> Result<()> {
        self.registered.clone().wait_for(|yes| *yes).await?;
        Ok(())
    }

    /// Changes the health: now if it is registered, otherwise as soon as it is.
    pub async fn set_health(&self, health: Health) -> Result<()> {
        let mut state = self.record.state.lock().await;
        state.instance.health = health;
        match &state.lease {
            Some(lease) => self.record.put(&state.instance, lease).await,
            None => Ok(()),
        }
    }

    /// Removes the record and stops.
    pub async fn end(self) -> Result<()> {
        self.keeper.abort();
        let lease = self.record.state.lock().await.lease.take();
        let Some(lease) = lease else {
            return Ok(());
        };
        self.record.registry.remove(&self.record.name).await?;
        self.record.registry.revoke_lease(&lease).await
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Record {
    async fn put(&self, instance: &Instance, lease: &str) -> Result<()> {
        success(&self.registry.put(&self.name, instance, Some(lease)).await?)
    }

    async fn register(&self) -> Result<()> {
        let lease = self.registry.grant_lease(self.ttl).await?;
        let mut state = self.state.lock().await;
        self.put(&state.instance, &lease).await?;
        state.lease = Some(lease);
        Ok(())
    }

    async fn keep_alive(&self) -> Result<()> {
        let lease = self.state.lock().await.lease.clone();
        let alive = match &lease {
            Some(lease) => self.registry.keep_alive(lease).await?,
            None => false,
        };
        if !alive {
            self.state.lock().await.lease = None;
            bail!("the lease is gone");
        }
        Ok(())
    }
}

async fn keep(record: Arc<Record>, registered: watch::Sender<bool>) {
    loop {
        let has_lease = record.state.lock().await.lease.is_some();
        let done = if has_lease {
            record.keep_alive().await
        } else {
            record.register().await
        };
        match done {
            Ok(()) => {
                registered.send_replace(true);
                sleep(record.ttl / 3).await;
            }
            Err(error) => {
                eprintln!("registration of {}: {error:#}", record.name.key());
                sleep(RETRY).await;
            }
        }
    }
}
