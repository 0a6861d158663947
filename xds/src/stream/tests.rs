//! The protocol, rule by rule: `RULES.md` lists the rules with their tests. [`super::model`] checks
//! invariants of many rules together.

mod answers;
mod hosts;
mod order;
mod renewals;
mod subscriptions;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;

use super::*;
use crate::resource::Resources;

#[test]
fn every_test_that_a_rule_names_is_there() {
    let sources = [
        ("answers", include_str!("tests/answers.rs")),
        ("hosts", include_str!("tests/hosts.rs")),
        ("model", include_str!("model.rs")),
        ("order", include_str!("tests/order.rs")),
        ("renewals", include_str!("tests/renewals.rs")),
        ("subscriptions", include_str!("tests/subscriptions.rs")),
    ];
    let rules = include_str!("../../RULES.md");
    let rows = rules.lines().filter(|line| line.starts_with("| ")).skip(2);
    let mut count = 0;
    for row in rows {
        let tests = row.rsplit('|').nth(1).expect("a row has two cells");
        let tests = tests.split('`').skip(1).step_by(2);
        for test in tests {
            let (module, name) = test.split_once("::").unwrap_or((test, ""));
            let source = sources.iter().find(|(known, _)| *known == module);
            let (_, source) = source.unwrap_or_else(|| panic!("no module {module}: {row}"));
            assert!(
                source.contains(&format!("fn {name}")),
                "no test {test}: {row}"
            );
            count += 1;
        }
    }
    assert!(count > 30, "{count} tests");
}

/// A view from lines of `kind name content`; routes and filter require the clusters `needed`.
pub(super) fn view(lines: &[(Kind, &str, &str)], needed: &[&str]) -> Arc<View> {
    let mut resources: [Resources; Kind::ALL.len()] = Default::default();
    for (kind, name, content) in lines {
        // The protocol does not depend on the type of message.
        let message = Cluster {
            name: (*name).to_owned(),
            alt_stat_name: (*content).to_owned(),
            ..Cluster::default()
        };
        let resource = match *content {
            "nobody healthy" => Resource::encode(name, &message).without_healthy_endpoints(),
            _ => Resource::encode(name, &message),
        };
        let resource = Arc::new(resource);
        resources[kind.index()].insert(Arc::clone(&resource.name), resource);
    }
    let needed = needed.iter().copied().map(Arc::from).collect();
    Arc::new(View::new(resources, needed))
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

fn unsubscribe(stream: &mut Stream, kind: Kind, names: &[&str]) {
    let names = names.iter().copied();
    stream.subscribe_delta(kind, [].into_iter(), names, [].into_iter());
}

fn sotw(view: &Arc<View>) -> Stream {
    Stream::new(Variant::StateOfTheWorld, Arc::clone(view))
}

/// Subscribes the client to all these names, and no others.
fn want(stream: &mut Stream, kind: Kind, names: &[&str]) {
    stream.subscribe_sotw(kind, names.iter().copied(), "");
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

/// As [`sent`], and acknowledged.
#[track_caller]
fn taken(stream: &mut Stream, kind: Kind, resources: &[&str], removed: &[&str]) {
    let nonce = sent(stream, kind, resources, removed);
    ack(stream, kind, &nonce);
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
