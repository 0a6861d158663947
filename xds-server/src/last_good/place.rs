//! The default path of the last good state.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use xxhash_rust::xxh3::xxh3_64;

use crate::config::StoreConfig;

/// The directory of a service without a configured one.
const DIRECTORY: &str = "/var/lib/tidegate";

/// Beside the embedded store. With etcd it is a file in the service's directory, named after the
/// endpoints, so that two meshes on one machine have two files. `state_directory` is systemd's
/// variable `STATE_DIRECTORY`. None if the directory does not exist: it is not created, since it
/// was not configured.
pub fn default_path(store: &StoreConfig, state_directory: Option<&OsStr>) -> Option<PathBuf> {
    match store {
        StoreConfig::Embedded { path } => {
            let mut name = path.as_os_str().to_owned();
            name.push(".state");
            Some(PathBuf::from(name))
        }
        StoreConfig::Etcd { access, .. } => {
            let first = state_directory.and_then(|all| all.to_str()?.split(':').next());
            let directory = Path::new(first.filter(|first| !first.is_empty()).unwrap_or(DIRECTORY));
            let digest = xxh3_64(access.endpoints.join(",").as_bytes());
            directory
                .is_dir()
                .then(|| directory.join(format!("last-good-{digest:016x}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use agent::etcd_access::EtcdAccess;

    use super::*;

    #[test]
    fn a_state_has_a_place_beside_the_store_or_in_the_services_directory() {
        let path = PathBuf::from("data/tidegate.redb");
        assert_eq!(
            default_path(&StoreConfig::Embedded { path }, None),
            Some(PathBuf::from("data/tidegate.redb.state"))
        );
        let etcd = |endpoint: &str| StoreConfig::Etcd {
            access: EtcdAccess {
                endpoints: vec![endpoint.to_owned()],
                tls: None,
                user: None,
            },
            keep_history: None,
        };
        let directory = tempfile::tempdir().unwrap();
        let of = |endpoint| default_path(&etcd(endpoint), Some(directory.path().as_os_str()));
        let one = of("http://127.0.0.1:2379").unwrap();
        assert_eq!(one.parent(), Some(directory.path()));
        assert_ne!(Some(one), of("http://127.0.0.1:2380"));
        let missing = directory.path().join("missing");
        let of_missing = default_path(&etcd("http://a:1"), Some(missing.as_os_str()));
        assert_eq!(of_missing, None);
    }
}
