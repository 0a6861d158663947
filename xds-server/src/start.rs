//! The requirements of a start beyond a valid file, shared by `tidegate serve` and `tidegate
//! check`.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use policy::fence::Name;

use crate::{
    config::{Config, StoreConfig},
    last_good,
};

/// The settings of a process from its file and its command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// The zones that it serves; none if no writes are fenced.
    pub zones: Vec<Name>,
    /// The file of the last good state; none: it is not kept.
    pub state: Option<PathBuf>,
}

/// Why a process cannot start with these settings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CannotStart {
    #[error("--zone: the configuration has no `authority`, so there is nothing to grant")]
    NothingToGrant,
    #[error(
        "set the zone that this replica serves: --zone, or `authority.zones` in the configuration. It grants writes only to that zone's proxies"
    )]
    NoZone,
    #[error("zone {zone:?} is not configured; configured zones: {known}")]
    UnknownZone { zone: String, known: String },
    #[error("{field}: the directory {} does not exist: create it", directory.display())]
    NoDirectory {
        field: &'static str,
        directory: PathBuf,
    },
}

impl Start {
    /// From this file, and from `--zone` if given. `state_directory` is systemd's variable
    /// `STATE_DIRECTORY`.
    pub fn of(
        config: &Config,
        zone: Option<&str>,
        state_directory: Option<&OsStr>,
    ) -> Result<Start, CannotStart> {
        let zones = zones(config, zone)?;
        if let StoreConfig::Embedded { path } = &config.store {
            check_directory("store.embedded.path", path)?;
        }
        let default = || last_good::default_path(&config.store, state_directory);
        let state = config.state.clone().or_else(default);
        if let Some(path) = &state {
            check_directory("state.path", path)?;
        }
        Ok(Start { zones, state })
    }
}

fn zones(config: &Config, zone: Option<&str>) -> Result<Vec<Name>, CannotStart> {
    let topology = &config.mesh.topology;
    let Some(authority) = &config.mesh.authority else {
        return match zone {
            Some(_) => Err(CannotStart::NothingToGrant),
            None => Ok(Vec::new()),
        };
    };
    let all = || {
        topology
            .zones()
            .map(|zone| topology.zone_name(zone).to_owned())
    };
    let zones = match zone {
        Some(zone) => vec![zone.to_owned()],
        None if !authority.zones.is_empty() => authority.zones.clone(),
        // An embedded store has only this process.
        None if matches!(config.store, StoreConfig::Embedded { .. }) => all().collect(),
        None => return Err(CannotStart::NoZone),
    };
    let mut unknown = zones.iter();
    if let Some(zone) = unknown.find(|zone| topology.zone_named(zone).is_none()) {
        return Err(CannotStart::UnknownZone {
            zone: zone.clone(),
            known: all().collect::<Vec<_>>().join(", "),
        });
    }
    Ok(zones.into_iter().map(Name::from).collect())
}

fn check_directory(field: &'static str, path: &Path) -> Result<(), CannotStart> {
    let directory = path.parent().filter(|d| !d.as_os_str().is_empty());
    match directory.filter(|directory| !directory.is_dir()) {
        Some(missing) => Err(CannotStart::NoDirectory {
            field,
            directory: missing.to_owned(),
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(store: &str, authority: &str, zone: Option<&str>) -> Result<Start, CannotStart> {
        let text = format!(
            "store: {store}\nfilter: {{path: x}}\nzones: [{{name: a, region: r}}, {{name: b, region: r}}]\n{authority}\nservices: []\n"
        );
        let config = Config::parse("test.yaml", &text).unwrap();
        Start::of(&config, zone, Some(OsStr::new("/missing")))
    }

    #[test]
    fn a_replica_speaks_for_one_zone_or_with_a_store_of_its_own_for_all() {
        const ETCD: &str = "{etcd: {endpoints: [\"http://127.0.0.1:2379\"]}}";
        const EMBEDDED: &str = "{embedded: {path: x}}";
        const FENCED: &str = "authority: {}";
        let zones = |store, authority, zone| {
            let start = start(store, authority, zone)?;
            let zones = start.zones.iter().map(ToString::to_string);
            Ok(zones.collect::<Vec<_>>().join(","))
        };
        assert_eq!(zones(ETCD, FENCED, None), Err(CannotStart::NoZone));
        assert_eq!(zones(ETCD, FENCED, Some("b")), Ok("b".to_owned()));
        assert_eq!(
            zones(ETCD, "authority: {zones: [a]}", None),
            Ok("a".to_owned())
        );
        assert_eq!(zones(EMBEDDED, FENCED, None), Ok("a,b".to_owned()));
        assert_eq!(zones(ETCD, "", None), Ok(String::new()));
        let for_nothing = Err(CannotStart::NothingToGrant);
        assert_eq!(zones(ETCD, "", Some("a")), for_nothing);
        let unknown = Err(CannotStart::UnknownZone {
            zone: "c".to_owned(),
            known: "a, b".to_owned(),
        });
        assert_eq!(zones(ETCD, FENCED, Some("c")), unknown);
    }

    #[test]
    fn directories_are_there_before_a_start() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing");
        let embedded = |directory: &Path| {
            let path = directory.join("store.redb");
            start(
                &format!("{{embedded: {{path: {}}}}}", path.display()),
                "",
                None,
            )
        };
        assert!(embedded(directory.path()).is_ok());
        let none = |field| {
            Err(CannotStart::NoDirectory {
                field,
                directory: missing.clone(),
            })
        };
        assert_eq!(embedded(&missing), none("store.embedded.path"));
        let state = format!("state: {{path: {}}}", missing.join("state").display());
        assert_eq!(
            start("{embedded: {path: x}}", &state, None),
            none("state.path")
        );
    }
}
