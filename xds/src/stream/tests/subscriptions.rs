//! Subscriptions of clients, and the responses to them.

use super::*;

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

/// One client must not delay the others.
#[test]
fn many_names_cost_no_more_than_their_number() {
    let names: Vec<String> = (0..100_000).map(|n| format!("n{n}")).collect();
    let mut stream = delta(&view(&[], &[]));
    let all = || names.iter().map(String::as_str);
    stream.subscribe_delta(Kind::Endpoints, all(), [].into_iter(), [].into_iter());
    assert_eq!(stream.names(), names.len());
    let told = stream.next_due().expect("an answer").removed.len();
    assert_eq!(told, names.len());
    // With a pass over everything for each name this would take minutes.
    stream.subscribe_delta(Kind::Endpoints, [].into_iter(), all(), [].into_iter());
    assert_eq!(stream.names(), 0);
}

#[test]
fn only_clusters_and_listeners_can_be_had_without_naming_them() {
    for variant in [Variant::Delta, Variant::StateOfTheWorld] {
        for kind in [
            Kind::Cluster,
            Kind::Endpoints,
            Kind::Listener,
            Kind::Routes,
            Kind::FilterConfig,
        ] {
            let mut stream = Stream::new(variant, view(&[(kind, "a", "1")], &[]));
            match variant {
                Variant::Delta => subscribe(&mut stream, kind, &[]),
                Variant::StateOfTheWorld => want(&mut stream, kind, &[]),
            }
            match kind {
                Kind::Cluster | Kind::Listener => taken(&mut stream, kind, &["a"], &[]),
                _ => quiet(&mut stream),
            }
        }
    }
}

/// The example in the protocol's description, with a change after each step.
#[test]
fn a_wildcard_stays_beside_names_until_it_is_given_up_in_delta() {
    let world = |content| {
        view(
            &[cluster("a", content), cluster("b", content)].concat(),
            &[],
        )
    };
    let mut stream = delta(&world("1"));
    subscribe(&mut stream, Kind::Cluster, &[]);
    taken(&mut stream, Kind::Cluster, &["a", "b"], &[]);
    subscribe(&mut stream, Kind::Cluster, &["a"]);
    taken(&mut stream, Kind::Cluster, &["a"], &[]);
    stream.set_view(world("2"));
    taken(&mut stream, Kind::Cluster, &["a", "b"], &[]);
    unsubscribe(&mut stream, Kind::Cluster, &["*"]);
    stream.set_view(world("3"));
    taken(&mut stream, Kind::Cluster, &["a"], &[]);
    unsubscribe(&mut stream, Kind::Cluster, &["a"]);
    stream.set_view(world("4"));
    quiet(&mut stream);
    // Like the first request, but not a wildcard.
    subscribe(&mut stream, Kind::Cluster, &[]);
    quiet(&mut stream);
}

/// The example in the protocol's description, with a change after each step.
#[test]
fn a_wildcard_ends_where_it_is_no_longer_named_in_the_state_of_the_world() {
    let world = |content| {
        view(
            &[cluster("a", content), cluster("b", content)].concat(),
            &[],
        )
    };
    let mut stream = sotw(&world("1"));
    want(&mut stream, Kind::Cluster, &[]);
    taken(&mut stream, Kind::Cluster, &["a", "b"], &[]);
    want(&mut stream, Kind::Cluster, &["*", "a"]);
    taken(&mut stream, Kind::Cluster, &["a", "b"], &[]);
    stream.set_view(world("2"));
    taken(&mut stream, Kind::Cluster, &["a", "b"], &[]);
    want(&mut stream, Kind::Cluster, &["a"]);
    stream.set_view(world("3"));
    taken(&mut stream, Kind::Cluster, &["a"], &[]);
    want(&mut stream, Kind::Cluster, &[]);
    stream.set_view(world("4"));
    quiet(&mut stream);
}

#[test]
fn everything_can_be_asked_for_later() {
    let world = view(&[cluster("a", "1"), cluster("b", "1")].concat(), &[]);
    let mut stream = delta(&world);
    subscribe(&mut stream, Kind::Cluster, &["a"]);
    taken(&mut stream, Kind::Cluster, &["a"], &[]);
    subscribe(&mut stream, Kind::Cluster, &["*"]);
    taken(&mut stream, Kind::Cluster, &["b"], &[]);
    let mut stream = sotw(&world);
    want(&mut stream, Kind::Cluster, &["a"]);
    taken(&mut stream, Kind::Cluster, &["a"], &[]);
    want(&mut stream, Kind::Cluster, &["*"]);
    taken(&mut stream, Kind::Cluster, &["a", "b"], &[]);
}

#[test]
fn who_asks_again_is_sent_again_in_the_state_of_the_world() {
    let mut stream = sotw(&view(&[cluster("a", "1"), cluster("b", "1")].concat(), &[]));
    want(&mut stream, Kind::Endpoints, &["a", "b"]);
    taken(&mut stream, Kind::Endpoints, &["a", "b"], &[]);
    want(&mut stream, Kind::Endpoints, &["b"]);
    quiet(&mut stream);
    want(&mut stream, Kind::Endpoints, &["a", "b"]);
    taken(&mut stream, Kind::Endpoints, &["a"], &[]);
    quiet(&mut stream);
}

#[test]
fn a_name_given_up_below_a_wildcard_is_answered() {
    let mut stream = delta(&view(&cluster("a", "1"), &[]));
    subscribe(&mut stream, Kind::Cluster, &["*", "a", "b"]);
    taken(&mut stream, Kind::Cluster, &["a"], &["b"]);
    unsubscribe(&mut stream, Kind::Cluster, &["a", "b"]);
    taken(&mut stream, Kind::Cluster, &["a"], &["b"]);
    quiet(&mut stream);
    stream.set_view(view(&[cluster("a", "1"), cluster("b", "1")].concat(), &[]));
    taken(&mut stream, Kind::Cluster, &["b"], &[]);
}

#[test]
fn giving_up_what_was_never_asked_for_changes_nothing() {
    let mut stream = delta(&view(&cluster("a", "1"), &[]));
    unsubscribe(&mut stream, Kind::Endpoints, &["a", "b", "*", ""]);
    quiet(&mut stream);
    subscribe(&mut stream, Kind::Endpoints, &["a"]);
    taken(&mut stream, Kind::Endpoints, &["a"], &[]);
    unsubscribe(&mut stream, Kind::Endpoints, &["b", "*"]);
    quiet(&mut stream);
    stream.set_view(view(&cluster("a", "2"), &[]));
    taken(&mut stream, Kind::Endpoints, &["a"], &[]);
    // A first request that only unsubscribes is not a wildcard either.
    unsubscribe(&mut stream, Kind::Cluster, &["b"]);
    quiet(&mut stream);
}

#[test]
fn a_name_that_does_not_exist_is_sent_when_it_appears_in_the_state_of_the_world() {
    let mut stream = sotw(&view(&[], &[]));
    want(&mut stream, Kind::Endpoints, &["a"]);
    want(&mut stream, Kind::Cluster, &["a"]);
    // An empty list expresses it: none of the requested clusters exist.
    taken(&mut stream, Kind::Cluster, &[], &[]);
    quiet(&mut stream);
    stream.set_view(view(&cluster("a", "1"), &[]));
    taken(&mut stream, Kind::Cluster, &["a"], &[]);
    taken(&mut stream, Kind::Endpoints, &["a"], &[]);
}

#[test]
fn the_state_of_the_world_is_whole_for_clusters_and_listeners_alone() {
    let lines = |b| {
        let all = [Kind::Cluster, Kind::Endpoints, Kind::Listener];
        all.map(|kind| [(kind, "a", "1"), (kind, "b", b)]).concat()
    };
    let mut stream = sotw(&view(&lines("1"), &[]));
    want(&mut stream, Kind::Cluster, &[]);
    want(&mut stream, Kind::Endpoints, &["a", "b"]);
    want(&mut stream, Kind::Listener, &[]);
    for kind in [Kind::Cluster, Kind::Endpoints, Kind::Listener] {
        taken(&mut stream, kind, &["a", "b"], &[]);
    }
    stream.set_view(view(&lines("2"), &[]));
    taken(&mut stream, Kind::Cluster, &["a", "b"], &[]);
    // For two reasons: the cluster changed, so its endpoints would be sent even if they had not.
    taken(&mut stream, Kind::Endpoints, &["b"], &[]);
    taken(&mut stream, Kind::Listener, &["a", "b"], &[]);
    let lines = lines("2").into_iter().filter(|(_, name, _)| *name == "a");
    stream.set_view(view(&lines.collect::<Vec<_>>(), &[]));
    // Endpoints are removed with their cluster, without a message.
    let mut whole = [Kind::Cluster, Kind::Listener].map(|_| stream.next_due());
    whole.sort_by_key(|outgoing| outgoing.as_ref().map(|outgoing| outgoing.kind));
    for outgoing in whole {
        assert_eq!(names(&outgoing.expect("a response")), ["a"]);
    }
    quiet(&mut stream);
}

#[test]
fn who_comes_back_with_names_is_sent_the_difference() {
    let world = view(
        &["a", "b", "new"].map(|name| cluster(name, "1")).concat(),
        &[],
    );
    let version = |name| {
        world
            .of(Kind::Endpoints)
            .get(name)
            .expect("it is there")
            .version
    };
    let mut stream = delta(&world);
    let initial = [
        ("a", version("a")),
        ("b", Version::parse("older")),
        ("gone", version("a")),
        // It has that resource and no longer subscribes to it.
        ("unasked", version("a")),
    ];
    let wanted = ["a", "b", "new", "gone"].into_iter();
    stream.subscribe_delta(Kind::Endpoints, wanted, [].into_iter(), initial.into_iter());
    taken(
        &mut stream,
        Kind::Endpoints,
        &["b", "new"],
        &["gone", "unasked"],
    );
    quiet(&mut stream);

    // In the state of the world one version covers all resources, so any difference sends
    // everything.
    let mut earlier = sotw(&world);
    want(&mut earlier, Kind::Endpoints, &["a", "b"]);
    let version = earlier
        .next_due()
        .expect("the first response")
        .version
        .to_string();
    let mut same = sotw(&world);
    same.subscribe_sotw(Kind::Endpoints, ["b", "a"].into_iter(), &version);
    quiet(&mut same);
    for names in [&["a"][..], &["a", "new"], &["a", "b", "new"]] {
        let mut other = sotw(&world);
        other.subscribe_sotw(Kind::Endpoints, names.iter().copied(), &version);
        sent(&mut other, Kind::Endpoints, names, &[]);
    }
}

#[test]
fn nothing_is_sent_where_nothing_changed() {
    let lines = [&cluster("a", "1")[..], &[(Kind::Routes, "table", "1")]].concat();
    for variant in [Variant::Delta, Variant::StateOfTheWorld] {
        let mut stream = Stream::new(variant, view(&lines, &[]));
        match variant {
            Variant::Delta => subscribe(&mut stream, Kind::Cluster, &["*"]),
            Variant::StateOfTheWorld => want(&mut stream, Kind::Cluster, &["*"]),
        }
        taken(&mut stream, Kind::Cluster, &["a"], &[]);
        // An equal view, and one with changes that this client did not subscribe to.
        stream.set_view(view(&lines, &[]));
        quiet(&mut stream);
        stream.set_view(view(&cluster("a", "1"), &[]));
        quiet(&mut stream);
    }
}

#[test]
fn streams_of_one_node_know_nothing_of_each_other() {
    let world = view(&cluster("a", "1"), &[]);
    let mut clusters = delta(&world);
    let mut endpoints = sotw(&world);
    subscribe(&mut clusters, Kind::Cluster, &["*"]);
    want(&mut endpoints, Kind::Endpoints, &["a"]);
    let of_clusters = sent(&mut clusters, Kind::Cluster, &["a"], &[]);
    let of_endpoints = sent(&mut endpoints, Kind::Endpoints, &["a"], &[]);
    nack(&mut clusters, Kind::Cluster, &of_clusters, "no");
    ack(&mut endpoints, Kind::Endpoints, &of_endpoints);
    let next = view(&cluster("a", "2"), &[]);
    clusters.set_view(Arc::clone(&next));
    taken(&mut clusters, Kind::Cluster, &["a"], &[]);
    quiet(&mut endpoints);
    endpoints.set_view(next);
    taken(&mut endpoints, Kind::Endpoints, &["a"], &[]);
}
