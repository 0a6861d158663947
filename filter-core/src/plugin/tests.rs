//! A configuration and its requests, in one worker whose proxy is played by hand.

use std::cell::RefCell;

use policy::{
    fence::{Grant, Name, Revision, Stamp},
    refusal::Refusal,
};
use prost::Message;
use protos::{Decoder, fence::GrantorSays, wire};

use super::*;
use crate::{
    apply::FilterHeadersStatus,
    deadlines::Deadlines,
    fence::{ending::Ending, testing::Fake},
    guest::follower::Follower,
    header_map,
    refusals::Refusals,
    request::RequestHost,
    testing::{fenced, serving},
};

thread_local! {
    static DECODER: RefCell<Decoder> = RefCell::default();
    static WORKER: RefCell<Option<Worker>> = RefCell::default();
    static REFUSALS: RefCell<Refusals> = RefCell::default();
    static FOLLOWER: RefCell<Follower> = RefCell::default();
    static DEADLINES: RefCell<Deadlines> = RefCell::default();
    static APPLIED: RefCell<Option<Applied>> = RefCell::default();
}

impl Memory for Fake {
    fn decoder<T>(act: impl FnOnce(&mut Decoder) -> T) -> Option<T> {
        DECODER.with(|part| Some(act(&mut *part.try_borrow_mut().ok()?)))
    }

    fn worker<T>(act: impl FnOnce(&mut Option<Worker>) -> T) -> Option<T> {
        WORKER.with(|part| Some(act(&mut *part.try_borrow_mut().ok()?)))
    }

    fn refusals<T>(act: impl FnOnce(&mut Refusals) -> T) -> Option<T> {
        REFUSALS.with(|part| Some(act(&mut *part.try_borrow_mut().ok()?)))
    }

    fn follower<T>(act: impl FnOnce(&mut Follower) -> T) -> Option<T> {
        FOLLOWER.with(|part| Some(act(&mut *part.try_borrow_mut().ok()?)))
    }

    fn deadlines<T>(act: impl FnOnce(&mut Deadlines) -> T) -> Option<T> {
        DEADLINES.with(|part| Some(act(&mut *part.try_borrow_mut().ok()?)))
    }

    fn applied<T>(act: impl FnOnce(&mut Option<Applied>) -> T) -> Option<T> {
        APPLIED.with(|part| Some(act(&mut *part.try_borrow_mut().ok()?)))
    }
}

impl PluginHost for Fake {
    fn wake_every(&mut self, period_ms: u32) -> Result<(), HostFailed> {
        self.effects.push(format!("wake every {period_ms}"));
        Ok(())
    }

    fn is_guest_now(&mut self) {
        self.effects.push("guest".into());
    }

    fn bytes_of(&mut self, _: RequestId) -> Option<u64> {
        Some(self.came)
    }

    fn answer(&mut self, request: RequestId, reply: &Reply<'_>) {
        self.effects
            .push(format!("{}: {}", request.0, reply.details));
    }

    fn turn_back(&mut self, context: ContextId) {
        self.effects.push(format!("turn back to {}", context.0));
    }

    fn log(&mut self, level: Level, line: &str) {
        self.effects.push(format!("{level:?} {line}"));
    }
}

impl RequestHost for Fake {
    fn set_header(&mut self, name: &str, value: &str) -> Result<(), HostFailed> {
        self.effects.push(format!("{name}: {value}"));
        Ok(())
    }

    fn remove_header(&mut self, _: &[u8]) -> Result<(), HostFailed> {
        Ok(())
    }

    fn send_reply(&mut self, reply: &Reply<'_>) -> Result<(), HostFailed> {
        self.effects.push(format!("reply {}", reply.details));
        Ok(())
    }

    fn bytes_came(&mut self) -> Option<u64> {
        Some(self.came)
    }

    fn answered_later(&mut self, request: RequestId) {
        self.effects.push(format!("{}: answered later", request.0));
    }

    fn draw(&mut self) -> u64 {
        0
    }

    fn ending(&mut self) -> Ending {
        self.ending.clone()
    }
}

const CONTEXT: ContextId = ContextId(7);
const GUEST: &[u8] = br#"{"control_plane": "tidegate", "mode": "fence", "zone": "shanghai-a"}"#;

/// A worker with a policy that fences, and a stream to its control plane.
fn begin() -> (Plugin, Fake) {
    let mut fake = Fake::default();
    (fake.at.monotonic_us, fake.at.wall_us) = (1_000_000, 9_000_000);
    let mut plugin = Plugin::new(CONTEXT);
    let (bytes, _) = protos::encode(&fenced(), 1, "tidegate");
    assert!(plugin.configure(&bytes, &mut fake));
    tick(&mut plugin, &mut fake);
    fake.done();
    (plugin, fake)
}

fn tick(plugin: &mut Plugin, fake: &mut Fake) {
    fake.pass(10_000);
    plugin.on_tick(fake);
}

/// The control plane says something on a stream of grants.
fn says_on(token: Token, plugin: &mut Plugin, fake: &mut Fake, says: &GrantorSays) -> Vec<String> {
    let message = wire::GrantorMessage::from(says).encode_to_vec();
    plugin.on_message(token, &message, fake);
    fake.done()
}

fn granted_on(token: Token, plugin: &mut Plugin, fake: &mut Fake) {
    let stamp = Stamp {
        epoch: 5,
        revision: Revision(1),
    };
    let grant = Grant {
        stamp,
        ttl: 3_000_000,
    };
    let grants = GrantorSays::Grants {
        nonce: 1,
        grants: vec![(Name::from("main"), grant)],
        withheld: None,
    };
    says_on(token, plugin, fake, &grants);
}

fn write(plugin: &Plugin, fake: &mut Fake, id: u32, length: &str) -> (Request, Vec<String>) {
    let headers = [
        (":method", "POST"),
        (":path", "/orders"),
        (":authority", "shop"),
        ("content-length", length),
    ];
    let map = header_map::encode(&headers).unwrap();
    let mut request = plugin.request(RequestId(id));
    let status = request.on_headers(Some(&map), false, fake);
    let done = fake.done();
    let is_stopped = done.iter().any(|effect| effect.starts_with("reply ")) || done.is_empty();
    assert_eq!(is_stopped, status == FilterHeadersStatus::StopIteration);
    (request, done)
}

fn has(effects: &[String], effect: &str) -> bool {
    effects.iter().any(|done| done.contains(effect))
}

fn revoke() -> GrantorSays {
    GrantorSays::Revoke {
        cell: Name::from("main"),
        fence: Stamp {
            epoch: 5,
            revision: Revision(2),
        },
    }
}

#[test]
fn a_policy_that_is_not_valid_is_rejected_and_told() {
    let mut fake = Fake::default();
    let mut plugin = Plugin::new(CONTEXT);
    assert!(!plugin.configure(b"\x08\x01", &mut fake));
    let done = fake.done();
    assert!(
        has(&done, "Error policy refused: mode: missing"),
        "{done:?}"
    );
    assert!(has(&done, "count tidegate.policy_rejected 1"), "{done:?}");
    let (bytes, _) = protos::encode(&serving(), 1, "");
    assert!(plugin.configure(&bytes, &mut fake));
    assert!(!has(&fake.done(), "wake"), "nothing is fenced or reported");
}

#[test]
fn a_write_is_admitted_and_a_fence_waits_for_its_end() {
    let (mut plugin, mut fake) = begin();
    let (mut refused, done) = write(&plugin, &mut fake, 1, "40000");
    assert!(has(&done, "reply tidegate_fenced"), "{done:?}");
    refused.over(&mut fake);
    granted_on(Token(1), &mut plugin, &mut fake);
    let (mut admitted, done) = write(&plugin, &mut fake, 2, "40000");
    assert!(has(&done, "x-tidegate-epoch: 5"), "{done:?}");
    let done = says_on(Token(1), &mut plugin, &mut fake, &revoke());
    assert!(!has(&done, "drained"), "{done:?}");
    fake.ending = Ending {
        flags: Some(0),
        details: b"via_upstream".to_vec(),
    };
    admitted.over(&mut fake);
    tick(&mut plugin, &mut fake);
    assert!(has(&fake.done(), "1: drained main 5/2"));
}

#[test]
fn a_write_whose_end_is_not_certain_is_waited_for() {
    let (mut plugin, mut fake) = begin();
    granted_on(Token(1), &mut plugin, &mut fake);
    let (mut admitted, _) = write(&plugin, &mut fake, 1, "1");
    says_on(Token(1), &mut plugin, &mut fake, &revoke());
    admitted.over(&mut fake);
    tick(&mut plugin, &mut fake);
    assert!(
        !has(&fake.done(), "drained"),
        "it may be under way upstream"
    );
    fake.pass(2_000_000);
    tick(&mut plugin, &mut fake);
    assert!(has(&fake.done(), "1: drained main 5/2"), "after the drain");
}

#[test]
fn a_refusal_waits_for_a_small_body() {
    let (mut plugin, mut fake) = begin();
    fake.came = 200;
    let map = [
        (":method", "POST"),
        (":path", "/orders"),
        ("content-length", "30"),
    ];
    let map = header_map::encode(&map).unwrap();
    let mut request = plugin.request(RequestId(3));
    let status = request.on_headers(Some(&map), false, &mut fake);
    assert_eq!(status, FilterHeadersStatus::StopIteration);
    let done = fake.done();
    assert!(
        has(&done, "3: answered later") && !has(&done, "reply"),
        "{done:?}"
    );
    fake.came = 229;
    tick(&mut plugin, &mut fake);
    assert!(!has(&fake.done(), "3: tidegate"));
    fake.came = 230;
    tick(&mut plugin, &mut fake);
    let done = fake.done();
    let answered = done
        .iter()
        .position(|effect| effect == "3: tidegate_fenced");
    assert_eq!(done[answered.unwrap() + 1], "turn back to 7");
    request.over(&mut fake);
}

#[test]
fn a_guest_whose_configuration_is_not_valid_is_the_fallback() {
    let mut fake = Fake::default();
    let mut plugin = Plugin::new(CONTEXT);
    assert!(plugin.configure(br#"{"mode": "watch"}"#, &mut fake));
    let done = fake.done();
    assert!(
        has(&done, "reads pass, and writes are rejected"),
        "{done:?}"
    );
    assert!(has(&done, "guest") && !has(&done, "wake"), "{done:?}");
    let (_, done) = write(&plugin, &mut fake, 1, "0");
    assert!(has(&done, "reply tidegate_fenced"), "{done:?}");
}

#[test]
fn a_guest_ends_a_write_that_lives_too_long() {
    let mut fake = Fake::default();
    let mut plugin = Plugin::new(CONTEXT);
    assert!(plugin.configure(GUEST, &mut fake));
    assert!(has(&fake.done(), "wake every 10"));
    // As if its stream had brought the policy.
    let (bytes, _) = protos::encode(&fenced(), 1, "tidegate");
    let config = Decoder::default().decode(&bytes).unwrap();
    plugin.decide_by(config, &mut fake);
    tick(&mut plugin, &mut fake);
    assert!(has(&fake.done(), "ask 1"));
    granted_on(Token(2), &mut plugin, &mut fake);
    let (mut admitted, done) = write(&plugin, &mut fake, 4, "1");
    assert!(has(&done, "4: answered later"), "{done:?}");
    for _ in 0..199 {
        tick(&mut plugin, &mut fake);
    }
    assert!(!has(&fake.done(), "4: tidegate"));
    for _ in 0..2 {
        tick(&mut plugin, &mut fake);
    }
    let timed_out = format!("4: tidegate_{}", Refusal::WRITE_TIMEOUT.reason.as_str());
    assert!(has(&fake.done(), &timed_out));
    admitted.over(&mut fake);
}

#[test]
fn a_plugin_that_goes_leaves_its_streams_and_its_ticks() {
    let (mut plugin, mut fake) = begin();
    plugin.removed(&mut fake);
    assert_eq!(fake.done(), ["wake every 0"]);
    let owner = Fake::follower(|follower| follower.owner());
    assert_eq!(owner, Some(None));
}
