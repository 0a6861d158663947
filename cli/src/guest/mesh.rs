//! The part of Tidegate's configuration that matters to a guest's host.

use std::path::Path;

use policy::{Enforcement, Route, Rules, Writes};
use xds_server::{config::Config, reload};

/// What is known of the services; nothing without a configuration.
#[derive(Debug)]
pub(super) struct Mesh {
    pub(super) is_configured: bool,
    /// Each route, and whether its service is fenced.
    pub(super) routes: Vec<(Route, bool)>,
    pub(super) write_drain_ms: Option<u64>,
    pub(super) enforcement: Enforcement,
    pub(super) zones: Vec<String>,
    /// Services without plans: for the names of their clusters.
    pub(super) rules: Option<Rules>,
}

impl Mesh {
    pub(super) fn unknown() -> Mesh {
        Mesh {
            is_configured: false,
            routes: vec![],
            write_drain_ms: None,
            enforcement: Enforcement::Enforce,
            zones: vec![],
            rules: None,
        }
    }

    /// Reads and checks a configuration file, if there is one.
    ///
    /// # Errors
    ///
    /// Those of `tidegate check --config`.
    pub(super) fn read(file: Option<&Path>) -> anyhow::Result<Mesh> {
        let Some(file) = file else {
            return Ok(Mesh::unknown());
        };
        let (config, _) = reload::read(file)?;
        Ok(Mesh::of(&config))
    }

    pub(super) fn of(config: &Config) -> Mesh {
        let mesh = &config.mesh;
        let authority = mesh.authority.as_ref();
        let routed = || mesh.services.iter().filter(|service| service.is_routed());
        let routes = routed().flat_map(|service| {
            let is_fenced = authority.is_some() && matches!(service.writes, Writes::Fenced { .. });
            service
                .routes
                .iter()
                .map(move |route| (route.clone(), is_fenced))
        });
        let topology = &mesh.topology;
        let zones = topology
            .zones()
            .map(|zone| topology.zone_name(zone).to_owned());
        let viewer = topology.zones().next();
        let rules = viewer.and_then(|viewer| {
            let services = routed().map(|service| service.unplanned());
            Rules::new(topology.clone(), viewer, services.collect(), None).ok()
        });
        Mesh {
            is_configured: true,
            routes: routes.collect(),
            write_drain_ms: authority.map(|authority| authority.terms.write_drain / 1_000),
            enforcement: authority.map_or(Enforcement::Enforce, |authority| authority.enforcement),
            zones: zones.collect(),
            rules,
        }
    }

    /// The routes of fenced services.
    pub(super) fn fenced(&self) -> impl Iterator<Item = &Route> {
        let fenced = self.routes.iter().filter(|(_, is_fenced)| *is_fenced);
        fenced.map(|(route, _)| route)
    }
}
