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
fn is(mode: &Mode, level: Level, stale: bool) {
    let status = mode.status();
    assert_eq!((status.level, status.stale), (level, stale), "{status:?}");
}

#[tokio::test]
async fn each_failure_of_a_read_has_its_level_and_an_answer_ends_it() {
    let mode = Mode::new(Metrics::default());
    is(&mode, Level::Normal, false);
    mode.confirmed();
    mode.unread(&unreachable());
    is(&mode, Level::L1, true);
    assert!(!mode.frozen());
    mode.unread(&unavailable());
    is(&mode, Level::L2, true);
    assert!(mode.frozen());
    mode.confirmed();
    is(&mode, Level::Normal, false);
    assert_eq!(mode.status().reason, "");
}

#[tokio::test]
async fn what_is_loaded_is_stale_until_it_is_confirmed() {
    let mode = Mode::new(Metrics::default());
    mode.unread(&unreachable());
    is(&mode, Level::L1, false);
    mode.loaded(Duration::from_secs(60));
    is(&mode, Level::L1, true);
    mode.confirmed();
    is(&mode, Level::Normal, false);
}

#[tokio::test]
async fn three_timeouts_in_a_row_end_writing_and_one_success_begins_it_again() {
    let mode = Mode::new(Metrics::default());
    mode.confirmed();
    for outcome in [timeout(), timeout(), Ok(()), timeout(), timeout()] {
        mode.wrote(&outcome);
    }
    // Neither a time-out nor a success.
    mode.wrote::<()>(&Err(unreachable()));
    assert_eq!(mode.writes_refused(), None);
    mode.wrote(&timeout());
    is(&mode, Level::L3, false);
    assert!(mode.frozen());
    let told = mode.writes_refused().expect("a reason");
    assert!(
        told.contains("3 writes in a row") && told.contains("1s"),
        "{told}"
    );
    // Reads are another matter: they do not end it.
    mode.unread(&unreachable());
    is(&mode, Level::L3, true);
    mode.confirmed();
    is(&mode, Level::L3, false);
    mode.wrote(&Ok(()));
    is(&mode, Level::Normal, false);
    assert_eq!(mode.writes_refused(), None);
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
        let mode = Mode::new(metrics.clone());
        mode.confirmed();
        mode.wrote::<()>(&Err(refusal(cause)));
        is(&mode, Level::L3, false);
        assert_eq!(codes(&metrics), [Code::StoreReadOnly, code]);
        let told = mode.writes_refused().expect("a reason");
        assert!(told.contains("a reason"), "{told}");
        // Reads go on, and prove nothing.
        mode.confirmed();
        is(&mode, Level::L3, false);
        mode.wrote(&Ok(()));
        is(&mode, Level::Normal, false);
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
        let mode = Mode::new(metrics.clone());
        mode.confirmed();
        mode.wrote::<()>(&Err(refusal(cause)));
        assert_eq!(codes(&metrics), [code]);
        is(&mode, Level::Normal, false);
        mode.wrote::<()>(&Err(refusal(cause)));
        mode.wrote::<()>(&Err(refusal(cause)));
        is(&mode, Level::L3, false);
        assert_eq!(
            mode.write_error().as_deref(),
            Some("the store refused: etcdserver: a reason")
        );
        mode.wrote(&Ok(()));
        is(&mode, Level::Normal, false);
        assert_eq!((codes(&metrics), mode.write_error()), (vec![], None));
    }
}

#[tokio::test]
async fn a_request_that_is_at_fault_itself_says_nothing_about_the_store() {
    let metrics = Metrics::default();
    let mode = Mode::new(metrics.clone());
    mode.confirmed();
    for _ in 0..5 {
        mode.wrote::<()>(&Err(refusal(RefusedCause::Other)));
    }
    is(&mode, Level::Normal, false);
    assert_eq!(codes(&metrics), []);
}

#[tokio::test]
async fn each_state_of_reading_is_a_condition_until_the_store_confirms() {
    let metrics = Metrics::default();
    let mode = Mode::new(metrics.clone());
    mode.confirmed();
    let stale = Code::StateStale;
    mode.unread(&unreachable());
    assert_eq!(codes(&metrics), [Code::StoreUnreachable, stale]);
    mode.unread(&unavailable());
    assert_eq!(codes(&metrics), [Code::StoreDegraded, stale]);
    mode.unread(&refusal(RefusedCause::Forbidden));
    assert_eq!(
        codes(&metrics),
        [Code::StoreDegraded, Code::StoreForbidden, stale]
    );
    mode.doubted("restored");
    assert_eq!(codes(&metrics), [stale, Code::StoreDoubted]);
    mode.confirmed();
    mode.held(Some("all gone".to_owned()));
    assert_eq!(codes(&metrics), [stale, Code::ChangeHeld]);
    mode.held(None);
    assert_eq!(codes(&metrics), []);
}

#[tokio::test]
async fn slow_writes_in_a_row_are_a_condition_until_a_quick_one() {
    let metrics = Metrics::default();
    let mode = Mode::new(metrics.clone());
    mode.confirmed();
    for _ in 0..SLOW_WRITES_MAX {
        assert_eq!(codes(&metrics), []);
        mode.wrote_in(&Ok(()), SLOW_WRITE);
    }
    assert_eq!(codes(&metrics), [Code::StoreSlow]);
    mode.wrote_in(&Ok(()), SLOW_WRITE / 10);
    assert_eq!(codes(&metrics), []);
}

#[tokio::test]
async fn slow_writes_are_over_where_a_test_write_is_quick_and_nothing_else_is_written() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = EmbeddedOptions::new(&directory.path().join("store"));
    let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(file).await.expect("a store"));
    let metrics = Metrics::default();
    let mode = Mode::new(metrics.clone());
    mode.confirmed();
    for _ in 0..SLOW_WRITES_MAX {
        mode.wrote_in(&Ok(()), SLOW_WRITE);
    }
    assert_eq!(codes(&metrics), [Code::StoreSlow]);
    let probes = tokio::spawn(mode.clone().probe_writes(store));
    let mut status = mode.subscribe();
    let over = status.wait_for(|status| !status.slow);
    let over = tokio::time::timeout(Duration::from_secs(60), over).await;
    over.expect("in time").expect("the mode is there");
    assert_eq!(codes(&metrics), []);
    probes.abort();
}

#[tokio::test]
async fn doubts_wait_for_the_operator() {
    let mode = Mode::new(Metrics::default());
    mode.confirmed();
    mode.doubted("restored");
    is(&mode, Level::Normal, true);
    assert!(mode.status().confirm);
    mode.confirmed();
    mode.held(Some("gone".to_owned()));
    is(&mode, Level::Normal, true);
    assert!(mode.status().confirm);
    mode.held(None);
    is(&mode, Level::Normal, false);
    assert!(!mode.status().confirm);
}
