//! Virtual hosts on demand.

use super::*;

const HOSTS: Kind = Kind::VirtualHosts;

/// A route table with these virtual hosts.
fn table(hosts: &[(&str, &str)]) -> Arc<View> {
    let names: Vec<(String, &str)> = hosts
        .iter()
        .map(|(host, content)| (format!("table/{host}"), *content))
        .collect();
    let hosts = names
        .iter()
        .map(|(name, content)| (HOSTS, name.as_str(), *content));
    let lines: Vec<_> = [(Kind::Routes, "table", "1")]
        .into_iter()
        .chain(hosts)
        .collect();
    view(&lines, &[])
}

/// A client after its first answer.
fn client(view: &Arc<View>) -> Stream {
    let mut stream = delta(view);
    subscribe(&mut stream, HOSTS, &[]);
    taken(&mut stream, HOSTS, &[], &["table/"]);
    stream
}

/// The names in a response besides its resources: their aliases, and the unresolved aliases.
#[track_caller]
fn answered(stream: &mut Stream, expected: &[(&str, &[&str])], unresolved: &[&str]) {
    let outgoing = stream.next_due().expect("a response is due");
    assert_eq!(outgoing.kind, HOSTS);
    let sent = names(&outgoing);
    let called = |at: usize| {
        let mut aliases = outgoing.aliases.iter();
        let (_, aliases) = aliases.find(|(place, _)| *place == at)?;
        Some(aliases.iter().map(|alias| &**alias).collect::<Vec<_>>())
    };
    let sent: Vec<_> = sent
        .into_iter()
        .enumerate()
        .map(|(at, name)| (name, called(at).unwrap_or_default()))
        .collect();
    let expected: Vec<_> = expected
        .iter()
        .map(|(name, aliases)| (*name, aliases.to_vec()))
        .collect();
    assert_eq!(sent, expected);
    let nothing: Vec<&str> = outgoing.unresolved.iter().map(|alias| &**alias).collect();
    assert_eq!(nothing, unresolved);
    assert_eq!(outgoing.removed, Vec::<Arc<str>>::new());
    ack(stream, HOSTS, &outgoing.nonce.to_string());
}

#[test]
fn a_client_is_told_at_once_that_it_has_asked_for_nothing() {
    // Envoy lists all its names when it reconnects; its subscriptions follow.
    for first in [&[][..], &["*"]] {
        let mut stream = delta(&table(&[("a.example", "1")]));
        subscribe(&mut stream, HOSTS, first);
        taken(&mut stream, HOSTS, &[], &["table/"]);
        quiet(&mut stream);
    }
}

#[test]
fn a_host_is_found_as_requests_spell_it() {
    for (alias, name) in [
        ("table/A.Example:8080", "table/a.example"),
        ("table/a.example:", "table/a.example"),
        ("table/x.y.b.example", "table/*.b.example"),
        ("table/.b.example", "table/*"),
        ("table/b.example", "table/*"),
        ("table/[::1]:80", "table/[::1]"),
        ("table/", "table/*"),
    ] {
        let hosts = ["a.example", "*.b.example", "*", "[::1]"].map(|host| (host, "1"));
        let mut stream = client(&table(&hosts));
        subscribe(&mut stream, HOSTS, &[alias]);
        let outgoing = stream.next_due().expect("a response");
        let (at, aliases) = outgoing.aliases.first().expect("an alias");
        assert_eq!(&*outgoing.resources[*at].name, name, "{alias}");
        assert_eq!(
            aliases.iter().map(|alias| &**alias).collect::<Vec<_>>(),
            [alias]
        );
    }
}

#[test]
fn one_host_is_sent_once_whatever_it_was_called() {
    let mut stream = client(&table(&[("a.example", "1"), ("b.example", "1")]));
    let aliases = [
        "table/a.example:80",
        "table/a.example",
        "table/A.example",
        "table/b.example",
    ];
    subscribe(&mut stream, HOSTS, &aliases);
    let called: &[&str] = &["table/A.example", "table/a.example:80"];
    answered(
        &mut stream,
        &[("table/a.example", called), ("table/b.example", &[])],
        &[],
    );
    quiet(&mut stream);
}

#[test]
fn a_change_reaches_who_asked_by_another_name() {
    let mut stream = client(&table(&[("a.example", "1"), ("b.example", "1")]));
    subscribe(&mut stream, HOSTS, &["table/a.example:80"]);
    answered(
        &mut stream,
        &[("table/a.example", &["table/a.example:80"])],
        &[],
    );
    stream.set_view(table(&[("a.example", "2"), ("b.example", "2")]));
    answered(&mut stream, &[("table/a.example", &[])], &[]);
    stream.set_view(table(&[("b.example", "2")]));
    taken(&mut stream, HOSTS, &[], &["table/a.example"]);
    // Envoy requests it again with the next request.
    subscribe(&mut stream, HOSTS, &["table/a.example:80"]);
    answered(&mut stream, &[], &["table/a.example:80"]);
    stream.set_view(table(&[("a.example", "3"), ("b.example", "2")]));
    quiet(&mut stream);
    subscribe(&mut stream, HOSTS, &["table/a.example:80"]);
    answered(
        &mut stream,
        &[("table/a.example", &["table/a.example:80"])],
        &[],
    );
}

#[test]
fn what_nothing_goes_by_is_answered_and_forgotten() {
    let mut stream = client(&table(&[("a.example", "1")]));
    let remembered = stream.names();
    for round in 0..100 {
        let alias = format!("table/{round}.example");
        subscribe(
            &mut stream,
            HOSTS,
            &[&alias, "other/a.example", "a.example"],
        );
        answered(&mut stream, &[], &["a.example", "other/a.example", &alias]);
        // A repeated unsubscription is harmless.
        unsubscribe(&mut stream, HOSTS, &[&alias]);
        quiet(&mut stream);
    }
    assert_eq!(stream.names(), remembered);
}

/// The client requests the host when it is removed. Envoy rejects a response with a repeated name.
#[test]
fn a_host_that_goes_is_removed_first_and_then_answered() {
    let mut stream = client(&table(&[("a.example", "1")]));
    subscribe(&mut stream, HOSTS, &["table/a.example"]);
    answered(&mut stream, &[("table/a.example", &[])], &[]);
    stream.set_view(table(&[]));
    subscribe(&mut stream, HOSTS, &["table/a.example"]);
    taken(&mut stream, HOSTS, &[], &["table/a.example"]);
    answered(&mut stream, &[], &["table/a.example"]);
    quiet(&mut stream);
}

/// The client requests it just before it is added, and gets no negative answer.
#[test]
fn a_host_that_comes_before_the_answer_is_the_answer() {
    let mut stream = client(&table(&[("b.example", "1")]));
    subscribe(&mut stream, HOSTS, &["table/b.example"]);
    let nonce = sent(&mut stream, HOSTS, &["table/b.example"], &[]);
    subscribe(&mut stream, HOSTS, &["table/a.example:80"]);
    stream.set_view(table(&[("a.example", "1"), ("b.example", "1")]));
    ack(&mut stream, HOSTS, &nonce);
    answered(
        &mut stream,
        &[("table/a.example", &["table/a.example:80"])],
        &[],
    );
    quiet(&mut stream);
}

/// Requests for these would match the wildcard, so the client would never request them. Senders of
/// requests can invent hosts. Text that cannot be a host costs no wildcard look-ups.
#[test]
fn a_host_that_is_too_long_is_nobodys() {
    let mut stream = client(&table(&[("*", "1")]));
    let host = |len: usize| format!("table/{}", "a.".repeat(len / 2));
    let (longest, longer) = (host(254), host(256));
    subscribe(&mut stream, HOSTS, &[&longer]);
    answered(&mut stream, &[], &[&longer]);
    subscribe(&mut stream, HOSTS, &[&longest]);
    answered(&mut stream, &[("table/*", &[&longest])], &[]);
}

#[test]
fn a_wildcard_brings_what_is_more_specific() {
    let hosts = [
        "a.b.example",
        "*.c.b.example",
        "*.b.example",
        "a.example",
        "notb.example",
    ];
    let mut stream = client(&table(&hosts.map(|host| (host, "1"))));
    subscribe(&mut stream, HOSTS, &["table/z.b.example"]);
    let brought: &[(&str, &[&str])] = &[
        ("table/*.b.example", &["table/z.b.example"]),
        ("table/*.c.b.example", &[]),
        ("table/a.b.example", &[]),
    ];
    answered(&mut stream, brought, &[]);
    let more = hosts.into_iter().chain(["z.b.example"]);
    stream.set_view(table(&more.map(|host| (host, "1")).collect::<Vec<_>>()));
    answered(&mut stream, &[("table/z.b.example", &[])], &[]);
    // Its alias now matches another host, but it uses the wildcard.
    let changed = hosts
        .map(|host| (host, "2"))
        .into_iter()
        .chain([("z.b.example", "1")]);
    stream.set_view(table(&changed.collect::<Vec<_>>()));
    let all: &[(&str, &[&str])] = &[
        ("table/*.b.example", &[]),
        ("table/*.c.b.example", &[]),
        ("table/a.b.example", &[]),
    ];
    answered(&mut stream, all, &[]);
}

#[test]
fn who_gives_up_every_name_of_a_host_hears_nothing_of_it() {
    let mut stream = client(&table(&[("a.example", "1")]));
    subscribe(
        &mut stream,
        HOSTS,
        &["table/a.example:80", "table/a.example:81"],
    );
    let both: &[&str] = &["table/a.example:80", "table/a.example:81"];
    answered(&mut stream, &[("table/a.example", both)], &[]);
    unsubscribe(
        &mut stream,
        HOSTS,
        &["table/a.example:80", "table/never.example"],
    );
    stream.set_view(table(&[("a.example", "2")]));
    answered(&mut stream, &[("table/a.example", &[])], &[]);
    unsubscribe(&mut stream, HOSTS, &["table/a.example:81"]);
    stream.set_view(table(&[("a.example", "3")]));
    quiet(&mut stream);
}

#[test]
fn who_comes_back_is_sent_what_changed_and_what_it_called_otherwise() {
    let world = table(&["a.example", "b.example", "c.example"].map(|host| (host, "1")));
    let version = |name| world.of(HOSTS).get(name).expect("it is there").version;
    let mut stream = delta(&world);
    let initial = [
        ("table/a.example", version("table/a.example")),
        ("table/b.example", Version::parse("older")),
        ("table/c.example", version("table/c.example")),
        // Envoy's memory of a name without a virtual host.
        ("table/d.example", Version::parse("")),
    ];
    let asked = [
        "*",
        "table/a.example",
        "table/b.example",
        "table/c.example:80",
        "table/d.example",
    ];
    stream.subscribe_delta(
        HOSTS,
        asked.into_iter(),
        [].into_iter(),
        initial.into_iter(),
    );
    let expected: &[(&str, &[&str])] = &[
        ("table/b.example", &[]),
        ("table/c.example", &["table/c.example:80"]),
    ];
    answered(&mut stream, expected, &["table/d.example"]);
    quiet(&mut stream);
}

#[test]
fn a_refused_host_counts_as_none_for_who_asks_again() {
    let mut stream = client(&table(&[("a.example", "bad")]));
    subscribe(&mut stream, HOSTS, &["table/a.example:80"]);
    let nonce = sent(&mut stream, HOSTS, &["table/a.example"], &[]);
    nack(&mut stream, HOSTS, &nonce, "table/a.example: bad");
    quiet(&mut stream);
    subscribe(&mut stream, HOSTS, &["table/a.example:80"]);
    answered(&mut stream, &[], &["table/a.example:80"]);
    stream.set_view(table(&[("a.example", "mended")]));
    answered(&mut stream, &[("table/a.example", &[])], &[]);
}

/// Make before break, as for whole route tables.
#[test]
fn a_host_waits_for_its_clusters_and_clusters_wait_for_hosts_to_leave() {
    let world = |name: &'static str| {
        let hosts = [
            (Kind::Routes, "table", "1"),
            (HOSTS, "table/a.example", name),
        ];
        view(&[&cluster(name, "1")[..], &hosts].concat(), &[name])
    };
    let mut stream = client(&world("old"));
    subscribe(&mut stream, Kind::Cluster, &[]);
    subscribe(&mut stream, HOSTS, &["table/a.example:80"]);
    taken(&mut stream, Kind::Cluster, &["old"], &[]);
    quiet(&mut stream);
    subscribe(&mut stream, Kind::Endpoints, &["old"]);
    taken(&mut stream, Kind::Endpoints, &["old"], &[]);
    answered(
        &mut stream,
        &[("table/a.example", &["table/a.example:80"])],
        &[],
    );

    stream.set_view(world("new"));
    taken(&mut stream, Kind::Cluster, &["new"], &[]);
    subscribe(&mut stream, Kind::Endpoints, &["new"]);
    taken(&mut stream, Kind::Endpoints, &["new"], &[]);
    let nonce = sent(&mut stream, HOSTS, &["table/a.example"], &[]);
    quiet(&mut stream);
    ack(&mut stream, HOSTS, &nonce);
    sent(&mut stream, Kind::Cluster, &[], &["old"]);
}
