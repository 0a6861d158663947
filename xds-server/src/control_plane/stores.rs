//! The store, and the last good state beside it.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use registry::store::{EmbeddedOptions, EmbeddedStore, EtcdStore, Store};
use tracing::{error, info, warn};

use crate::{
    config::StoreConfig,
    etcd_credentials,
    last_good::{self, Keeper, LastGood},
    metrics::Metrics,
};

/// The store, shared by the whole process.
#[derive(Clone)]
pub(super) struct OpenStore {
    pub(super) shared: Arc<dyn Store>,
    pub(super) etcd: Option<EtcdStore>,
}

impl OpenStore {
    /// The same store with a shorter request time-out.
    pub(super) fn within(&self, request_timeout: Duration) -> Arc<dyn Store> {
        match &self.etcd {
            Some(etcd) => Arc::new(etcd.within(request_timeout)),
            None => Arc::clone(&self.shared),
        }
    }
}

pub(super) async fn open(config: &StoreConfig, metrics: &Metrics) -> anyhow::Result<OpenStore> {
    Ok(match config {
        StoreConfig::Embedded { path } => {
            let store = EmbeddedStore::open(EmbeddedOptions::new(path)).await;
            OpenStore {
                shared: Arc::new(store.context("store.embedded")?),
                etcd: None,
            }
        }
        StoreConfig::Etcd { access, .. } => {
            let store = EtcdStore::new(etcd_credentials::follow(access, metrics)?).await;
            let store = store.context("store.etcd")?;
            OpenStore {
                shared: Arc::new(store.clone()),
                etcd: Some(store),
            }
        }
    })
}

/// How long etcd's history is kept; none if this process does not compact it.
pub(super) fn compacts(config: &StoreConfig) -> Option<Duration> {
    match config {
        StoreConfig::Etcd { keep_history, .. } => *keep_history,
        StoreConfig::Embedded { .. } => None,
    }
}

/// The last good state, and the keeper that writes it from now on. An unreadable file is renamed.
pub(super) fn open_state(
    path: Option<&Path>,
    metrics: &Metrics,
) -> anyhow::Result<(Keeper, Option<LastGood>)> {
    let Some(path) = path else {
        warn!(
            "no last good state is kept: after a start without the store this replica has nothing to serve, and it cannot detect an emptied store. Set `state.path`, or create the directory /var/lib/tidegate"
        );
        return Ok((Keeper::none(), None));
    };
    let file = path.display();
    let last_good = match last_good::read(path) {
        Ok(Some(state)) => {
            info!(%file, records = state.entries.len(), revision = state.revision.0, age = ?state.age(), "last good state read");
            Some(state)
        }
        Ok(None) => {
            info!(%file, "no last good state yet");
            None
        }
        Err(error) => {
            match last_good::set_aside(path) {
                Ok(aside) => {
                    error!(%file, aside = %aside.display(), "the last good state {error}. The file is renamed; starting without it");
                }
                Err(aside) => {
                    error!(%file, "the last good state {error}. The file cannot be renamed ({aside}), so no state is kept; starting without it");
                    return Ok((Keeper::none(), None));
                }
            }
            None
        }
    };
    let keeper = Keeper::start(path.to_owned(), last_good.clone(), metrics.clone());
    Ok((keeper, last_good))
}
