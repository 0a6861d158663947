//! A guest from its configuration to the policy that it decides by.

use policy::{Policy, fence::WorkerId};
use protos::{
    Decoder,
    guest::{Current, Piece, PolicySays, digest},
};

use super::*;
use crate::{
    fence::{election, testing::Fake},
    stream::Token,
    testing::serving,
};

const CONTEXT: ContextId = ContextId(7);
const CONFIG: &[u8] = br#"{"control_plane": "tidegate", "mode": "fence", "zone": "shanghai-a"}"#;

/// A worker of a process.
struct Worker {
    me: WorkerId,
    plugin: Plugin,
    follower: Follower,
    decoder: Decoder,
}

impl Worker {
    fn new(me: u64, config: &[u8], host: &mut Fake) -> Worker {
        let (plugin, outcome) = Plugin::configured(config, host);
        outcome.unwrap();
        Worker {
            me: WorkerId(me),
            plugin,
            follower: Follower::default(),
            decoder: Decoder::default(),
        }
    }

    fn tick(&mut self, host: &mut Fake) -> Option<PluginConfig> {
        let elected = election::elect(host, self.me);
        let (follower, decoder) = (&mut self.follower, &mut self.decoder);
        let read = self.plugin.tick(CONTEXT, elected, follower, decoder, host);
        read.unwrap()
    }

    fn hear(&mut self, says: &PolicySays, host: &mut Fake) {
        let message = says.encode();
        self.plugin.on_message(&message, &mut self.follower, host);
    }
}

/// The policy as the control plane sends it, in two pieces.
fn messages(policy: &Policy) -> Vec<PolicySays> {
    let (bytes, _) = protos::encode(policy, 1, "elsewhere");
    let (head, tail) = bytes.split_at(bytes.len() / 2);
    let pieces = [Piece::compress(head), Piece::compress(tail)];
    let current = Current {
        pieces: pieces.iter().map(|piece| piece.digest).collect(),
        digest: digest(&bytes),
    };
    let pieces = pieces.into_iter().map(PolicySays::Piece);
    pieces.chain([PolicySays::Current(current)]).collect()
}

fn zone_of(config: &PluginConfig) -> &str {
    match &config.policy {
        Policy::Serving(rules) => rules.topology().zone_name(rules.viewer()),
        Policy::Fallback => "",
    }
}

#[test]
fn one_worker_follows_the_policy_and_all_decide_by_it() {
    let mut host = Fake::default();
    let mut one = Worker::new(1, CONFIG, &mut host);
    let mut two = Worker::new(2, CONFIG, &mut host);
    assert_eq!(one.tick(&mut host), None);
    assert_eq!(
        host.done(),
        ["follow tidegate", "1: guest of shanghai-a Fence, 0 held"]
    );
    assert_eq!(two.tick(&mut host), None);
    assert!(host.done().is_empty(), "a second worker opens no stream");
    for says in messages(&serving()) {
        one.hear(&says, &mut host);
    }
    for worker in [&mut one, &mut two] {
        let config = worker.tick(&mut host).unwrap();
        assert_eq!(zone_of(&config), "shanghai-a");
        assert_eq!(config.control_plane, "tidegate", "the host's name counts");
        assert_eq!(worker.tick(&mut host), None);
    }
}

#[test]
fn a_new_stream_is_sent_only_the_missing_pieces() {
    let mut host = Fake::default();
    let mut one = Worker::new(1, CONFIG, &mut host);
    one.tick(&mut host);
    for says in messages(&serving()) {
        one.hear(&says, &mut host);
    }
    host.done();
    assert!(one.follower.closed(Token(1), &mut host));
    host.pass(50_000);
    one.tick(&mut host);
    let done = host.done();
    assert!(
        done.contains(&"2: guest of shanghai-a Fence, 2 held".to_owned()),
        "{done:?}"
    );
    // Another worker takes over, with nothing in its memory.
    host.pass(400_000);
    let mut two = Worker::new(2, CONFIG, &mut host);
    assert!(two.tick(&mut host).is_some(), "the policy is there");
    let done = host.done();
    assert!(
        done.contains(&"3: guest of shanghai-a Fence, 2 held".to_owned()),
        "{done:?}"
    );
}

#[test]
fn damaged_pieces_are_sent_again() {
    let mut host = Fake::default();
    let mut one = Worker::new(1, CONFIG, &mut host);
    one.tick(&mut host);
    for says in messages(&serving()) {
        one.hear(&says, &mut host);
    }
    // It says of itself that it is the piece of the list, and is not.
    let (key, mut value) = host.value_ending("/0");
    *value.last_mut().unwrap() ^= 0xff;
    host.put(&key, &value);
    host.done();
    for _ in 0..TORN_MAX {
        assert_eq!(one.tick(&mut host), None);
    }
    host.pass(50_000);
    one.tick(&mut host);
    let done = host.done();
    let again = "2: guest of shanghai-a Fence, 0 held".to_owned();
    assert!(done.contains(&again), "{done:?}");
    for says in messages(&serving()) {
        one.hear(&says, &mut host);
    }
    assert!(one.tick(&mut host).is_some());
}

#[test]
fn a_silent_control_plane_is_asked_and_then_left() {
    let mut host = Fake::default();
    let mut one = Worker::new(1, CONFIG, &mut host);
    one.tick(&mut host);
    host.done();
    host.pass(4_999_000);
    one.tick(&mut host);
    assert!(host.done().is_empty());
    host.pass(1_000);
    one.tick(&mut host);
    assert_eq!(host.done(), ["1: poll"]);
    let current = messages(&serving()).pop().unwrap();
    let PolicySays::Current(current) = current else {
        panic!("{current:?}");
    };
    // Pieces are missing: it opens another stream.
    one.hear(&PolicySays::Current(current), &mut host);
    assert_eq!(
        host.done(),
        ["count tidegate.fence.stream_resets 1", "1: cancel"]
    );
    host.pass(50_000);
    one.tick(&mut host);
    host.done();
    host.pass(5_000_000);
    one.tick(&mut host);
    host.pass(2_000_000);
    one.tick(&mut host);
    assert_eq!(
        host.done(),
        [
            "2: poll",
            "count tidegate.fence.stream_resets 1",
            "2: cancel"
        ]
    );
}

#[test]
fn a_policy_that_is_not_valid_leaves_the_one_before() {
    let mut host = Fake::default();
    let mut one = Worker::new(1, CONFIG, &mut host);
    one.tick(&mut host);
    for says in messages(&serving()) {
        one.hear(&says, &mut host);
    }
    assert!(one.tick(&mut host).is_some());
    let piece = Piece::compress(b"\x08\x01");
    let current = Current {
        pieces: vec![piece.digest],
        digest: digest(b"\x08\x01"),
    };
    one.hear(&PolicySays::Piece(piece), &mut host);
    one.hear(&PolicySays::Current(current), &mut host);
    let elected = election::elect(&mut host, one.me);
    let (follower, decoder) = (&mut one.follower, &mut one.decoder);
    let read = one
        .plugin
        .tick(CONTEXT, elected, follower, decoder, &mut host);
    assert_eq!(read.unwrap_err().to_string(), "mode: missing");
    let (_, table) = host.value_ending("applied/1");
    assert!(table.ends_with(b"mode: missing"), "the reports name it");
    assert_eq!(one.tick(&mut host), None);
}

#[test]
fn a_zone_is_found_where_the_configuration_says() {
    let check = |zone: &str, texts: &[(&str, &str)], found: &str| {
        let mut host = Fake::default();
        let texts = texts
            .iter()
            .map(|(path, text)| ((*path).to_owned(), (*text).to_owned()));
        host.node_texts = texts.collect();
        let config = format!(r#"{{"control_plane": "t", "mode": "fence"{zone}}}"#);
        let (plugin, outcome) = Plugin::configured(config.as_bytes(), &mut host);
        let told = outcome.map_or_else(|why| why.to_string(), |()| plugin.describe());
        assert!(told.contains(found), "{config}: {told}");
    };
    let locality = ("locality/zone", "a");
    let label = ("metadata/LABELS/topology.kubernetes.io/zone", "b");
    check("", &[locality, label], "zone a,");
    check("", &[label], "zone b,");
    check(
        "",
        &[("metadata/LABELS/istio-locality", "r.c.d")],
        "zone c,",
    );
    check(
        "",
        &[("metadata/LABELS/istio-locality", "r/c.d/e")],
        "zone c.d,",
    );
    check(
        r#", "zone": {"from": "locality"}"#,
        &[label],
        "zone: nothing was found",
    );
    check(
        r#", "zone": {"from": "metadata:dc.name"}"#,
        &[("metadata/dc/name", "d")],
        "zone d,",
    );
    check(r#", "zone": "A B""#, &[], "is no name of a zone");
}

#[test]
fn a_configuration_that_is_not_valid_is_the_fallback() {
    let mut host = Fake::default();
    let (mut plugin, outcome) = Plugin::configured(b"{}", &mut host);
    assert!(outcome.is_err() && !plugin.has_control_plane());
    assert_eq!(*plugin.guest, Guest::fallback());
    let (mut follower, mut decoder) = (Follower::default(), Decoder::default());
    let elected = election::elect(&mut host, WorkerId(1));
    let read = plugin.tick(CONTEXT, elected, &mut follower, &mut decoder, &mut host);
    assert_eq!(read.unwrap(), None);
    assert!(host.done().is_empty(), "it opens no stream");
}

#[test]
fn a_bad_configuration_is_told_to_the_control_plane_that_it_names() {
    let mut host = Fake::default();
    let bad = br#"{"control_plane": "tidegate", "mode": "watch"}"#;
    let (mut plugin, outcome) = Plugin::configured(bad, &mut host);
    assert!(outcome.is_err());
    let mut follower = Follower::default();
    let elected = election::elect(&mut host, WorkerId(1));
    let mut decoder = Decoder::default();
    let read = plugin.tick(CONTEXT, elected, &mut follower, &mut decoder, &mut host);
    assert_eq!(read.unwrap(), None);
    let done = host.done();
    assert_eq!(done[0], "follow tidegate");
    assert!(done[1].contains("unknown variant `watch`"), "{done:?}");
}

#[test]
fn a_guest_of_another_zone_in_the_same_process_is_told_of_once() {
    let mut host = Fake::default();
    let mut one = Worker::new(1, CONFIG, &mut host);
    one.tick(&mut host);
    host.done();
    let other = br#"{"control_plane": "tidegate", "mode": "fence", "zone": "beijing-c"}"#;
    let (mut plugin, _) = Plugin::configured(other, &mut host);
    let elected = election::elect(&mut host, WorkerId(1));
    let mut tick = |host: &mut Fake| {
        let read = plugin.tick(
            ContextId(8),
            elected,
            &mut one.follower,
            &mut one.decoder,
            host,
        );
        assert_eq!(read.unwrap(), None);
        host.done()
    };
    let done = tick(&mut host);
    assert!(
        done.iter()
            .any(|line| line.contains("guest of zone beijing-c gets no policy")),
        "{done:?}"
    );
    assert_eq!(tick(&mut host), [""; 0]);
}
