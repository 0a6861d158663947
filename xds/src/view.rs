//! The resources that a client should have, at one moment.

use std::sync::{Arc, Weak};

use imbl::ordmap::DiffItem;

use crate::resource::{Kind, Names, Resources};

/// The resources that a client should have. Immutable; clients with the same resources share a
/// view.
#[derive(Clone, Debug)]
pub struct View {
    resources: [Resources; Kind::ALL.len()],
    follows: Option<Follows>,
    needed: Names,
}

/// The difference between a view and its predecessor: computed once for all streams that change
/// from one to the other.
#[derive(Clone, Debug)]
struct Follows {
    /// Keeps the allocation, so that no other view can have the same address.
    before: Weak<View>,
    changed: [Arc<[Arc<str>]>; Kind::ALL.len()],
}

impl View {
    /// A view of `resources`, by [`Kind::index`]. Routes and filters send requests to the clusters
    /// `needed`, so these are sent first: see [`stream`](crate::stream).
    ///
    /// # Panics
    ///
    /// In debug builds, if a needed cluster is missing in the resources.
    pub fn new(resources: [Resources; Kind::ALL.len()], needed: Names) -> View {
        let view = View {
            resources,
            follows: None,
            needed,
        };
        debug_assert!(
            (view.needed.iter()).all(|name| view.of(Kind::Cluster).contains_key(name)),
            "a route names a cluster that is not there: {:?}",
            view.needed
        );
        view
    }

    /// The same view, as the successor of `before`: a stream that has `before` gets the difference
    /// at the cost of the difference.
    pub fn after(self, before: &Arc<View>) -> View {
        let changed = Kind::ALL.map(|kind| changes(before.of(kind), self.of(kind)).collect());
        let before = Arc::downgrade(before);
        View {
            follows: Some(Follows { before, changed }),
            ..self
        }
    }

    /// The names of the resources of a kind that differ between `before` and this view: added,
    /// changed or removed; sorted.
    pub fn changes_since(&self, before: &Arc<View>, kind: Kind) -> Arc<[Arc<str>]> {
        match &self.follows {
            Some(follows) if std::ptr::eq(follows.before.as_ptr(), Arc::as_ptr(before)) => {
                Arc::clone(&follows.changed[kind.index()])
            }
            _ => changes(before.of(kind), self.of(kind)).collect(),
        }
    }

    /// The resources of one kind.
    pub fn of(&self, kind: Kind) -> &Resources {
        // `Kind::index` is a position in an array of that length.
        &self.resources[kind.index()]
    }

    /// Whether clients request virtual hosts one by one (VHDS).
    pub fn is_on_demand(&self) -> bool {
        !self.of(Kind::VirtualHosts).is_empty()
    }

    /// The clusters that must be warm in a client before it gets the routes.
    pub fn needed(&self) -> &Names {
        &self.needed
    }
}

/// Subtrees that both maps share are skipped.
fn changes(before: &Resources, after: &Resources) -> impl Iterator<Item = Arc<str>> {
    before.diff(after).map(|item| match item {
        DiffItem::Add(name, _) | DiffItem::Remove(name, _) => Arc::clone(name),
        DiffItem::Update { new: (name, _), .. } => Arc::clone(name),
    })
}
