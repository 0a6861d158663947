//! The protocol, rule by rule. What a run of many rules together must keep is in [`super::model`].

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use policy::Policy;

use super::*;
use crate::resource::Resources;

/// A view from lines of `kind name content`; routes and filter need the clusters `needed`.
pub(super) fn view(lines: &[(Kind, &str, &str)], needed: &[&str]) -> Arc<View> {
    let mut resources: [Resources; Kind::ALL.len()] = Default::default();
    for (kind, name, content) in lines {
        // The kind of message does not matter to the protocol.
        let message = Cluster {
            name: (*name).to_owned(),
            alt_stat_name: (*content).to_owned(),
            ..Cluster::default()
        };
        let resource = match *content {
            "nobody healthy" => Resource::encode(name, &message).into_dead_end(),
            _ => Resource::encode(name, &message),
        };
        let resource = Arc::new(resource);
        resources[kind.index()].insert(Arc::clone(&resource.name), resource);
    }
    let needed = needed.iter().copied().map(Arc::from).collect();
    Arc::new(View::new(resources, needed, Arc::new(Policy::Fallback), 0))
}

fn cluster<'a>(name: &'a str, content: &'a str) -> [(Kind, &'a str, &'a str); 2] {
    [
        (Kind::Cluster, name, content),
        (Kind::Endpoints, name, content),
    ]
}

fn delta(view: &Arc<View>) -> Stream {
    Stream::new(Variant::Delta, Arc::clone(view))
}

fn subscribe(stream: &mut Stream, kind: Kind, names: &[&str]) {
    let names = names.iter().copied();
    stream.subscribe_delta(kind, names, [].into_iter(), [].into_iter());
}

fn names(outgoing: &Outgoing) -> Vec<&str> {
    outgoing.resources.iter().map(|r| &*r.name).collect()
}

#[track_caller]
fn sent(stream: &mut Stream, kind: Kind, resources: &[&str], removed: &[&str]) -> String {
    let outgoing = stream.next_due().expect("a response is due");
    assert_eq!(outgoing.kind, kind);
    assert_eq!(names(&outgoing), resources);
    let gone: Vec<&str> = outgoing.removed.iter().map(|name| &**name).collect();
    assert_eq!(gone, removed);
    outgoing.nonce.to_string()
}

#[track_caller]
fn quiet(stream: &mut Stream) {
    assert_eq!(stream.next_due(), None);
}

#[track_caller]
fn ack(stream: &mut Stream, kind: Kind, nonce: &str) {
    assert_eq!(
        stream.settle(kind, &Verdict::Ack { nonce }),
        Ok(Answer::Accepted)
    );
}

fn nack(stream: &mut Stream, kind: Kind, nonce: &str, message: &str) -> Vec<String> {
    match stream.settle(kind, &Verdict::Nack { nonce, message }) {
        Ok(Answer::Refused(refused)) => refused.resources.iter().map(|r| r.to_string()).collect(),
        other => panic!("a refusal, not {other:?}"),
    }
}

#[test]
fn a_wildcard_subscriber_gets_everything_once_and_then_what_changes() {
    let mut stream = delta(&view(&[cluster("a", "1"), cluster("b", "1")].concat(), &[]));
    subscribe(&mut stream, Kind::Cluster, &[]);
    let nonce = sent(&mut stream, Kind::Cluster, &["a", "b"], &[]);
    quiet(&mut stream);
    ack(&mut stream, Kind::Cluster, &nonce);
    quiet(&mut stream);
    stream.set_view(view(&[cluster("a", "1"), cluster("b", "2")].concat(), &[]));
    let nonce = sent(&mut stream, Kind::Cluster, &["b"], &[]);
    ack(&mut stream, Kind::Cluster, &nonce);
    stream.set_view(view(&cluster("b", "2"), &[]));
    sent(&mut stream, Kind::Cluster, &[], &["a"]);
    quiet(&mut stream);
}

#[test]
fn changes_during_an_unanswered_response_collapse_into_one() {
    let mut stream = delta(&view(&cluster("a", "1"), &[]));
    subscribe(&mut stream, Kind::Cluster, &["*"]);
    let nonce = sent(&mut stream, Kind::Cluster, &["a"], &[]);
    for content in ["2", "3", "4"] {
        stream.set_view(view(&cluster("a", content), &[]));
        quiet(&mut stream);
    }
    ack(&mut stream, Kind::Cluster, &nonce);
    sent(&mut stream, Kind::Cluster, &["a"], &[]);
    quiet(&mut stream);
}

#[test]
fn an_empty_mesh_is_an_answer_too() {
    for variant in [Variant::Delta, Variant::StateOfTheWorld] {
        let mut stream = Stream::new(variant, view(&[], &[]));
        match variant {
            Variant::Delta => subscribe(&mut stream, Kind::Cluster, &[]),
            Variant::StateOfTheWorld => stream.subscribe_sotw(Kind::Cluster, [].into_iter(), ""),
        }
        sent(&mut stream, Kind::Cluster, &[], &[]);
        quiet(&mut stream);
    }
}

#[test]
fn who_comes_back_with_everything_is_sent_nothing() {
    let world = view(&[cluster("a", "1"), cluster("b", "1")].concat(), &[]);
    let versions: Vec<(&str, Version)> = world
        .of(Kind::Cluster)
        .values()
        .map(|resource| (&*resource.name, resource.version))
        .collect();
    let mut stream = delta(&world);
    let initial = versions.clone().into_iter();
    stream.subscribe_delta(Kind::Cluster, ["*"].into_iter(), [].into_iter(), initial);
    quiet(&mut stream);

    let mut earlier = Stream::new(Variant::StateOfTheWorld, Arc::clone(&world));
    earlier.subscribe_sotw(Kind::Cluster, [].into_iter(), "");
    let version = earlier.next_due().expect("the first response").version;
    let mut later = Stream::new(Variant::StateOfTheWorld, world);
    later.subscribe_sotw(Kind::Cluster, [].into_iter(), &version.to_string());
    quiet(&mut later);
}

#[test]
fn who_comes_back_with_less_or_older_is_sent_the_difference() {
    let world = view(&[cluster("a", "1"), cluster("b", "1")].concat(), &[]);
    let a = world.of(Kind::Cluster).get("a").expect("a").version;
    let mut stream = delta(&world);
    let initial = [
        ("a", a),
        ("gone", a),
        ("b", Version::parse("of another server")),
    ];
    stream.subscribe_delta(
        Kind::Cluster,
        ["*"].into_iter(),
        [].into_iter(),
        initial.into_iter(),
    );
    sent(&mut stream, Kind::Cluster, &["b"], &["gone"]);
}

#[test]
fn a_name_that_does_not_exist_is_told_once_and_sent_when_it_appears() {
    let mut stream = delta(&view(&[], &[]));
    subscribe(&mut stream, Kind::Endpoints, &["a"]);
    let nonce = sent(&mut stream, Kind::Endpoints, &[], &["a"]);
    ack(&mut stream, Kind::Endpoints, &nonce);
    quiet(&mut stream);
    stream.set_view(view(&cluster("a", "1"), &[]));
    sent(&mut stream, Kind::Endpoints, &["a"], &[]);
}

#[test]
fn who_unsubscribes_hears_nothing_and_who_asks_again_is_sent_again() {
    let mut stream = delta(&view(&cluster("a", "1"), &[]));
    subscribe(&mut stream, Kind::Endpoints, &["a"]);
    let nonce = sent(&mut stream, Kind::Endpoints, &["a"], &[]);
    ack(&mut stream, Kind::Endpoints, &nonce);
    subscribe(&mut stream, Kind::Endpoints, &["a"]);
    let nonce = sent(&mut stream, Kind::Endpoints, &["a"], &[]);
    ack(&mut stream, Kind::Endpoints, &nonce);
    let gone = ["a"].into_iter();
    stream.subscribe_delta(Kind::Endpoints, [].into_iter(), gone, [].into_iter());
    stream.set_view(view(&cluster("a", "2"), &[]));
    quiet(&mut stream);
}

/// One client must not keep the others waiting.
#[test]
fn many_names_cost_no_more_than_their_number() {
    let names: Vec<String> = (0..100_000).map(|n| format!("n{n}")).collect();
    let mut stream = delta(&view(&[], &[]));
    let all = || names.iter().map(String::as_str);
    stream.subscribe_delta(Kind::Endpoints, all(), [].into_iter(), [].into_iter());
    assert_eq!(stream.names(), names.len());
    let told = stream.next_due().expect("an answer").removed.len();
    assert_eq!(told, names.len());
    // With a pass over everything per name this would take minutes.
    stream.subscribe_delta(Kind::Endpoints, [].into_iter(), all(), [].into_iter());
    assert_eq!(stream.names(), 0);
}

#[test]
fn a_refused_resource_is_not_sent_again_until_it_changes() {
    let mut stream = delta(&view(&cluster("a", "1"), &[]));
    subscribe(&mut stream, Kind::Cluster, &["*"]);
    let nonce = sent(&mut stream, Kind::Cluster, &["a"], &[]);
    ack(&mut stream, Kind::Cluster, &nonce);
    stream.set_view(view(
        &[cluster("a", "bad"), cluster("b", "1")].concat(),
        &[],
    ));
    let nonce = sent(&mut stream, Kind::Cluster, &["a", "b"], &[]);
    let refused = nack(&mut stream, Kind::Cluster, &nonce, "cluster(s) a: bad");
    assert_eq!(refused, ["a"]);
    quiet(&mut stream);
    let acked = stream.held(Kind::Cluster).filter(|(_, _, acked)| *acked);
    let acked: Vec<&str> = acked.map(|(name, ..)| name).collect();
    assert_eq!(acked, ["a", "b"], "the last good one stays");
    stream.set_view(view(
        &[cluster("a", "mended"), cluster("b", "1")].concat(),
        &[],
    ));
    sent(&mut stream, Kind::Cluster, &["a"], &[]);
}

#[test]
fn a_refusal_that_names_nothing_counts_for_the_whole_response() {
    let mut stream = delta(&view(&[cluster("a", "1"), cluster("b", "1")].concat(), &[]));
    subscribe(&mut stream, Kind::Cluster, &["*"]);
    let nonce = sent(&mut stream, Kind::Cluster, &["a", "b"], &[]);
    assert_eq!(nack(&mut stream, Kind::Cluster, &nonce, "no!").len(), 2);
    quiet(&mut stream);
}

#[test]
fn a_refused_cluster_stays_as_it_was_in_the_state_of_the_world() {
    let mut stream = Stream::new(Variant::StateOfTheWorld, view(&cluster("a", "1"), &[]));
    stream.subscribe_sotw(Kind::Cluster, [].into_iter(), "");
    let nonce = sent(&mut stream, Kind::Cluster, &["a"], &[]);
    ack(&mut stream, Kind::Cluster, &nonce);
    stream.set_view(view(&cluster("a", "bad"), &[]));
    let nonce = sent(&mut stream, Kind::Cluster, &["a"], &[]);
    nack(&mut stream, Kind::Cluster, &nonce, "a");
    stream.set_view(view(
        &[cluster("a", "bad"), cluster("b", "1")].concat(),
        &[],
    ));
    let outgoing = stream.next_due().expect("b is new");
    let a = outgoing.resources.iter().find(|r| &*r.name == "a");
    let good = view(&cluster("a", "1"), &[]);
    assert_eq!(
        a.map(|a| a.version),
        good.of(Kind::Cluster).get("a").map(|a| a.version),
        "leaving it out would remove it from the proxy"
    );
}

#[test]
fn stale_nonces_change_nothing() {
    let mut stream = delta(&view(&cluster("a", "1"), &[]));
    subscribe(&mut stream, Kind::Cluster, &["*"]);
    let nonce = sent(&mut stream, Kind::Cluster, &["a"], &[]);
    for stale in ["0", "99", "nonsense"] {
        let verdict = Verdict::Ack { nonce: stale };
        assert_eq!(stream.settle(Kind::Cluster, &verdict), Err(StaleNonce));
    }
    ack(&mut stream, Kind::Cluster, &nonce);
    let again = Verdict::Ack { nonce: &nonce };
    assert_eq!(stream.settle(Kind::Cluster, &again), Err(StaleNonce));
}

/// Cluster, endpoints and route arrive in the mesh together; then all go together.
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
            // Nothing may be sent that waits for the endpoints.
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

/// Also where the client has not said yet that it dropped the endpoints of the old one.
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

#[test]
fn a_client_that_names_its_clusters_is_not_kept_waiting() {
    let world = [&cluster("a", "1")[..], &[(Kind::Routes, "table", "to a")]].concat();
    let mut stream = delta(&view(&world, &["a"]));
    subscribe(&mut stream, Kind::Routes, &["table"]);
    sent(&mut stream, Kind::Routes, &["table"], &[]);
}
