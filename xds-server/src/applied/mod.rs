//! The policies that the proxies' filters report as applied. xDS only knows the resources that a
//! proxy has accepted; this is the policy that its workers use.
//!
//! [`service`] is the tonic service. A proxy sends each report to one control plane; if its cluster
//! has several, it takes turns. So a report here may be as old as its age says.

mod service;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use protos::status::{AppliedReport, Refused};
use serde::Serialize;
use tokio::time::Instant;

pub use service::service;

/// The most proxies whose reports are kept. With reports of the largest size, about 30 MB.
const NODES_MAX: usize = 20_000;
/// The lifetime of a report. Filters send one every 30 s, to one replica of several each time.
const KEPT: Duration = Duration::from_secs(300);
/// How many rejected policy versions are remembered of a proxy.
const REFUSED_KEPT: usize = 4;
/// How often expired reports are removed.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);

/// The policies that a proxy's filter has applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AppliedStatus {
    /// The age of the report.
    pub age_s: u64,
    /// The policy versions that its threads use.
    pub editions: Vec<AppliedEdition>,
    /// The policy version that was rejected after those were applied.
    pub refused: Option<RefusedEdition>,
}

/// The progress of a proxy's filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PolicyState {
    Applied,
    /// Not all of its threads have the policy that it should have.
    Behind,
    /// It has rejected that policy, and uses another one.
    Refused,
    /// It has sent no report for five minutes, or none to this replica.
    Unknown,
}

impl PolicyState {
    pub const ALL: [PolicyState; 4] = [
        PolicyState::Applied,
        PolicyState::Behind,
        PolicyState::Refused,
        PolicyState::Unknown,
    ];

    /// The name for metrics and operators.
    pub fn as_str(self) -> &'static str {
        match self {
            PolicyState::Applied => "applied",
            PolicyState::Behind => "behind",
            PolicyState::Refused => "refused",
            PolicyState::Unknown => "unknown",
        }
    }
}

/// A policy version in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AppliedEdition {
    pub version: u64,
    pub generation: u64,
    /// The threads of the proxy, workers and main thread.
    pub threads: u32,
}

/// A policy version that the filter could not read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RefusedEdition {
    /// 0 if even the version could not be read.
    pub version: u64,
    pub generation: u64,
    pub message: String,
}

impl RefusedEdition {
    fn of(refused: &Refused) -> RefusedEdition {
        RefusedEdition {
            version: refused.version,
            generation: refused.generation,
            message: refused.message.clone(),
        }
    }
}

impl AppliedStatus {
    /// Whether all threads use the policy of this version.
    pub fn is_at(&self, version: u64) -> bool {
        !self.editions.is_empty()
            && (self.editions.iter()).all(|edition| edition.version == version)
    }
}

/// Too many proxies have sent reports already: this one is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the reports of {NODES_MAX} proxies are kept, which is the limit")]
pub struct Full;

/// The reports of all proxies. Cheap to clone.
#[derive(Clone, Default)]
pub struct Applied {
    told: Arc<Mutex<Told>>,
}

#[derive(Default)]
struct Told {
    by_node: BTreeMap<String, Node>,
    swept: Option<Instant>,
}

/// The reports of one proxy.
struct Node {
    report: AppliedReport,
    at: Instant,
    /// The versions that it rejected, oldest first. The proxy does not read an unchanged policy
    /// again, so its filter does not report it a second time.
    refused: Vec<Refused>,
}

impl Node {
    /// Applies the proxy's next report.
    fn note(&mut self, report: AppliedReport, now: Instant) {
        if let Some(refused) = &report.refused {
            self.refused
                .retain(|before| before.version != refused.version);
            self.refused.push(refused.clone());
            if self.refused.len() > REFUSED_KEPT {
                self.refused.remove(0);
            }
        }
        // A version that is applied after all was rejected by mistake.
        let applied = |version| report.applied.iter().any(|a| a.version == version);
        self.refused.retain(|before| !applied(before.version));
        (self.report, self.at) = (report, now);
    }
}

impl Applied {
    /// Keeps a report, and replaces the proxy's last one.
    pub fn note(&self, report: AppliedReport, now: Instant) -> Result<(), Full> {
        let mut told = self.lock();
        if (told.swept).is_none_or(|swept| now.duration_since(swept) >= SWEEP_INTERVAL) {
            told.swept = Some(now);
            told.by_node
                .retain(|_, node| now.duration_since(node.at) < KEPT);
        }
        if told.by_node.len() >= NODES_MAX && !told.by_node.contains_key(&report.node) {
            return Err(Full);
        }
        let node = told.by_node.entry(report.node.clone());
        let node = node.or_insert_with(|| Node {
            report: AppliedReport::default(),
            at: now,
            refused: Vec::new(),
        });
        node.note(report, now);
        Ok(())
    }

    /// A proxy's last report, unless it has expired.
    pub fn of(&self, node: &str, now: Instant) -> Option<AppliedStatus> {
        let told = self.lock();
        let Node { report, at, .. } = told.by_node.get(node)?;
        let age = now.duration_since(*at);
        (age < KEPT).then(|| AppliedStatus {
            age_s: age.as_secs(),
            editions: (report.applied.iter())
                .map(|edition| AppliedEdition {
                    version: edition.version,
                    generation: edition.generation,
                    threads: edition.threads,
                })
                .collect(),
            refused: report.refused.as_ref().map(RefusedEdition::of),
        })
    }

    /// The progress of the filter that should have the policy `wanted`, and its last report.
    pub fn standing(
        &self,
        node: &str,
        wanted: Option<u64>,
        now: Instant,
    ) -> (PolicyState, Option<AppliedStatus>) {
        let Some(mut status) = self.of(node, now) else {
            return (PolicyState::Unknown, None);
        };
        if wanted.is_some_and(|wanted| status.is_at(wanted)) {
            return (PolicyState::Applied, Some(status));
        }
        if status.refused.is_none() {
            status.refused = wanted.and_then(|wanted| self.refused_before(node, wanted));
        }
        let state = match status.refused {
            Some(_) => PolicyState::Refused,
            None => PolicyState::Behind,
        };
        (state, Some(status))
    }

    fn refused_before(&self, node: &str, version: u64) -> Option<RefusedEdition> {
        let told = self.lock();
        let refused = told.by_node.get(node)?.refused.iter();
        let mut same = refused.filter(|refused| refused.version == version);
        same.next().map(RefusedEdition::of)
    }

    fn lock(&self) -> MutexGuard<'_, Told> {
        // Every change is one insertion or removal.
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use protos::status::Applied as Edition;

    use super::*;

    fn report(node: &str, version: u64) -> AppliedReport {
        AppliedReport {
            node: node.to_owned(),
            applied: vec![Edition {
                version,
                generation: 1,
                threads: 2,
            }],
            refused: None,
        }
    }

    #[test]
    fn the_last_report_of_a_proxy_counts_until_it_is_too_old() {
        let (applied, start) = (Applied::default(), Instant::now());
        let after = |s| start + Duration::from_secs(s);
        applied.note(report("gw-1", 1), start).unwrap();
        let mut second = report("gw-1", 2);
        second.refused = Some(Refused {
            message: "mode: missing".into(),
            ..Refused::default()
        });
        applied.note(second, after(10)).unwrap();
        let status = applied.of("gw-1", after(25)).unwrap();
        assert_eq!((status.age_s, status.editions[0].version), (15, 2));
        assert_eq!(status.refused.as_ref().unwrap().message, "mode: missing");
        assert!(status.is_at(2) && !status.is_at(1));
        assert_eq!(applied.of("gw-2", after(25)), None);
        assert_eq!(applied.of("gw-1", after(10) + KEPT), None);
    }

    #[test]
    fn a_policy_stays_refused_until_another_is_applied_though_nobody_says_it_again() {
        let (applied, now) = (Applied::default(), Instant::now());
        let state = |wanted| applied.standing("gw-1", Some(wanted), now);
        assert_eq!(state(2).0, PolicyState::Unknown);
        applied.note(report("gw-1", 1), now).unwrap();
        assert_eq!(state(2).0, PolicyState::Behind);
        let mut refusing = report("gw-1", 1);
        refusing.refused = Some(Refused {
            version: 2,
            message: "mode: missing".into(),
            ..Refused::default()
        });
        applied.note(refusing, now).unwrap();
        assert_eq!(state(2).0, PolicyState::Refused);
        // Another version is applied, and the rejected one is sent again: the filter does not
        // report it.
        applied.note(report("gw-1", 3), now).unwrap();
        assert_eq!(state(3).0, PolicyState::Applied);
        let (again, status) = state(2);
        assert_eq!(again, PolicyState::Refused);
        let refused = status.and_then(|status| status.refused).unwrap();
        assert_eq!(refused.message, "mode: missing");
        // A version that was never rejected is only not applied yet.
        assert_eq!(state(4).0, PolicyState::Behind);
        applied.note(report("gw-1", 2), now).unwrap();
        assert_eq!(state(2).0, PolicyState::Applied);
        applied.note(report("gw-1", 3), now).unwrap();
        assert_eq!(state(2).0, PolicyState::Behind);
    }

    #[test]
    fn a_proxy_between_two_editions_is_at_neither() {
        let (applied, now) = (Applied::default(), Instant::now());
        let mut both = report("gw-1", 1);
        both.applied.extend(report("", 2).applied);
        applied.note(both, now).unwrap();
        let status = applied.of("gw-1", now).unwrap();
        assert!(!status.is_at(1) && !status.is_at(2));
        applied
            .note(
                AppliedReport {
                    node: "gw-1".into(),
                    ..AppliedReport::default()
                },
                now,
            )
            .unwrap();
        assert!(!applied.of("gw-1", now).unwrap().is_at(0));
    }

    #[test]
    fn no_number_of_names_fills_the_memory() {
        let (applied, start) = (Applied::default(), Instant::now());
        for i in 0..NODES_MAX {
            applied.note(report(&format!("n{i}"), 1), start).unwrap();
        }
        assert_eq!(applied.note(report("one more", 1), start), Err(Full));
        applied.note(report("n7", 2), start).unwrap();
        applied.note(report("one more", 1), start + KEPT).unwrap();
        assert_eq!(applied.lock().by_node.len(), 1);
    }
}
