//! The order of changes: make before break, and the order of kinds.

use proptest::prelude::*;

use super::*;

/// Cluster, endpoints and route are added together; then all are removed together.
#[test]
fn a_route_waits_for_its_clusters_and_clusters_wait_for_routes_to_leave() {
    let old = [
        &cluster("old", "1")[..],
        &[(Kind::Routes, "table", "to old")],
    ]
    .concat();
    let mut stream = delta(&view(&old, &["old"]));
    subscribe(&mut stream, Kind::Cluster, &[]);
    let nonce = sent(&mut stream, Kind::Cluster, &["old"], &[]);
    ack(&mut stream, Kind::Cluster, &nonce);
    subscribe(&mut stream, Kind::Routes, &["table"]);
    quiet(&mut stream);
    subscribe(&mut stream, Kind::Endpoints, &["old"]);
    let nonce = sent(&mut stream, Kind::Endpoints, &["old"], &[]);
    quiet(&mut stream);
    ack(&mut stream, Kind::Endpoints, &nonce);
    let nonce = sent(&mut stream, Kind::Routes, &["table"], &[]);
    ack(&mut stream, Kind::Routes, &nonce);

    let new = [
        &cluster("new", "1")[..],
        &[(Kind::Routes, "table", "to new")],
    ]
    .concat();
    stream.set_view(view(&new, &["new"]));
    let nonce = sent(&mut stream, Kind::Cluster, &["new"], &[]);
    ack(&mut stream, Kind::Cluster, &nonce);
    quiet(&mut stream);
    subscribe(&mut stream, Kind::Endpoints, &["new"]);
    let nonce = sent(&mut stream, Kind::Endpoints, &["new"], &[]);
    ack(&mut stream, Kind::Endpoints, &nonce);
    let nonce = sent(&mut stream, Kind::Routes, &["table"], &[]);
    quiet(&mut stream);
    ack(&mut stream, Kind::Routes, &nonce);
    sent(&mut stream, Kind::Cluster, &[], &["old"]);
}

/// An aggregate cluster has no endpoints of its own.
#[test]
fn an_aggregate_cluster_waits_until_its_members_can_be_used() {
    let lines = |content| {
        let aggregates = [(Kind::Cluster, "a/reads", content)];
        [&cluster("a", "1")[..], &cluster("b", "1"), &aggregates].concat()
    };
    let mut stream = delta(&view(&lines("1"), &[]));
    subscribe(&mut stream, Kind::Cluster, &[]);
    taken(&mut stream, Kind::Cluster, &["a", "b"], &[]);
    quiet(&mut stream);
    subscribe(&mut stream, Kind::Endpoints, &["a", "b"]);
    let nonce = sent(&mut stream, Kind::Endpoints, &["a", "b"], &[]);
    quiet(&mut stream);
    // A rejected one would be waited for forever.
    nack(&mut stream, Kind::Endpoints, &nonce, "b is broken");
    taken(&mut stream, Kind::Cluster, &["a/reads"], &[]);
    stream.set_view(view(&lines("2"), &[]));
    taken(&mut stream, Kind::Cluster, &["a/reads"], &[]);
}

/// A resource that is missing in a response is removed from the client.
#[test]
fn an_aggregate_cluster_does_not_wait_in_the_state_of_the_world() {
    let lines = [&cluster("a", "1")[..], &[(Kind::Cluster, "a/reads", "1")]].concat();
    let mut stream = sotw(&view(&lines, &[]));
    want(&mut stream, Kind::Cluster, &[]);
    taken(&mut stream, Kind::Cluster, &["a", "a/reads"], &[]);
}

/// This stream does not know their state.
#[test]
fn an_aggregate_cluster_does_not_wait_for_endpoints_of_another_stream() {
    let lines = [&cluster("a", "1")[..], &[(Kind::Cluster, "a/reads", "1")]].concat();
    let mut stream = delta(&view(&lines, &[])).of_one_kind();
    subscribe(&mut stream, Kind::Cluster, &[]);
    taken(&mut stream, Kind::Cluster, &["a", "a/reads"], &[]);
}

/// Such a client orders its requests itself.
#[test]
fn an_aggregate_cluster_does_not_wait_where_it_was_asked_for_by_name() {
    let lines = [&cluster("a", "1")[..], &[(Kind::Cluster, "a/reads", "1")]].concat();
    let mut stream = delta(&view(&lines, &[]));
    subscribe(&mut stream, Kind::Cluster, &["a", "a/reads"]);
    taken(&mut stream, Kind::Cluster, &["a", "a/reads"], &[]);
}

#[test]
fn a_route_waits_for_the_secrets_that_the_client_asked_for() {
    let old = [
        &cluster("orders", "1")[..],
        &[
            (Kind::Secret, "certificate", "file"),
            (Kind::Routes, "table", "to orders"),
        ],
    ]
    .concat();
    let mut stream = delta(&view(&old, &["orders"]));
    subscribe(&mut stream, Kind::Cluster, &[]);
    let nonce = sent(&mut stream, Kind::Cluster, &["orders"], &[]);
    ack(&mut stream, Kind::Cluster, &nonce);
    subscribe(&mut stream, Kind::Routes, &["table"]);
    subscribe(&mut stream, Kind::Secret, &["certificate"]);
    subscribe(&mut stream, Kind::Endpoints, &["orders"]);
    let secret = sent(&mut stream, Kind::Secret, &["certificate"], &[]);
    let endpoints = sent(&mut stream, Kind::Endpoints, &["orders"], &[]);
    ack(&mut stream, Kind::Endpoints, &endpoints);
    quiet(&mut stream);
    // A rejected one would be waited for forever.
    nack(&mut stream, Kind::Secret, &secret, "no such file");
    sent(&mut stream, Kind::Routes, &["table"], &[]);
}

#[test]
fn a_refused_route_keeps_the_clusters_that_the_old_one_uses() {
    let old = [
        &cluster("old", "1")[..],
        &[(Kind::Routes, "table", "to old")],
    ]
    .concat();
    let mut stream = delta(&view(&old, &["old"]));
    subscribe(&mut stream, Kind::Cluster, &[]);
    subscribe(&mut stream, Kind::Endpoints, &["old"]);
    subscribe(&mut stream, Kind::Routes, &["table"]);
    for kind in [Kind::Cluster, Kind::Endpoints, Kind::Routes] {
        let outgoing = stream.next_due().expect("a response");
        assert_eq!(outgoing.kind, kind);
        ack(&mut stream, kind, &outgoing.nonce.to_string());
        if kind == Kind::Cluster {
            // Resources that wait for the endpoints must not be sent.
            continue;
        }
    }
    stream.set_view(view(&[(Kind::Routes, "table", "broken")], &[]));
    let nonce = sent(&mut stream, Kind::Routes, &["table"], &[]);
    nack(&mut stream, Kind::Routes, &nonce, "table is broken");
    quiet(&mut stream);
    stream.set_view(view(&[(Kind::Routes, "table", "mended")], &[]));
    let nonce = sent(&mut stream, Kind::Routes, &["table"], &[]);
    ack(&mut stream, Kind::Routes, &nonce);
    sent(&mut stream, Kind::Cluster, &[], &["old"]);
}

/// Even if the client has not reported yet that it dropped the endpoints of the old one.
#[test]
fn a_cluster_that_comes_back_at_once_is_warmed_anew() {
    let there = [&cluster("a", "1")[..], &[(Kind::Routes, "table", "to a")]].concat();
    let mut stream = delta(&view(&there, &["a"]));
    subscribe(&mut stream, Kind::Cluster, &[]);
    subscribe(&mut stream, Kind::Endpoints, &["a"]);
    subscribe(&mut stream, Kind::Routes, &["table"]);
    for kind in [Kind::Cluster, Kind::Endpoints, Kind::Routes] {
        let nonce = stream.next_due().expect("a response").nonce.to_string();
        ack(&mut stream, kind, &nonce);
    }
    stream.set_view(view(&[(Kind::Routes, "table", "elsewhere")], &[]));
    let nonce = sent(&mut stream, Kind::Routes, &["table"], &[]);
    ack(&mut stream, Kind::Routes, &nonce);
    let nonce = sent(&mut stream, Kind::Cluster, &[], &["a"]);
    ack(&mut stream, Kind::Cluster, &nonce);

    stream.set_view(view(&there, &["a"]));
    let nonce = sent(&mut stream, Kind::Cluster, &["a"], &[]);
    ack(&mut stream, Kind::Cluster, &nonce);
    quiet(&mut stream);
    subscribe(&mut stream, Kind::Endpoints, &["a"]);
    let nonce = sent(&mut stream, Kind::Endpoints, &["a"], &[]);
    quiet(&mut stream);
    ack(&mut stream, Kind::Endpoints, &nonce);
    sent(&mut stream, Kind::Routes, &["table"], &[]);
}

/// Routes away from a cluster first, then its last healthy endpoint.
#[test]
fn the_last_healthy_endpoint_leaves_after_the_routes_to_it() {
    for refuses in [false, true] {
        let lines = |content, table| {
            let a = [(Kind::Cluster, "a", "1"), (Kind::Endpoints, "a", content)];
            [&a[..], &[(Kind::Routes, "table", table)]].concat()
        };
        let mut stream = delta(&view(&lines("healthy", "to a"), &["a"]));
        subscribe(&mut stream, Kind::Cluster, &[]);
        subscribe(&mut stream, Kind::Endpoints, &["a"]);
        subscribe(&mut stream, Kind::Routes, &["table"]);
        for kind in [Kind::Cluster, Kind::Endpoints, Kind::Routes] {
            let outgoing = stream.next_due().expect("a response");
            assert_eq!(outgoing.kind, kind);
            ack(&mut stream, kind, &outgoing.nonce.to_string());
        }
        stream.set_view(view(&lines("nobody healthy", "elsewhere"), &[]));
        let nonce = sent(&mut stream, Kind::Routes, &["table"], &[]);
        quiet(&mut stream);
        if refuses {
            nack(&mut stream, Kind::Routes, &nonce, "table");
        } else {
            ack(&mut stream, Kind::Routes, &nonce);
        }
        sent(&mut stream, Kind::Endpoints, &["a"], &[]);
    }
}

/// A gRPC client acknowledges routes before it applies them.
#[test]
fn the_last_healthy_endpoint_of_a_grpc_client_stays_for_a_while_after_its_routes() {
    let lines = |content, table| {
        let a = [(Kind::Cluster, "a", "1"), (Kind::Endpoints, "a", content)];
        [&a[..], &[(Kind::Routes, "table", table)]].concat()
    };
    let mut stream = sotw(&view(&lines("healthy", "to a"), &["a"]));
    want(&mut stream, Kind::Routes, &["table"]);
    taken(&mut stream, Kind::Routes, &["table"], &[]);
    want(&mut stream, Kind::Cluster, &["a"]);
    taken(&mut stream, Kind::Cluster, &["a"], &[]);
    want(&mut stream, Kind::Endpoints, &["a"]);
    taken(&mut stream, Kind::Endpoints, &["a"], &[]);
    for table in ["elsewhere", "further away"] {
        stream.set_view(view(&lines("nobody healthy", table), &[]));
        let nonce = sent(&mut stream, Kind::Routes, &["table"], &[]);
        quiet(&mut stream);
        assert!(!stream.awaits_grace(), "the routes are not acknowledged");
        ack(&mut stream, Kind::Routes, &nonce);
        quiet(&mut stream);
        assert!(stream.awaits_grace());
    }
    stream.end_grace();
    taken(&mut stream, Kind::Endpoints, &["a"], &[]);
    assert!(!stream.awaits_grace());
    quiet(&mut stream);
}

/// Envoy acknowledges a cluster once it is warm. For that it waits for endpoints, and routes wait
/// for the acknowledgement.
#[test]
fn a_cluster_that_changes_is_warmed_with_its_healthy_endpoints_until_routes_have_left_it() {
    let lines = |content, endpoints, table| {
        let a = [
            (Kind::Cluster, "a", content),
            (Kind::Endpoints, "a", endpoints),
        ];
        [&a[..], &[(Kind::Routes, "table", table)]].concat()
    };
    let before = view(&lines("1", "healthy", "to a"), &["a"]);
    let healthy = before.of(Kind::Endpoints)["a"].version;
    let mut stream = delta(&before);
    subscribe(&mut stream, Kind::Cluster, &[]);
    subscribe(&mut stream, Kind::Endpoints, &["a"]);
    subscribe(&mut stream, Kind::Routes, &["table"]);
    for kind in [Kind::Cluster, Kind::Endpoints, Kind::Routes] {
        let nonce = stream.next_due().expect("a response").nonce.to_string();
        ack(&mut stream, kind, &nonce);
    }
    let after = view(&lines("2", "nobody healthy", "elsewhere"), &["a"]);
    let no_healthy_endpoints = after.of(Kind::Endpoints)["a"].version;
    stream.set_view(after);
    let warming = sent(&mut stream, Kind::Cluster, &["a"], &[]);
    let outgoing = stream.next_due().expect("the endpoints, again");
    assert_eq!(outgoing.resources[0].version, healthy);
    ack(&mut stream, Kind::Endpoints, &outgoing.nonce.to_string());
    quiet(&mut stream);
    ack(&mut stream, Kind::Cluster, &warming);
    taken(&mut stream, Kind::Routes, &["table"], &[]);
    let outgoing = stream.next_due().expect("the last endpoints");
    assert_eq!(outgoing.resources[0].version, no_healthy_endpoints);
    ack(&mut stream, Kind::Endpoints, &outgoing.nonce.to_string());
    quiet(&mut stream);
}

#[test]
fn a_client_that_names_its_clusters_is_not_kept_waiting() {
    let world = [&cluster("a", "1")[..], &[(Kind::Routes, "table", "to a")]].concat();
    let mut stream = delta(&view(&world, &["a"]));
    subscribe(&mut stream, Kind::Routes, &["table"]);
    sent(&mut stream, Kind::Routes, &["table"], &[]);
}

#[test]
fn kinds_that_are_due_together_go_in_order() {
    let kinds = Kind::ALL;
    let lines = kinds.map(|kind| (kind, "table/a", "1"));
    let mut stream = delta(&view(&lines, &[]));
    for kind in kinds.into_iter().rev() {
        subscribe(&mut stream, kind, &["table/a"]);
    }
    for kind in kinds {
        let outgoing = stream.next_due().expect("a response");
        assert_eq!(outgoing.kind, kind);
    }
    quiet(&mut stream);
    let urls = [
        "cluster.v3.Cluster",
        "extensions.transport_sockets.tls.v3.Secret",
        "endpoint.v3.ClusterLoadAssignment",
        "listener.v3.Listener",
        "route.v3.RouteConfiguration",
        "route.v3.VirtualHost",
        "core.v3.TypedExtensionConfig",
    ];
    assert_eq!(
        kinds.map(|kind| kind
            .type_url()
            .trim_start_matches("type.googleapis.com/envoy.")
            .trim_start_matches("config.")),
        urls
    );
}

/// Clusters by name, with their contents.
type World = std::collections::BTreeMap<usize, u8>;

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

fn world_view(world: &World) -> Arc<View> {
    let contents: Vec<(usize, String)> = world.iter().map(|(at, c)| (*at, c.to_string())).collect();
    let lines: Vec<_> = contents
        .iter()
        .map(|(at, content)| (Kind::Cluster, NAMES[*at], content.as_str()))
        .collect();
    view(&lines, &[])
}

/// The final version of all clusters of a client, and the clusters' versions.
fn versions(variant: Variant, history: &[World]) -> (Option<Version>, Vec<(String, Version)>) {
    let mut stream = Stream::new(variant, world_view(&history[0]));
    match variant {
        Variant::Delta => subscribe(&mut stream, Kind::Cluster, &["*"]),
        Variant::StateOfTheWorld => want(&mut stream, Kind::Cluster, &[]),
    }
    let mut last = None;
    for world in history {
        stream.set_view(world_view(world));
        while let Some(outgoing) = stream.next_due() {
            last = Some(outgoing.version);
            ack(&mut stream, Kind::Cluster, &outgoing.nonce.to_string());
        }
    }
    let held = stream.held(Kind::Cluster);
    (
        last,
        held.map(|(name, version, _)| (name.to_owned(), version))
            .collect(),
    )
}

proptest! {
    #[test]
    fn equal_state_has_equal_versions_whatever_the_history(
        histories in prop::array::uniform2(prop::collection::vec(prop::collection::btree_map(0..NAMES.len(), 0..3_u8, 0..5), 1..6)),
        end in prop::collection::btree_map(0..NAMES.len(), 0..3_u8, 0..5),
    ) {
        let all = histories.map(|mut history| {
            history.push(end.clone());
            [Variant::Delta, Variant::StateOfTheWorld].map(|variant| versions(variant, &history))
        });
        let expected = versions(Variant::Delta, std::slice::from_ref(&end));
        for found in all.into_iter().flatten() {
            prop_assert_eq!(&found, &expected);
        }
    }
}

/// One service's cluster must not hold back the policy of all services: without the current policy
/// a proxy gets no grants.
#[test]
fn routes_and_policy_do_not_wait_for_what_is_refused() {
    let lines = |bad| {
        let users = [
            (Kind::Routes, "table", bad),
            (Kind::FilterConfig, "filter", bad),
        ];
        [&cluster("good", "1")[..], &cluster("bad", bad), &users].concat()
    };
    let used = ["bad", "good"];
    for kind in [Kind::Cluster, Kind::Endpoints] {
        let mut stream = delta(&view(&lines("1"), &used));
        subscribe(&mut stream, Kind::Cluster, &[]);
        let nonce = sent(&mut stream, Kind::Cluster, &used, &[]);
        subscribe(&mut stream, Kind::Routes, &["table"]);
        subscribe(&mut stream, Kind::FilterConfig, &["filter"]);
        quiet(&mut stream);
        if kind == Kind::Cluster {
            nack(&mut stream, kind, &nonce, "bad is broken");
            subscribe(&mut stream, Kind::Endpoints, &["good"]);
            taken(&mut stream, Kind::Endpoints, &["good"], &[]);
        } else {
            ack(&mut stream, Kind::Cluster, &nonce);
            subscribe(&mut stream, Kind::Endpoints, &used);
            let nonce = sent(&mut stream, Kind::Endpoints, &used, &[]);
            quiet(&mut stream);
            nack(&mut stream, kind, &nonce, "bad is broken");
        }
        taken(&mut stream, Kind::Routes, &["table"], &[]);
        taken(&mut stream, Kind::FilterConfig, &["filter"], &[]);
        // A new version is waited for again.
        stream.set_view(view(&lines("2"), &used));
        let nonce = sent(&mut stream, Kind::Cluster, &["bad"], &[]);
        ack(&mut stream, Kind::Cluster, &nonce);
        subscribe(&mut stream, Kind::Endpoints, &["bad"]);
        let nonce = sent(&mut stream, Kind::Endpoints, &["bad"], &[]);
        quiet(&mut stream);
        ack(&mut stream, Kind::Endpoints, &nonce);
        taken(&mut stream, Kind::Routes, &["table"], &[]);
        taken(&mut stream, Kind::FilterConfig, &["filter"], &[]);
    }
}

/// Endpoints that are rejected after the removal of their cluster do not come back with the
/// cluster.
#[test]
fn a_refusal_that_comes_after_its_cluster_has_gone_brings_nothing_back() {
    let users = [(Kind::Routes, "table", "1")];
    let of = |content| [&cluster("a", content)[..], &users].concat();
    let mut stream = delta(&view(&cluster("a", "1"), &[]));
    subscribe(&mut stream, Kind::Cluster, &[]);
    taken(&mut stream, Kind::Cluster, &["a"], &[]);
    subscribe(&mut stream, Kind::Endpoints, &["a"]);
    taken(&mut stream, Kind::Endpoints, &["a"], &[]);
    stream.set_view(view(&cluster("a", "2"), &[]));
    taken(&mut stream, Kind::Cluster, &["a"], &[]);
    let late = sent(&mut stream, Kind::Endpoints, &["a"], &[]);
    stream.set_view(view(&[], &[]));
    taken(&mut stream, Kind::Cluster, &[], &["a"]);
    nack(&mut stream, Kind::Endpoints, &late, "a is broken");
    stream.set_view(view(&of("1"), &["a"]));
    subscribe(&mut stream, Kind::Routes, &["table"]);
    taken(&mut stream, Kind::Cluster, &["a"], &[]);
    quiet(&mut stream);
    subscribe(&mut stream, Kind::Endpoints, &["a"]);
    taken(&mut stream, Kind::Endpoints, &["a"], &[]);
    taken(&mut stream, Kind::Routes, &["table"], &[]);
}

#[test]
fn a_cluster_that_was_refused_after_it_had_left_is_tried_again_when_it_is_back() {
    let users = [(Kind::Routes, "table", "1")];
    let mut stream = delta(&view(&cluster("a", "1"), &[]));
    subscribe(&mut stream, Kind::Cluster, &[]);
    taken(&mut stream, Kind::Cluster, &["a"], &[]);
    stream.set_view(view(&cluster("a", "bad"), &[]));
    let late = sent(&mut stream, Kind::Cluster, &["a"], &[]);
    stream.set_view(view(&[], &[]));
    nack(&mut stream, Kind::Cluster, &late, "a is bad");
    taken(&mut stream, Kind::Cluster, &[], &["a"]);
    let back = [&cluster("a", "bad")[..], &users].concat();
    stream.set_view(view(&back, &["a"]));
    subscribe(&mut stream, Kind::Routes, &["table"]);
    // The routes wait for it.
    let again = sent(&mut stream, Kind::Cluster, &["a"], &[]);
    quiet(&mut stream);
    nack(&mut stream, Kind::Cluster, &again, "a is bad");
    taken(&mut stream, Kind::Routes, &["table"], &[]);
}
