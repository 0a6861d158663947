//! The policies that the proxies' filters report as applied. xDS knows the resources that a proxy
//! has accepted; this is the policy that its workers decide by.
//!
//! [`service`] is the call on tonic. A proxy tells one control plane at a time, each in turn where
//! its cluster has several, so a report here may be as old as it says.

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

/// The most proxies of which something is kept. With reports of the largest size, about 30 MB.
const NODES_MAX: usize = 20_000;
/// A report is forgotten after so long. Filters report every 30 s, to one replica of several each time.
const KEPT: Duration = Duration::from_secs(300);
/// How many refused editions are remembered of a proxy.
const REFUSED_KEPT: usize = 4;
/// How often reports that are too old are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);

/// The policies that a proxy's filter has applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AppliedStatus {
    /// How long ago it said so.
    pub age_s: u64,
    /// The editions that its threads decide by.
    pub editions: Vec<AppliedEdition>,
    /// The edition that was refused since they applied those.
    pub refused: Option<RefusedEdition>,
}

/// How far a proxy's filter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PolicyState {
    Applied,
    /// Not all of its threads have the policy that it is to have.
    Behind,
    /// It has refused that policy, and decides by another one.
    Refused,
    /// It has said nothing for five minutes, or not to this replica.
    Unknown,
}

impl PolicyState {
    pub const ALL: [PolicyState; 4] = [
        PolicyState::Applied,
        PolicyState::Behind,
        PolicyState::Refused,
        PolicyState::Unknown,
    ];

    /// As metrics and people see it.
    pub fn as_str(self) -> &'static str {
        match self {
            PolicyState::Applied => "applied",
            PolicyState::Behind => "behind",
            PolicyState::Refused => "refused",
            PolicyState::Unknown => "unknown",
        }
    }
}

/// An edition of the policy in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AppliedEdition {
    pub version: u64,
    pub generation: u64,
    /// The proxy's workers and its main thread.
    pub threads: u32,
}

/// An edition that the filter could not read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RefusedEdition {
    /// 0 where not even that could be read.
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
    /// Whether all threads decide by the policy of this version, and by no other.
    pub fn is_at(&self, version: u64) -> bool {
        !self.editions.is_empty()
            && (self.editions.iter()).all(|edition| edition.version == version)
    }
}

/// So many proxies have told something already that nothing more is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("reports of {NODES_MAX} proxies are kept, no more")]
pub struct Full;

/// The reports of all of them. Cheap to clone.
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
    /// The editions that it refused, the last one last: a policy that comes again unchanged is not
    /// looked at again by the proxy, so its filter says nothing about it a second time.
    refused: Vec<Refused>,
}

impl Node {
    /// Takes in the proxy's next report.
    fn note(&mut self, report: AppliedReport, now: Instant) {
        if let Some(refused) = &report.refused {
            self.refused
                .retain(|before| before.version != refused.version);
            self.refused.push(refused.clone());
            if self.refused.len() > REFUSED_KEPT {
                self.refused.remove(0);
            }
        }
        // One that is applied after all was refused by mistake.
        let applied = |version| report.applied.iter().any(|a| a.version == version);
        self.refused.retain(|before| !applied(before.version));
        (self.report, self.at) = (report, now);
    }
}

impl Applied {
    /// Keeps a report, in place of the proxy's last one.
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

    /// A proxy's last report, unless that is too long ago.
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

    /// How far the filter is that is to have the policy `wanted`, and its last report.
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
        // Another one is applied, and the refused one comes again: the filter is silent about it.
        applied.note(report("gw-1", 3), now).unwrap();
        assert_eq!(state(3).0, PolicyState::Applied);
        let (again, status) = state(2);
        assert_eq!(again, PolicyState::Refused);
        let refused = status.and_then(|status| status.refused).unwrap();
        assert_eq!(refused.message, "mode: missing");
        // One that was never refused is only not there yet.
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
