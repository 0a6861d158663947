//! Ways past the guest: routes and TCP proxies that reach the clusters of fenced services without
//! it.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    Known, clusters,
    finding::{Problem, Way},
    guests::Guest,
    json::{field, list, text},
    reach,
    view::{Manager, Target, View, VirtualHost, target},
};

/// The findings about ways past the guests. `guests` are those of `view.managers`, in their order.
pub(super) fn check(
    view: &View<'_>,
    guests: &[Option<Guest>],
    known: &Known,
    found: &mut impl FnMut(Problem, &str),
) {
    let fenced = fenced_clusters(view, guests, known);
    let is_fenced = |name: &str| !clusters::keys(name, view).is_disjoint(&fenced);
    let mut open = BTreeSet::new();
    for (manager, guest) in view.managers.iter().zip(guests) {
        if guest.is_some() {
            upgrades(manager, found);
        }
        for host in &manager.hosts {
            let fenced_routes: Vec<usize> = match known.is_configured {
                true => reach::fenced(host, manager, known)
                    .into_iter()
                    .map(|(at, _)| at)
                    .collect(),
                false => vec![],
            };
            for (index, route) in list(host.config, "routes").iter().enumerate() {
                if runs(manager, guest.as_ref(), route, host) || reach::is_read_only(route, known) {
                    continue;
                }
                let place = format!("{}.routes[{index}]", host.place);
                let way = match guest {
                    Some(_) => Way::Disabled,
                    None => Way::Manager,
                };
                let names = match target(route) {
                    Target::Clusters(names) => names,
                    // A client may name the cluster.
                    Target::Header(header) => {
                        let cluster = header.to_owned();
                        found(Problem::WayPast { way, cluster }, &place);
                        continue;
                    }
                    Target::Nothing | Target::Unknown => continue,
                };
                let takes = |name: &&&str| {
                    let by_route = fenced_routes.contains(&index) && !name.starts_with("inbound|");
                    is_fenced(name) || by_route
                };
                if let Some(name) = names.iter().find(takes) {
                    let cluster = (*name).to_owned();
                    found(Problem::WayPast { way, cluster }, &place);
                }
                open.extend(
                    names
                        .into_iter()
                        .filter(|name| clusters::is_open(name, view)),
                );
            }
        }
    }
    for tunnel in &view.tunnels {
        if let Some(name) = tunnel.clusters.iter().find(|name| is_fenced(name)) {
            let (way, cluster) = (Way::Tcp, (*name).to_owned());
            found(Problem::WayPast { way, cluster }, &tunnel.place);
        }
        let names = tunnel
            .clusters
            .iter()
            .copied()
            .filter(|_| !tunnel.is_internal);
        open.extend(names.filter(|name| clusters::is_open(name, view)));
    }
    for name in open {
        let cluster = name.to_owned();
        found(
            Problem::OpenDestination { cluster },
            &format!("clusters[{name}]"),
        );
    }
}

fn runs(
    manager: &Manager<'_>,
    guest: Option<&Guest>,
    route: &Value,
    host: &VirtualHost<'_>,
) -> bool {
    let filter = guest.and_then(|guest| manager.filters.get(guest.index));
    filter.is_some_and(|filter| filter.runs_on(route, host))
}

/// What identifies the clusters to which guarded routes send requests of fenced services. Without a
/// guest nothing is known to be fenced, unless the configuration says so.
fn fenced_clusters(view: &View<'_>, guests: &[Option<Guest>], known: &Known) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    for (manager, guest) in view.managers.iter().zip(guests) {
        let Some(guest) = guest else { continue };
        for host in &manager.hosts {
            for (_, route) in reach::fenced(host, manager, known) {
                let names: Vec<String> = match target(route) {
                    Target::Clusters(names) => names.into_iter().map(str::to_owned).collect(),
                    Target::Header(_) => clusters::named(guest, view, known).into_iter().collect(),
                    Target::Nothing | Target::Unknown => vec![],
                };
                let is_closed = |name: &&String| !clusters::is_open(name, view);
                keys.extend(
                    names
                        .iter()
                        .filter(is_closed)
                        .flat_map(|name| clusters::keys(name, view)),
                );
            }
        }
    }
    keys
}

/// Upgrades with filters of their own, without the guest.
fn upgrades(manager: &Manager<'_>, found: &mut impl FnMut(Problem, &str)) {
    for upgrade in list(manager.config, "upgrade_configs") {
        let filters = list(upgrade, "filters");
        let is_off = field(upgrade, "enabled") == Some(&Value::Bool(false));
        let has_guest = filters.iter().any(|filter| {
            field(filter, "typed_config")
                .is_some_and(|config| config.to_string().contains("control_plane"))
        });
        if filters.is_empty() || is_off || has_guest {
            continue;
        }
        let kind = text(upgrade, "upgrade_type");
        let (way, cluster) = (Way::Upgrade, kind.to_owned());
        let place = format!("{}.upgrade_configs[{kind}]", manager.place);
        found(Problem::WayPast { way, cluster }, &place);
    }
}
