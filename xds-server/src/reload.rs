//! Follows the configuration file. A rejected file changes nothing: the last good configuration
//! stays in force.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use agent::file_watcher::{FileWatcher, Pace};
use policy::{
    KeySource, Writes,
    fence::{Agreed, Terms},
};
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::{
    authority::Agreements,
    conditions::Code,
    config::{Config, ConfigError, Listen, Mesh, StoreConfig},
    guests::GuestLists,
    metrics::{Metrics, ResultLabel},
};

/// A file that was written badly is reported at once, and one that is gone after two seconds.
const PACE: Pace = Pace {
    every: Duration::from_millis(250),
    looks: 1,
    failures: 8,
};

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

/// Logs the configuration's warnings.
fn warn_of(config: &Config) {
    for warning in &config.warnings {
        warn!(%warning, "the configuration should be changed");
    }
}

/// Follows the file from now on; `current` and `text` are the results of [`read`]. Returns a
/// receiver of new meshes.
pub fn follow(
    path: PathBuf,
    current: Config,
    text: String,
    agreements: Agreements,
    lists: GuestLists,
    metrics: Metrics,
) -> watch::Receiver<Arc<Mesh>> {
    warn_of(&current);
    let promises = Promises::of(&current.mesh);
    let (publisher, meshes) = watch::channel(Arc::new(current.mesh));
    metrics.config_current.set(1);
    metrics.config_digest.set(publisher.borrow().digest as i64);
    let reader = {
        let path = path.clone();
        move || std::fs::read_to_string(&path)
    };
    let follower = Follower {
        path,
        promises,
        agreements,
        lists,
        fixed: (current.listen, current.store, current.state),
        publisher,
        metrics,
    };
    tokio::spawn(follower.run(FileWatcher::new(reader, text, PACE)));
    meshes
}

/// The fence's terms, which all replicas and proxies share: they cannot be changed while promises
/// made under them are in force.
struct Promises {
    terms: Option<Terms>,
    /// The cells in their order, with their shards.
    cells: Vec<(String, u32)>,
    /// The source of the key that selects the cell of a service's writes.
    keys: BTreeMap<String, Option<KeySource>>,
    /// The same, in the form that replicas agree on.
    agreed: Option<Agreed>,
}

impl Promises {
    fn of(mesh: &Mesh) -> Promises {
        let authority = mesh.authority.as_ref();
        let cells = authority.into_iter().flat_map(|authority| &authority.cells);
        let fenced = mesh
            .services
            .iter()
            .filter_map(|service| match &service.writes {
                Writes::Fenced { key } => Some((service.name.clone(), key.clone())),
                Writes::Free => None,
            });
        Promises {
            terms: authority.map(|authority| authority.terms.clone()),
            cells: cells
                .map(|cell| (cell.name.clone(), cell.shards.get()))
                .collect(),
            keys: fenced.collect(),
            agreed: mesh.agreed(),
        }
    }

    /// Whether all replicas have agreed on them, or on a change to them.
    fn agreed_by(&self, agreements: &Agreements) -> bool {
        let agreed = self.agreed.as_ref();
        agreed.is_some_and(|agreed| agreements.admits(agreed))
    }

    /// Whether they keep the earlier promises. Services may be added and removed.
    fn keep(&self, before: &Promises) -> bool {
        let same = |(name, key)| self.keys.get(name).is_none_or(|now| now == key);
        self.terms == before.terms && self.cells == before.cells && before.keys.iter().all(same)
    }
}

struct Follower {
    path: PathBuf,
    /// The running settings that need a restart to change.
    fixed: (Listen, StoreConfig, Option<PathBuf>),
    promises: Promises,
    agreements: Agreements,
    lists: GuestLists,
    publisher: watch::Sender<Arc<Mesh>>,
    metrics: Metrics,
}

impl Follower {
    async fn run(mut self, mut watcher: FileWatcher<String, io::Error>) {
        loop {
            let change = tokio::select! {
                () = self.publisher.closed() => return,
                change = watcher.changed() => change,
            };
            let file = self.path.display().to_string();
            match change {
                Ok(text) => {
                    self.metrics.conditions.clear(Code::ConfigUnreadable, &file);
                    self.consider(&file, &text);
                }
                Err(error) => self.miss(&file, &error),
            }
        }
    }

    fn miss(&self, file: &str, error: &io::Error) {
        self.metrics.config_current.set(0);
        self.metrics
            .conditions
            .raise(Code::ConfigUnreadable, file, error.to_string());
        error!(%file, %error, "configuration cannot be read; the last good one stays in force");
    }

    fn count(&self, result: &'static str) {
        let label = ResultLabel { result };
        self.metrics.config_reloads.get_or_create(&label).inc();
    }

    fn refuse(&self, reason: &str) {
        self.count("error");
        self.metrics.config_current.set(0);
        self.metrics
            .conditions
            .raise(Code::ConfigRefused, "", reason);
        error!(
            reason,
            "configuration rejected; the last good one stays in force"
        );
    }

    fn consider(&mut self, file: &str, text: &str) {
        let config = match Config::parse(file, text) {
            Ok(config) => config,
            Err(error) => {
                self.refuse(&error.to_string());
                return;
            }
        };
        let promises = Promises::of(&config.mesh);
        if !promises.keep(&self.promises) && !promises.agreed_by(&self.agreements) {
            self.refuse(
                "`authority` is added or removed, which needs a restart; or its spans, its cells' shards or a service's `cell_key` differ from the terms that all replicas have agreed on. To change them, begin with `tidegate terms change --config FILE`"
            );
            return;
        }
        let present = Arc::clone(&self.publisher.borrow());
        if let Some(listing) = self.lists.added_by(&config.mesh, &present) {
            self.refuse(&format!(
                "{listing}. Take the entry out of its lists first, then fence the service. A guest that will not come back: `tidegate forget-guest GUEST --zone ZONE`"
            ));
            return;
        }
        self.promises = promises;
        self.count("ok");
        warn_of(&config);
        self.metrics.config_current.set(1);
        self.metrics.conditions.clear(Code::ConfigRefused, "");
        let mut mesh = config.mesh;
        if config.listen != self.fixed.0 {
            // Rules apply to the running ports: rules for TLS would reject all plaintext clients.
            mesh.access = Arc::clone(&self.publisher.borrow().access);
        }
        let restart = (config.listen, config.store, config.state) != self.fixed;
        self.metrics
            .conditions
            .set(Code::ConfigNeedsRestart, "", restart.then_some(""));
        if restart {
            warn!(
                "`listen`, `store` and `state` of the file differ from the running ones: they take effect after a restart, and so does `access` if `listen` differs"
            );
        }
        info!(services = mesh.services.len(), "configuration accepted");
        self.metrics.config_digest.set(mesh.digest as i64);
        self.publisher.send_replace(Arc::new(mesh));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn promises(authority: &str, services: &str) -> Promises {
        let rest = format!("{authority}\nservices: [{services}]");
        Promises::of(&testing::mesh("a/r b/r", &rest))
    }

    #[test]
    fn what_others_count_on_stays_and_all_else_may_change() {
        let orders = "{name: orders, routes: [{prefix: /orders}], cell_key: {header: x-user}}";
        let cells = "authority: {cells: [{name: c, shards: 8}, {name: d, shards: 8}]}";
        let before = promises(cells, orders);
        let users = "{name: users, routes: [{prefix: /users}]}";
        let owned = "authority: {enforcement: observe, cells: [{name: c, shards: 8, owners: [b]}, {name: d, shards: 8, cool_down_s: 1}]}";
        for (authority, services, kept) in [
            (cells, orders.to_owned(), true),
            (owned, format!("{orders}, {users}"), true),
            (cells, users.to_owned(), true),
            ("", users.to_owned(), false),
            (cells, orders.replace("x-user", "x-shop"), false),
            (
                "authority: {cells: [{name: c, shards: 9}, {name: d, shards: 7}]}",
                orders.to_owned(),
                false,
            ),
            (
                "authority: {cells: [{name: d, shards: 8}, {name: c, shards: 8}]}",
                orders.to_owned(),
                false,
            ),
            (
                "authority: {write_drain_ms: 900, cells: [{name: c, shards: 8}, {name: d, shards: 8}]}",
                orders.to_owned(),
                false,
            ),
        ] {
            let now = promises(authority, &services);
            assert_eq!(now.keep(&before), kept, "{authority} {services}");
        }
    }

    #[tokio::test]
    async fn each_state_of_the_file_is_a_condition_until_it_is_mended() {
        let good = &testing::mesh_text("a/r", "services: []");
        let moved = format!("listen: {{admin: \"127.0.0.1:9\"}}\n{good}");
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mesh.yaml");
        std::fs::write(&path, good).unwrap();
        let (config, text) = read(&path).unwrap();
        let metrics = Metrics::default();
        let meshes = follow(
            path.clone(),
            config,
            text,
            Agreements::default(),
            GuestLists::default(),
            metrics.clone(),
        );
        let (conditions, digest) = (&metrics.conditions, &metrics.config_digest);
        let first = digest.get();
        assert_ne!(first, 0);
        let write = |text: &str| {
            // By renaming, so that no partial content is read.
            let partial = path.with_extension("partial");
            std::fs::write(&partial, text).unwrap();
            std::fs::rename(&partial, &path).unwrap();
        };
        for (code, spoil) in [
            (Code::ConfigRefused, Some("zones: 1")),
            (Code::ConfigUnreadable, None),
            (Code::ConfigNeedsRestart, Some(moved.as_str())),
        ] {
            match spoil {
                Some(text) => write(text),
                None => std::fs::remove_file(&path).unwrap(),
            }
            conditions.until(code, true).await;
            assert_eq!(digest.get(), first, "the same is in force");
            write(good);
            conditions.until(code, false).await;
        }
        write(&good.replace("region: r", "region: s"));
        let changed = |mesh: &Arc<Mesh>| mesh.digest as i64 != first;
        meshes.clone().wait_for(changed).await.unwrap();
        assert_ne!(digest.get(), first);
    }
}
