//! The agreed terms, for operators and other parts of the process: the terms themselves, and the
//! configuration of each replica.

use std::{collections::BTreeMap, sync::Arc};

use policy::fence::{Agreed, Agreement, Replica, SessionId, Terms};
use registry::{
    authority::{Configured, SESSIONS_PREFIX, SessionRecord, SessionTerms, session_id},
    store::Entry,
    terms::AgreedRecord,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::StoreEvent;

/// The process publishes the agreed terms here. Clones share them.
#[derive(Clone, Default)]
pub struct Agreements {
    known: watch::Sender<Option<Arc<Agreement>>>,
    status: watch::Sender<Arc<TermsStatus>>,
}

impl Agreements {
    /// Whether a replica that is configured with `own` would grant, to this process's knowledge.
    pub fn admits(&self, own: &Agreed) -> bool {
        let known = self.known.borrow();
        (known.as_ref()).is_some_and(|agreement| agreement.admits(own))
    }

    /// The agreed terms; none while they are unknown.
    pub fn known(&self) -> Option<Arc<Agreement>> {
        self.known.borrow().clone()
    }

    /// The terms to act by: the agreed ones if known, otherwise those `configured`.
    pub fn terms(&self, configured: &Terms) -> Terms {
        let known = self.known.borrow();
        known
            .as_ref()
            .map_or_else(|| configured.clone(), |known| known.terms(configured))
    }

    /// The state of the terms.
    pub fn status(&self) -> Arc<TermsStatus> {
        Arc::clone(&self.status.borrow())
    }

    pub(super) fn set(&self, agreement: Option<&Agreement>, status: TermsStatus) {
        self.known.send_if_modified(|known| {
            let changed = known.as_deref() != agreement;
            if changed {
                *known = agreement.cloned().map(Arc::new);
            }
            changed
        });
        self.status.send_replace(Arc::new(status));
    }
}

/// The agreed terms, as one replica sees them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TermsStatus {
    /// The revision of the record; 0: none is known.
    pub revision: u64,
    pub current: Option<AgreedRecord>,
    /// The target of the change under way.
    pub next: Option<AgreedRecord>,
    /// No replica grants: the change moves shards or keys from one cell to another.
    pub stopped: bool,
    /// The terms that this replica is configured with.
    pub configured: Option<AgreedRecord>,
    /// Whether that is among the agreed terms. If not, this replica grants nothing, and takes no
    /// step of a move.
    pub agrees: bool,
    /// The differences between the two.
    pub differences: Vec<String>,
    /// All live replicas.
    pub replicas: Vec<ReplicaTerms>,
}

/// A live replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaTerms {
    pub zone: String,
    pub incarnation: String,
    /// `host:process id`.
    pub process: String,
    /// None: its version has no terms, or it has not seen the current record.
    pub configured: Option<Configured>,
    /// It is registered to grant, under earlier terms.
    pub behind: bool,
}

/// The statements of sessions about their processes.
#[derive(Default)]
pub(super) struct Said(BTreeMap<SessionId, SessionRecord>);

impl Said {
    /// Whether the fact is about sessions, grantors or terms.
    pub(super) fn take(&mut self, fact: &StoreEvent) {
        match fact {
            StoreEvent::Listed { entries, .. } => {
                self.0.clear();
                entries.iter().for_each(|entry| self.put(entry));
            }
            StoreEvent::Put(entry) => self.put(entry),
            StoreEvent::Deleted { key, .. } => {
                if let Some(id) = session_of(key) {
                    self.0.remove(&id);
                }
            }
            StoreEvent::Doubted => {}
        }
    }

    fn put(&mut self, entry: &Entry) {
        if let Some(id) = session_of(&entry.key) {
            self.0.insert(id, SessionRecord::parse(&entry.value));
        }
    }
}

fn session_of(key: &str) -> Option<SessionId> {
    let (_, incarnation) = key.strip_prefix(SESSIONS_PREFIX)?.split_once('/')?;
    session_id(incarnation)
}

/// A replica's statement about itself, for its session's record.
pub(super) fn own(replica: &Replica) -> Option<SessionTerms> {
    let (revision, agreement) = replica.agreement()?;
    let own = replica.configured();
    let next = agreement.next.as_ref();
    let configured = if next.is_some_and(|next| next.is_kept_by(own)) {
        Configured::Next
    } else if agreement.current.is_kept_by(own) {
        Configured::Current
    } else {
        Configured::Other
    };
    Some(SessionTerms {
        revision: revision.0,
        configured,
    })
}

/// The state of the terms, as the replica sees them.
pub(super) fn status(replica: &Replica, said: &Said, now: u64) -> TermsStatus {
    let agreement = replica.agreement();
    let revision = agreement.map_or(0, |(revision, _)| revision.0);
    let agreement = agreement.map(|(_, agreement)| agreement);
    let own = replica.configured();
    let nearest = agreement.map(|agreement| agreement.next.as_ref().unwrap_or(&agreement.current));
    TermsStatus {
        revision,
        current: agreement.map(|agreement| AgreedRecord::from(&agreement.current)),
        next: agreement.and_then(|agreement| agreement.next.as_ref().map(AgreedRecord::from)),
        stopped: agreement.is_some_and(Agreement::is_stopped),
        configured: Some(AgreedRecord::from(own)),
        agrees: replica.acts(),
        differences: match (nearest, replica.acts()) {
            (Some(agreed), false) => differences(agreed, own),
            _ => Vec::new(),
        },
        replicas: replicas(replica, said, revision, now),
    }
}

fn replicas(replica: &Replica, said: &Said, revision: u64, now: u64) -> Vec<ReplicaTerms> {
    let sessions = replica.sessions();
    let present = sessions.present().map(|(id, _)| id);
    let living = present.filter(|id| !sessions.over(id, now, replica.terms()));
    let behind: Vec<&SessionId> = replica.registered_before().collect();
    let each = living.map(|id| {
        let record = said.0.get(id);
        let terms = record.and_then(|record| record.terms);
        ReplicaTerms {
            zone: id.zone.to_string(),
            incarnation: id.incarnation.to_string(),
            process: record.map(|r| r.process.clone()).unwrap_or_default(),
            configured: terms
                .filter(|terms| terms.revision == revision)
                .map(|terms| terms.configured),
            behind: behind.contains(&id),
        }
    });
    each.collect()
}

/// Whether all live replicas are configured with the next terms.
pub(super) fn rolled(status: &TermsStatus) -> bool {
    let next = |replica: &ReplicaTerms| replica.configured == Some(Configured::Next);
    status.next.is_some() && status.replicas.iter().all(next)
}

/// The differences, in the configuration's terms.
pub(super) fn differences(agreed: &Agreed, own: &Agreed) -> Vec<String> {
    let (agreed, own) = (AgreedRecord::from(agreed), AgreedRecord::from(own));
    let spans = [
        ("session_ttl_ms", agreed.session_ttl_ms, own.session_ttl_ms),
        ("grant_ttl_ms", agreed.grant_ttl_ms, own.grant_ttl_ms),
        ("write_drain_ms", agreed.write_drain_ms, own.write_drain_ms),
        (
            "drift_permille",
            agreed.drift_permille.into(),
            own.drift_permille.into(),
        ),
    ];
    let spans = spans.iter().filter(|(_, agreed, own)| agreed != own);
    let spans =
        spans.map(|(name, agreed, own)| format!("{name} is {own}, the agreed value is {agreed}"));
    let cells = |record: &AgreedRecord| {
        let cells = record.cells.iter();
        let cells = cells.map(|cell| format!("{} ({})", cell.name, cell.shards));
        cells.collect::<Vec<_>>().join(", ")
    };
    let shards = (agreed.cells != own.cells).then(|| {
        let (agreed, own) = (cells(&agreed), cells(&own));
        format!("the cells with their shards are {own}, the agreed ones are {agreed}")
    });
    let keys = own.keys.iter().filter_map(|(service, own)| {
        let agreed = agreed.keys.get(service).filter(|agreed| *agreed != own)?;
        Some(format!(
            "cell_key of {service} is {own}, the agreed value is {agreed}"
        ))
    });
    spans.chain(shards).chain(keys).collect()
}

/// The names of the replicas in a status that a change waits for.
pub fn waits_for(status: &TermsStatus) -> Vec<&ReplicaTerms> {
    let waited =
        |replica: &&ReplicaTerms| replica.behind || replica.configured != Some(Configured::Next);
    status.replicas.iter().filter(waited).collect()
}
