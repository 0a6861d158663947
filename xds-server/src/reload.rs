//! Follows the configuration file. A file that is refused changes nothing: the last good one stays in force.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use policy::fence::Terms;
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::{
    config::{Config, ConfigError, Listen, Mesh, StoreConfig},
    metrics::{Metrics, ResultLabel},
};

/// How often the file is read. Its content is compared, not its times: a mounted ConfigMap changes by swapping links.
const INTERVAL: Duration = Duration::from_millis(250);

/// How many looks in a row must fail before a file counts as gone: a swap takes a moment.
const MISSES_MAX: u32 = 8;

/// Reads and checks the file once.
pub fn read(path: &Path) -> Result<(Config, String), ConfigError> {
    let file = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| ConfigError {
        file: file.clone(),
        line: 0,
        field: String::new(),
        message: format!("cannot be read: {error}"),
    })?;
    Ok((Config::parse(&file, &text)?, text))
}

/// Follows the file from now on; `current` and `text` are what [`read`] gave. Returns where new meshes appear.
pub fn follow(
    path: PathBuf,
    current: Config,
    text: String,
    metrics: Metrics,
) -> watch::Receiver<Arc<Mesh>> {
    let terms = current.mesh.authority.as_ref().map(|a| a.terms.clone());
    let (publisher, meshes) = watch::channel(Arc::new(current.mesh));
    metrics.config_current.set(1);
    let follower = Follower {
        path,
        terms,
        fixed: (current.listen, current.store, current.state),
        text,
        misses: 0,
        publisher,
        metrics,
    };
    tokio::spawn(follower.run());
    meshes
}

struct Follower {
    path: PathBuf,
    /// What runs, and takes a restart to change.
    fixed: (Listen, StoreConfig, Option<PathBuf>),
    /// What the fence counts by, if there is one: a promise that is out cannot be changed.
    terms: Option<Terms>,
    /// The content that was looked at last, good or bad, so that a bad one is reported once.
    text: String,
    /// Looks in a row that found no file.
    misses: u32,
    publisher: watch::Sender<Arc<Mesh>>,
    metrics: Metrics,
}

impl Follower {
    async fn run(mut self) {
        let mut ticks = tokio::time::interval(INTERVAL);
        while !self.publisher.is_closed() {
            ticks.tick().await;
            match tokio::fs::read_to_string(&self.path).await {
                Ok(text) => {
                    let back = std::mem::take(&mut self.misses) >= MISSES_MAX;
                    if text != self.text || back {
                        self.consider(text);
                    }
                }
                Err(error) => self.miss(&error),
            }
        }
    }

    fn miss(&mut self, error: &std::io::Error) {
        self.misses = self.misses.saturating_add(1);
        if self.misses == MISSES_MAX {
            self.metrics.config_current.set(0);
            let file = self.path.display();
            error!(%file, %error, "configuration cannot be read, the last good one stays in force");
        }
    }

    fn consider(&mut self, text: String) {
        let parsed = Config::parse(&self.path.display().to_string(), &text);
        self.text = text;
        let result = if parsed.is_ok() { "ok" } else { "error" };
        self.metrics
            .config_reloads
            .get_or_create(&ResultLabel { result })
            .inc();
        let config = match parsed {
            Ok(config) => config,
            Err(error) => {
                self.metrics.config_current.set(0);
                error!(%error, "configuration refused, the last good one stays in force");
                return;
            }
        };
        let terms = config.mesh.authority.as_ref().map(|a| a.terms.clone());
        if terms != self.terms {
            self.metrics.config_current.set(0);
            error!(
                "configuration refused, the last good one stays in force: `authority` is added, removed, or its spans are changed, which takes effect with a restart of all replicas alone"
            );
            return;
        }
        self.metrics.config_current.set(1);
        if (config.listen, config.store, config.state) != self.fixed {
            warn!(
                "`listen`, `store` and `state` of the file are not what runs: they take effect after a restart"
            );
        }
        info!(services = config.mesh.services.len(), "configuration taken");
        self.publisher.send_replace(Arc::new(config.mesh));
    }
}
