//! The terms that all replicas of a mesh have agreed on, as one record in the store.
//!
//! Every wait of the fence is as long as what *others* promise: a session's time to live, a grant's, the drain of writes. So a
//! replica acts by the agreed record, never by its own configuration; and one whose configuration is not in the record grants
//! nothing and takes no step of a move. The first replica creates the record.
//!
//! A change has two phases. While the record has a `next` it is *widened*: everybody promises the smaller of both and waits
//! for the larger, and replicas may be configured with either. It is *narrowed* to `next` when nothing can be under way any
//! more that was promised under `current` alone. A change of the layout cannot be widened, since one key would belong to two
//! cells: nobody grants between its two phases.

use alloc::{collections::BTreeMap, vec::Vec};

use super::{Name, Terms};

/// Which cell a write belongs to: all zones have to find the same one.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Layout {
    /// The cells in the order of their shards, with how many each has.
    pub cells: Vec<(Name, u32)>,
    /// By service, where the key of its writes stands. Empty where there is one cell: then no key matters.
    pub keys: BTreeMap<Name, Name>,
}

impl Layout {
    /// Whether some write belongs to one cell here and to another there. Services come and go: one that only one of the two
    /// knows is no contradiction.
    pub fn contradicts(&self, other: &Layout) -> bool {
        let same = |(service, key): (&Name, &Name)| {
            let there = other.keys.get(service);
            there.is_none_or(|there| there == key)
        };
        self.cells != other.cells || !self.keys.iter().all(same)
    }

    /// Whether every service of `other` has its key here.
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
    /// What a replica is configured with.
    pub fn of(terms: &Terms, layout: Layout) -> Agreed {
        Agreed {
            session_ttl: terms.session_ttl,
            grant_ttl: terms.grant_ttl,
            write_drain: terms.write_drain,
            drift_permille: terms.drift_permille,
            layout,
        }
    }

    /// Whether a replica that is configured with `own` acts as these say.
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
}

/// The record: see the module's text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Agreement {
    pub current: Agreed,
    /// What they are being changed to.
    pub next: Option<Agreed>,
    /// Nobody grants: proxies are being told which cell a write now belongs to.
    pub stopped: bool,
}

impl Agreement {
    /// The first one.
    pub fn first(own: Agreed) -> Agreement {
        Agreement {
            current: own,
            next: None,
            stopped: false,
        }
    }

    /// The two, or the one, that may be configured.
    pub fn all(&self) -> impl Iterator<Item = &Agreed> {
        core::iter::once(&self.current).chain(&self.next)
    }

    /// Whether a replica that is configured with `own` may grant and take steps.
    pub fn admits(&self, own: &Agreed) -> bool {
        self.all().any(|agreed| agreed.is_kept_by(own))
    }

    /// Whether some writes are to belong to another cell than now.
    fn moves_writes(&self) -> bool {
        let next = self.next.as_ref();
        next.is_some_and(|next| next.layout.contradicts(&self.current.layout))
    }

    /// Whether nobody may grant, since some writes are about to belong to another cell.
    pub fn is_stopped(&self) -> bool {
        self.stopped || self.moves_writes()
    }

    /// The same with the services of `own` that are not in it yet; none where nothing is missing.
    pub fn with_services_of(&self, own: &Agreed) -> Option<Agreement> {
        let mut with = self.clone();
        for agreed in core::iter::once(&mut with.current).chain(&mut with.next) {
            if agreed.is_kept_by(own) && !agreed.layout.knows(&own.layout) {
                agreed.layout.learn(&own.layout);
            }
        }
        (with != *self).then_some(with)
    }

    /// With another `next`, in which services that only `current` knows keep their keys.
    pub fn widened(&self, mut next: Agreed) -> Agreement {
        next.layout.learn(&self.current.layout);
        Agreement {
            current: self.current.clone(),
            next: Some(next),
            stopped: false,
        }
    }

    /// What `next` makes of it, once nothing is under way that `current` alone promised. Where writes go to other cells, proxies
    /// are told of it while still nobody grants.
    pub fn narrowed(&self) -> Option<Agreement> {
        let next = self.next.clone()?;
        Some(match self.moves_writes() {
            true => Agreement {
                current: next.clone(),
                next: Some(next),
                stopped: true,
            },
            false => Agreement::first(next),
        })
    }

    /// Without the change, which was not completed. Nobody has promised more than the smaller of both.
    pub fn back(&self) -> Agreement {
        Agreement::first(self.current.clone())
    }

    /// How to act: the smaller promise, the larger wait. `own` has what is not agreed on.
    pub fn terms(&self, own: &Terms) -> Terms {
        let mut terms = own.clone();
        let current = &self.current;
        terms.session_ttl = current.session_ttl;
        terms.grant_ttl = current.grant_ttl;
        terms.write_drain = current.write_drain;
        terms.session_ttl_waited = current.session_ttl;
        terms.write_drain_waited = current.write_drain;
        terms.drift_permille = current.drift_permille;
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
