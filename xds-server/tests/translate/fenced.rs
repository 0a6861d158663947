//! Fenced writes: they go to the local zone's instances or to another zone's gateways, in any state
//! of the proxy's parts.

use std::collections::BTreeSet;

use envoy_types::pb::envoy::config::{
    cluster::v3::{Cluster, cluster::ClusterDiscoveryType},
    route::v3::{Route, RouteAction, route::Action},
};
use policy::{
    Class, Facts, Outcome, Policy, Rules, Service, Writes, decide,
    fence::{Agreed, Agreement},
    headers,
    hop::Signer,
    rules::cluster_name,
};
use proptest::prelude::*;
use prost::Message;
use xds_server::{
    config::Mesh,
    snapshot::Role,
    testing,
    translate::{clusters, listener, needed_clusters, routes},
};

use crate::{
    any, check_of,
    table::{self, Request},
    weighted,
};

const AUTHORITY: &str = "authority: {forward_token: 0123456789abcdef}";
const ORDERS: &str =
    "[{name: orders, routes: [{prefix: /orders}], weights: {zone: 80, region: 20}}]";

/// Routes and policy arrive one after the other, and one of them may not arrive at all.
#[test]
fn a_route_takes_no_write_that_may_live_less_long_by_its_policy() {
    let mesh = mesh_of_three(AUTHORITY);
    let own = mesh.agreed().expect("terms");
    let first = Agreement::first(own.clone());
    let shorter = first.widened(Agreed {
        write_drain: own.write_drain / 2,
        ..own.clone()
    });
    let longer = first.widened(Agreed {
        write_drain: own.write_drain * 2,
        ..own
    });
    let ended = |widened: &Agreement| widened.narrowed().unwrap();
    let takes = |routes: &Agreement, policy: &Agreement| {
        let of = |agreement: &Agreement| {
            let mesh = mesh
                .under(agreement)
                .expect("the same terms by another name");
            crate::rules_of(&mesh, "UUU")
        };
        let table = table::read(&self::routes(&of(routes), &weighted));
        let post = [
            (":method", "POST"),
            (":path", "/orders"),
            (":authority", "shop"),
        ];
        let post = post.map(|(name, value)| (name, value.to_owned()));
        let mut request = Request::new(post.into());
        let policy = Policy::Serving(of(policy));
        let facts = Facts {
            granted: Some(7),
            ..Facts::gather(&policy, &request)
        };
        let Outcome::Route(routed) = decide(&policy, &facts).outcome else {
            panic!("refused");
        };
        for (name, value) in routed.stamps() {
            request.set(name, &value);
        }
        let route = table::find(&table, &request).expect("every path ends with a row");
        let takes = !table::targets(route, &request).is_empty();
        let sent = table::forwarded(&table, route, &request);
        let said = sent.value(headers::WRITE_DRAIN);
        assert!(!takes || said.is_none(), "it is for the route alone");
        takes
    };
    let cases = [
        (&first, &first, true),
        // The intermediate state while the drain is shortened, and while it is lengthened.
        (&shorter, &first, true),
        (&shorter, &shorter, true),
        (&ended(&shorter), &shorter, true),
        (&ended(&shorter), &ended(&shorter), true),
        (&longer, &first, true),
        (&longer, &longer, true),
        (&ended(&longer), &ended(&longer), true),
        // Routes of earlier terms.
        (&first, &shorter, false),
        (&first, &ended(&shorter), false),
        (&ended(&longer), &ended(&shorter), false),
        // A policy of earlier terms. The first one does not stamp its drain.
        (&ended(&longer), &longer, false),
        (&ended(&longer), &first, false),
        (&ended(&shorter), &first, false),
        // A change that was aborted: writes admitted before may still be under way.
        (&longer.back(), &first, true),
        (
            &ended(&shorter).widened(first.current.clone()),
            &first,
            false,
        ),
    ];
    for (at, (routes, policy, expected)) in cases.into_iter().enumerate() {
        assert_eq!(takes(routes, policy), expected, "case {at}");
    }
}

#[test]
fn a_fenced_table_reads_like_this() {
    let plain = "
*/orders :method=GET !x-region-id !tidegate-via -> orders/sh-a/reads 800 orders/sh-b/reads 200 (no filter)
*/orders :method=GET x-region-id=sh-a !tidegate-via -> orders/sh-a/reads 800 orders/sh-b/reads 200 (no filter)
*/orders !class !home !epoch !to -> 503
*/orders to home=sh-a !class -> as stamped
*/orders epoch !write-drain-ms -> orders/sh-a 1000
";
    let reads = "
*/orders !class !home -> 503
*/orders class=write -> 503
*/orders to -> as stamped
*/orders -> orders/sh-a/reads 1000
";
    let region = "
*/orders to=gateway/sh-b -> gateway/sh-b 1000
";
    let any = "
*/orders to=gateway/sh-b -> gateway/sh-b 1000
*/orders to=gateway/bj-c -> gateway/bj-c 1000
";
    let joined = |forwarded: &str| {
        let parts = [plain, forwarded, reads].map(str::trim);
        parts
            .map(|part| format!("{part}\n"))
            .concat()
            .replace("\n\n", "\n")
    };
    check_of(AUTHORITY, ORDERS, "UUU", &joined(region));
    let with =
        |cells: &str| format!("authority: {{forward_token: 0123456789abcdef, cells: [{cells}]}}");
    check_of(
        &with("{name: a, forward: any}"),
        ORDERS,
        "UUU",
        &joined(any),
    );
    check_of(
        &with("{name: a, forward: never}"),
        ORDERS,
        "UUU",
        &joined(""),
    );
    // One forwardable cell suffices. Without a token nothing is forwarded.
    let two = with("{name: a, forward: never}, {name: b, forward: any}");
    check_of(&two, ORDERS, "UUU", &joined(any));
    check_of(
        "authority: {cells: [{name: a, forward: any}]}",
        ORDERS,
        "UUU",
        &joined(""),
    );
    // Also with affinity.
    check_of(
        AUTHORITY,
        "[{name: s, routes: [{host: h, grpc: a.B}], zone_affinity: {cookie: user}}]",
        "EEU",
        "
hgrpc /a.B/ !class !home !epoch !to -> 503
hgrpc /a.B/ to home=sh-a !class -> as stamped
hgrpc /a.B/ epoch !write-drain-ms -> s/sh-a 1000
hgrpc /a.B/ to=gateway/sh-b -> gateway/sh-b 1000
hgrpc /a.B/ !class !home -> 503
hgrpc /a.B/ class=write -> 503
hgrpc /a.B/ to -> as stamped
hgrpc /a.B/ -> s/sh-a/reads 1000
",
    );
    // Unfenced services are not affected.
    let free = "[{name: s, routes: [{host: h, grpc: a.B}], fenced: false}]";
    check_of(
        AUTHORITY,
        free,
        "UEE",
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

fn mesh_of_three(more: &str) -> Mesh {
    testing::mesh(
        "sh-a/r sh-b/r bj-c/q",
        &format!("{more}\nservices: {ORDERS}"),
    )
}

fn mesh(more: &str, services: &str) -> Mesh {
    testing::mesh("z/r y/r", &format!("{more}\nservices: {services}"))
}

#[test]
fn the_gateways_have_one_cluster_a_zone_which_answers_do_not_eject() {
    let mesh = mesh(AUTHORITY, ORDERS);
    let gateways = mesh.services.last().expect("the gateways");
    let clusters = clusters(&mesh.topology, gateways);
    let names: Vec<&str> = clusters.iter().map(|cluster| &*cluster.name).collect();
    assert_eq!(names, ["gateway/z", "gateway/y"]);
    let cluster = Cluster::decode(clusters[0].message()).expect("a cluster");
    assert!(matches!(
        cluster.cluster_discovery_type,
        Some(ClusterDiscoveryType::Type(_))
    ));
    let outlier = cluster.outlier_detection.expect("outlier detection");
    assert!(outlier.split_external_local_origin_errors);
    let enforced = |share: Option<envoy_types::pb::google::protobuf::UInt32Value>| {
        share.expect("a share").value
    };
    assert_eq!(enforced(outlier.enforcing_consecutive_5xx), 0);
    assert_eq!(enforced(outlier.enforcing_consecutive_gateway_failure), 0);
    assert_eq!(enforced(outlier.enforcing_failure_percentage), 0);
    assert_eq!(
        enforced(outlier.enforcing_consecutive_local_origin_failure),
        100
    );
}

#[test]
fn the_access_log_tells_cell_and_epoch() {
    let listener = listener(&mesh("", ORDERS), Role::Gateway).unwrap();
    let message = listener.message();
    let text = String::from_utf8_lossy(&message);
    for field in ["%REQ(X-TIDEGATE-CELL)%", "%REQ(X-TIDEGATE-EPOCH)%"] {
        assert!(text.contains(field), "{field}");
    }
}

/// The route's action for forwarded requests.
fn action(route: &Route) -> &RouteAction {
    match &route.action {
        Some(Action::Route(action)) => action,
        other => panic!("it goes on: {other:?}"),
    }
}

/// The same rules without a fence.
fn unfenced(rules: &Rules) -> Rules {
    let services = rules.services().iter().map(|service| Service {
        writes: Writes::Free,
        ..service.clone()
    });
    let (topology, explain) = (rules.topology().clone(), rules.explain().cloned());
    Rules::new(topology, rules.viewer(), services.collect(), explain).expect("valid rules")
}

/// The clusters that a write may reach with a table if the filter uses `policy`; none if it is
/// rejected.
fn reached(
    policy: &Policy,
    table: &Rules,
    request: &Request,
    granted: Option<u64>,
) -> Option<Vec<String>> {
    let facts = Facts {
        granted,
        signer: Signer::Holds,
        ..Facts::gather(policy, request)
    };
    let Outcome::Route(routed) = decide(policy, &facts).outcome else {
        return None;
    };
    let mut request = request.clone();
    for (name, value) in routed.stamps() {
        request.set(name, &value);
    }
    let table = table::read(&routes(table, &weighted));
    let route = table::find(&table, &request)?;
    let targets = table::targets(route, &request);
    (!targets.is_empty()).then(|| targets.into_iter().map(|(name, _)| name).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Policy and routes are sent separately: a proxy may have one of them before the other.
    #[test]
    fn a_write_passes_a_fenced_table_only_as_the_fence_says(
        rules in any::rules(),
        headers in any::request(),
        granted in any::granted(),
        fallback in any::<bool>(),
    ) {
        let bare = unfenced(&rules);
        let request = Request::new(headers);
        let fenced = Policy::Serving(Box::new(rules.clone()));
        let facts = Facts::gather(&fenced, &request);
        let Some(service) = facts.service.and_then(|id| rules.service(id)) else {
            return Ok(());
        };
        if facts.cell.is_none() {
            return Ok(());
        }
        let zone = |zone| rules.topology().zone_name(zone);
        let own = cluster_name(&service.name, zone(rules.viewer()));
        let gateways = rules.topology().zones().filter(|zone| *zone != rules.viewer());
        let gateways = gateways.map(|at| cluster_name("gateway", zone(at)));
        let allowed: BTreeSet<String> = gateways.chain([own]).collect();
        for cluster in reached(&fenced, &rules, &request, granted).unwrap_or_default() {
            prop_assert!(allowed.contains(&cluster), "{cluster}");
        }
        // The filter does not know the fence yet, or not any more.
        let unaware = match fallback {
            true => Policy::Fallback,
            false => Policy::Serving(Box::new(bare.clone())),
        };
        let unaware_facts = Facts::gather(&unaware, &request);
        if unaware_facts.class == Class::Write {
            prop_assert_eq!(reached(&unaware, &rules, &request, granted), None);
        }
        // The table does not know the fence: a write is still routed as a write, not as a read.
        for cluster in reached(&fenced, &bare, &request, granted).unwrap_or_default() {
            let zones = rules.topology().zones();
            let mut writes = zones.map(|zone| crate::route_cluster(rules.topology(), &service.name, zone, Class::Write));
            prop_assert!(writes.any(|write| write == cluster), "{cluster}");
        }
    }

    #[test]
    fn a_fenced_write_ends_before_the_drain_and_stays_where_it_is_sent(rules in any::rules()) {
        let table = table::read(&routes(&rules, &weighted));
        let Some(fence) = rules.fencing() else {
            return Ok(());
        };
        let needed = needed_clusters(&rules, &weighted);
        let drain_us = u128::from(fence.terms.write_drain);
        for (host, (_, expected)) in table.virtual_hosts.iter().zip(table::hosts(&rules)) {
            let groups = host.routes.chunk_by(|a, b| table::path(a) == table::path(b));
            for (group, (_, service, _)) in groups.zip(expected) {
                let mut admitted = 0;
                for route in group {
                    let conditions = table::conditions(route);
                    let is_admitted = conditions.contains(&headers::EPOCH.to_owned());
                    let forwarded = conditions.iter().find_map(|c| c.strip_prefix("x-tidegate-to="));
                    if !is_admitted && forwarded.is_none() {
                        continue;
                    }
                    prop_assert_ne!(&service.writes, &Writes::Free);
                    admitted += usize::from(is_admitted);
                    let action = action(route);
                    let micros = |span: &envoy_types::pb::google::protobuf::Duration| {
                        span.seconds as u128 * 1_000_000 + span.nanos as u128 / 1_000
                    };
                    let spans = action.max_stream_duration.as_ref().expect("a longest duration");
                    let longest = spans.max_stream_duration.as_ref().map(micros);
                    prop_assert_eq!(longest, Some(drain_us));
                    prop_assert_eq!(action.timeout.as_ref().map(micros), Some(drain_us));
                    let grpc = table::path(route).starts_with("grpc");
                    let said = spans.grpc_timeout_header_max.as_ref().map(micros);
                    prop_assert_eq!(said, grpc.then_some(drain_us));
                    let retry = action.retry_policy.as_ref().expect("a retry policy");
                    let unsent = "connect-failure,refused-stream,reset-before-request";
                    prop_assert_eq!(retry.retry_on.as_str(), unsent);
                    prop_assert!(retry.retry_priority.is_none());
                    prop_assert!(action.hedge_policy.is_none());
                    // The request as upstreams see it.
                    let request = Request::new(vec![]);
                    let sent = table::forwarded(&table, route, &request);
                    let value = |name: &str| sent.value(name).unwrap_or_default();
                    prop_assert_eq!(value(headers::CLASS), "write");
                    let cell = match fence.cells() {
                        [only] if is_admitted => only.name.as_str(),
                        _ => "",
                    };
                    prop_assert_eq!(value(headers::CELL), cell);
                    // The filter signs hops: no route table contains a secret.
                    prop_assert_eq!(value(headers::FORWARDED), "");
                    for (cluster, _) in table::targets(route, &request) {
                        prop_assert_eq!(forwarded.unwrap_or(&cluster), &cluster);
                        prop_assert!(needed.contains(cluster.as_str()));
                    }
                }
                let rows = 1 + usize::from(fence.terms.changed);
                let rows = if service.writes == Writes::Free { 0 } else { rows };
                prop_assert_eq!(admitted, rows);
            }
        }
    }
}
