//! The embedded store alone: the file.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use futures::stream::StreamExt;
use registry::store::{
    ClusterId, EmbeddedOptions, EmbeddedStore, Op, Revision, Store, StoreError, WatchError,
};

use super::support::eventually;
use super::{bytes, keys, next};

async fn open(path: &Path) -> Result<EmbeddedStore, StoreError> {
    EmbeddedStore::open(EmbeddedOptions::new(path)).await
}

/// Opens a file whose store has just been dropped; its writer may still be in its last turn.
async fn reopen(path: &Path) -> EmbeddedStore {
    eventually("the file is free again", || async {
        match open(path).await {
            Err(StoreError::InUse { .. }) => None,
            opened => Some(opened.unwrap()),
        }
    })
    .await
}

#[tokio::test]
async fn entries_survive_a_reopen() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let store = open(&path).await.unwrap();
    let id = store.cluster_id().await.unwrap();
    let before = store.put("/k", bytes("1"), None).await.unwrap();
    let lease = store.lease_grant(Duration::from_secs(60)).await.unwrap();
    store.put("/l", bytes("1"), Some(lease)).await.unwrap();
    let listing = store.list("").await.unwrap();
    drop(store);

    let store = reopen(&path).await;
    assert_eq!(store.cluster_id().await.unwrap(), id);
    assert_eq!(store.list("").await.unwrap(), listing);
    // A watch resumes across the restart, and a lease continues.
    let batch = next(&mut store.watch("", before)).await.unwrap();
    assert_eq!(batch.revision, listing.revision);
    store.lease_keep_alive(lease).await.unwrap();
    let other = store.lease_grant(Duration::from_secs(60)).await.unwrap();
    assert_ne!(other, lease);
    store.lease_revoke(lease).await.unwrap();
    assert_eq!(keys(&store.list("").await.unwrap()), ["/k"]);
}

#[tokio::test]
async fn a_lease_has_its_whole_time_again_after_a_reopen_and_then_ends() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let store = open(&path).await.unwrap();
    let lease = store.lease_grant(Duration::from_millis(500)).await.unwrap();
    let put = store.put("/l", bytes("1"), Some(lease)).await.unwrap();
    drop(store);
    let store = reopen(&path).await;
    let batch = next(&mut store.watch("/l", put)).await.unwrap();
    assert_eq!(batch.revision, Revision(put.0 + 1));
    let ended = store.lease_keep_alive(lease).await;
    assert_eq!(ended, Err(StoreError::LeaseNotFound));
}

/// Kills the child even if the test fails.
struct Writer(Child);

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const WRITER_FILE: &str = "TIDEGATE_TEST_WRITER_FILE";

/// Not a test of its own: the process that `a_killed_process_loses_nothing_that_was_acknowledged`
/// kills.
#[tokio::test]
#[ignore = "run as a child process by another test"]
#[allow(
    clippy::disallowed_methods,
    reason = "the parent test says where to write"
)]
async fn write_until_killed() {
    let Ok(path) = std::env::var(WRITER_FILE) else {
        return;
    };
    let store = open(&PathBuf::from(path)).await.unwrap();
    for i in 0..1_000_000 {
        let ops = vec![
            Op::put("/first", i.to_string()),
            Op::put("/second", i.to_string()),
        ];
        let revision = store.txn(vec![], ops, None).await.unwrap().revision;
        println!("acknowledged {i} {}", revision.0);
    }
}

#[tokio::test]
async fn a_killed_process_loses_nothing_that_was_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "embedded_only::write_until_killed"])
        .args(["--ignored", "--nocapture"])
        .env(WRITER_FILE, &path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut writer = Writer(child);
    let stdout = writer.0.stdout.take().unwrap();
    let read = tokio::task::spawn_blocking(move || {
        let mut acknowledged = Vec::new();
        for line in BufReader::new(stdout).lines() {
            let line = line.unwrap();
            let Some((_, numbers)) = line.split_once("acknowledged ") else {
                continue;
            };
            let (i, revision) = numbers.split_once(' ').unwrap();
            acknowledged.push((i.parse::<i64>().unwrap(), revision.parse::<i64>().unwrap()));
            if acknowledged.len() == 50 {
                writer.0.kill().unwrap();
            }
        }
        writer.0.wait().unwrap();
        acknowledged
    });
    let acknowledged = read.await.unwrap();
    assert!(acknowledged.len() >= 50);
    let (last, revision) = *acknowledged.last().unwrap();

    let store = open(&path).await.unwrap();
    let listing = store.list("").await.unwrap();
    // Another put may have reached the disk without being acknowledged.
    assert!(listing.revision.0 >= revision);
    assert_eq!(listing.entries[0].value, listing.entries[1].value);
    let stored: i64 = std::str::from_utf8(&listing.entries[0].value)
        .unwrap()
        .parse()
        .unwrap();
    assert!(stored >= last, "acknowledged {last}, found {stored}");
    let mut watch = store.watch("", Revision(0));
    for expected in 1..=revision {
        let batch = next(&mut watch).await.unwrap();
        assert_eq!((batch.revision.0, batch.events.len()), (expected, 2));
    }
}

#[tokio::test]
async fn a_second_open_is_refused_and_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let _store = open(&path).await.unwrap();
    let Err(error) = open(&path).await else {
        panic!("opened twice");
    };
    assert_eq!(error, StoreError::InUse { path });
    assert!(error.to_string().contains("stop that one"), "{error}");
}

#[tokio::test]
async fn a_damaged_file_is_refused_and_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let store = open(&path).await.unwrap();
    for i in 0..100 {
        store
            .put(&format!("/k/{i}"), vec![b'v'; 1000].into(), None)
            .await
            .unwrap();
    }
    drop(store);
    drop(reopen(&path).await);
    let whole = eventually("the file is free", || async {
        drop(reopen(&path).await);
        std::fs::read(&path).ok()
    })
    .await;

    let mut scratched = whole.clone();
    let from = scratched
        .windows(8)
        .position(|window| window == b"vvvvvvvv")
        .unwrap();
    scratched[from..]
        .iter_mut()
        .step_by(1000)
        .for_each(|byte| *byte ^= 0xff);
    let damages = [
        ("empty", Vec::new()),
        ("text", b"not a database".to_vec()),
        ("long text", b"not a database\n".repeat(1000)),
        ("cut short", whole[..whole.len() / 2].to_vec()),
        ("scratched", scratched),
    ];
    for (damage, content) in damages {
        let damaged = directory.path().join(damage);
        std::fs::write(&damaged, content).unwrap();
        let Err(error) = open(&damaged).await else {
            panic!("opened a file that is {damage}");
        };
        assert!(
            matches!(error, StoreError::Corrupt { .. }),
            "{damage}: {error}"
        );
        assert!(
            error.to_string().contains("restore it from a backup"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_no_damage() {
    let directory = tempfile::tempdir().unwrap();
    let Err(error) = open(&directory.path().join("none/store")).await else {
        panic!("opened");
    };
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
}

#[tokio::test]
async fn a_watch_that_is_slower_than_the_history_is_told_so() {
    let directory = tempfile::tempdir().unwrap();
    let options = EmbeddedOptions {
        history_revisions: 10,
        ..EmbeddedOptions::new(directory.path().join("store"))
    };
    let store = EmbeddedStore::open(options).await.unwrap();
    let mut slow = store.watch("/k", Revision(0));
    let mut elsewhere = store.watch("/elsewhere", Revision(0));
    let first = store.put("/k", bytes("0"), None).await.unwrap();
    assert_eq!(next(&mut slow).await.unwrap().revision, first);
    for i in 0..20 {
        store.put("/k", bytes(&i.to_string()), None).await.unwrap();
    }
    let last = store.list("").await.unwrap().revision;
    let error = next(&mut slow).await.unwrap_err();
    let compacted = Revision(last.0 - 10);
    assert_eq!(error, WatchError::Compacted { compacted });
    assert_eq!(
        next(&mut elsewhere).await,
        Err(WatchError::Compacted { compacted })
    );

    // Exactly the promised history remains.
    let kept = store.watch("/k", compacted).take(10);
    let kept: Vec<_> = kept.map(|batch| batch.unwrap().revision.0).collect().await;
    assert_eq!(kept, (compacted.0 + 1..=last.0).collect::<Vec<_>>());
}

/// Drops a store, and waits until its writer has closed the file.
async fn close(store: EmbeddedStore, path: &Path) {
    drop(store);
    eventually("the file is free", || async {
        let file = std::fs::File::open(path).unwrap();
        file.try_lock().ok()
    })
    .await;
}

/// Puts back a copy of the file after the store has continued, beside the newest mark or without
/// one: returns the store's ids before and after.
async fn put_back(with_newest_mark: bool) -> (ClusterId, ClusterId) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let older = directory.path().join("older");
    let store = open(&path).await.unwrap();
    store.put("/epoch", bytes("7"), None).await.unwrap();
    let before = store.cluster_id().await.unwrap();
    close(store, &path).await;
    std::fs::copy(&path, &older).unwrap();
    let store = reopen(&path).await;
    let again = store.cluster_id().await.unwrap();
    assert_eq!(again, before, "a restart is no restore");
    store.put("/epoch", bytes("8"), None).await.unwrap();
    close(store, &path).await;
    std::fs::copy(&older, &path).unwrap();
    if !with_newest_mark {
        std::fs::remove_file(directory.path().join("store.mark")).unwrap();
    }
    let store = reopen(&path).await;
    let after = store.cluster_id().await.unwrap();
    drop(store);
    let kept = reopen(&path).await.cluster_id().await.unwrap();
    assert_eq!(kept, after, "it is another store once");
    (before, after)
}

#[tokio::test]
async fn an_older_copy_that_is_put_back_is_another_store() {
    for with_newest_mark in [true, false] {
        let (before, after) = put_back(with_newest_mark).await;
        assert_ne!(before, after, "beside the newest mark: {with_newest_mark}");
    }
}
