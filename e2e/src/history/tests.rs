use super::*;
use crate::write_log::{Event, Line};

/// A write of an epoch by the zone of `owner`, between two times.
fn write(epoch: u64, begin_us: u64, end_us: u64) -> Write {
    Write {
        zone: owner(epoch).into(),
        instance: "one".into(),
        cell: Some("main".into()),
        epoch: Some(epoch),
        id: Some(format!("{epoch}-{begin_us}").into()),
        sent_us: Some(begin_us.saturating_sub(1)),
        begin_us,
        end_us: Some(end_us),
    }
}

fn owner(epoch: u64) -> &'static str {
    if epoch.is_multiple_of(2) { "b" } else { "a" }
}

fn record(revision: i64, epoch: u64, state: &str) -> Record {
    Record {
        store: 0,
        revision,
        epoch,
        owners: vec![owner(epoch).to_owned()],
        state: state.to_owned(),
    }
}

/// Epochs 1, 2 and 3 were granted.
fn history(writes: Vec<Write>) -> History {
    let records = vec![
        record(1, 1, "active"),
        record(2, 1, "fencing"),
        record(3, 2, "active"),
        record(4, 2, "fencing"),
        record(5, 3, "settling"),
        record(6, 3, "active"),
    ];
    History {
        writes,
        authority: BTreeMap::from([("main".to_owned(), records)]),
        pauses: vec![],
    }
}

#[track_caller]
fn check_finds(history: History, expected: &[(Violation, usize)]) {
    let report = check(&history);
    let found: Vec<_> = (report.found.iter())
        .map(|(violation, found)| (*violation, found.count))
        .collect();
    assert_eq!(found, expected, "{report}");
}

#[test]
fn writes_of_one_epoch_may_overlap_and_epochs_may_follow_each_other() {
    let good = history(vec![
        write(1, 10, 50),
        write(1, 20, 30),
        // In the microsecond in which the previous one ends.
        write(2, 50, 60),
        write(3, 70, 80),
    ]);
    let report = check(&good);
    assert_eq!(report.violations(), 0, "{report}");
    assert_eq!((report.writes, report.epochs), (4, 3));
    check_finds(History::default(), &[]);
}

#[test]
fn the_order_of_the_lines_does_not_matter() {
    let shuffled = vec![write(3, 70, 80), write(1, 10, 50), write(2, 55, 60)];
    check_finds(history(shuffled), &[]);
}

#[test]
fn an_epoch_that_comes_back_is_found() {
    let back = vec![write(2, 10, 20), write(1, 30, 40), write(1, 50, 60)];
    check_finds(history(back), &[(Violation::EpochBack, 2)]);
}

#[test]
fn two_epochs_at_once_are_found() {
    let beside = vec![write(1, 10, 100), write(2, 20, 30), write(2, 99, 120)];
    check_finds(history(beside), &[(Violation::Overlap, 2)]);
    // Both violations at once, if the older epoch begins second.
    let back = vec![write(2, 10, 100), write(1, 20, 30)];
    check_finds(
        history(back),
        &[(Violation::EpochBack, 1), (Violation::Overlap, 1)],
    );
}

#[test]
fn a_write_without_an_end_is_in_flight_for_ever() {
    let mut open = write(1, 10, 20);
    open.end_us = None;
    check_finds(
        history(vec![open, write(2, 1_000_000, 1_000_001)]),
        &[(Violation::Overlap, 1)],
    );
}

#[test]
fn a_write_without_permission_is_found() {
    let never = vec![write(4, 10, 20)];
    check_finds(history(never), &[(Violation::NeverGranted, 1)]);
    let mut stray = write(1, 10, 20);
    stray.zone = "c".into();
    check_finds(history(vec![stray]), &[(Violation::NotOwner, 1)]);
    let mut bare = write(1, 10, 20);
    bare.epoch = None;
    check_finds(history(vec![bare]), &[(Violation::Unpermitted, 1)]);
    let mut of_the_only_cell = write(1, 10, 20);
    of_the_only_cell.cell = None;
    check_finds(history(vec![of_the_only_cell.clone()]), &[]);
    let mut several = history(vec![of_the_only_cell]);
    several.authority.insert("other".to_owned(), vec![]);
    check_finds(several, &[(Violation::Unpermitted, 1)]);
    let mut elsewhere = write(1, 10, 20);
    elsewhere.cell = Some("other".into());
    check_finds(history(vec![elsewhere]), &[(Violation::NeverGranted, 1)]);
}

#[test]
fn an_epoch_that_was_only_settling_is_not_granted() {
    let mut settling = history(vec![write(3, 10, 20)]);
    settling.authority.get_mut("main").unwrap().pop();
    check_finds(settling, &[(Violation::NeverGranted, 1)]);
}

#[test]
fn cells_have_nothing_to_do_with_each_other() {
    let mut both = history(vec![write(2, 10, 100)]);
    let mut other = write(1, 20, 30);
    other.cell = Some("other".into());
    both.writes.push(other);
    let records = vec![record(1, 1, "active")];
    both.authority.insert("other".to_owned(), records);
    check_finds(both, &[]);
}

#[test]
fn an_authority_that_falls_or_changes_hands_silently_is_found() {
    let mut back = history(vec![]);
    let restored = Record {
        store: 1,
        ..record(2, 2, "settling")
    };
    back.authority.get_mut("main").unwrap().push(restored);
    check_finds(back, &[(Violation::AuthorityBack, 1)]);
    let mut silent = history(vec![]);
    let mut changed = record(7, 3, "active");
    changed.owners = vec!["b".to_owned()];
    silent.authority.get_mut("main").unwrap().push(changed);
    check_finds(silent, &[(Violation::AuthorityBack, 1)]);
    // A restored store whose revisions are lower, with a higher epoch.
    let mut anew = history(vec![]);
    let recovered = Record {
        store: 1,
        ..record(2, 9, "settling")
    };
    anew.authority.get_mut("main").unwrap().push(recovered);
    check_finds(anew, &[]);
}

#[test]
fn only_what_was_sent_before_a_pause_may_be_late() {
    let mut paused = history(vec![write(2, 100, 110), write(1, 200, 210)]);
    paused.pauses.push(Pause {
        zone: "a".to_owned(),
        begin_us: 50,
        end_us: 190,
    });
    // Its client sent it during the pause.
    check_finds(paused.clone(), &[(Violation::EpochBack, 1)]);
    paused.writes[1].sent_us = Some(49);
    let report = check(&paused);
    assert_eq!((report.violations(), report.late), (0, 1), "{report}");
    // Another zone's proxies were stopped.
    paused.pauses[0].zone = "b".to_owned();
    check_finds(paused, &[(Violation::EpochBack, 1)]);
}

#[test]
fn lines_become_writes() {
    let line = |serial, monotonic_us, event| Line {
        monotonic_us,
        zone: "a".to_owned(),
        instance: "one".to_owned(),
        serial,
        cell: Some("main".to_owned()),
        epoch: Some(1),
        id: None,
        sent_us: None,
        event,
    };
    let mut collector = Collector::default();
    collector.add(vec![
        line(1, 10, Event::Begin),
        line(2, 11, Event::Begin),
        line(1, 12, Event::End),
    ]);
    assert_eq!(collector.open(), 1);
    collector.add(vec![line(2, 13, Event::End)]);
    let ends: Vec<_> = collector.writes().iter().map(|w| w.end_us).collect();
    assert_eq!(ends, [Some(12), Some(13)]);
    assert_eq!(collector.open(), 0);
}
