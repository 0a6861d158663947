use std::sync::Arc;

use envoy_types::pb::envoy::{
    config::{cluster::v3::Cluster, core::v3::Locality},
    r#type::matcher::v3::{RegexMatcher, StructMatcher},
};

use super::*;
use crate::{
    clients::Client,
    resource::{Resource, Resources},
    stream::{Variant, Verdict},
    view::View,
};

fn view(clusters: &[(&str, &str)]) -> Arc<View> {
    let mut resources: [Resources; Kind::ALL.len()] = Default::default();
    for (name, content) in clusters {
        let cluster = Cluster {
            name: (*name).to_owned(),
            alt_stat_name: (*content).to_owned(),
            ..Cluster::default()
        };
        let resource = Arc::new(Resource::encode(name, &cluster));
        resources[Kind::Cluster.index()].insert(Arc::clone(&resource.name), resource);
    }
    Arc::new(View::new(resources, Default::default()))
}

fn version(view: &View, name: &str) -> String {
    view.of(Kind::Cluster)[name].version.to_string()
}

fn subscribe(stream: &mut Stream, names: &[&str]) {
    let names = names.iter().copied();
    stream.subscribe_delta(Kind::Cluster, names, [].into_iter(), [].into_iter());
}

fn send(stream: &mut Stream) -> String {
    stream.next_due().expect("due").nonce.to_string()
}

fn ack(stream: &mut Stream) {
    let nonce = send(stream);
    let ack = Verdict::Ack { nonce: &nonce };
    stream.settle(Kind::Cluster, &ack).unwrap();
}

/// Name, version, and both states of every cluster.
fn told(stream: &Stream) -> Vec<(String, String, ConfigStatus, ClientResourceStatus)> {
    let configs = of_kind(stream, Kind::Cluster).into_iter();
    configs
        .map(|config| {
            assert_eq!(config.type_url, Kind::Cluster.type_url());
            let states = (config.config_status(), config.client_status());
            (config.name, config.version_info, states.0, states.1)
        })
        .collect()
}

#[test]
fn a_resource_goes_from_asked_for_to_acknowledged_and_on() {
    use {ClientResourceStatus as Client, ConfigStatus as Config};
    let first = view(&[("a", "1"), ("b", "1")]);
    let mut stream = Stream::new(Variant::Delta, Arc::clone(&first));
    subscribe(&mut stream, &["a", "c"]);
    let nothing = String::new;
    assert_eq!(
        told(&stream),
        [
            ("a".into(), nothing(), Config::NotSent, Client::Requested),
            ("c".into(), nothing(), Config::NotSent, Client::DoesNotExist),
        ]
    );
    let nonce = send(&mut stream);
    let a = version(&first, "a");
    assert_eq!(
        told(&stream)[0],
        ("a".into(), a.clone(), Config::Stale, Client::Requested)
    );
    let ack = Verdict::Ack { nonce: &nonce };
    stream.settle(Kind::Cluster, &ack).unwrap();
    assert_eq!(
        told(&stream),
        [
            ("a".into(), a.clone(), Config::Synced, Client::Acked),
            ("c".into(), nothing(), Config::NotSent, Client::DoesNotExist),
        ]
    );
    stream.set_view(view(&[("a", "2")]));
    assert_eq!(
        told(&stream)[0],
        ("a".into(), a, Config::NotSent, Client::Acked)
    );
}

#[test]
fn a_refusal_names_what_is_held_and_what_was_refused() {
    use {ClientResourceStatus as Client, ConfigStatus as Config};
    let (good, bad) = (view(&[("a", "1")]), view(&[("a", "2"), ("b", "2")]));
    let mut stream = Stream::new(Variant::Delta, Arc::clone(&good));
    subscribe(&mut stream, &["*"]);
    ack(&mut stream);
    stream.set_view(Arc::clone(&bad));
    let nonce = send(&mut stream);
    let nack = Verdict::Nack {
        nonce: &nonce,
        message: "no good",
    };
    stream.settle(Kind::Cluster, &nack).unwrap();
    assert_eq!(
        told(&stream),
        [
            (
                "a".into(),
                version(&good, "a"),
                Config::Error,
                Client::Nacked
            ),
            ("b".into(), String::new(), Config::Error, Client::Nacked),
        ]
    );
    for config in of_kind(&stream, Kind::Cluster) {
        let error = config.error_state.expect("an error");
        assert_eq!(error.details, "no good");
        assert_eq!(error.version_info, version(&bad, &config.name));
    }
    let better = view(&[("a", "3")]);
    stream.set_view(Arc::clone(&better));
    ack(&mut stream);
    assert_eq!(
        told(&stream),
        [(
            "a".into(),
            version(&better, "a"),
            Config::Synced,
            Client::Acked
        )]
    );
}

fn id(pattern: MatchPattern) -> NodeMatcher {
    let node_id = StringMatcher {
        ignore_case: false,
        match_pattern: Some(pattern),
    };
    NodeMatcher {
        node_id: Some(node_id),
        node_metadatas: vec![],
    }
}

#[test]
fn matchers_choose_by_id() {
    let text = str::to_owned;
    let check = |matchers: Vec<NodeMatcher>, expected: &[&str]| {
        let matchers = Matchers::read(matchers).unwrap();
        let ids = ["gw-1", "gw-2", "side-1"].into_iter();
        let ids: Vec<&str> = ids.filter(|id| matchers.match_id(id)).collect();
        assert_eq!(ids, expected, "{matchers:?}");
    };
    check(vec![], &["gw-1", "gw-2", "side-1"]);
    check(vec![NodeMatcher::default()], &["gw-1", "gw-2", "side-1"]);
    check(vec![id(MatchPattern::Exact(text("gw-1")))], &["gw-1"]);
    check(
        vec![id(MatchPattern::Prefix(text("gw-")))],
        &["gw-1", "gw-2"],
    );
    check(
        vec![id(MatchPattern::Suffix(text("-1")))],
        &["gw-1", "side-1"],
    );
    check(vec![id(MatchPattern::Contains(text("de")))], &["side-1"]);
    check(vec![id(MatchPattern::Exact(text("GW-1")))], &[]);
    let mut lax = id(MatchPattern::Exact(text("GW-1")));
    lax.node_id.as_mut().unwrap().ignore_case = true;
    check(
        vec![lax, id(MatchPattern::Exact(text("side-1")))],
        &["gw-1", "side-1"],
    );
}

#[test]
fn what_is_not_supported_is_refused() {
    let regex = id(MatchPattern::SafeRegex(RegexMatcher::default()));
    let none = NodeMatcher {
        node_id: Some(StringMatcher::default()),
        ..NodeMatcher::default()
    };
    let metadata = NodeMatcher {
        node_metadatas: vec![StructMatcher::default()],
        ..NodeMatcher::default()
    };
    for (matcher, expected) in [
        (regex, Unanswerable::Pattern("safe_regex")),
        (none, Unanswerable::Pattern("no pattern")),
        (metadata, Unanswerable::Metadata),
    ] {
        assert_eq!(Matchers::read(vec![matcher]).unwrap_err(), expected);
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Zone(&'static str);

impl Key for Zone {
    fn node(&self) -> Node {
        Node {
            locality: Some(Locality {
                zone: self.0.to_owned(),
                ..Locality::default()
            }),
            ..Node::default()
        }
    }
}

#[test]
fn the_streams_of_one_client_are_told_together() {
    let clients = Clients::default();
    let enter = |node: &str| {
        let client = Client::new(node, Zone("sh-a"), Variant::Delta);
        let mut stream = Stream::new(Variant::Delta, view(&[("a", "1")]));
        subscribe(&mut stream, &["*"]);
        ack(&mut stream);
        clients.enter(client, stream)
    };
    let _entries = [enter("n1"), enter("n2"), enter("n1")];
    let all = clients.client_configs(&Matchers::default()).unwrap();
    let shown: Vec<_> = (all.iter())
        .map(|client| {
            let node = client.node.as_ref().unwrap();
            (node.id.as_str(), client.generic_xds_configs.len())
        })
        .collect();
    assert_eq!(shown, [("n1", 2), ("n2", 1)]);
    let node = all[0].node.as_ref().unwrap();
    assert_eq!(node.locality.as_ref().unwrap().zone, "sh-a");
}
