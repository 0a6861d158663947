use policy::Policy;
use proptest::prelude::*;

use super::*;
use crate::fence::testing::Fake;

const A: ContextId = ContextId(1);
const B: ContextId = ContextId(2);

fn config(version: u64) -> PluginConfig {
    PluginConfig {
        version,
        generation: 1,
        policy: Policy::Fallback,
        control_plane: "tidegate".into(),
    }
}

/// Lets a tick of each worker pass.
fn tick(fake: &mut Fake, workers: &mut [Applied], context: ContextId) {
    fake.pass(u64::from(TICK_MS) * 1_000);
    for worker in workers {
        worker.tick(context, TICK_MS, fake);
    }
}

/// The reports in so many seconds.
fn reports(
    fake: &mut Fake,
    workers: &mut [Applied],
    context: ContextId,
    seconds: u32,
) -> Vec<String> {
    for _ in 0..seconds * 1_000 / TICK_MS {
        tick(fake, workers, context);
    }
    fake.done()
}

fn two_workers(fake: &mut Fake) -> [Applied; 2] {
    let mut workers = [Applied::new(1), Applied::new(2)];
    for worker in &mut workers {
        assert!(worker.configured(A, &config(7), fake));
    }
    workers
}

#[test]
fn one_worker_reports_for_all_and_repeats_it() {
    let mut fake = Fake::default();
    let mut workers = two_workers(&mut fake);
    assert_eq!(
        reports(&mut fake, &mut workers, A, 2),
        ["tidegate: node 7/1 x1", "tidegate: node 7/1 x2"]
    );
    assert_eq!(
        reports(&mut fake, &mut workers, A, 60),
        ["tidegate: node 7/1 x2", "tidegate: node 7/1 x2"]
    );
}

#[test]
fn a_worker_that_is_behind_shows() {
    let mut fake = Fake::default();
    let mut workers = two_workers(&mut fake);
    reports(&mut fake, &mut workers, A, 2);
    workers[1].configured(B, &config(8), &mut fake);
    for _ in 0..2_000 / TICK_MS {
        fake.pass(u64::from(TICK_MS) * 1_000);
        workers[0].tick(A, TICK_MS, &mut fake);
        workers[1].tick(A, TICK_MS, &mut fake);
        workers[1].tick(B, TICK_MS, &mut fake);
    }
    assert_eq!(fake.done(), ["tidegate: node 7/1 x1, 8/1 x1"]);
    // Its context is gone before the older one's.
    workers[1].removed(B);
    assert_eq!(
        reports(&mut fake, &mut workers, A, 2),
        ["tidegate: node 7/1 x2"]
    );
}

#[test]
fn a_refusal_is_reported_until_something_newer_is_applied() {
    let mut fake = Fake::default();
    let mut workers = two_workers(&mut fake);
    reports(&mut fake, &mut workers, A, 2);
    let bytes = b"\x08\x2a\x10\x03";
    let error = crate::plugin_config::read(&mut protos::Decoder::default(), bytes).unwrap_err();
    refused(bytes, &error, &mut fake);
    let refusal = "tidegate: node 7/1 x2, refused 42/3 mode: missing";
    assert_eq!(reports(&mut fake, &mut workers, A, 2), [refusal]);
    for worker in &mut workers {
        worker.configured(A, &config(8), &mut fake);
    }
    let after = reports(&mut fake, &mut workers, A, 2);
    assert_eq!(after.last().unwrap(), "tidegate: node 8/1 x2");
}

#[test]
fn a_report_that_could_not_be_sent_is_sent_later() {
    let mut fake = Fake::default();
    let mut workers = two_workers(&mut fake);
    fake.away = true;
    assert_eq!(
        reports(&mut fake, &mut workers, A, 2),
        Vec::<String>::new(),
        "nothing could be sent"
    );
    fake.away = false;
    assert_eq!(
        reports(&mut fake, &mut workers, A, 2),
        ["tidegate: node 7/1 x2"]
    );
}

#[test]
fn a_report_that_failed_is_repeated_sooner() {
    let mut fake = Fake::default();
    let mut workers = two_workers(&mut fake);
    reports(&mut fake, &mut workers, A, 2);
    workers[0].failed();
    assert_eq!(
        reports(&mut fake, &mut workers, A, 4),
        Vec::<String>::new(),
        "not at once"
    );
    assert_eq!(
        reports(&mut fake, &mut workers, A, 2),
        ["tidegate: node 7/1 x2"]
    );
}

#[test]
fn another_worker_speaks_when_the_first_is_gone() {
    let mut fake = Fake::default();
    let mut workers = two_workers(&mut fake);
    reports(&mut fake, &mut workers, A, 2);
    let after = reports(&mut fake, &mut workers[1..], A, 60);
    assert_eq!(after.first().unwrap(), "tidegate: node 7/1 x1");
}

#[test]
fn without_somebody_who_asks_nothing_is_done() {
    let mut fake = Fake::default();
    let mut worker = [Applied::new(1)];
    let mut nobody = config(7);
    nobody.control_plane.clear();
    assert!(!worker[0].configured(A, &nobody, &mut fake));
    assert_eq!(reports(&mut fake, &mut worker, A, 60), Vec::<String>::new());
    // Nor where nothing works.
    worker[0].configured(A, &config(7), &mut fake);
    fake.fails = true;
    refused(b"", &InvalidPolicy::Missing { field: "mode" }, &mut fake);
    assert_eq!(reports(&mut fake, &mut worker, A, 60), Vec::<String>::new());
}

#[test]
fn a_table_that_cannot_be_read_is_made_anew() {
    let mut fake = Fake::default();
    let mut workers = two_workers(&mut fake);
    fake.put(table::KEY, b"?");
    let after = reports(&mut fake, &mut workers, A, 2);
    assert_eq!(after.last().unwrap(), "tidegate: node 7/1 x2");
}

#[test]
fn a_report_is_short_whatever_a_refusal_says() {
    let mut fake = Fake::default();
    let error = InvalidPolicy::UnknownViewer("\u{e9}".repeat(10_000));
    refused(b"", &error, &mut fake);
    let table = Table::decode(fake.value(table::KEY)).unwrap();
    let (_, refused) = table.refused.unwrap();
    assert!(refused.message.len() <= REASON_BYTES_MAX);
}

proptest! {
    #[test]
    fn a_table_is_read_as_it_was_written(
        rows in prop::collection::btree_map(any::<u64>(), any::<(u64, u64, u64, u64)>(), 0..5),
        refused in prop::option::of(any::<(u64, u64, u64, String)>()),
    ) {
        let mut table = Table::default();
        for (worker, (version, generation, since_us, beat_us)) in rows {
            table.enter(Row { worker, version, generation, since_us, beat_us }, 0, u64::MAX);
        }
        table.refused = refused.map(|(at_us, version, generation, message)| {
            (at_us, status::Refused { version, generation, message })
        });
        prop_assert_eq!(Table::decode(&table.encode()), Some(table));
    }

    #[test]
    fn no_bytes_make_it_panic(bytes: Vec<u8>) {
        let _ = Table::decode(&bytes);
    }
}
