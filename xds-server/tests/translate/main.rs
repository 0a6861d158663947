//! The route table follows the policy, for any rules and any request.

#[allow(dead_code, reason = "its other users need the rest")]
#[path = "../../../policy/tests/behaviour/any.rs"]
mod any;
mod cost;
mod fenced;
mod grpc;
mod limits;
mod on_demand;
mod places;
mod table;
mod tls;

use std::collections::BTreeSet;

use envoy_types::pb::envoy::config::route::v3::{Route, route::Action};
use policy::{
    Class, Decision, Facts, Outcome, Plan, Plans, Policy, Reason, Routed, Rules, Tier, Writes,
    ZoneLoad, ZoneState, decide, headers,
    rules::{cluster_name, is_alone, route_cluster_name},
};
use proptest::prelude::*;
use prost::Message;
use xds_server::{
    config::{Config, Mesh, Resilience},
    testing,
    translate::{needed_clusters, routes},
    world,
};

use table::Request;

const ZONES: &str = "sh-a/shanghai sh-b/shanghai bj-c/beijing";

/// The same for every service.
fn weighted(_: usize) -> Resilience {
    Resilience::default()
}

/// The table of `sh-a`'s proxies, one line for each route: the request, `->`, and its destination.
#[track_caller]
fn check(services: &str, states: &str, expected: &str) {
    check_of("", services, states, expected);
}

/// The rules in the view of `sh-a`, with a letter for the state of each zone: `U` up, `L` up and
/// limited, `E` empty.
fn rules_of(mesh: &Mesh, states: &str) -> Box<Rules> {
    let loads: Vec<ZoneLoad> = states
        .chars()
        .map(|letter| ZoneLoad {
            state: match letter {
                'U' | 'L' => ZoneState::Up,
                _ => ZoneState::Empty,
            },
            // Limited: three quarters of the demand.
            capacity: if letter == 'L' { 75.0 } else { f64::INFINITY },
            ..ZoneLoad::default()
        })
        .collect();
    let plans = |at: usize| {
        let service = &mesh.services[at];
        let plans = Plans::compute(&mesh.topology, service.weighting, &loads, &service.demands);
        match service.writes {
            Writes::Free => plans,
            Writes::Fenced { .. } => plans.fenced(&mesh.topology, &loads),
        }
    };
    let viewer = mesh.topology.zone_named("sh-a").expect("a zone");
    let Policy::Serving(rules) = world::policy(mesh, viewer, plans, &|_| None) else {
        panic!("a serving policy");
    };
    rules
}

/// As [`check`], with more of the configuration.
#[track_caller]
fn check_of(more: &str, services: &str, states: &str, expected: &str) {
    let mesh = testing::mesh(ZONES, &format!("{more}\nservices: {services}"));
    let rules = rules_of(&mesh, states);
    let resilience = |at: usize| mesh.services[at].resilience.clone();
    let table = table::read(&routes(&rules, &resilience));
    let lines = table.virtual_hosts.iter().flat_map(|host| {
        let line = |route| format!("{}{}", host.name, line(route));
        host.routes.iter().map(line)
    });
    assert_eq!(lines.collect::<Vec<_>>().join("\n"), expected.trim());
}

fn line(route: &Route) -> String {
    let nothing = Request::new(vec![]);
    let to = match &route.action {
        Some(Action::DirectResponse(answer)) => answer.status.to_string(),
        _ => table::targets(route, &nothing)
            .into_iter()
            .map(|(cluster, weight)| match cluster.as_str() {
                "" => "as stamped".to_owned(),
                _ => format!("{cluster} {weight}"),
            })
            .collect::<Vec<_>>()
            .join(" "),
    };
    let off = if table::filter_is_off(route) {
        " (no filter)"
    } else {
        ""
    };
    let conditions: String = table::conditions(route)
        .iter()
        .map(|condition| format!(" {}", condition.replace("x-tidegate-", "")))
        .collect();
    format!("{}{conditions} -> {to}{off}", table::path(route))
}

#[test]
fn a_table_reads_like_this() {
    check(
        "[{name: orders, routes: [{prefix: /orders}], weights: {zone: 80, region: 20}}]",
        "UUU",
        "
*/orders :method=GET !x-region-id !tidegate-via -> orders/sh-a/reads 800 orders/sh-b/reads 200 (no filter)
*/orders :method=GET x-region-id=sh-a !tidegate-via -> orders/sh-a/reads 800 orders/sh-b/reads 200 (no filter)
*/orders !class !home -> 503
*/orders to home=sh-a !class -> as stamped
*/orders to class=write !home -> as stamped
*/orders to class=write !tidegate-epoch -> as stamped
*/orders class=write -> 503
*/orders to -> as stamped
*/orders -> orders/sh-a/reads 1000
",
    );
    // With affinity the filter has to see every request. If the region is unavailable it reads
    // elsewhere and rejects writes.
    check(
        "[{name: s, routes: [{host: h, grpc: a.B}], zone_affinity: {cookie: user}}]",
        "EEU",
        "
hgrpc /a.B/ !class !home -> 503
hgrpc /a.B/ to home=sh-a !class -> as stamped
hgrpc /a.B/ to class=write !home -> as stamped
hgrpc /a.B/ to class=write !tidegate-epoch -> as stamped
hgrpc /a.B/ class=write -> 503
hgrpc /a.B/ to -> as stamped
hgrpc /a.B/ -> s/sh-a/reads 1000
",
    );
}

#[test]
fn the_table_refuses_only_those_plain_reads_that_fit_nowhere() {
    check(
        "[{name: s, routes: [{prefix: /}], demand: {sh-a: {reads: 100}}}]",
        "LEE",
        "
*/ :method=GET !x-region-id !tidegate-via 25 % -> 503 (no filter)
*/ :method=GET !x-region-id !tidegate-via -> s/sh-a/reads 1000 (no filter)
*/ :method=GET x-region-id=sh-a !tidegate-via 25 % -> 503 (no filter)
*/ :method=GET x-region-id=sh-a !tidegate-via -> s/sh-a/reads 1000 (no filter)
*/ !class !home -> 503
*/ to home=sh-a !class -> as stamped
*/ to class=write !home -> as stamped
*/ to class=write !tidegate-epoch -> as stamped
*/ class=write -> 503
*/ to -> as stamped
*/ -> s/sh-a/reads 1000
",
    );
}

#[test]
fn requests_with_a_key_go_to_one_cluster_for_the_whole_region() {
    check(
        "[{name: s, routes: [{host: h, grpc: a.B}], strategy: {region_first_hash: {cookie: user}}}]",
        "EUU",
        "
hgrpc /a.B/ !class !home -> 503
hgrpc /a.B/ class=write !home -> s/shanghai 1000
hgrpc /a.B/ home=sh-a !class -> s/shanghai/reads 1000
hgrpc /a.B/ home=sh-b !class -> s/shanghai/reads 1000
hgrpc /a.B/ home=bj-c !class -> s/beijing/reads 1000
hgrpc /a.B/ home=sh-a class=write -> s/shanghai 1000
hgrpc /a.B/ home=sh-b class=write -> s/shanghai 1000
hgrpc /a.B/ home=bj-c class=write -> s/beijing 1000
hgrpc /a.B/ class=write -> 503
hgrpc /a.B/ home -> s/shanghai/reads 1000
hgrpc /a.B/ class=read -> s/shanghai/reads 1000
hgrpc /a.B/ -> 503
",
    );
}

#[test]
fn a_read_that_leaves_the_region_says_so_also_to_who_may_see_why() {
    let text = "store: {embedded: {path: t.redb}}\nfilter: {path: f.wasm}\nexplain: {header: x-why, token: 0123456789abcdef}\nzones: [{name: sh-a, region: shanghai}, {name: sh-b, region: shanghai}, {name: bj-c, region: beijing}]\nservices: [{name: s, routes: [{prefix: /}], weights: {zone: 80, region: 20}, demand: {sh-a: {reads: 1000}}}]\n";
    let mesh = Config::parse("mesh.yaml", text)
        .expect("a good configuration")
        .mesh;
    let resilience = |at: usize| mesh.services[at].resilience.clone();
    // The region has capacity for a part of the reads.
    let table = table::read(&routes(&rules_of(&mesh, "LLU"), &resilience));
    let mut request = Request::new(vec![
        (":authority", "h".to_owned()),
        (":path", "/".to_owned()),
        (":method", "GET".to_owned()),
        (headers::HOME, "sh-a".to_owned()),
    ]);
    let labels = |request: &Request| {
        let route = table::find(&table, request).expect("a route");
        let sent = table::forwarded_to(&table, route, request).into_iter();
        sent.map(|(cluster, sent)| {
            let names = [headers::TIER, headers::DECISION, headers::EXPLAIN];
            let values = names.map(|name| sent.value(name).unwrap_or_default());
            format!("{cluster}: {}", values.join(" "))
        })
        .collect::<Vec<_>>()
    };
    let unseen = [
        "s/sh-a/reads: zone home_zone ",
        "s/sh-b/reads: zone home_zone ",
        "s/bj-c/reads: remote remote_read ",
    ];
    assert_eq!(labels(&request), unseen);
    // The filter has stamped its explanation for a caller that may see it.
    request.set(headers::EXPLAIN, "home_zone");
    let seen = [
        "s/sh-a/reads: zone home_zone home_zone",
        "s/sh-b/reads: zone home_zone home_zone",
        "s/bj-c/reads: remote remote_read remote_read",
    ];
    assert_eq!(labels(&request), seen);
}

/// The routes of each host of the table, without those of plain reads.
fn decided(rules: &Rules) -> Vec<Vec<Route>> {
    let table = table::read(&routes(rules, &weighted));
    let hosts = table.virtual_hosts.into_iter().map(|host| {
        let plain = |route: &Route| table::conditions(route).contains(&":method=GET".to_owned());
        let routes = host.routes.into_iter();
        routes.filter(|route| !plain(route)).collect()
    });
    hosts.collect()
}

/// The decision's destinations of the request, with shares.
fn wanted(rules: &Rules, facts: &Facts, routed: &Routed) -> Vec<(String, u32)> {
    if let Some(pin) = routed.pin {
        return vec![(pin.to_owned(), 1000)];
    }
    let topology = rules.topology();
    if routed.write.is_some() {
        let service = facts.service.and_then(|id| rules.service(id));
        let service = &service.expect("a service").name;
        let own = cluster_name(service, topology.zone_name(rules.viewer()));
        return vec![(own, 1000)];
    }
    let home = routed.home.and_then(|name| topology.zone_named(name));
    let id = facts.service.expect("a service");
    let service = rules.service(id).expect("a service");
    let plan = service
        .plans
        .get(home.unwrap_or(rules.viewer()), routed.class);
    let cluster = |zone| route_cluster(topology, &service.name, zone, routed.class);
    let targets = plan.targets().iter();
    targets
        .map(|target| (cluster(target.zone), target.weight))
        .collect()
}

/// The cluster that routes name: the endpoints' own if there is no fallback.
fn route_cluster(
    topology: &policy::Topology,
    service: &str,
    zone: policy::ZoneId,
    class: Class,
) -> String {
    let name = topology.zone_name(zone);
    match is_alone(topology, zone, class) {
        true => cluster_name(service, name),
        false => route_cluster_name(service, name, class),
    }
}

proptest! {
    #[test]
    fn requests_go_where_the_decision_sends_them(
        rules in any::rules(),
        headers in any::request(),
        granted in any::granted(),
        draw: u64,
    ) {
        let table = table::read(&routes(&rules, &weighted));
        let viewer = rules.topology().zone_name(rules.viewer()).to_owned();
        let policy = Policy::Serving(Box::new(rules));
        let Policy::Serving(rules) = &policy else {
            unreachable!("a serving policy");
        };
        let mut request = Request::new(headers);
        // The first pass, before any filter.
        let first = table::find(&table, &request);
        let off = first.is_some_and(table::filter_is_off);
        // Without the filter the table splits requests among targets.
        let draw = (!off).then_some(draw);
        let facts = Facts { granted, draw, ..Facts::gather(&policy, &request) };
        let Decision { outcome, reason, .. } = decide(&policy, &facts);
        prop_assert_eq!(first.is_none(), outcome == Outcome::Pass);
        let Some(first) = first else {
            return Ok(());
        };
        if !off {
            // The request is undecided, so it is rejected unless it passes the filter.
            prop_assert!(matches!(first.action, Some(Action::DirectResponse(_))));
        }
        let Outcome::Route(routed) = outcome else {
            prop_assert!(!off, "the filter would have refused: {reason:?}");
            return Ok(());
        };
        if !off {
            // Headers of a client that pretends to be another zone's gateway.
            request.remove(headers::PRESENTED_EPOCH);
            for (name, value) in routed.stamps() {
                request.set(name, &value);
            }
        }
        let route = table::find(&table, &request).expect("a route");
        prop_assert_eq!(table::targets(route, &request), wanted(rules, &facts, &routed));
        // The request as upstreams and the access log see it.
        let sent = table::forwarded(&table, route, &request);
        let stamps = [headers::CLASS, headers::HOME, headers::TIER, headers::DECISION];
        let expected = [
            routed.class.as_str(),
            routed.home.unwrap_or(&viewer),
            routed.tier.map_or("none", Tier::as_str),
            // Only the filter distinguishes writes that an observing fence lets through from those
            // that it admits.
            match reason {
                Reason::Observed => Reason::Admitted.as_str(),
                reason => reason.as_str(),
            },
        ];
        // If the targets of plain reads are in several tiers, each stamps its own.
        if table::forwarded_to(&table, route, &request).is_empty() {
            prop_assert_eq!(stamps.map(|name| sent.value(name)), expected.map(|v| Some(v.to_owned())));
        } else {
            for (cluster, sent) in table::forwarded_to(&table, route, &request) {
                let zone = cluster.split('/').nth(1).and_then(|zone| rules.topology().zone_named(zone));
                let home = routed.home.and_then(|home| rules.topology().zone_named(home));
                let (Some(zone), Some(home)) = (zone, home) else { panic!("{cluster}") };
                let tier = match rules.topology().tier(home, zone) {
                    Tier::Remote => Tier::Remote,
                    _ => routed.tier.expect("a tier"),
                };
                prop_assert_eq!(sent.value(headers::TIER), Some(tier.as_str().to_owned()));
                let reason = policy::Reason::of_tier(tier).as_str();
                prop_assert_eq!(sent.value(headers::DECISION), Some(reason.to_owned()));
            }
        }
    }

    /// The filter knows the plans: other plans do not change Envoy's table, except for plain reads.
    /// So a policy and a table of different ages work together as well.
    #[test]
    fn a_plan_changes_the_routes_of_plain_reads_alone(rules in any::rules(), other in any::rules()) {
        let mut replanned = rules.clone();
        for (index, service) in rules.services().iter().enumerate() {
            let donor = other.services().get(index % other.services().len());
            let donor = donor.map_or(&service.plans, |donor| &donor.plans);
            let zones = rules.topology().zones().len();
            let plans = if other.topology().zones().len() == zones { donor.clone() } else { Plans::default() };
            replanned.replan(policy::ServiceId::new(index), plans);
        }
        prop_assert_eq!(decided(&rules), decided(&replanned));
    }

    /// A filter that draws no number, and so names no cluster: it is older than the table.
    #[test]
    fn a_filter_that_names_no_cluster_reads_locally_and_writes_nothing(
        rules in any::rules(),
        headers in any::request(),
    ) {
        let table = table::read(&routes(&rules, &weighted));
        let local = rules.topology().zone_name(rules.viewer()).to_owned();
        let policy = Policy::Serving(Box::new(rules));
        let mut request = Request::new(headers);
        let facts = Facts::gather(&policy, &request);
        let Outcome::Route(routed) = decide(&policy, &facts).outcome else {
            return Ok(());
        };
        let first = table::find(&table, &request).expect("a route");
        let is_fenced = routed.write.is_some();
        if routed.pin.is_some() || is_fenced || table::filter_is_off(first) {
            return Ok(());
        }
        request.remove(headers::PRESENTED_EPOCH);
        for (name, value) in routed.stamps() {
            request.set(name, &value);
        }
        let route = table::find(&table, &request).expect("a route");
        let targets = table::targets(route, &request);
        match routed.class {
            Class::Read => {
                let [(cluster, 1000)] = &targets[..] else {
                    return Err(TestCaseError::fail("not one cluster"));
                };
                prop_assert_eq!(cluster.split('/').nth(1), Some(&*local));
            }
            Class::Write => prop_assert_eq!(targets, []),
        }
    }

    #[test]
    fn a_home_that_the_table_does_not_know_yet_is_read_locally_and_not_written(
        rules in any::rules(),
        headers in any::request(),
    ) {
        let table = table::read(&routes(&rules, &weighted));
        let local = rules.topology().zone_name(rules.viewer());
        let mut request = Request::new(headers);
        request.set(headers::HOME, "of-tomorrow");
        request.set(headers::CLASS, "write");
        // Plain reads are requests that no filter has seen.
        request.set("x-region-id", "of-tomorrow");
        if let Some(route) = table::find(&table, &request) {
            prop_assert!(matches!(route.action, Some(Action::DirectResponse(_))));
            request.set(headers::CLASS, "read");
            let route = table::find(&table, &request).expect("a route");
            let [(cluster, 1000)] = &table::targets(route, &request)[..] else {
                return Err(TestCaseError::fail("not one cluster"));
            };
            prop_assert_eq!(cluster.split('/').nth(1), Some(local));
            let sent = table::forwarded(&table, route, &request);
            prop_assert_eq!(sent.value(headers::DECISION), Some("fallback".to_owned()));
        }
    }

    #[test]
    fn every_cluster_is_warmed_and_every_group_takes_all_of_its_path(rules in any::rules()) {
        let resource = routes(&rules, &weighted);
        prop_assert_eq!(&resource, &routes(&rules, &weighted), "the same rules give the same bytes");

        let needed = needed_clusters(&rules, &weighted);
        let needed: BTreeSet<&str> = needed.iter().map(|name| &**name).collect();
        let topology = rules.topology();
        let table = table::read(&resource);
        // It is composed of pieces, and has the same bytes as if it were encoded at once.
        prop_assert_eq!(resource.message(), table.encode_to_vec());
        prop_assert_eq!(table.virtual_hosts.len(), rules.hosts().count());
        for (virtual_host, (host, expected)) in table.virtual_hosts.iter().zip(table::hosts(&rules)) {
            prop_assert_eq!(&virtual_host.name, host);
            let groups: Vec<&[Route]> = virtual_host
                .routes
                .chunk_by(|a, b| table::path(a) == table::path(b))
                .collect();
            let expected: Vec<_> = expected.collect();
            prop_assert_eq!(groups.len(), expected.len());
            for (group, (_, service, route)) in groups.into_iter().zip(expected) {
                let last = group.last().expect("a route");
                prop_assert!(table::conditions(last).is_empty());
                // A request that gets there has a stamp, but neither that of a write nor a cluster.
                let local = route_cluster(topology, &service.name, rules.viewer(), Class::Read);
                prop_assert_eq!(table::targets(last, &Request::new(vec![])), [(local, 1000)]);

                let off = group.iter().filter(|route| table::filter_is_off(route)).count();
                let plain = rules.plain_reads(service, route);
                let ways = |plain: policy::rules::PlainReads| [plain.without_region, plain.with_local_region];
                let ways = plain.map_or(0, |plain| ways(plain).into_iter().filter(|way| *way).count());
                prop_assert_eq!(off, ways);

                for route in group {
                    let conditions = table::conditions(route);
                    if let (true, Some(explain)) = (table::filter_is_off(route), rules.explain()) {
                        let asks_nothing = format!("!{}", explain.header);
                        prop_assert!(conditions.contains(&asks_nothing), "nobody would explain");
                    }
                    let targets = table::targets(route, &Request::new(vec![]));
                    // An empty name means that the header names the cluster.
                    let named: Vec<_> = targets.iter().filter(|(name, _)| !name.is_empty()).collect();
                    prop_assert!(named.iter().all(|(name, _)| needed.contains(name.as_str())));
                    let sum: u32 = targets.iter().map(|(_, weight)| weight).sum();
                    prop_assert!(targets.is_empty() || sum == 1000, "{conditions:?}: {sum}");

                    if conditions.contains(&format!("{}=write", headers::CLASS)) {
                        let home = conditions.iter().find_map(|c| c.strip_prefix("x-tidegate-home="));
                        let home = home.and_then(|name| topology.zone_named(name));
                        let home = home.unwrap_or(rules.viewer());
                        for (cluster, _) in named {
                            let zone = cluster.split('/').nth(1).expect("a zone");
                            let zone = topology.zone_named(zone).expect("a zone");
                            let write = route_cluster(topology, &service.name, zone, Class::Write);
                            prop_assert_eq!(cluster, &write, "no other leads writes");
                            prop_assert_ne!(topology.tier(home, zone), Tier::Remote);
                        }
                    }
                }
            }
        }
        // Clusters that only the filter may name are warm too.
        for service in rules.services().iter() {
            let planned = |class: &Class| *class == Class::Read || service.writes == Writes::Free;
            for home in topology.zones() {
                for class in Class::ALL.into_iter().filter(planned) {
                    if let Plan::Open { targets, .. } = service.plans.get(home, class) {
                        for target in targets {
                            let name = route_cluster(topology, &service.name, target.zone, class);
                            prop_assert!(needed.contains(name.as_str()));
                            let zone = topology.zone_name(target.zone);
                            let name = cluster_name(&service.name, zone);
                            prop_assert!(needed.contains(name.as_str()));
                        }
                    }
                }
            }
            let own = cluster_name(&service.name, topology.zone_name(rules.viewer()));
            prop_assert!(needed.contains(own.as_str()));
        }
    }
}
