//! A model of Envoy against the real stream state, with delayed messages and a mesh that changes
//! continuously.
//!
//! In any order the model never has a route to a cluster that it cannot use, except one that it has
//! rejected. When changes stop, it has exactly the current view, except for its rejections.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    num::NonZeroU32,
};

use proptest::prelude::*;

use super::{tests::view, *};

const HOST: &str = "table/host";

const CLUSTERS: [&str; 4] = ["a", "b", "c", "d"];

/// The kinds that refer to clusters.
const USERS: [Kind; 3] = [Kind::Routes, Kind::VirtualHosts, Kind::FilterConfig];

/// The client rejects a cluster with this content.
const BAD_CLUSTER: u8 = 3;
/// The client rejects endpoints with this content.
const BAD_ENDPOINTS: u8 = 4;

/// The existing clusters, with their contents, and whether the routes use them.
type Mesh = [Option<(u8, bool)>; CLUSTERS.len()];

fn view_of(mesh: &Mesh) -> Arc<View> {
    let contents: Vec<String> = mesh
        .iter()
        .map(|cluster| cluster.map_or(String::new(), |(content, _)| content.to_string()))
        .collect();
    let used: Vec<&str> = CLUSTERS
        .into_iter()
        .zip(mesh)
        .filter(|(_, cluster)| matches!(cluster, Some((_, true))))
        .map(|(name, _)| name)
        .collect();
    let table = used.join(",");
    let mut lines = vec![
        (Kind::Listener, "ingress", "1"),
        (Kind::Routes, "table", table.as_str()),
        (Kind::VirtualHosts, HOST, table.as_str()),
        (Kind::FilterConfig, "filter", table.as_str()),
    ];
    for ((name, cluster), content) in CLUSTERS.iter().zip(mesh).zip(&contents) {
        if cluster.is_some() {
            lines.push((Kind::Cluster, name, content));
            lines.push((Kind::Endpoints, name, content));
        }
    }
    let view = view(&lines, &used);
    let lasting = |resource: &Arc<Resource>| Arc::new(resource.lasting(NonZeroU32::MIN));
    let resources = Kind::ALL.map(|kind| {
        let all = view.of(kind).iter();
        all.map(|(name, resource)| (Arc::clone(name), lasting(resource)))
            .collect()
    });
    Arc::new(View::new(resources, view.needed().clone()))
}

enum ToServer {
    Subscribe(Kind, Vec<String>),
    Unsubscribe(Kind, Vec<String>),
    Ack(Kind, u64),
    Nack(Kind, u64, Vec<String>),
}

/// The versions that the client rejects, by kind and name.
type Bad = BTreeSet<(usize, String, Version)>;

/// The state that Envoy would have.
struct Client {
    variant: Variant,
    has: [BTreeMap<String, Version>; Kind::ALL.len()],
    inbox: VecDeque<Outgoing>,
    outbox: VecDeque<ToServer>,
    /// Clusters and endpoints whose last version was rejected.
    refused: BTreeSet<(usize, String)>,
    /// Clusters that were rejected when routes to them arrived.
    excused: BTreeSet<String>,
}

impl Client {
    fn new(variant: Variant) -> Client {
        let first = [
            ToServer::Subscribe(Kind::Cluster, vec![]),
            ToServer::Subscribe(Kind::Listener, vec![]),
            ToServer::Subscribe(Kind::Routes, vec!["table".into()]),
            ToServer::Subscribe(Kind::FilterConfig, vec!["filter".into()]),
        ];
        let by_alias = ToServer::Subscribe(Kind::VirtualHosts, vec!["table/HOST:80".into()]);
        let hosts = (variant == Variant::Delta).then_some(by_alias);
        Client {
            variant,
            has: Default::default(),
            inbox: VecDeque::new(),
            outbox: first.into_iter().chain(hosts).collect(),
            refused: BTreeSet::new(),
            excused: BTreeSet::new(),
        }
    }

    fn has(&self, kind: Kind, name: &str) -> bool {
        self.has[kind.index()].contains_key(name)
    }

    /// Handles the next response like Envoy; `tables` lists the clusters that a version of the
    /// routes uses.
    fn receive(&mut self, tables: &BTreeMap<Version, Vec<&'static str>>, bad: &Bad) {
        let Some(response) = self.inbox.pop_front() else {
            return;
        };
        let kind = response.kind;
        let sent = response.resources.iter().map(|resource| &resource.name);
        let renewed = response.renewed.iter().map(|resource| &resource.name);
        let mut named: Vec<_> = sent.chain(renewed).chain(&response.removed).collect();
        named.sort();
        assert!(
            named.windows(2).all(|pair| pair[0] != pair[1]),
            "a name twice: {named:?}"
        );
        for resource in &response.renewed {
            let of_a_cluster = self.has(Kind::Cluster, &resource.name);
            let has = self.has[kind.index()].get(&*resource.name);
            let left = kind == Kind::Endpoints && !of_a_cluster;
            assert!(
                left || has == Some(&resource.version),
                "renews a resource that the client does not have"
            );
        }
        let replaces = self.variant == Variant::StateOfTheWorld && kind.full_state();
        let before = self.has[kind.index()].clone();
        if replaces {
            self.has[kind.index()].clear();
        }
        let mut refused = Vec::new();
        for resource in &response.resources {
            let name = resource.name.to_string();
            if bad.contains(&(kind.index(), name.clone(), resource.version)) {
                if let Some(had) = before.get(&name) {
                    self.has[kind.index()].insert(name.clone(), *had);
                }
                self.refused.insert((kind.index(), name.clone()));
                refused.push(name);
                continue;
            }
            self.refused.remove(&(kind.index(), name));
            // Envoy ignores the endpoints of a cluster that it does not have (any more), and
            // acknowledges them.
            if kind == Kind::Endpoints && !self.has(Kind::Cluster, &resource.name) {
                continue;
            }
            self.has[kind.index()].insert(resource.name.to_string(), resource.version);
        }
        for name in &response.removed {
            self.has[kind.index()].remove(&**name);
        }
        if kind == Kind::Cluster {
            let now = self.has[kind.index()].clone();
            self.has[Kind::Endpoints.index()].retain(|name, _| now.contains_key(name));
            let without = |a: &BTreeMap<String, Version>, b: &BTreeMap<String, Version>| {
                let names = a.keys().filter(|name| !b.contains_key(*name));
                names.cloned().collect::<Vec<String>>()
            };
            let (fresh, gone) = (without(&now, &before), without(&before, &now));
            match self.variant {
                _ if fresh.is_empty() && gone.is_empty() => {}
                Variant::Delta => {
                    self.outbox
                        .push_back(ToServer::Unsubscribe(Kind::Endpoints, gone));
                    self.outbox
                        .push_back(ToServer::Subscribe(Kind::Endpoints, fresh));
                }
                Variant::StateOfTheWorld => {
                    let all = now.keys().cloned().collect();
                    self.outbox
                        .push_back(ToServer::Subscribe(Kind::Endpoints, all));
                }
            }
        }
        self.outbox.push_back(match refused.is_empty() {
            true => ToServer::Ack(kind, response.nonce),
            false => ToServer::Nack(kind, response.nonce, refused),
        });
        if USERS.contains(&kind) {
            let refused = self.refused.iter().map(|(_, name)| name.clone());
            self.excused.extend(refused);
        }
        self.check(tables);
        let named: BTreeSet<&str> = (USERS.iter())
            .flat_map(|kind| self.has[kind.index()].values())
            .flat_map(|version| tables[version].iter().copied())
            .collect();
        let (clusters, endpoints) = (Kind::Cluster.index(), Kind::Endpoints.index());
        let usable = |name: &String| {
            self.has[clusters].contains_key(name) && self.has[endpoints].contains_key(name)
        };
        self.excused
            .retain(|name| named.contains(&**name) && !usable(name));
    }

    fn check(&self, tables: &BTreeMap<Version, Vec<&'static str>>) {
        for kind in USERS {
            for version in self.has[kind.index()].values() {
                for cluster in &tables[version] {
                    let usable =
                        self.has(Kind::Cluster, cluster) && self.has(Kind::Endpoints, cluster);
                    assert!(
                        usable || self.excused.contains(*cluster),
                        "{kind:?} leads to {cluster}, which cannot be used"
                    );
                }
            }
        }
    }
}

struct Run {
    stream: Stream,
    client: Client,
    tables: BTreeMap<Version, Vec<&'static str>>,
    bad: Bad,
}

impl Run {
    fn change(&mut self, mesh: &Mesh) {
        let view = view_of(mesh);
        self.learn(mesh, &view);
        self.stream.set_view(view);
        self.pump();
    }

    fn learn(&mut self, mesh: &Mesh, view: &View) {
        for (name, cluster) in CLUSTERS.iter().zip(mesh) {
            let kind = match cluster {
                Some((BAD_CLUSTER, _)) => Kind::Cluster,
                Some((BAD_ENDPOINTS, _)) => Kind::Endpoints,
                _ => continue,
            };
            let version = view.of(kind)[*name].version;
            self.bad.insert((kind.index(), name.to_string(), version));
        }
        let used: Vec<&'static str> = CLUSTERS
            .into_iter()
            .filter(|name| view.needed().iter().any(|needed| &**needed == *name))
            .collect();
        for kind in USERS {
            for resource in view.of(kind).values() {
                self.tables.insert(resource.version, used.clone());
            }
        }
    }

    fn pump(&mut self) {
        while let Some(outgoing) = self.stream.next_due() {
            self.client.inbox.push_back(outgoing);
        }
    }

    fn deliver_to_server(&mut self) {
        match self.client.outbox.pop_front() {
            Some(ToServer::Ack(kind, nonce)) => {
                let nonce = nonce.to_string();
                let settled = self.stream.settle(kind, &Verdict::Ack { nonce: &nonce });
                assert_eq!(settled, Ok(Answer::Accepted));
            }
            Some(ToServer::Nack(kind, nonce, names)) => {
                let (nonce, message) = (nonce.to_string(), names.join(" "));
                let refusal = Verdict::Nack {
                    nonce: &nonce,
                    message: &message,
                };
                let settled = self.stream.settle(kind, &refusal);
                assert!(matches!(settled, Ok(Answer::Refused(_))), "{settled:?}");
            }
            Some(ToServer::Subscribe(kind, names)) => {
                let names = names.iter().map(String::as_str);
                match self.client.variant {
                    Variant::Delta => {
                        let none = [].into_iter();
                        self.stream
                            .subscribe_delta(kind, names, none, [].into_iter());
                    }
                    Variant::StateOfTheWorld => self.stream.subscribe_sotw(kind, names, ""),
                }
            }
            Some(ToServer::Unsubscribe(kind, names)) => {
                let names = names.iter().map(String::as_str);
                let none = [].into_iter();
                self.stream
                    .subscribe_delta(kind, none, names, [].into_iter());
            }
            None => {}
        }
        self.pump();
    }
}

fn meshes() -> impl Strategy<Value = Mesh> {
    let content = prop_oneof![6 => 0..BAD_CLUSTER, 1 => BAD_CLUSTER..=BAD_ENDPOINTS];
    prop::array::uniform4(prop::option::weighted(0.7, (content, any::<bool>())))
}

#[derive(Clone, Debug)]
enum Step {
    Change(Mesh),
    ToServer,
    ToClient,
    Renew,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        1 => meshes().prop_map(Step::Change),
        3 => Just(Step::ToServer),
        3 => Just(Step::ToClient),
        1 => Just(Step::Renew),
    ];
    prop::collection::vec(step, 0..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_route_ever_leads_nowhere(first in meshes(), steps in steps(), delta in any::<bool>()) {
        play(first, steps, delta);
    }
}

fn play(first: Mesh, steps: Vec<Step>, delta: bool) {
    let variant = if delta {
        Variant::Delta
    } else {
        Variant::StateOfTheWorld
    };
    let mut run = Run {
        stream: Stream::new(variant, view_of(&first)).with_ttl(),
        client: Client::new(variant),
        tables: BTreeMap::new(),
        bad: Bad::new(),
    };
    run.learn(&first, &view_of(&first));
    let mut last = first;
    for step in steps {
        match step {
            Step::Change(mesh) => {
                run.change(&mesh);
                last = mesh;
            }
            Step::ToServer => run.deliver_to_server(),
            Step::ToClient => run.client.receive(&run.tables, &run.bad),
            Step::Renew => {
                for kind in Kind::ALL {
                    run.stream.renew(kind);
                }
                run.pump();
            }
        }
    }
    // Changes stop, and all messages arrive. Each round settles something, and there is little to
    // settle.
    for _ in 0..1_000 {
        if run.client.outbox.is_empty() && run.client.inbox.is_empty() {
            break;
        }
        run.client.receive(&run.tables, &run.bad);
        run.deliver_to_server();
    }
    // It may have an earlier version of these, or none.
    let refused: Vec<&str> = (CLUSTERS.into_iter().zip(&last))
        .filter(|(_, cluster)| matches!(cluster, Some((BAD_CLUSTER | BAD_ENDPOINTS, _))))
        .map(|(name, _)| name)
        .collect();
    let kinds = Kind::ALL.into_iter();
    for kind in kinds.filter(|kind| delta || kind.in_state_of_the_world()) {
        let good = |name: &str| !refused.contains(&name);
        let mut expected: BTreeMap<String, Version> = view_of(&last)
            .of(kind)
            .values()
            .map(|resource| (resource.name.to_string(), resource.version))
            .collect();
        expected.retain(|name, _| good(name));
        let mut has = run.client.has[kind.index()].clone();
        has.retain(|name, _| good(name));
        assert_eq!(has, expected, "{:?}", kind);
    }
}
