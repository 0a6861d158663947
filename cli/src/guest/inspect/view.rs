//! An Envoy's configuration as far as requests go: connection managers with their filters and
//! routes, TCP proxies, clusters. A bootstrap and a `/config_dump` give the same view.

use std::collections::BTreeMap;

use serde_json::Value;

use super::json::{at, field, is_true, list, message, text, type_of};

/// The configuration of one Envoy.
#[derive(Debug, Default)]
pub(super) struct View<'v> {
    pub(super) managers: Vec<Manager<'v>>,
    pub(super) tunnels: Vec<Tunnel<'v>>,
    pub(super) clusters: BTreeMap<&'v str, &'v Value>,
    pub(super) node: Option<&'v Value>,
    /// Kinds of resources that come from a control plane, and do not stand in the document.
    pub(super) absent: Vec<&'static str>,
}

/// A connection manager.
#[derive(Debug)]
pub(super) struct Manager<'v> {
    pub(super) place: String,
    pub(super) config: &'v Value,
    pub(super) filters: Vec<Filter<'v>>,
    pub(super) hosts: Vec<VirtualHost<'v>>,
    /// Routes that the document does not have, or that this program cannot read.
    pub(super) unread: Option<String>,
}

/// A HTTP filter.
#[derive(Debug)]
pub(super) struct Filter<'v> {
    pub(super) place: String,
    pub(super) name: &'v str,
    pub(super) type_url: &'v str,
    pub(super) config: &'v Value,
    /// It runs only on routes that say so.
    pub(super) is_disabled: bool,
    pub(super) is_optional: bool,
}

/// A virtual host with its table.
#[derive(Debug)]
pub(super) struct VirtualHost<'v> {
    pub(super) place: String,
    pub(super) config: &'v Value,
    pub(super) table: &'v Value,
}

/// A TCP proxy.
#[derive(Debug)]
pub(super) struct Tunnel<'v> {
    pub(super) place: String,
    /// Only other listeners of this Envoy lead here.
    pub(super) is_internal: bool,
    pub(super) clusters: Vec<&'v str>,
}

/// The document is no configuration of an Envoy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no configuration of an Envoy: neither a bootstrap (static_resources) nor an answer of /config_dump (configs)"
)]
pub(crate) struct NotEnvoy;

/// The resources of a document, before they are connected.
#[derive(Default)]
struct Resources<'v> {
    listeners: Vec<&'v Value>,
    clusters: Vec<&'v Value>,
    tables: BTreeMap<&'v str, &'v Value>,
    /// Filters that came by ECDS.
    extensions: BTreeMap<&'v str, &'v Value>,
}

impl<'v> View<'v> {
    /// Reads a bootstrap or a `/config_dump`.
    ///
    /// # Errors
    ///
    /// [`NotEnvoy`] for any other document.
    pub(super) fn of(document: &'v Value) -> Result<View<'v>, NotEnvoy> {
        let mut view = View::default();
        let mut resources = Resources::default();
        if field(document, "configs").is_some_and(Value::is_array) {
            for section in list(document, "configs") {
                resources.dumped(section, &mut view);
            }
        } else if ["static_resources", "dynamic_resources", "node"]
            .iter()
            .any(|name| field(document, name).is_some_and(Value::is_object))
        {
            resources.bootstrap(document, &mut view);
            let dynamic = [("lds_config", "listeners"), ("cds_config", "clusters")];
            let absent = dynamic.into_iter();
            let absent =
                absent.filter(|(name, _)| at(document, &["dynamic_resources", name]).is_some());
            view.absent = absent.map(|(_, kind)| kind).collect();
        } else {
            return Err(NotEnvoy);
        }
        for cluster in &resources.clusters {
            view.clusters.insert(text(cluster, "name"), cluster);
        }
        for listener in &resources.listeners {
            view.listener(listener, &resources);
        }
        Ok(view)
    }

    fn listener(&mut self, listener: &'v Value, resources: &Resources<'v>) {
        let place = format!("listeners[{}]", text(listener, "name"));
        let is_internal = field(listener, "internal_listener").is_some();
        for (at, chain) in list(listener, "filter_chains").iter().enumerate() {
            self.chain(
                chain,
                &format!("{place}.filter_chains[{at}]"),
                is_internal,
                resources,
            );
        }
        if let Some(chain) = field(listener, "default_filter_chain") {
            self.chain(
                chain,
                &format!("{place}.default_filter_chain"),
                is_internal,
                resources,
            );
        }
        if let Some(manager) = at(listener, &["api_listener", "api_listener"]) {
            let place = format!("{place}.api_listener");
            self.managers
                .push(Manager::of(place, message(manager), resources));
        }
    }

    fn chain(
        &mut self,
        chain: &'v Value,
        place: &str,
        is_internal: bool,
        resources: &Resources<'v>,
    ) {
        for (index, filter) in list(chain, "filters").iter().enumerate() {
            let place = format!("{place}.filters[{index}]");
            let Some(config) = field(filter, "typed_config") else {
                continue;
            };
            let (kind, config) = (type_of(config), message(config));
            if kind.ends_with(".HttpConnectionManager") {
                self.managers.push(Manager::of(place, config, resources));
            } else if kind.ends_with(".TcpProxy") {
                let mut clusters = vec![text(config, "cluster")];
                if let Some(weighted) = field(config, "weighted_clusters") {
                    clusters.extend(list(weighted, "clusters").iter().map(|at| text(at, "name")));
                }
                clusters.retain(|name| !name.is_empty());
                self.tunnels.push(Tunnel {
                    place,
                    is_internal,
                    clusters,
                });
            }
        }
    }
}

impl<'v> Resources<'v> {
    fn bootstrap(&mut self, bootstrap: &'v Value, view: &mut View<'v>) {
        view.node = field(bootstrap, "node");
        if let Some(resources) = field(bootstrap, "static_resources") {
            self.listeners.extend(list(resources, "listeners"));
            self.clusters.extend(list(resources, "clusters"));
        }
    }

    /// One section of `/config_dump`. A live Envoy lists static resources twice.
    fn dumped(&mut self, section: &'v Value, view: &mut View<'v>) {
        let kind = type_of(section);
        let kind = kind.rsplit('.').next().unwrap_or_default();
        match kind {
            "BootstrapConfigDump" => {
                view.node = field(section, "bootstrap").and_then(|it| field(it, "node"));
            }
            "ListenersConfigDump" => {
                let fixed = list(section, "static_listeners").iter();
                self.listeners
                    .extend(fixed.filter_map(|at| field(at, "listener")));
                let dynamic = list(section, "dynamic_listeners").iter();
                self.listeners.extend(
                    dynamic.filter_map(|listener| at(listener, &["active_state", "listener"])),
                );
            }
            "ClustersConfigDump" => {
                for name in ["static_clusters", "dynamic_active_clusters"] {
                    let all = list(section, name).iter();
                    self.clusters
                        .extend(all.filter_map(|at| field(at, "cluster")));
                }
            }
            "RoutesConfigDump" => {
                for name in ["static_route_configs", "dynamic_route_configs"] {
                    let all = list(section, name).iter();
                    for table in all.filter_map(|at| field(at, "route_config")) {
                        self.tables.insert(text(table, "name"), table);
                    }
                }
            }
            "EcdsConfigDump" => {
                let all = list(section, "ecds_filters").iter();
                for filter in all.filter_map(|at| field(at, "ecds_filter")) {
                    if let Some(config) = field(filter, "typed_config") {
                        self.extensions.insert(text(filter, "name"), config);
                    }
                }
            }
            _ => {}
        }
    }
}

impl<'v> Manager<'v> {
    fn of(place: String, config: &'v Value, resources: &Resources<'v>) -> Manager<'v> {
        let filters = list(config, "http_filters").iter();
        let filters = filters.map(|filter| Filter::of(&place, filter, resources));
        let mut manager = Manager {
            filters: filters.collect(),
            hosts: vec![],
            unread: None,
            config,
            place,
        };
        let name = at(config, &["rds", "route_config_name"]).and_then(Value::as_str);
        let table = match (field(config, "route_config"), name) {
            (Some(table), _) => Some(table),
            (None, Some(name)) => resources.tables.get(name).copied(),
            (None, None) => None,
        };
        match table {
            Some(table) => manager.table(table),
            None => manager.unread = Some(name.unwrap_or("scoped_routes").to_owned()),
        }
        manager
    }

    fn table(&mut self, table: &'v Value) {
        let name = text(table, "name");
        for config in list(table, "virtual_hosts") {
            let place = format!("routes[{name}].virtual_hosts[{}]", text(config, "name"));
            if field(config, "matcher").is_some() {
                self.unread = Some(place.clone());
            }
            self.hosts.push(VirtualHost {
                place,
                config,
                table,
            });
        }
        if field(table, "vhds").is_some() {
            self.unread = Some(format!("routes[{name}].vhds"));
        }
    }
}

impl<'v> Filter<'v> {
    fn of(manager: &str, filter: &'v Value, resources: &Resources<'v>) -> Filter<'v> {
        let name = text(filter, "name");
        let discovered = field(filter, "config_discovery").and_then(|discovery| {
            let found = resources.extensions.get(name).copied();
            found.or_else(|| field(discovery, "default_config"))
        });
        let config = field(filter, "typed_config")
            .or(discovered)
            .unwrap_or(&Value::Null);
        Filter {
            place: format!("{manager}.http_filters[{name}]"),
            name,
            type_url: type_of(config),
            config: message(config),
            is_disabled: is_true(filter, "disabled"),
            is_optional: is_true(filter, "is_optional"),
        }
    }

    /// Whether its type has this name, like `.rbac.v3.RBAC`.
    pub(super) fn is(&self, kind: &str) -> bool {
        self.type_url.ends_with(kind)
    }

    /// Whether it runs on a route. The most specific of the configurations for this filter decides.
    pub(super) fn runs_on(&self, route: &Value, host: &VirtualHost<'_>) -> bool {
        let own = [route, host.config, host.table]
            .into_iter()
            .find_map(|scope| {
                field(scope, "typed_per_filter_config").and_then(|all| all.get(self.name))
            });
        match own {
            None => !self.is_disabled,
            Some(own) => !is_true(message(own), "disabled"),
        }
    }
}

/// The clusters to which a route sends requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target<'v> {
    Clusters(Vec<&'v str>),
    /// Named by a header of the request.
    Header(&'v str),
    /// A plugin names it.
    Unknown,
    /// Nothing is sent: a redirect, or a response of Envoy itself.
    Nothing,
}

/// The target of a route.
pub(super) fn target(route: &Value) -> Target<'_> {
    let Some(action) = field(route, "route") else {
        return Target::Nothing;
    };
    if let Some(weighted) = field(action, "weighted_clusters") {
        let names = list(weighted, "clusters").iter();
        return Target::Clusters(names.map(|at| text(at, "name")).collect());
    }
    match (text(action, "cluster"), text(action, "cluster_header")) {
        ("", "") => Target::Unknown,
        ("", header) => Target::Header(header),
        (cluster, _) => Target::Clusters(vec![cluster]),
    }
}
