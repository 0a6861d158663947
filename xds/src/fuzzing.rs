//! A discovery stream under arbitrary bytes of a client, from a script of bytes: for the fuzzer,
//! and for the tests.
//!
//! It covers everything between the HTTP/2 stream and the protocol's state: gRPC's framing,
//! decoding, introduction, the stream, and the encoding of responses. Some steps are raw bytes.
//! Others build well-formed requests, since a fuzzer would hardly ever guess the nonce that
//! acknowledges a response.

use std::{
    num::NonZeroU32,
    sync::{Arc, LazyLock},
};

use bytes::{Buf, Bytes};
use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::Cluster,
            core::v3::{Locality, Node},
        },
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
        },
    },
    google::rpc::Status,
};
use prost::Message;

use crate::{
    delta::Delta,
    request::Wire,
    resource::{Kind, Resource, Resources},
    response,
    script::Script,
    sotw::Sotw,
    stream::{Outgoing, Stream, Verdict},
    transport::{Messages, PREFIX_BYTES},
    view::View,
};

/// Names for well-formed requests. Some exist in some views; one is a host as a request may spell
/// it.
const NAMES: [&str; 8] = [
    "*",
    "a",
    "b",
    "c",
    "table",
    "filter",
    "table/a",
    "table/x.C:8",
];
/// The longest message of a script: longer ones do not find more.
const MESSAGE_BYTES_MAX: usize = 4 * 1024;
/// The most responses of one step: one of each kind.
const RESPONSES_MAX: usize = Kind::ALL.len();

/// Views for scripts: clusters are added, changed, made unhealthy and removed; routes need some of
/// them.
static VIEWS: LazyLock<[Arc<View>; 5]> = LazyLock::new(|| {
    [
        view("1", &[], &[]),
        view("1", &["a", "b"], &["a"]),
        view("2", &["b", "c", "d"], &["b", "d"]),
        view("dead", &["a", "b"], &["b"]),
        view("1", &["a", "b", "c", "d"], &["a", "b", "c", "d"]),
    ]
});

fn view(content: &str, clusters: &[&str], needed: &[&str]) -> Arc<View> {
    let mut resources: [Resources; Kind::ALL.len()] = Default::default();
    let mut add = |kind: Kind, name: &str, content: &str| {
        // The protocol does not depend on the type of message.
        let message = Cluster {
            name: name.to_owned(),
            alt_stat_name: content.to_owned(),
            ..Cluster::default()
        };
        let mut resource = Resource::encode(name, &message);
        if kind == Kind::Endpoints && content == "dead" {
            resource = resource.without_healthy_endpoints();
        }
        let resource = resource.lasting(NonZeroU32::MIN);
        resources[kind.index()].insert(Arc::from(name), Arc::new(resource));
    };
    for name in clusters {
        add(Kind::Cluster, name, content);
        add(Kind::Endpoints, name, content);
        add(Kind::VirtualHosts, &format!("table/{name}"), content);
        add(Kind::VirtualHosts, &format!("table/*.{name}"), content);
    }
    add(Kind::Listener, "ingress", content);
    add(Kind::Routes, "table", &needed.concat());
    add(Kind::FilterConfig, "filter", &needed.concat());
    let needed = needed.iter().copied().map(Arc::from).collect();
    Arc::new(View::new(resources, needed))
}

/// Plays a script. Panics if the stream does, or if it violates a promise: a response that does not
/// decode to its resources, a second one before the first is answered, an exchange that never
/// settles.
pub fn play(script: &[u8]) {
    let mut script = Script(script);
    match script.byte() % 2 {
        0 => Player::<Delta>::new(script).play(),
        _ => Player::<Sotw>::new(script).play(),
    }
}

impl Script<'_> {
    fn names(&mut self) -> Vec<String> {
        let chosen = self.byte();
        let named = NAMES.iter().enumerate();
        let named = named.filter(|(at, _)| chosen & (1 << at) != 0);
        named.map(|(_, name)| (*name).to_owned()).collect()
    }
}

/// A request in a script.
struct Asked {
    kind: Kind,
    subscribe: Vec<String>,
    unsubscribe: Vec<String>,
    nonce: String,
    error: Option<Status>,
    initial: Vec<String>,
}

/// Builds a variant's requests and reads its responses.
trait Client: Wire {
    fn request(asked: Asked) -> Self::Request;
    fn check(message: &[u8], meant: &Outgoing);
}

impl Client for Delta {
    fn request(asked: Asked) -> DeltaDiscoveryRequest {
        let version = |name: String| (name, "00".to_owned());
        DeltaDiscoveryRequest {
            node: Some(node()),
            type_url: asked.kind.type_url().to_owned(),
            resource_names_subscribe: asked.subscribe,
            resource_names_unsubscribe: asked.unsubscribe,
            initial_resource_versions: asked.initial.into_iter().map(version).collect(),
            response_nonce: asked.nonce,
            error_detail: asked.error,
            ..DeltaDiscoveryRequest::default()
        }
    }

    fn check(message: &[u8], meant: &Outgoing) {
        let response = DeltaDiscoveryResponse::decode(message).expect("a response");
        let count = meant.resources.len() + meant.renewed.len() + meant.unresolved.len();
        assert_eq!(response.resources.len(), count);
        assert_eq!(response.removed_resources.len(), meant.removed.len());
        let mut names = response.removed_resources;
        names.extend(response.resources.into_iter().map(|resource| resource.name));
        names.sort();
        let twice = names.windows(2).find(|pair| pair[0] == pair[1]);
        assert_eq!(twice, None, "a name twice");
        assert_eq!(response.nonce, meant.nonce.to_string());
    }
}

impl Client for Sotw {
    fn request(asked: Asked) -> DiscoveryRequest {
        DiscoveryRequest {
            node: Some(node()),
            type_url: asked.kind.type_url().to_owned(),
            resource_names: asked.subscribe,
            response_nonce: asked.nonce,
            error_detail: asked.error,
            ..DiscoveryRequest::default()
        }
    }

    fn check(message: &[u8], meant: &Outgoing) {
        let response = DiscoveryResponse::decode(message).expect("a response");
        assert_eq!(response.resources.len(), meant.resources.len());
        assert_eq!(response.nonce, meant.nonce.to_string());
    }
}

fn node() -> Node {
    Node {
        id: "fuzzed".to_owned(),
        locality: Some(Locality {
            zone: "here".to_owned(),
            ..Locality::default()
        }),
        ..Node::default()
    }
}

struct Player<'s, W> {
    script: Script<'s>,
    messages: Messages,
    stream: Stream,
    /// The nonces of unanswered responses, by kind.
    unanswered: [Option<u64>; Kind::ALL.len()],
    wire: std::marker::PhantomData<W>,
}

impl<'s, W: Client> Player<'s, W> {
    fn new(script: Script<'s>) -> Self {
        Player {
            script,
            messages: Messages::new(MESSAGE_BYTES_MAX),
            stream: Stream::new(W::VARIANT, Arc::clone(&VIEWS[0])).with_ttl(),
            unanswered: [None; Kind::ALL.len()],
            wire: std::marker::PhantomData,
        }
    }

    fn play(mut self) {
        while !self.script.0.is_empty() {
            match self.script.byte() % 5 {
                4 => {
                    let kind = Kind::ALL[usize::from(self.script.byte()) % Kind::ALL.len()];
                    self.stream.renew(kind);
                }
                0 => {
                    let bytes = self.script.bytes();
                    self.messages.push(Bytes::copy_from_slice(bytes));
                    if self.receive().is_err() {
                        // The stream would end here.
                        return;
                    }
                }
                1 | 2 => self.ask(),
                _ => {
                    let view = usize::from(self.script.byte()) % VIEWS.len();
                    self.stream.set_view(Arc::clone(&VIEWS[view]));
                }
            }
            self.send_due();
        }
        self.calm_down();
    }

    /// Handles the complete messages.
    fn receive(&mut self) -> Result<(), tonic::Status> {
        while let Some(message) = self.messages.next()? {
            let Ok(request) = W::Request::decode(message) else {
                return Err(tonic::Status::invalid_argument(""));
            };
            self.take(&request);
        }
        Ok(())
    }

    fn take(&mut self, request: &W::Request) {
        let Some(kind) = Kind::of_type_url(W::type_url(request)) else {
            return;
        };
        let in_flight = self.stream.unanswered(kind);
        // The answer only serves logs.
        let _ = W::take(&mut self.stream, kind, request);
        if in_flight.is_some() && self.stream.unanswered(kind).is_none() {
            self.unanswered[kind.index()] = None;
        }
    }

    fn ask(&mut self) {
        let script = &mut self.script;
        let kind = Kind::ALL[usize::from(script.byte()) % Kind::ALL.len()];
        let how = script.byte();
        let nonce = match how % 4 {
            0 => None,
            1 => Some(u64::from(script.byte())),
            _ => self.unanswered[kind.index()],
        };
        let error = (how & 4 != 0).then(|| Status {
            message: String::from_utf8_lossy(script.bytes()).into_owned(),
            ..Status::default()
        });
        let asked = Asked {
            kind,
            subscribe: script.names(),
            unsubscribe: if how & 8 != 0 {
                script.names()
            } else {
                Vec::new()
            },
            initial: if how & 16 != 0 {
                script.names()
            } else {
                Vec::new()
            },
            nonce: nonce.map(|nonce| nonce.to_string()).unwrap_or_default(),
            error,
        };
        self.take(&W::request(asked));
    }

    /// Returns the number of responses sent.
    fn send_due(&mut self) -> usize {
        let mut sent = 0;
        while let Some(outgoing) = self.stream.next_due() {
            sent += 1;
            assert!(sent <= RESPONSES_MAX, "responses without end");
            let unanswered = &mut self.unanswered[outgoing.kind.index()];
            assert_eq!(
                *unanswered, None,
                "a second one before the first is answered"
            );
            *unanswered = Some(outgoing.nonce);
            let mut frame = response::encode(W::VARIANT, &outgoing).expect("it is short");
            let bytes = frame.copy_to_bytes(frame.remaining());
            W::check(&bytes[PREFIX_BYTES..], &outgoing);
        }
        sent
    }

    /// Acknowledges everything: after a few turns no response is due any more.
    fn calm_down(&mut self) {
        for _ in 0..4 * Kind::ALL.len() {
            for kind in Kind::ALL {
                let Some(nonce) = self.unanswered[kind.index()].take() else {
                    continue;
                };
                let nonce = nonce.to_string();
                let verdict = Verdict::Ack { nonce: &nonce };
                self.stream.settle(kind, &verdict).expect("the last nonce");
            }
            if self.send_due() == 0 {
                return;
            }
        }
        panic!("it never comes to rest");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn no_client_breaks_a_stream(script in prop::collection::vec(any::<u8>(), 0..300)) {
            super::play(&script);
        }
    }
}
