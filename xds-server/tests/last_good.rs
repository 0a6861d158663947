//! The last good state survives faults that kill the process that writes it.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant, SystemTime},
};

use registry::store::{ClusterId, Entry, Listing, Revision};
use tempfile::TempDir;
use xds_server::{
    conditions::Code,
    last_good::{self, Keeper, LastGood},
    metrics::{Metrics, ResultLabel},
};

/// The file that the child writes.
const FILE: &str = "TIDEGATE_TEST_STATE";
const ROUNDS: u64 = 30;
const DEADLINE: Duration = Duration::from_secs(30);

/// A state with this many entries at `revision`.
fn state(revision: i64, entries: usize) -> LastGood {
    let entry = |number| Entry {
        key: format!("/tidegate/v1/instances/orders/sh-a/{number}"),
        value: format!("value {revision}").into(),
        create_revision: Revision(1),
        mod_revision: Revision(revision),
        lease: None,
    };
    let listing = Listing {
        revision: Revision(revision),
        entries: (0..entries).map(entry).collect(),
    };
    LastGood::listed(ClusterId(7), listing)
}

/// Not a test of its own: the child that [`a_writer_that_is_killed_leaves_a_whole_file`] kills.
#[test]
#[ignore = "a child of another test"]
#[allow(clippy::disallowed_methods, reason = "the parent names the file")]
fn child_that_writes_until_it_is_killed() {
    let path = PathBuf::from(std::env::var(FILE).expect("started by its parent"));
    for revision in 1.. {
        let written = last_good::write(&path, &state(revision, 200), SystemTime::UNIX_EPOCH);
        written.expect("a write");
    }
}

struct Writer(Child);

impl Writer {
    fn start(path: &Path) -> Writer {
        let program = std::env::current_exe().expect("this program");
        let child = Command::new(program)
            .args(["--exact", "child_that_writes_until_it_is_killed"])
            .arg("--ignored")
            .env(FILE, path)
            .stdout(Stdio::null())
            .spawn();
        Writer(child.expect("a child"))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[allow(clippy::disallowed_methods, reason = "a deadline")]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < DEADLINE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// As [`eventually`], without blocking other tasks.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let held = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let in_time = tokio::time::timeout(DEADLINE, held).await;
    assert!(in_time.is_ok(), "not in time: {what}");
}

fn revision(path: &Path) -> Option<i64> {
    let state = last_good::read(path).expect("a whole file");
    state.map(|state| {
        assert_eq!(state.entries.len(), 200);
        let mut entries = state.entries.values();
        assert!(entries.all(|entry| entry.mod_revision == state.revision));
        state.revision.0
    })
}

#[test]
fn a_writer_that_is_killed_leaves_a_whole_file() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("state");
    for round in 0..ROUNDS {
        let before = revision(&path);
        let writer = Writer::start(&path);
        eventually("the child writes", || revision(&path) != before);
        // At another point of a write each time.
        std::thread::sleep(Duration::from_micros(round * 211));
        drop(writer);
        assert!(revision(&path).is_some());
    }
}

#[tokio::test]
async fn a_stop_writes_what_is_known_and_a_hold_leaves_the_file_alone() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("state");
    let metrics = Metrics::default();
    let keeper = Keeper::start(path.clone(), None, metrics.clone());
    keeper.keep(&state(1, 200));
    keeper.stop().await;
    assert_eq!(revision(&path), Some(1));

    let present = last_good::read(&path).expect("a whole file");
    let keeper = Keeper::start(path.clone(), present, metrics.clone());
    keeper.keep(&state(2, 0));
    keeper.hold(true);
    keeper.stop().await;
    assert_eq!(revision(&path), Some(1));
    let ok = ResultLabel { result: "ok" };
    assert_eq!(metrics.state_writes.get_or_create(&ok).get(), 1);
}

#[tokio::test]
async fn what_cannot_be_written_is_tried_again() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("later").join("state");
    let metrics = Metrics::default();
    let keeper = Keeper::start(path.clone(), None, metrics.clone());
    keeper.keep(&state(1, 200));
    let failed = metrics.state_writes.clone();
    let errors = || {
        let error = ResultLabel { result: "error" };
        failed.get_or_create(&error).get()
    };
    until("a failure is counted", || errors() > 0).await;
    let holds = || metrics.conditions.holds(Code::StateNotKept);
    until("the condition begins", holds).await;
    assert!(!path.exists());
    std::fs::create_dir(path.parent().expect("a parent")).expect("a directory");
    until("it is written in the end", || path.exists()).await;
    until("the condition ends", || !holds()).await;
    assert_eq!(revision(&path), Some(1));
}
