//! Conditions: states that may need an operator's action, each with a code.
//!
//! [`Code`] is the one table of codes. [`Conditions`] holds the present states, each with a subject
//! (a cell, a proxy, a file; empty for the replica itself). A condition logs one line when it
//! begins and one when it ends, and is shown in `/readyz`, `GET /v1/conditions`, `tidegate status`,
//! and the metric `tidegate_condition{code}`. [`rules`] has the rejections of commands, which
//! `--accept CODE` overrides; [`page`] generates `docs/reference/codes.md` from the table.

mod codes;
mod lasting;
mod log;
pub mod page;
pub mod report;
pub mod rules;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

pub use codes::{Code, Entry, Kind, Severity, UnknownCode};
pub use lasting::{Found, Lasting};

use crate::{
    metric_register::{Register, labels},
    wall_clock::unix_ms,
};

/// How many subjects of a code are kept. Further ones are dropped: a thousand are enough.
const SUBJECTS_MAX: usize = 1_000;
/// How many characters of a subject are kept.
const SUBJECT_CHARS_MAX: usize = 200;
/// How many characters of a detail are kept.
const DETAIL_CHARS_MAX: usize = 1_000;

/// A state that holds now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    pub code: Code,
    pub name: String,
    pub severity: Severity,
    /// The cell, the proxy, the file; empty for the replica itself.
    pub subject: String,
    pub detail: String,
    /// When it began, by the wall clock (RFC 3339).
    pub since: String,
    /// How long it has held.
    pub since_s: u64,
    pub meaning: String,
    pub what_to_do: String,
}

/// All subjects of a code together, without details: for clients without access to the details.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    pub code: Code,
    pub name: String,
    pub severity: Severity,
    pub subjects: usize,
    /// The begin of the first of them.
    pub since: String,
    pub since_s: u64,
    pub meaning: String,
    pub what_to_do: String,
}

/// Labels of metrics by code.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CodeLabel {
    /// `TGnnnn`.
    pub code: &'static str,
    pub name: &'static str,
    /// `warning` or `error`.
    pub severity: &'static str,
}

labels!(CodeLabel: code, name, severity);

/// The conditions of this replica. Clones share them. They are a part of
/// [`Metrics`](crate::metrics::Metrics), which every part that can detect a fault has.
#[derive(Clone)]
pub struct Conditions {
    inner: Arc<Inner>,
}

struct Inner {
    held: Mutex<Held>,
    /// 1 while a code's state holds.
    gauges: Family<CodeLabel, Gauge>,
    /// The number of subjects for which it holds.
    subjects: Family<CodeLabel, Gauge>,
}

#[derive(Default)]
struct Held {
    by_code: BTreeMap<Code, BTreeMap<String, Raised>>,
    log: log::Budget,
}

struct Raised {
    detail: String,
    since: Instant,
    since_unix_ms: u64,
}

impl Conditions {
    /// Starts without conditions. Every code is in the metrics from the start, so that an alert need not
    /// distinguish absent from 0.
    pub fn new() -> Conditions {
        let inner = Inner {
            held: Mutex::default(),
            gauges: Family::default(),
            subjects: Family::default(),
        };
        for code in Code::ALL.iter().filter(|code| code.kind() != Kind::Rule) {
            inner.show(*code, 0);
        }
        Conditions {
            inner: Arc::new(inner),
        }
    }

    /// Registers the metrics.
    pub(crate) fn register(&self, all: &mut Register) {
        all.register(
            "condition",
            "1 while a condition holds, by code: docs/reference/codes.md",
            self.inner.gauges.clone(),
        );
        all.register(
            "condition_subjects",
            "For how many subjects (cells, proxies, files) a condition holds, by code",
            self.inner.subjects.clone(),
        );
    }

    /// The state holds. A repetition updates the detail and keeps the begin.
    pub fn raise(&self, code: Code, subject: impl AsRef<str>, detail: impl AsRef<str>) {
        debug_assert_ne!(code.kind(), Kind::Rule, "{code}: a rule is no state");
        let subject = first(subject.as_ref(), SUBJECT_CHARS_MAX);
        let detail = first(detail.as_ref(), DETAIL_CHARS_MAX);
        let mut held = self.held();
        let subjects = held.by_code.entry(code).or_default();
        if let Some(raised) = subjects.get_mut(subject) {
            if raised.detail != detail {
                raised.detail = detail.to_owned();
            }
            return;
        }
        if subjects.len() >= SUBJECTS_MAX {
            return;
        }
        let raised = Raised {
            detail: detail.to_owned(),
            since: Instant::now(),
            since_unix_ms: unix_ms(),
        };
        subjects.insert(subject.to_owned(), raised);
        self.inner.show(code, subjects.len());
        held.log.began(code, subject, detail);
    }

    /// The state does not hold, or has ended.
    pub fn clear(&self, code: Code, subject: impl AsRef<str>) {
        let subject = first(subject.as_ref(), SUBJECT_CHARS_MAX);
        let mut held = self.held();
        let Some(subjects) = held.by_code.get_mut(&code) else {
            return;
        };
        let Some(raised) = subjects.remove(subject) else {
            return;
        };
        self.inner.show(code, subjects.len());
        held.log.ended(code, subject, raised.since.elapsed());
    }

    /// The state holds with this detail; none: it does not hold.
    pub fn set(&self, code: Code, subject: impl AsRef<str>, detail: Option<impl AsRef<str>>) {
        match detail {
            Some(detail) => self.raise(code, subject, detail),
            None => self.clear(code, subject),
        }
    }

    /// The state holds for these subjects, with these details, and for no others.
    pub fn replace(&self, code: Code, subjects: impl IntoIterator<Item = (String, String)>) {
        let now: BTreeMap<String, String> = subjects.into_iter().collect();
        let kept: BTreeSet<&str> = (now.keys())
            .map(|subject| first(subject, SUBJECT_CHARS_MAX))
            .collect();
        let over: Vec<String> = {
            let held = self.held();
            let before = held.by_code.get(&code).into_iter().flatten();
            let before = before.map(|(subject, _)| subject);
            let over = before.filter(|subject| !kept.contains(subject.as_str()));
            over.cloned().collect()
        };
        for subject in over {
            self.clear(code, subject);
        }
        for (subject, detail) in now {
            self.raise(code, subject, detail);
        }
    }

    /// Whether the state holds for any subject.
    pub fn holds(&self, code: Code) -> bool {
        let held = self.held();
        held.by_code.get(&code).is_some_and(|s| !s.is_empty())
    }

    /// All conditions that hold now, by code and subject.
    pub fn list(&self) -> Vec<Condition> {
        let held = self.held();
        let all = held.by_code.iter();
        let all = all.flat_map(|(code, subjects)| subjects.iter().map(|s| (*code, s)));
        all.map(|(code, (subject, raised))| {
            let entry = code.entry();
            Condition {
                code,
                name: entry.name.to_owned(),
                severity: entry.severity,
                subject: subject.clone(),
                detail: raised.detail.clone(),
                since: rfc3339(raised.since_unix_ms),
                since_s: raised.since.elapsed().as_secs(),
                meaning: entry.meaning.to_owned(),
                what_to_do: entry.what_to_do.to_owned(),
            }
        })
        .collect()
    }

    /// The codes that hold now.
    pub fn summaries(&self) -> Vec<Summary> {
        let held = self.held();
        let all = held.by_code.iter();
        all.filter_map(|(code, subjects)| {
            let oldest = subjects.values().min_by_key(|raised| raised.since)?;
            let entry = code.entry();
            Some(Summary {
                code: *code,
                name: entry.name.to_owned(),
                severity: entry.severity,
                subjects: subjects.len(),
                since: rfc3339(oldest.since_unix_ms),
                since_s: oldest.since.elapsed().as_secs(),
                meaning: entry.meaning.to_owned(),
                what_to_do: entry.what_to_do.to_owned(),
            })
        })
        .collect()
    }

    /// Waits until a code holds, or does not.
    #[cfg(test)]
    pub(crate) async fn until(&self, code: Code, holds: bool) {
        let waited = tokio::time::timeout(std::time::Duration::from_secs(30), async {
            while self.holds(code) != holds {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        });
        let waited = waited.await;
        waited.unwrap_or_else(|_| panic!("{code} holds: {}", self.holds(code)));
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // Every change is one insertion or removal.
        self.inner
            .held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Conditions {
    fn default() -> Conditions {
        Conditions::new()
    }
}

impl Inner {
    fn show(&self, code: Code, subjects: usize) {
        let label = CodeLabel {
            code: code.id(),
            name: code.name(),
            severity: code.severity().as_str(),
        };
        let holds = i64::from(subjects > 0);
        let subjects = i64::try_from(subjects).unwrap_or(i64::MAX);
        self.gauges.get_or_create(&label).set(holds);
        self.subjects.get_or_create(&label).set(subjects);
    }
}

/// The first characters of a text.
fn first(text: &str, chars_max: usize) -> &str {
    match text.char_indices().nth(chars_max) {
        Some((end, _)) => text.get(..end).unwrap_or(text),
        None => text,
    }
}

/// A time of the wall clock, to the second.
fn rfc3339(unix_ms: u64) -> String {
    use time::{OffsetDateTime, format_description::well_known::Rfc3339};
    let seconds = i64::try_from(unix_ms / 1_000).unwrap_or(0);
    let at = OffsetDateTime::from_unix_timestamp(seconds);
    let at = at.unwrap_or(OffsetDateTime::UNIX_EPOCH);
    at.format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests;
