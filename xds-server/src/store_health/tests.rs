//! Causes in, levels and conditions out.

use registry::store::{EmbeddedOptions, EmbeddedStore, Store, StoreError};

use super::*;

fn timeout() -> Result<(), StoreError> {
    let after = Duration::from_secs(2);
    Err(StoreError::Timeout { after })
}

fn unreachable() -> StoreError {
    let detail = "refused".to_owned();
    StoreError::Unreachable { detail }
}

fn unavailable() -> StoreError {
    let detail = "no leader".to_owned();
    StoreError::Unavailable { detail }
}

#[track_caller]
fn is(store_health: &StoreHealth, level: Level, stale: bool) {
    let status = store_health.status();
    assert_eq!((status.level, status.stale), (level, stale), "{status:?}");
}

#[tokio::test]
async fn each_failure_of_a_read_has_its_level_and_an_answer_ends_it() {
    let store_health = StoreHealth::new(Metrics::default());
    is(&store_health, Level::Normal, false);
    store_health.confirmed();
    store_health.unread(&unreachable());
    is(&store_health, Level::L1, true);
    assert!(!store_health.frozen());
    store_health.unread(&unavailable());
    is(&store_health, Level::L2, true);
    assert!(store_health.frozen());
    store_health.confirmed();
    is(&store_health, Level::Normal, false);
    assert_eq!(store_health.status().reason, "");
}

#[tokio::test]
async fn what_is_loaded_is_stale_until_it_is_confirmed() {
    let store_health = StoreHealth::new(Metrics::default());
    store_health.unread(&unreachable());
    is(&store_health, Level::L1, false);
    store_health.loaded(Duration::from_secs(60));
    is(&store_health, Level::L1, true);
    store_health.confirmed();
    is(&store_health, Level::Normal, false);
}

#[tokio::test]
async fn three_timeouts_in_a_row_end_writing_and_one_success_begins_it_again() {
    let store_health = StoreHealth::new(Metrics::default());
    store_health.confirmed();
    for outcome in [timeout(), timeout(), Ok(()), timeout(), timeout()] {
        store_health.wrote(&outcome);
    }
    // Neither a time-out nor a success.
    store_health.wrote::<()>(&Err(unreachable()));
    assert_eq!(store_health.writes_refused(), None);
    store_health.wrote(&timeout());
    is(&store_health, Level::L3, false);
    assert!(store_health.frozen());
    let told = store_health.writes_refused().expect("a reason");
    assert!(
        told.contains("3 writes in a row") && told.contains("1s"),
        "{told}"
    );
    // Successful or failed reads do not end it.
    store_health.unread(&unreachable());
    is(&store_health, Level::L3, true);
    store_health.confirmed();
    is(&store_health, Level::L3, false);
    store_health.wrote(&Ok(()));
    is(&store_health, Level::Normal, false);
    assert_eq!(store_health.writes_refused(), None);
}

fn refusal(cause: RefusedCause) -> StoreError {
    let detail = "etcdserver: a reason".to_owned();
    StoreError::Refused { cause, detail }
}

/// The codes of the conditions that hold.
fn codes(metrics: &Metrics) -> Vec<Code> {
    let all = metrics.conditions.list().into_iter();
    all.map(|condition| condition.code).collect()
}

#[tokio::test]
async fn a_store_that_is_full_or_corrupt_ends_writing_at_once_until_a_write_succeeds() {
    for (cause, code) in [
        (RefusedCause::Full, Code::StoreFull),
        (RefusedCause::CorruptData, Code::StoreCorrupt),
    ] {
        let metrics = Metrics::default();
        let store_health = StoreHealth::new(metrics.clone());
        store_health.confirmed();
        store_health.wrote::<()>(&Err(refusal(cause)));
        is(&store_health, Level::L3, false);
        assert_eq!(codes(&metrics), [Code::StoreReadOnly, code]);
        let told = store_health.writes_refused().expect("a reason");
        assert!(told.contains("a reason"), "{told}");
        // Reads succeed, and prove nothing.
        store_health.confirmed();
        is(&store_health, Level::L3, false);
        store_health.wrote(&Ok(()));
        is(&store_health, Level::Normal, false);
        assert_eq!(codes(&metrics), []);
    }
}

#[tokio::test]
async fn a_store_that_denies_or_is_busy_ends_writing_after_the_third_time() {
    for (cause, code) in [
        (RefusedCause::Forbidden, Code::StoreForbidden),
        (RefusedCause::Busy, Code::StoreBusy),
    ] {
        let metrics = Metrics::default();
        let store_health = StoreHealth::new(metrics.clone());
        store_health.confirmed();
        store_health.wrote::<()>(&Err(refusal(cause)));
        assert_eq!(codes(&metrics), [code]);
        is(&store_health, Level::Normal, false);
        store_health.wrote::<()>(&Err(refusal(cause)));
        store_health.wrote::<()>(&Err(refusal(cause)));
        is(&store_health, Level::L3, false);
        assert_eq!(
            store_health.write_error().as_deref(),
            Some("the store refused: etcdserver: a reason")
        );
        store_health.wrote(&Ok(()));
        is(&store_health, Level::Normal, false);
        assert_eq!(
            (codes(&metrics), store_health.write_error()),
            (vec![], None)
        );
    }
}

#[tokio::test]
async fn a_request_that_is_at_fault_itself_says_nothing_about_the_store() {
    let metrics = Metrics::default();
    let store_health = StoreHealth::new(metrics.clone());
    store_health.confirmed();
    for _ in 0..5 {
        store_health.wrote::<()>(&Err(refusal(RefusedCause::Other)));
    }
    is(&store_health, Level::Normal, false);
    assert_eq!(codes(&metrics), []);
}

#[tokio::test]
async fn each_state_of_reading_is_a_condition_until_the_store_confirms() {
    let metrics = Metrics::default();
    let store_health = StoreHealth::new(metrics.clone());
    store_health.confirmed();
    let stale = Code::StateStale;
    store_health.unread(&unreachable());
    assert_eq!(codes(&metrics), [Code::StoreUnreachable, stale]);
    store_health.unread(&unavailable());
    assert_eq!(codes(&metrics), [Code::StoreDegraded, stale]);
    store_health.unread(&refusal(RefusedCause::Forbidden));
    assert_eq!(
        codes(&metrics),
        [Code::StoreDegraded, Code::StoreForbidden, stale]
    );
    store_health.doubted("restored");
    assert_eq!(codes(&metrics), [stale, Code::StoreDoubted]);
    store_health.confirmed();
    store_health.held(Some("all gone".to_owned()));
    assert_eq!(codes(&metrics), [stale, Code::ChangeHeld]);
    store_health.held(None);
    assert_eq!(codes(&metrics), []);
}

#[tokio::test]
async fn slow_writes_in_a_row_are_a_condition_until_a_quick_one() {
    let metrics = Metrics::default();
    let store_health = StoreHealth::new(metrics.clone());
    store_health.confirmed();
    for _ in 0..SLOW_WRITES_MAX {
        assert_eq!(codes(&metrics), []);
        store_health.wrote_in(&Ok(()), SLOW_WRITE);
    }
    assert_eq!(codes(&metrics), [Code::StoreSlow]);
    store_health.wrote_in(&Ok(()), SLOW_WRITE / 10);
    assert_eq!(codes(&metrics), []);
}

#[tokio::test]
async fn slow_writes_are_over_where_a_test_write_is_quick_and_nothing_else_is_written() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = EmbeddedOptions::new(directory.path().join("store"));
    let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(file).await.expect("a store"));
    let metrics = Metrics::default();
    let store_health = StoreHealth::new(metrics.clone());
    store_health.confirmed();
    for _ in 0..SLOW_WRITES_MAX {
        store_health.wrote_in(&Ok(()), SLOW_WRITE);
    }
    assert_eq!(codes(&metrics), [Code::StoreSlow]);
    let probes = tokio::spawn(store_health.clone().probe_writes(store));
    let mut status = store_health.subscribe();
    let over = status.wait_for(|status| !status.slow);
    let over = tokio::time::timeout(Duration::from_secs(60), over).await;
    over.expect("in time").expect("the mode is there");
    assert_eq!(codes(&metrics), []);
    probes.abort();
}

#[tokio::test]
async fn one_rejected_write_is_a_condition_until_a_test_write_succeeds() {
    let directory = tempfile::tempdir().unwrap();
    let options = EmbeddedOptions::new(directory.path().join("store"));
    let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(options).await.unwrap());
    for cause in [RefusedCause::Forbidden, RefusedCause::Busy] {
        let metrics = Metrics::default();
        let store_health = StoreHealth::new(metrics.clone());
        store_health.confirmed();
        store_health.wrote::<()>(&Err(refusal(cause)));
        is(&store_health, Level::Normal, false);
        // Nobody else writes: an idle mesh does not.
        let probes = tokio::spawn(store_health.clone().probe_writes(Arc::clone(&store)));
        let mut status = store_health.subscribe();
        let over = status.wait_for(|status| !status.refused);
        let over = tokio::time::timeout(Duration::from_secs(60), over).await;
        over.expect("in time").expect("the mode is there");
        assert_eq!(codes(&metrics), []);
        probes.abort();
    }
}

#[tokio::test]
async fn doubts_wait_for_the_operator() {
    let store_health = StoreHealth::new(Metrics::default());
    store_health.confirmed();
    store_health.doubted("restored");
    is(&store_health, Level::Normal, true);
    assert!(store_health.status().confirm);
    store_health.confirmed();
    store_health.held(Some("gone".to_owned()));
    is(&store_health, Level::Normal, true);
    assert!(store_health.status().confirm);
    store_health.held(None);
    is(&store_health, Level::Normal, false);
    assert!(!store_health.status().confirm);
}
