//! The resources that a client should have, at one moment.

use std::sync::{Arc, Weak};

use imbl::ordmap::DiffItem;

use crate::resource::{Kind, Names, Resources};

/// The resources that a client should have. Immutable; clients that should have the same share one.
#[derive(Clone, Debug)]
pub struct View {
    resources: [Resources; Kind::ALL.len()],
    follows: Option<Follows>,
    needed: Names,
}

/// How a view differs from the one before it: worked out once for all streams that go from one to the other.
#[derive(Clone, Debug)]
struct Follows {
    /// Keeps the place in memory, so that no other view can be taken for it.
    before: Weak<View>,
    changed: [Arc<[Arc<str>]>; Kind::ALL.len()],
}

impl View {
    /// A view of `resources`, by [`Kind::index`]. Routes and filters send requests to the clusters `needed`,
    /// so these go first: see [`stream`](crate::stream).
    ///
    /// # Panics
    ///
    /// In debug builds, if a needed cluster is not among the resources: the routes would lead nowhere.
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

    /// The same view, as the successor of `before`: a stream that has `before` learns of the difference at the
    /// cost of the difference.
    pub fn after(self, before: &Arc<View>) -> View {
        let changed = Kind::ALL.map(|kind| changes(before.of(kind), self.of(kind)).collect());
        let before = Arc::downgrade(before);
        View {
            follows: Some(Follows { before, changed }),
            ..self
        }
    }

    /// The names of the resources of a kind that `before` has not, or has with another content, and of those that it alone has;
    /// in order.
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

    /// Whether clients ask for virtual hosts one by one (VHDS).
    pub fn is_on_demand(&self) -> bool {
        !self.of(Kind::VirtualHosts).is_empty()
    }

    /// The clusters that must be warm in a client before it gets the routes.
    pub fn needed(&self) -> &Names {
        &self.needed
    }
}

/// Subtrees that both maps share are passed over.
fn changes(before: &Resources, after: &Resources) -> impl Iterator<Item = Arc<str>> {
    before.diff(after).map(|item| match item {
        DiffItem::Add(name, _) | DiffItem::Remove(name, _) => Arc::clone(name),
        DiffItem::Update { new: (name, _), .. } => Arc::clone(name),
    })
}
