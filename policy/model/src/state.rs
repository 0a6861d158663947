//! A state of the whole mesh.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use policy::fence::{Grant, Input, Name, Replica, Stamp, TermsId, Transaction, TransactionOutcome};

use crate::{Budget, proxy::Proxy, store::Store};

/// A state. Its large parts are shared with earlier states.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub time: u64,
    pub store: Arc<Store>,
    pub backup: Option<Arc<Store>>,
    pub hosts: Vec<Arc<Host>>,
    pub proxies: Vec<Arc<Proxy>>,
    /// Messages under way between replicas and proxies.
    pub net: BTreeSet<Message>,
    /// Requests to the store whose senders have crashed.
    pub orphans: Vec<Transaction>,
    pub left: Budget,
    /// The used move requests and slow clocks, by bit.
    pub wished: u32,
    pub slowed: u32,
    pub changed: u32,
    /// The highest epoch of each cell for which a write was admitted.
    pub admitted: [u64; 2],
    /// The owners of a cell in an epoch, as first stored.
    pub owners: Arc<BTreeMap<(usize, u64), Vec<Name>>>,
    /// A violation.
    pub broken: Option<Broken>,
}

/// A violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Broken {
    /// A write was admitted while one of another epoch was in flight.
    TwoEpochs,
    /// A write was admitted for an epoch below another's.
    EpochWentBack,
    /// A zone admitted a write although it does not own the cell in that epoch.
    NotOwner,
}

/// The machine of a replica.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Host {
    pub zone: usize,
    pub clock: u64,
    pub replica: Option<Replica>,
    /// The number of its incarnations so far.
    pub born: u32,
    /// The events that have not reached it yet, by revision.
    pub untold: VecDeque<Vec<Input>>,
    pub requests: Vec<Request>,
    /// It does not reach the store.
    pub cut: bool,
}

/// A request to the store.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Request {
    pub number: u64,
    pub transaction: Transaction,
    /// Set once the store has received the request.
    pub outcome: Option<TransactionOutcome>,
    /// The replica has abandoned it.
    pub timed_out: bool,
}

/// An incarnation: the host, and its number there.
pub type Incarnation = (usize, u32);

/// Between a replica and a proxy, or another replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Message {
    Asked {
        proxy: usize,
        host: usize,
        nonce: u64,
        /// The terms of the requester's policy; none if not reported.
        terms: Option<TermsId>,
    },
    Granted {
        proxy: usize,
        nonce: u64,
        grant: Grant,
    },
    Revoked {
        proxy: usize,
        fence: Stamp,
    },
    Drained {
        proxy: usize,
        host: usize,
        fence: Stamp,
    },
    Beat {
        from: Incarnation,
        to: Incarnation,
        round: u64,
    },
    Heard {
        by: Incarnation,
        of: Incarnation,
        round: u64,
    },
}

impl Message {
    /// Whether it is of the same kind, and between the same replicas.
    pub(crate) fn is_like(&self, other: &Message) -> bool {
        match (self, other) {
            (Message::Beat { from, to, .. }, Message::Beat { from: f, to: t, .. }) => {
                from == f && to == t
            }
            (Message::Heard { by, of, .. }, Message::Heard { by: b, of: o, .. }) => {
                by == b && of == o
            }
            _ => false,
        }
    }
}
