//! Times to live, and how they are renewed.

use std::num::NonZeroU32;

use super::*;

/// The view with a time to live for everything.
fn lasting(view: &View, ttl_s: u32) -> Arc<View> {
    let ttl_s = NonZeroU32::new(ttl_s).expect("not zero");
    let resources = Kind::ALL.map(|kind| {
        let all = view.of(kind).iter();
        all.map(|(name, resource)| (Arc::clone(name), Arc::new(resource.lasting(ttl_s))))
            .collect()
    });
    Arc::new(View::new(resources, Default::default()))
}

fn world(content: &str) -> Arc<View> {
    view(&[cluster("a", content), cluster("b", "1")].concat(), &[])
}

#[track_caller]
fn renewed(stream: &mut Stream, kind: Kind, expected: &[&str]) {
    let outgoing = stream.next_due().expect("a renewal is due");
    assert_eq!(outgoing.kind, kind);
    let renewed: Vec<&str> = outgoing.renewed.iter().map(|r| &*r.name).collect();
    assert_eq!((names(&outgoing), renewed), (vec![], expected.to_vec()));
    ack(stream, kind, &outgoing.nonce.to_string());
}

fn client(view: &Arc<View>) -> Stream {
    let mut stream = delta(view).with_ttl();
    subscribe(&mut stream, Kind::Cluster, &["*"]);
    subscribe(&mut stream, Kind::Endpoints, &["a"]);
    taken(&mut stream, Kind::Cluster, &["a", "b"], &[]);
    taken(&mut stream, Kind::Endpoints, &["a"], &[]);
    stream
}

#[test]
fn what_a_client_has_is_renewed_without_being_sent() {
    let mut stream = client(&lasting(&world("1"), 60));
    assert_eq!(stream.ttl_s(Kind::Cluster), NonZeroU32::new(60));
    quiet(&mut stream);
    stream.renew(Kind::Cluster);
    renewed(&mut stream, Kind::Cluster, &["a", "b"]);
    quiet(&mut stream);
    stream.renew(Kind::Endpoints);
    renewed(&mut stream, Kind::Endpoints, &["a"]);
    quiet(&mut stream);
}

#[test]
fn renewals_wait_for_an_answer_and_collapse() {
    let mut stream = client(&lasting(&world("1"), 60));
    stream.renew(Kind::Cluster);
    let nonce = stream.next_due().expect("a renewal").nonce.to_string();
    for _ in 0..3 {
        stream.renew(Kind::Cluster);
        quiet(&mut stream);
    }
    ack(&mut stream, Kind::Cluster, &nonce);
    renewed(&mut stream, Kind::Cluster, &["a", "b"]);
    quiet(&mut stream);
}

/// A response must not contain a name twice.
#[test]
fn what_is_sent_anyway_is_not_renewed_beside() {
    let mut stream = client(&lasting(&world("1"), 60));
    stream.set_view(lasting(&world("2"), 60));
    stream.renew(Kind::Cluster);
    let outgoing = stream.next_due().expect("a change");
    assert_eq!(names(&outgoing), ["a"]);
    assert_eq!(
        outgoing
            .renewed
            .iter()
            .map(|r| &*r.name)
            .collect::<Vec<_>>(),
        ["b"]
    );
}

#[test]
fn the_last_good_one_is_renewed_after_a_refusal() {
    let mut stream = client(&lasting(&world("good"), 60));
    stream.set_view(lasting(&world("bad"), 60));
    let nonce = sent(&mut stream, Kind::Cluster, &["a"], &[]);
    nack(&mut stream, Kind::Cluster, &nonce, "a");
    stream.renew(Kind::Cluster);
    let outgoing = stream.next_due().expect("a renewal");
    let good = lasting(&world("good"), 60);
    let good = good.of(Kind::Cluster).get("a").map(|a| a.version);
    assert_eq!(outgoing.renewed.first().map(|a| a.version), good);
}

#[test]
fn a_change_of_the_setting_is_a_change_of_everything() {
    let mut stream = client(&world("1"));
    for next in [
        lasting(&world("1"), 60),
        lasting(&world("1"), 30),
        world("1"),
    ] {
        stream.set_view(next);
        taken(&mut stream, Kind::Cluster, &["a", "b"], &[]);
        taken(&mut stream, Kind::Endpoints, &["a"], &[]);
        quiet(&mut stream);
    }
}

#[test]
fn nothing_is_renewed_where_nothing_expires_or_the_client_knows_nothing_of_it() {
    let mut stream = client(&world("1"));
    let mut simple = delta(&lasting(&world("1"), 60));
    subscribe(&mut simple, Kind::Cluster, &["*"]);
    taken(&mut simple, Kind::Cluster, &["a", "b"], &[]);
    for stream in [&mut stream, &mut simple] {
        assert_eq!(stream.ttl_s(Kind::Cluster), None);
        for kind in Kind::ALL {
            stream.renew(kind);
        }
        quiet(stream);
    }
}

/// Resources that the client holds from an earlier stream expire, too.
#[test]
fn what_was_brought_along_is_renewed() {
    let world = lasting(&world("1"), 60);
    let versions = world.of(Kind::Cluster).values();
    let versions: Vec<_> = versions.map(|r| (&*r.name, r.version)).collect();
    let mut stream = delta(&world).with_ttl();
    stream.subscribe_delta(
        Kind::Cluster,
        ["*"].into_iter(),
        [].into_iter(),
        versions.into_iter(),
    );
    quiet(&mut stream);
    stream.renew(Kind::Cluster);
    renewed(&mut stream, Kind::Cluster, &["a", "b"]);
}

/// Then the client has nothing to renew, and rejects the heartbeat.
#[test]
fn what_has_expired_meanwhile_is_sent_again() {
    let mut stream = client(&lasting(&world("1"), 60));
    stream.renew(Kind::Cluster);
    let nonce = stream.next_due().expect("a renewal").nonce.to_string();
    assert!(nack(&mut stream, Kind::Cluster, &nonce, "no type URL").is_empty());
    taken(&mut stream, Kind::Cluster, &["a", "b"], &[]);
    let endpoints = stream.next_due().expect("of clusters that may be new");
    assert_eq!(endpoints.kind, Kind::Endpoints);
}

/// There Envoy 1.40 treats a response of heartbeats alone as one without clusters.
#[test]
fn in_the_state_of_the_world_everything_is_sent_again() {
    let lines = [
        (Kind::Cluster, "a", "1"),
        (Kind::Cluster, "b", "1"),
        (Kind::FilterConfig, "f", "1"),
    ];
    let mut stream = sotw(&lasting(&view(&lines, &[]), 60)).with_ttl();
    for (kind, names_wanted, all) in [
        (Kind::Cluster, &[][..], &["a", "b"][..]),
        (Kind::FilterConfig, &["f"], &["f"]),
    ] {
        want(&mut stream, kind, names_wanted);
        let first = stream.next_due().expect("the first");
        ack(&mut stream, kind, &first.nonce.to_string());
        quiet(&mut stream);
        stream.renew(kind);
        let again = stream.next_due().expect("a renewal");
        assert_eq!((again.kind, names(&again)), (kind, all.to_vec()));
        assert_eq!((again.version, again.renewed.len()), (first.version, 0));
        ack(&mut stream, kind, &again.nonce.to_string());
        quiet(&mut stream);
    }
}

/// Envoy 1.40 crashes when they expire.
#[test]
fn endpoints_and_routes_have_no_time_to_live_in_the_state_of_the_world() {
    for kind in [Kind::Endpoints, Kind::Routes] {
        let mut stream = sotw(&lasting(&view(&[(kind, "a", "1")], &[]), 60)).with_ttl();
        want(&mut stream, kind, &["a"]);
        assert_eq!(stream.ttl_s(kind), None);
        let outgoing = stream.next_due().expect("it is there");
        assert!(!outgoing.with_ttl);
        ack(&mut stream, kind, &outgoing.nonce.to_string());
        stream.renew(kind);
        quiet(&mut stream);
    }
}
