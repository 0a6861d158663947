//! The resources of gRPC clients follow the policy, or reject.

use std::collections::BTreeSet;

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::Cluster,
            listener::v3::Listener,
            route::v3::{
                HeaderMatcher, Route, RouteConfiguration, header_matcher::HeaderMatchSpecifier,
                route_match::PathSpecifier,
            },
        },
        extensions::filters::network::http_connection_manager::v3::{
            HttpConnectionManager, http_connection_manager::RouteSpecifier,
        },
        r#type::matcher::v3::string_matcher::MatchPattern,
    },
    google::protobuf::Any,
};
use policy::Service;
use prost::Message;
use regex::Regex;
use xds::resource::{Resource, Resources};
use xds_server::translate::grpc::{REFUSED, clusters, listeners, routes};

use super::*;

fn mesh(more: &str, services: &str) -> Mesh {
    let rest = format!("listeners: {{grpc: true}}\n{more}\nservices: {services}");
    testing::mesh(ZONES, &rest)
}

/// The rows of all tables, one per line.
#[track_caller]
fn check(more: &str, services: &str, states: &str, expected: &str) {
    let mesh = mesh(more, services);
    let rules = rules_of(&mesh, states);
    let resilience = |at: usize| mesh.services[at].resilience.clone();
    let tables = routes(&rules, &resilience);
    let lines = tables.values().flat_map(|table| {
        let name = table.name.clone();
        let rows = rows(table);
        let line = move |row: Route| format!("{name} {}", line(&row));
        rows.into_iter().map(line)
    });
    assert_eq!(lines.collect::<Vec<_>>().join("\n"), expected.trim());
}

fn rows(table: &Resource) -> Vec<Route> {
    let table = RouteConfiguration::decode(&table.message()[..]).expect("a route table");
    let [host] = &table.virtual_hosts[..] else {
        panic!("one virtual host");
    };
    assert_eq!(host.domains, ["*"]);
    host.routes.clone()
}

fn line(row: &Route) -> String {
    let matches = row.r#match.as_ref().expect("a match");
    let conditions = matches
        .headers
        .iter()
        .map(|matcher| match pattern(matcher) {
            MatchPattern::Exact(value) => format!(" {}={value}", matcher.name),
            MatchPattern::SafeRegex(regex) => format!(" {}~{}", matcher.name, regex.regex),
            other => panic!("not used: {other:?}"),
        });
    let targets = table::targets(row, &Request::new(vec![])).into_iter();
    let targets = targets.map(|(cluster, weight)| format!(" {cluster} {weight}"));
    let (conditions, targets): (String, String) = (conditions.collect(), targets.collect());
    format!("{}{conditions} ->{targets}", path(row))
}

fn path(row: &Route) -> String {
    match row.r#match.as_ref().and_then(|m| m.path_specifier.as_ref()) {
        Some(PathSpecifier::Path(path)) => path.clone(),
        Some(PathSpecifier::Prefix(path)) => format!("{path}*"),
        Some(PathSpecifier::SafeRegex(regex)) => format!("~{}", regex.regex),
        other => panic!("no client understands {other:?}"),
    }
}

fn pattern(matcher: &HeaderMatcher) -> &MatchPattern {
    assert!(
        !matcher.invert_match,
        "libraries differ about absent headers"
    );
    let Some(HeaderMatchSpecifier::StringMatch(text)) = &matcher.header_match_specifier else {
        panic!("not used: {matcher:?}");
    };
    text.match_pattern.as_ref().expect("a pattern")
}

/// Whether a client uses this row for the call.
fn takes(row: &Route, call: &Request) -> bool {
    let whole = |regex: &str, text: &str| {
        let regex = Regex::new(&format!("^(?:{regex})$")).expect("a regular expression");
        regex.is_match(text)
    };
    let matches = row.r#match.as_ref().expect("a match");
    let called = call.value(":path").unwrap_or_default();
    let path_ok = match matches.path_specifier.as_ref().expect("a path") {
        PathSpecifier::Path(path) => called == *path,
        PathSpecifier::Prefix(path) => called.starts_with(path),
        PathSpecifier::SafeRegex(regex) => whole(&regex.regex, &called),
        other => panic!("no client understands {other:?}"),
    };
    path_ok
        && matches.headers.iter().all(|matcher| {
            // Copies of a header are joined by commas.
            call.value(&matcher.name)
                .is_some_and(|value| match pattern(matcher) {
                    MatchPattern::Exact(expected) => value == *expected,
                    MatchPattern::SafeRegex(regex) => whole(&regex.regex, &value),
                    other => panic!("not used: {other:?}"),
                })
        })
}

/// The policy's destination of the call; [`REFUSED`] for calls that no client may decide.
fn wanted(rules: &Rules, facts: &Facts, outcome: Outcome<'_>) -> Vec<(String, u32)> {
    let refused = vec![(REFUSED.to_owned(), 1000)];
    let service: &Service = (facts.service.and_then(|id| rules.service(id))).expect("a service");
    let (Outcome::Route(routed), None, None) = (outcome, &service.zone_affinity, facts.cell) else {
        return refused;
    };
    let topology = rules.topology();
    let home = routed.home.and_then(|name| topology.zone_named(name));
    let plan = service.plans.get(home.expect("a home"), routed.class);
    let cluster = |zone| cluster_name(&service.name, topology.zone_name(zone));
    let shares = plan.targets().iter();
    let shares = shares.map(|target| (cluster(target.zone), target.weight));
    match plan.shed() {
        0 => shares.collect(),
        shed => shares
            .map(|(name, weight)| (name, weight * (1000 - shed)))
            .chain([(REFUSED.to_owned(), shed * 1000)])
            .collect(),
    }
}

proptest! {
    #[test]
    fn calls_go_where_the_decision_sends_them(rules in any::rules(), headers in any::request()) {
        let tables = routes(&rules, &weighted);
        prop_assert_eq!(&tables, &routes(&rules, &weighted), "the same rules give the same bytes");
        let mut call = Request::new(headers);
        call.set(":method", "POST");
        call.set("content-type", "application/grpc");
        let policy = Policy::Serving(Box::new(rules));
        let Policy::Serving(rules) = &policy else {
            unreachable!("a serving policy");
        };
        for (host, _) in rules.hosts() {
            // A name for which this pattern is the most specific one.
            call.set(":authority", &host.replace('*', "anything"));
            let rows = rows(&tables[format!("tidegate/{host}").as_str()]);
            let row = rows.iter().find(|row| takes(row, &call));
            let facts = Facts::gather(&policy, &call);
            let decision = decide(&policy, &facts);
            prop_assert_eq!(row.is_none(), decision.outcome == Outcome::Pass);
            if let Some(row) = row {
                let targets = table::targets(row, &call);
                prop_assert_eq!(targets, wanted(rules, &facts, decision.outcome), "{}", line(row));
            }
            // No path falls through to a shorter one.
            for group in rows.chunk_by(|a, b| path(a) == path(b)) {
                let last = group.last().and_then(|row| row.r#match.as_ref()).expect("a row");
                prop_assert!(last.headers.is_empty(), "{}", line(&group[0]));
            }
        }
    }
}

#[test]
fn a_table_for_clients_reads_like_this() {
    check(
        "",
        "[{name: orders, routes: [{host: shop.example, grpc: shop.v1.Orders, reads: [Get]}], weights: {zone: 80, region: 20}}]",
        "UUU",
        "
tidegate/shop.example /shop.v1.Orders/Get x-region-id=sh-a -> orders/sh-a 800 orders/sh-b 200
tidegate/shop.example /shop.v1.Orders/Get x-region-id=sh-b -> orders/sh-a 200 orders/sh-b 800
tidegate/shop.example /shop.v1.Orders/Get x-region-id=bj-c -> orders/bj-c 1000
tidegate/shop.example /shop.v1.Orders/Get x-region-id=shanghai -> orders/sh-a 800 orders/sh-b 200
tidegate/shop.example /shop.v1.Orders/Get x-region-id=beijing -> orders/bj-c 1000
tidegate/shop.example /shop.v1.Orders/Get -> orders/sh-a 800 orders/sh-b 200
tidegate/shop.example /shop.v1.Orders/* x-region-id=sh-a -> orders/sh-a 800 orders/sh-b 200
tidegate/shop.example /shop.v1.Orders/* x-region-id=sh-b -> orders/sh-a 200 orders/sh-b 800
tidegate/shop.example /shop.v1.Orders/* x-region-id=bj-c -> orders/bj-c 1000
tidegate/shop.example /shop.v1.Orders/* x-region-id=shanghai -> orders/sh-a 800 orders/sh-b 200
tidegate/shop.example /shop.v1.Orders/* x-region-id=beijing -> orders/bj-c 1000
tidegate/shop.example /shop.v1.Orders/* -> orders/sh-a 800 orders/sh-b 200
",
    );
    // A home and a trace id are required; calls beyond the capacity are shed; a prefix is a regular
    // expression.
    check(
        "",
        "[{name: s, routes: [{prefix: /a.b, class: read}], region: {missing: reject}, trace: {missing: reject}, demand: {sh-a: {reads: 100}}}]",
        "LEE",
        r"
tidegate/* ~/a\.b(?:[/?#].*)? x-region-id=sh-a x-trace-id~.+ -> s/sh-a 750000 tidegate-refuses 250000
tidegate/* ~/a\.b(?:[/?#].*)? x-region-id=sh-b x-trace-id~.+ -> s/sh-a 750000 tidegate-refuses 250000
tidegate/* ~/a\.b(?:[/?#].*)? x-region-id=bj-c x-trace-id~.+ -> tidegate-refuses 1000
tidegate/* ~/a\.b(?:[/?#].*)? x-region-id=shanghai x-trace-id~.+ -> s/sh-a 750000 tidegate-refuses 250000
tidegate/* ~/a\.b(?:[/?#].*)? x-region-id=beijing x-trace-id~.+ -> tidegate-refuses 1000
tidegate/* ~/a\.b(?:[/?#].*)? x-region-id~.+ x-trace-id~.+ -> s/sh-a 750000 tidegate-refuses 250000
tidegate/* ~/a\.b(?:[/?#].*)? x-trace-id~.+ -> tidegate-refuses 1000
tidegate/* ~/a\.b(?:[/?#].*)? -> tidegate-refuses 1000
",
    );
}

#[test]
fn what_no_client_may_decide_is_refused() {
    check(
        "authority: {cells: [{name: main, owners: [sh-a]}]}",
        "[{name: s, routes: [{host: h, grpc: a.B, reads: [Get]}]}]",
        "UEE",
        "
tidegate/h /a.B/Get x-region-id=sh-a -> s/sh-a 1000
tidegate/h /a.B/Get x-region-id=sh-b -> s/sh-a 1000
tidegate/h /a.B/Get x-region-id=bj-c -> s/sh-a 1000
tidegate/h /a.B/Get x-region-id=shanghai -> s/sh-a 1000
tidegate/h /a.B/Get x-region-id=beijing -> s/sh-a 1000
tidegate/h /a.B/Get -> s/sh-a 1000
tidegate/h /a.B/* -> tidegate-refuses 1000
",
    );
    for keyed in [
        "zone_affinity: {header: x-user}",
        "strategy: {region_first_hash: {cookie: user}}",
        "strategy: {region_first_hash: {path_segment: 1}}",
        "strategy: {region_first_hash: {header: x-user}}, stateful_session: {cookie: s}",
    ] {
        let service = format!("[{{name: s, routes: [{{host: h, grpc: a.B}}], {keyed}}}]");
        let refused = "tidegate/h /a.B/* -> tidegate-refuses 1000";
        check("", &service, "UUU", refused);
    }
    check(
        "",
        "[{name: s, routes: [{host: h, grpc: a.B}], strategy: {region_first_hash: {header: x-user}}}]",
        "EUU",
        "
tidegate/h /a.B/* x-region-id=sh-a -> s/shanghai 1000
tidegate/h /a.B/* x-region-id=sh-b -> s/shanghai 1000
tidegate/h /a.B/* x-region-id=bj-c -> s/beijing 1000
tidegate/h /a.B/* x-region-id=shanghai -> s/shanghai 1000
tidegate/h /a.B/* x-region-id=beijing -> s/beijing 1000
tidegate/h /a.B/* -> s/shanghai 1000
",
    );
}

/// The table that a listener names.
fn table_of(listener: &Resource) -> String {
    let listener = Listener::decode(&listener.message()[..]).expect("a listener");
    let manager: Any = listener
        .api_listener
        .and_then(|api| api.api_listener)
        .expect("an API listener");
    let manager = HttpConnectionManager::decode(&manager.value[..]).expect("a manager");
    match manager.route_specifier {
        Some(RouteSpecifier::Rds(rds)) => rds.route_config_name,
        other => panic!("not by name: {other:?}"),
    }
}

#[test]
fn names_to_ask_for_are_hosts_and_services_without_one() {
    let services = "[
        {name: orders, routes: [{prefix: /orders}, {host: shop.example, prefix: /orders}]},
        {name: users, routes: [{prefix: /users}]},
        {name: far, routes: [{host: '*.example', prefix: /}]},
        {name: twin, routes: [{host: users, prefix: /}]}]";
    let mesh = mesh("", services);
    let rules = rules_of(&mesh, "UUU");
    let names = |resources: &Resources| -> Vec<String> {
        resources.keys().map(ToString::to_string).collect()
    };
    let listeners = listeners(&rules);
    let tables: Vec<String> = (listeners.values().map(|l| table_of(l))).collect();
    assert_eq!(names(&listeners), ["orders", "shop.example", "users"]);
    assert_eq!(
        tables,
        ["tidegate/*", "tidegate/shop.example", "tidegate/users"]
    );
    // Every named table exists, and every cluster that a table names.
    let served = routes(&rules, &weighted);
    assert!(
        tables
            .iter()
            .all(|table| served.contains_key(table.as_str()))
    );
    let clusters = clusters(&mesh);
    let rows: Vec<Route> = served.values().flat_map(|table| rows(table)).collect();
    let targets = rows
        .iter()
        .flat_map(|row| table::targets(row, &Request::new(vec![])));
    let targets: BTreeSet<String> = targets.map(|(name, _)| name).collect();
    assert!(targets.len() > 4);
    for name in targets.iter().map(String::as_str).chain([REFUSED]) {
        let cluster = Cluster::decode(&clusters[name].message()[..]).expect("a cluster");
        assert_eq!(cluster.name, name);
    }
}
