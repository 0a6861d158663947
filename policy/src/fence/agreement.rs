//! The terms that all replicas of a mesh have agreed on, as one record in the store.
//!
//! Every wait of the fence is as long as the promises of *others*: a session's time to live, a
//! grant's, the drain of writes. So a replica acts by the agreed record, never by its own
//! configuration. A replica whose configuration is not in the record grants nothing and takes no
//! step of a move. The first replica creates the record.
//!
//! A change has two phases. While the record has a `next` it is *widened*: every replica promises
//! the smaller of the two values and waits for the larger, and replicas may be configured with
//! either. It is *narrowed* to `next` when every promise made under `current` alone has expired. A
//! change of the layout cannot be widened, since one key would belong to two cells: no incarnation
//! grants between its two phases.
//!
//! Proxies promise too: how long their writes live, and the cell of each write. A change does not
//! wait until proxies know it. Their policy carries the [`TermsId`] of its agreement, and they send
//! it with every request for grants. A proxy with another id receives no grants.

use alloc::{collections::BTreeMap, vec::Vec};

use super::{Name, Terms};
use crate::shard::digest_of_parts;

/// The mapping of writes to cells: all zones must compute the same cell for a write.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Layout {
    /// The cells in the order of their shards, with their numbers of shards.
    pub cells: Vec<(Name, u32)>,
    /// By service, the source of the key of its writes. Empty with a single cell, which needs no
    /// key.
    pub keys: BTreeMap<Name, Name>,
}

impl Layout {
    /// Whether some write belongs to different cells in the two layouts. A service that only one of
    /// them knows is no contradiction, since services come and go.
    pub fn contradicts(&self, other: &Layout) -> bool {
        let same = |(service, key): (&Name, &Name)| {
            let there = other.keys.get(service);
            there.is_none_or(|there| there == key)
        };
        self.cells != other.cells || !self.keys.iter().all(same)
    }

    /// Whether this layout has the key of every service of `other`.
    fn knows(&self, other: &Layout) -> bool {
        let mut services = other.keys.keys();
        services.all(|service| self.keys.contains_key(service))
    }

    fn learn(&mut self, other: &Layout) {
        for (service, key) in &other.keys {
            self.keys
                .entry(service.clone())
                .or_insert_with(|| key.clone());
        }
    }
}

/// One set of terms: the spans in microseconds, as [`Terms`] explains them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Agreed {
    pub session_ttl: u64,
    pub grant_ttl: u64,
    pub write_drain: u64,
    pub drift_permille: u16,
    pub layout: Layout,
}

impl Agreed {
    /// The configuration of a replica.
    pub fn of(terms: &Terms, layout: Layout) -> Agreed {
        Agreed {
            session_ttl: terms.session_ttl,
            grant_ttl: terms.grant_ttl,
            write_drain: terms.write_drain,
            drift_permille: terms.drift_permille,
            layout,
        }
    }

    /// The terms to act by under this agreement. `rest` has the spans that are not agreed on.
    pub(super) fn terms(&self, rest: &Terms) -> Terms {
        Terms {
            session_ttl: self.session_ttl,
            grant_ttl: self.grant_ttl,
            write_drain: self.write_drain,
            session_ttl_waited: self.session_ttl,
            write_drain_waited: self.write_drain,
            drift_permille: self.drift_permille,
            ..rest.clone()
        }
    }

    /// Whether a replica that is configured with `own` acts as agreed.
    pub fn is_kept_by(&self, own: &Agreed) -> bool {
        let spans = |of: &Agreed| {
            (
                of.session_ttl,
                of.grant_ttl,
                of.write_drain,
                of.drift_permille,
            )
        };
        spans(self) == spans(own) && !self.layout.contradicts(&own.layout)
    }

    fn put_spans_and_shards(&self, bytes: &mut Vec<u8>) {
        let drift = u64::from(self.drift_permille);
        for number in [self.session_ttl, self.grant_ttl, self.write_drain, drift] {
            bytes.extend(number.to_le_bytes());
        }
        for (cell, shards) in &self.layout.cells {
            put_text(bytes, cell);
            bytes.extend(shards.to_le_bytes());
        }
        // No cell has an empty name.
        put_text(bytes, "");
    }
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// XXH64, and never 0.
fn digest(bytes: &[u8]) -> u64 {
    digest_of_parts([bytes]).max(1)
}

/// The identity of an agreement: a digest of its spans, its shards, and all changes before.
/// Services that are added to an agreement do not change it. Each step of a change does, also one
/// that leads back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TermsId(pub u64);

impl TermsId {
    /// For terms without an agreement, or of an unknown one.
    pub const NONE: TermsId = TermsId(0);
}

/// The record: see the module's text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Agreement {
    pub current: Agreed,
    /// The target of the change under way.
    pub next: Option<Agreed>,
    /// A digest of all changes that were begun or ended. 0 if there was none; added services do not
    /// count.
    pub history: u64,
    /// A change was completed. Earlier grants have expired, so every filter with a grant stamps the
    /// lifetime of its writes.
    pub drains_said: bool,
}

impl Agreement {
    /// The first one.
    pub fn first(own: Agreed) -> Agreement {
        Agreement {
            current: own,
            next: None,
            history: 0,
            drains_said: false,
        }
    }

    /// See [`TermsId`].
    pub fn id(&self) -> TermsId {
        let mut bytes = self.history.to_le_bytes().to_vec();
        for agreed in self.all() {
            agreed.put_spans_and_shards(&mut bytes);
        }
        TermsId(digest(&bytes))
    }

    /// Whether the terms ever changed: proxies may hold a policy of earlier terms.
    pub fn was_changed(&self) -> bool {
        self.history != 0 || self.next.is_some()
    }

    /// The history after a step that leads to `agreed`.
    fn history_with(&self, agreed: &Agreed) -> u64 {
        let mut bytes = self.id().0.to_le_bytes().to_vec();
        agreed.put_spans_and_shards(&mut bytes);
        for (service, key) in &agreed.layout.keys {
            put_text(&mut bytes, service);
            put_text(&mut bytes, key);
        }
        digest(&bytes)
    }

    /// The one or two sets of terms that replicas may be configured with.
    pub fn all(&self) -> impl Iterator<Item = &Agreed> {
        core::iter::once(&self.current).chain(&self.next)
    }

    /// Whether a replica that is configured with `own` may grant and take steps.
    pub fn admits(&self, own: &Agreed) -> bool {
        self.all().any(|agreed| agreed.is_kept_by(own))
    }

    /// Whether grants are stopped, since some writes are about to move to another cell.
    pub fn is_stopped(&self) -> bool {
        let next = self.next.as_ref();
        next.is_some_and(|next| next.layout.contradicts(&self.current.layout))
    }

    /// The same agreement with the services of `own` added; none if it has them all.
    pub fn with_services_of(&self, own: &Agreed) -> Option<Agreement> {
        let mut with = self.clone();
        for agreed in core::iter::once(&mut with.current).chain(&mut with.next) {
            if agreed.is_kept_by(own) && !agreed.layout.knows(&own.layout) {
                agreed.layout.learn(&own.layout);
            }
        }
        (with != *self).then_some(with)
    }

    /// The agreement with another `next`, which keeps the keys of services that only `current`
    /// knows.
    pub fn widened(&self, mut next: Agreed) -> Agreement {
        next.layout.learn(&self.current.layout);
        Agreement {
            current: self.current.clone(),
            history: self.history_with(&next),
            next: Some(next),
            drains_said: self.drains_said,
        }
    }

    /// The agreement with `next` in force. Call it when all promises of `current` alone have
    /// expired.
    pub fn narrowed(&self) -> Option<Agreement> {
        let next = self.next.clone()?;
        Some(Agreement {
            history: self.history_with(&next),
            current: next,
            next: None,
            drains_said: true,
        })
    }

    /// The agreement without the change, which was not completed. No process has promised more than
    /// the smaller of both.
    pub fn back(&self) -> Agreement {
        Agreement {
            history: self.history_with(&self.current),
            current: self.current.clone(),
            next: None,
            drains_said: self.drains_said,
        }
    }

    /// Restores the history of `before` after a replica of a version without histories has
    /// overwritten the record. None if nothing was lost. Otherwise filters that send no terms would
    /// get grants that were withheld from them, and the same spans would get the same [`TermsId`] a
    /// second time.
    pub fn after_loss(&self, before: &Agreement) -> Option<Agreement> {
        let lost = self.history == 0 && before.history != 0;
        lost.then(|| Agreement {
            history: before.history_with(&self.current),
            drains_said: before.drains_said,
            ..self.clone()
        })
    }

    /// The terms to act by: the smaller promise, the larger wait. `own` has the spans that are not
    /// agreed on.
    pub fn terms(&self, own: &Terms) -> Terms {
        let current = &self.current;
        let mut terms = current.terms(own);
        terms.id = self.id();
        terms.changed = self.was_changed();
        terms.drains_said = self.drains_said;
        let Some(next) = &self.next else {
            return terms;
        };
        if terms.keeps(super::Clause::WidenedPromise) {
            terms.session_ttl = terms.session_ttl.min(next.session_ttl);
            terms.write_drain = terms.write_drain.min(next.write_drain);
        }
        terms.grant_ttl = terms.grant_ttl.min(next.grant_ttl).min(terms.session_ttl);
        if terms.keeps(super::Clause::WidenedWait) {
            terms.session_ttl_waited = current.session_ttl.max(next.session_ttl);
            terms.write_drain_waited = current.write_drain.max(next.write_drain);
            terms.drift_permille = current.drift_permille.max(next.drift_permille);
        }
        terms
    }
}
