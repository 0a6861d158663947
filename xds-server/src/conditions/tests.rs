use std::time::Duration;

use super::*;
use crate::metrics::Metrics;

fn held(conditions: &Conditions) -> Vec<(Code, String, String)> {
    let all = conditions.list().into_iter();
    all.map(|c| (c.code, c.subject, c.detail)).collect()
}

fn owned(code: Code, subject: &str, detail: &str) -> (Code, String, String) {
    (code, subject.to_owned(), detail.to_owned())
}

/// The value of a metric in `/metrics`.
fn metric(metrics: &Metrics, line: &str) -> Option<String> {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &metrics.registry()).unwrap();
    let mut lines = text.lines();
    lines.find_map(|l| Some(l.strip_prefix(line)?.trim().to_owned()))
}

#[tokio::test(start_paused = true)]
async fn a_condition_holds_from_raise_to_clear_and_keeps_its_beginning() {
    let conditions = Conditions::new();
    conditions.raise(Code::FencingTooLong, "main", "one grantor");
    tokio::time::advance(Duration::from_secs(5)).await;
    conditions.raise(Code::FencingTooLong, "main", "two grantors");
    let listed = conditions.list();
    assert_eq!(listed.len(), 1);
    assert_eq!(
        (listed[0].detail.as_str(), listed[0].since_s),
        ("two grantors", 5)
    );
    assert!(listed[0].since.ends_with('Z'), "{}", listed[0].since);
    assert!(conditions.holds(Code::FencingTooLong) && !conditions.holds(Code::StoreFull));
    conditions.clear(Code::FencingTooLong, "other");
    assert!(conditions.holds(Code::FencingTooLong));
    conditions.clear(Code::FencingTooLong, "main");
    assert_eq!(conditions.list(), []);
    assert_eq!(conditions.summaries(), []);
}

#[tokio::test]
async fn set_and_replace_say_what_holds_and_nothing_else_does() {
    let conditions = Conditions::new();
    let of = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        let pairs = pairs.iter();
        pairs
            .map(|(s, d)| ((*s).to_owned(), (*d).to_owned()))
            .collect()
    };
    let code = Code::ResourceRefused;
    conditions.replace(code, of(&[("a", "1"), ("b", "2")]));
    conditions.set(Code::StoreFull, "", Some("NOSPACE"));
    conditions.replace(code, of(&[("b", "3"), ("c", "4")]));
    let expected = [
        owned(Code::StoreFull, "", "NOSPACE"),
        owned(code, "b", "3"),
        owned(code, "c", "4"),
    ];
    assert_eq!(held(&conditions), expected);
    assert_eq!(conditions.summaries()[1].subjects, 2);
    conditions.replace(code, []);
    conditions.set(Code::StoreFull, "", None::<&str>);
    assert_eq!(held(&conditions), []);
}

#[tokio::test]
async fn metrics_have_every_code_from_the_start_and_count_subjects() {
    let metrics = Metrics::default();
    let conditions = metrics.conditions.clone();
    let labels = "{code=\"TG2004\",name=\"store_full\",severity=\"error\"}";
    let (is, subjects) = (
        format!("tidegate_condition{labels}"),
        format!("tidegate_condition_subjects{labels}"),
    );
    assert_eq!(metric(&metrics, &is).as_deref(), Some("0"));
    conditions.raise(Code::StoreFull, "a", "");
    conditions.raise(Code::StoreFull, "b", "");
    assert_eq!(metric(&metrics, &is).as_deref(), Some("1"));
    assert_eq!(metric(&metrics, &subjects).as_deref(), Some("2"));
    conditions.replace(Code::StoreFull, []);
    assert_eq!(metric(&metrics, &is).as_deref(), Some("0"));
}

#[tokio::test]
async fn no_number_of_subjects_and_no_length_of_text_fills_the_memory() {
    let conditions = Conditions::new();
    for i in 0..2 * SUBJECTS_MAX {
        let subject = format!("{i:04}{}", "ü".repeat(SUBJECT_CHARS_MAX));
        conditions.raise(Code::PolicyBehind, &subject, "x".repeat(5_000));
    }
    let listed = conditions.list();
    assert_eq!(listed.len(), SUBJECTS_MAX);
    assert_eq!(listed[0].subject.chars().count(), SUBJECT_CHARS_MAX);
    assert_eq!(listed[0].detail.len(), DETAIL_CHARS_MAX);
    conditions.clear(
        Code::PolicyBehind,
        format!("0000{}", "ü".repeat(SUBJECT_CHARS_MAX)),
    );
    assert_eq!(conditions.list().len(), SUBJECTS_MAX - 1);
}
