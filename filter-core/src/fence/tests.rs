//! A process of two workers against a control plane that is played by hand.

use std::sync::Arc;

use policy::{
    Policy,
    fence::{Grant, Name, Revision, Stamp, Withheld, WorkerId},
    hop::{HopKeys, Keys, Signer},
};
use protos::{fence::GrantorSays, wire};

use super::{
    hop_keys,
    permits::Permits,
    testing::Fake,
    worker::{Worker, terms_of},
};
use crate::{
    stream::{ContextId, Token},
    testing::{fenced, fenced_under},
};

const A: ContextId = ContextId(1);
const B: ContextId = ContextId(2);
const TTL_US: u64 = 3_000_000;

struct Play {
    fake: Fake,
    policy: Arc<Policy>,
    workers: Vec<(ContextId, Worker)>,
}

impl Play {
    fn begin() -> Play {
        Play::by(fenced())
    }

    fn by(policy: Policy) -> Play {
        let policy = Arc::new(policy);
        let worker = |number, context| {
            let mut worker = Worker::new(Permits::new(WorkerId(number)));
            assert!(worker.configured(context, &policy));
            (context, worker)
        };
        let mut play = Play {
            workers: vec![worker(1, A), worker(2, B)],
            policy: Arc::clone(&policy),
            fake: Fake::default(),
        };
        play.fake.at.monotonic_us = 1_000_000;
        play.fake.at.wall_us = 9_000_000;
        play
    }

    fn tick(&mut self) -> Vec<String> {
        for (context, worker) in &mut self.workers {
            worker.tick(*context, &mut self.fake);
        }
        self.fake.done()
    }

    /// Ten milliseconds at a time.
    fn pass(&mut self, us: u64) -> Vec<String> {
        let mut done = vec![];
        for _ in 0..us / 10_000 {
            self.fake.pass(10_000);
            done.extend(self.tick());
        }
        done
    }

    /// The control plane says something to the first worker.
    fn says(&mut self, token: u32, says: &GrantorSays) -> Vec<String> {
        use prost::Message;
        let message = wire::GrantorMessage::from(says).encode_to_vec();
        let (context, worker) = &mut self.workers[0];
        worker.on_message(*context, Token(token), &message, &mut self.fake);
        self.fake.done()
    }

    fn grants(&mut self, token: u32, nonce: u64, epoch: u64) -> Vec<String> {
        let grant = Grant {
            stamp: stamp(epoch),
            ttl: TTL_US,
        };
        let grants = vec![("main".into(), grant), ("unknown".into(), grant)];
        self.says(token, &answer(nonce, grants))
    }

    fn begin_write(&mut self, worker: usize) -> Option<u64> {
        let terms = terms_of(&self.policy).unwrap();
        self.workers[worker]
            .1
            .permits
            .admit("main", terms, &mut self.fake)
            .map(|admitted| admitted.epoch)
    }

    fn end_write(&mut self, worker: usize) {
        let terms = terms_of(&self.policy).unwrap();
        self.workers[worker]
            .1
            .permits
            .end("main", terms, &mut self.fake);
    }

    /// Whether a write would be admitted.
    fn admits(&mut self, worker: usize) -> Option<u64> {
        let epoch = self.begin_write(worker);
        self.end_write(worker);
        epoch
    }
}

fn answer(nonce: u64, grants: Vec<(Name, Grant)>) -> GrantorSays {
    GrantorSays::Grants {
        nonce,
        grants,
        withheld: None,
    }
}

fn stamp(epoch: u64) -> Stamp {
    Stamp {
        epoch,
        revision: Revision(epoch * 10),
    }
}

fn revoke(epoch: u64) -> GrantorSays {
    GrantorSays::Revoke {
        cell: "main".into(),
        fence: stamp(epoch),
    }
}

#[test]
fn one_worker_asks_and_all_admit() {
    let mut play = Play::begin();
    assert_eq!(
        play.tick(),
        [
            "open tidegate",
            "1: hello 1 shanghai-a node gateway",
            "1: ask 1",
            "record tidegate.fence.holding 0",
        ]
    );
    assert_eq!(play.admits(0), None);
    assert_eq!(
        play.grants(1, 1, 7),
        [
            "count tidegate.grants.installed 1",
            "record tidegate.fence.holding 1",
        ]
    );
    assert_eq!((play.admits(0), play.admits(1)), (Some(7), Some(7)));
    assert_eq!(play.pass(TTL_US / 4 - 10_000), [""; 0]);
    assert_eq!(play.pass(10_000), ["1: ask 2"]);
}

#[test]
fn without_an_answer_writes_stop_when_the_grant_ends() {
    let mut play = Play::begin();
    play.tick();
    play.grants(1, 1, 7);
    assert_eq!(play.admits(0), Some(7));
    play.pass(TTL_US - 10_000);
    assert_eq!((play.admits(0), play.admits(1)), (Some(7), Some(7)));
    let last = play.pass(10_000);
    assert!(last.contains(&"record tidegate.fence.holding 0".to_owned()));
    assert_eq!((play.admits(0), play.admits(1)), (None, None));
}

#[test]
fn an_answer_counts_from_its_question_and_only_once() {
    let mut play = Play::begin();
    play.tick();
    play.pass(900_000);
    assert_eq!(play.grants(1, 2, 7), [""; 0], "nobody asked that");
    assert_eq!(play.grants(9, 1, 7), [""; 0], "not our stream");
    assert_eq!(
        play.grants(1, 1, 7).len(),
        3,
        "installed, asked again, told"
    );
    play.pass(TTL_US - 900_000);
    assert_eq!(play.admits(0), None);
}

/// The workers of a process get a policy one after the other.
#[test]
fn grants_under_new_terms_are_for_workers_that_have_them() {
    let mut play = Play::by(fenced_under(3));
    let asked = play.tick();
    assert!(asked.contains(&"1: ask 1 by 3".to_owned()), "{asked:?}");
    play.grants(1, 1, 7);
    assert_eq!((play.admits(0), play.admits(1)), (Some(7), Some(7)));
    // The first one, which speaks, has the next policy, and asks by it at once.
    let old = Arc::clone(&play.policy);
    let next = Arc::new(fenced_under(4));
    assert!(play.workers[0].1.configured(A, &next));
    let done = play.tick();
    play.policy = Arc::clone(&next);
    assert_eq!(
        play.admits(0),
        None,
        "it holds what the old one was granted"
    );
    let asked = done.iter().rev().find_map(|done| done.split_once(": ask "));
    let (token, asked) = asked.unwrap();
    let nonce = asked.strip_suffix(" by 4").unwrap().parse().unwrap();
    play.grants(token.parse().unwrap(), nonce, 9);
    play.tick();
    play.policy = old;
    assert_eq!(
        play.admits(1),
        None,
        "its writes would live by the old terms"
    );
    play.policy = next;
    assert_eq!((play.admits(0), play.admits(1)), (Some(9), Some(9)));
    // A replica that lags gives them an older policy.
    play.policy = Arc::new(fenced_under(3));
    assert_eq!((play.admits(0), play.admits(1)), (None, None));
}

#[test]
fn an_answer_to_an_older_policy_is_not_installed() {
    let mut play = Play::by(fenced_under(3));
    play.tick();
    let next = Arc::new(fenced_under(4));
    for (context, worker) in &mut play.workers {
        assert!(worker.configured(*context, &next));
    }
    play.policy = next;
    play.grants(1, 1, 7);
    assert_eq!((play.admits(0), play.admits(1)), (None, None));
}

#[test]
fn a_proxy_says_once_why_it_is_granted_nothing_and_once_that_it_is_over() {
    let mut play = Play::by(fenced_under(3));
    play.tick();
    let withheld = |nonce| GrantorSays::Grants {
        nonce,
        grants: vec![],
        withheld: Some(Withheld::OtherTerms),
    };
    let said = play.says(1, &withheld(1));
    assert_eq!(said[0], "record tidegate.fence.withheld 1");
    assert!(said[1].starts_with("note no grants: this policy has other terms"));
    play.pass(TTL_US / 4);
    assert_eq!(play.says(1, &withheld(2)), [""; 0], "once");
    assert_eq!(play.admits(0), None);
    play.pass(TTL_US / 4);
    let said = play.grants(1, 3, 7);
    assert!(said.contains(&"record tidegate.fence.withheld 0".to_owned()));
    assert!(
        said.iter()
            .any(|said| said.starts_with("note grants are given again"))
    );
    assert_eq!(play.admits(0), Some(7));
}

#[test]
fn a_fence_is_acknowledged_when_the_last_write_of_any_worker_is_over() {
    let mut play = Play::begin();
    play.tick();
    play.grants(1, 1, 7);
    assert_eq!(
        (play.begin_write(0), play.begin_write(1)),
        (Some(7), Some(7))
    );
    assert_eq!(
        play.says(1, &revoke(8)),
        [
            "count tidegate.fence.revocations 1",
            "record tidegate.fence.holding 0",
        ]
    );
    assert_eq!(play.pass(100_000), [""; 0]);
    assert_eq!((play.admits(0), play.admits(1)), (None, None));
    play.end_write(0);
    assert_eq!(play.pass(100_000), [""; 0], "the other has one in flight");
    play.end_write(1);
    assert_eq!(play.tick(), ["1: drained main 8/80"]);
    assert_eq!(
        play.says(1, &revoke(8)),
        ["count tidegate.fence.revocations 1", "1: drained main 8/80"],
        "said again where asked again"
    );
}

#[test]
fn a_revocation_without_writes_is_acknowledged_once_all_have_seen_it() {
    let mut play = Play::begin();
    play.tick();
    play.grants(1, 1, 7);
    assert_eq!((play.admits(0), play.admits(1)), (Some(7), Some(7)));
    assert_eq!(play.says(1, &revoke(8)).len(), 2, "the other still admits");
    assert_eq!(play.admits(1), Some(7));
    assert_eq!(play.tick(), [""; 0], "now it has let go");
    assert_eq!(play.tick(), ["1: drained main 8/80"]);
    assert_eq!(play.admits(1), None);
}

#[test]
fn a_worker_that_was_lost_is_waited_for() {
    let mut play = Play::begin();
    play.tick();
    play.grants(1, 1, 7);
    assert_eq!(play.begin_write(1), Some(7));
    play.workers.pop();
    play.says(1, &revoke(8));
    let drain_us = terms_of(&play.policy).unwrap().write_drain;
    // The control plane answers, but grants nothing.
    let mut acknowledged_us = 0;
    for waited_us in (10_000..).step_by(10_000) {
        let done = play.pass(10_000);
        if done.contains(&"1: drained main 8/80".to_owned()) {
            acknowledged_us = waited_us;
            break;
        }
        for nonce in done.iter().filter_map(|done| done.strip_prefix("1: ask ")) {
            let nonce = nonce.parse().unwrap();
            let grants = vec![];
            play.says(1, &answer(nonce, grants));
        }
    }
    assert_eq!(acknowledged_us, TTL_US + drain_us);
}

#[test]
fn a_silent_worker_loses_the_election() {
    let mut play = Play::begin();
    play.tick();
    play.workers.remove(0);
    assert_eq!(play.pass(300_000), [""; 0]);
    let done = play.pass(10_000);
    assert_eq!(
        done,
        [
            "open tidegate",
            "2: hello 1 shanghai-a node gateway",
            "2: ask 1",
            "record tidegate.fence.holding 0",
        ],
        "as the same process"
    );
}

#[test]
fn an_invitation_is_followed_at_once_but_one_question_at_a_time() {
    let mut play = Play::begin();
    play.tick();
    assert_eq!(play.says(1, &GrantorSays::Invite), [""; 0], "1 is open");
    let done = play.grants(1, 1, 7);
    assert!(done.contains(&"1: ask 2".to_owned()), "{done:?}");
    play.grants(1, 2, 7);
    assert_eq!(play.says(1, &GrantorSays::Invite), ["1: ask 3"]);
}

#[test]
fn a_control_plane_that_is_away_or_silent_is_tried_less_and_less() {
    let mut play = Play::begin();
    play.fake.away = true;
    let opened = |done: &[String]| done.iter().filter(|done| *done == "open tidegate").count();
    assert_eq!(opened(&play.tick()), 1);
    assert_eq!(
        opened(&play.pass(1_000_000)),
        4,
        "after 50, 150, 350, 750 ms"
    );
    assert!((5..=10).contains(&opened(&play.pass(10_000_000))));
    play.fake.away = false;
    let done = play.pass(4_000_000);
    assert!(opened(&done) >= 1);
    assert!(done.contains(&"1: cancel".to_owned()), "{done:?}");
    assert!(done.contains(&"count tidegate.fence.stream_resets 1".to_owned()));
}

#[test]
fn a_stream_that_ends_is_opened_again() {
    let mut play = Play::begin();
    play.tick();
    play.workers[0].1.closed(Token(7), &mut play.fake);
    assert_eq!(play.tick(), [""; 0], "not ours");
    play.workers[0].1.closed(Token(1), &mut play.fake);
    assert_eq!(play.tick(), ["count tidegate.fence.stream_resets 1"]);
    let done = play.pass(50_000);
    assert_eq!(
        done,
        [
            "open tidegate",
            "2: hello 1 shanghai-a node gateway",
            "2: ask 1"
        ]
    );
}

#[test]
fn a_new_policy_takes_the_stream_over_and_keeps_the_grant() {
    let mut play = Play::begin();
    play.tick();
    play.grants(1, 1, 7);
    assert_eq!(play.begin_write(0), Some(7));
    let next = ContextId(3);
    let policy = Arc::clone(&play.policy);
    assert!(play.workers[0].1.configured(next, &policy));
    // The new one leaves the old one's stream alone, which the old one ends if it still lives.
    play.workers[0].1.tick(next, &mut play.fake);
    assert_eq!(play.fake.done(), [""; 0]);
    play.workers[0].1.tick(A, &mut play.fake);
    assert_eq!(play.fake.done(), ["1: cancel"]);
    play.workers[0].1.removed(A);
    play.workers[0].0 = next;
    assert_eq!(
        play.tick()[..2],
        ["open tidegate", "2: hello 1 shanghai-a node gateway"]
    );
    assert_eq!(play.admits(0), Some(7));
    // A write that began before still counts.
    play.says(2, &revoke(8));
    assert_eq!(play.pass(50_000), [""; 0]);
    play.end_write(0);
    assert_eq!(play.tick(), ["2: drained main 8/80"]);
}

#[test]
fn a_write_whose_client_gave_up_is_waited_for_until_it_is_over() {
    let mut play = Play::begin();
    play.tick();
    play.grants(1, 1, 7);
    let terms = terms_of(&play.policy).unwrap().clone();
    let permits = &mut play.workers[0].1.permits;
    let admitted = permits.admit("main", &terms, &mut play.fake).unwrap();
    play.pass(200_000);
    play.says(1, &revoke(8));
    let permits = &mut play.workers[0].1.permits;
    permits.abandon("main", admitted.at_us, &terms, &mut play.fake);
    let drained = "1: drained main 8/80".to_owned();
    let mut waited_us = 200_000;
    loop {
        let done = play.pass(10_000);
        if done.contains(&drained) {
            break;
        }
        // The control plane answers, but grants nothing.
        for nonce in done.iter().filter_map(|done| done.strip_prefix("1: ask ")) {
            let (nonce, grants) = (nonce.parse().unwrap(), vec![]);
            play.says(1, &answer(nonce, grants));
        }
        waited_us += 10_000;
        assert!(waited_us <= terms.write_drain + 20_000, "for ever");
        assert_eq!(play.admits(0), None, "it is fenced meanwhile");
    }
    assert!(waited_us >= terms.write_drain, "{waited_us}");
}

#[test]
fn keys_for_hops_reach_every_worker() {
    let mut play = Play::begin();
    play.tick();
    let keys = Keys::new(vec!["0123456789abcdef".into()]).unwrap();
    play.says(1, &GrantorSays::HopKeys(Some(keys.clone())));
    let held = hop_keys::read(&mut play.fake);
    assert!(matches!(held, HopKeys::Held { keys: received, .. } if received == keys));
    // They outlast the stream that brought them.
    play.workers[0].1.closed(Token(1), &mut play.fake);
    play.pass(100_000);
    assert_eq!(hop_keys::read(&mut play.fake).signer(), Signer::Holds);
    play.says(2, &GrantorSays::HopKeys(None));
    assert_eq!(hop_keys::read(&mut play.fake), HopKeys::Withheld);
}

#[test]
fn a_suspended_machine_forgets_what_it_held_and_asks_anew() {
    let mut play = Play::begin();
    play.tick();
    play.grants(1, 1, 7);
    assert_eq!((play.admits(0), play.admits(1)), (Some(7), Some(7)));
    play.fake.at.wall_us += 2_000_000;
    assert_eq!(play.admits(0), None);
    assert_eq!(play.fake.done(), ["count tidegate.fence.clock_anomalies 1"]);
    let done = play.tick();
    assert!(done.contains(&"1: ask 2".to_owned()), "{done:?}");
    assert_eq!((play.admits(0), play.admits(1)), (None, None));
    play.grants(1, 2, 7);
    assert_eq!((play.admits(0), play.admits(1)), (Some(7), Some(7)));
}

#[test]
fn an_answer_that_slept_is_not_installed() {
    let mut play = Play::begin();
    play.tick();
    play.fake.at.wall_us += 2_000_000;
    let done = play.grants(1, 1, 7);
    assert_eq!(done, ["1: ask 2"]);
    assert_eq!(play.admits(0), None);
    play.grants(1, 2, 7);
    assert_eq!(play.admits(0), Some(7));
}

#[test]
fn a_ledger_that_cannot_be_read_admits_and_acknowledges_nothing() {
    let mut play = Play::begin();
    play.tick();
    play.grants(1, 1, 7);
    assert_eq!(play.begin_write(0), Some(7));
    play.fake.put("tidegate/3/cell/main", b"?");
    play.tick();
    assert_eq!((play.admits(0), play.admits(1)), (None, None));
    play.end_write(0);
    play.says(1, &revoke(8));
    let done = play.pass(20_000_000);
    assert!(!done.iter().any(|done| done.contains("drained")));
}

#[test]
fn a_proxy_that_fails_admits_nothing() {
    let mut play = Play::begin();
    play.tick();
    play.grants(1, 1, 7);
    play.fake.fails = true;
    assert_eq!((play.admits(0), play.admits(1)), (None, None));
    play.tick();
}
