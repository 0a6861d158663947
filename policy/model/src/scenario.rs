//! The scope of an exploration: its processes, their possible faults, and how many of each.

use std::{collections::BTreeMap, sync::Arc};

use policy::fence::{Cause, CellRules, Clause, HolderId, Name, Terms};

use crate::Mutation;

/// One exploration.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub terms: Terms,
    /// The configuration of each replica; empty: `terms` for all.
    pub configured: Vec<Terms>,
    /// New terms that operators may request, each once.
    pub changes: Vec<Terms>,
    /// The first of them was made this many ticks before the start. Delays apply from then on,
    /// delays of steps always.
    pub changed_before: Option<u64>,
    /// All replicas see that change at once, despite their delays.
    pub hears_change: bool,
    /// The initial owners and the standby zones, by index into [`ZONES`].
    pub owners: Vec<usize>,
    pub standby: Vec<usize>,
    /// The same for a second cell, if there is one.
    pub second: Option<(Vec<usize>, Vec<usize>)>,
    /// Whether cells move automatically.
    pub automatic: bool,
    /// The zone of each replica, and its delays.
    pub hosts: Vec<(usize, Lines)>,
    /// The zone of each proxy, and its number of workers.
    pub proxies: Vec<(usize, u64)>,
    /// The proxies that write to the second cell; the others write to the first. In a real proxy
    /// the states of two cells share only the connection.
    pub of_second: Vec<usize>,
    pub net: Net,
    /// Whether replicas can renew their sessions in rounds; otherwise they do not reach each other.
    pub rounds: bool,
    /// In ticks after the start.
    pub horizon: u64,
    pub budget: Budget,
    /// Moves that operators may request, each once: the replica that receives the request, the
    /// zones, and the cause.
    pub wishes: Vec<(usize, Vec<usize>, Cause)>,
    /// How many of the last of these concern the second cell.
    pub wishes_of_second: usize,
    /// The clocks that may miss a tick, each once.
    pub slow_clocks: Vec<Clock>,
    /// Proxies release and acknowledge as soon as they can.
    pub prompt: bool,
    /// The proxies that request grants whenever some may be available.
    pub eager: Vec<usize>,
    /// The other proxies' delays apply to them too.
    pub eager_late: bool,
    /// The proxies whose changes of routes and policies are delayed as [`Net`] says. The others'
    /// apply at once.
    pub left_behind: Vec<usize>,
    /// Proxies do not report the terms of their policies.
    pub older_filter: bool,
    /// The proxies that hold a grant at the start.
    pub warm: Vec<usize>,
    pub mutation: Option<Mutation>,
    /// A replica with a late watch receives all events at once.
    pub told_together: bool,
    /// After this tick no process crashes or is cut off, and no operator requests a move.
    pub faults_until: u64,
    /// Whether a cell that no zone can write to at the horizon is a violation.
    pub writable_at_last: bool,
    /// Whether a cell that moves more often than operators requested is a violation.
    pub moves_on_wish_alone: bool,
    /// The number of states at which to stop; none to explore everything.
    pub states_max: Option<usize>,
}

/// The names of cells, in order.
pub const CELLS: [&str; 2] = ["main", "other"];

/// The names of zones.
pub const ZONES: [&str; 3] = ["a", "b", "c"];

/// When something arrives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Speed {
    #[default]
    AtOnce,
    /// At any time, or never.
    Late,
    Never,
}

/// Delays between a replica and the store.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lines {
    /// Renewals of the session, until the store has them, and their answers.
    pub renewals: Speed,
    pub renewal_answers: Speed,
    /// Confirmations of rounds.
    pub confirmations: Speed,
    /// Beats to other replicas, and acknowledgements of theirs.
    pub beats: Speed,
    pub heard: Speed,
    /// Other transactions, until the store has them, and their answers.
    pub steps: Speed,
    pub step_answers: Speed,
    /// Events of the watch on their way to the replica.
    pub watch: Speed,
}

/// Delays between replicas and proxies that are not eager.
#[derive(Clone, Copy, Debug, Default)]
pub struct Net {
    pub questions: Speed,
    pub grants: Speed,
    pub revocations: Speed,
    pub acknowledgements: Speed,
    /// Changes of a proxy's routes, of the policy of its first worker, and of the other workers'
    /// policies. The first ones apply at once.
    pub routes: Speed,
    pub policies: Speed,
    pub policies_of_others: Speed,
}

/// Whose clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Clock {
    Host(usize),
    Proxy(usize),
}

/// How often each fault may still happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    pub questions: u8,
    pub writes: u8,
    /// A write ends before its longest lifetime.
    pub ends: u8,
    /// A write's client disconnects, and its instance continues.
    pub abandons: u8,
    pub crashes: u8,
    pub restarts: u8,
    /// A replica loses the store for a while.
    pub cuts: u8,
    /// A replica abandons a request.
    pub timeouts: u8,
    /// A message arrives twice.
    pub repeats: u8,
    pub workers_lost: u8,
    /// A replica lists the store anew: events that have not reached it by then are lost.
    pub relists: u8,
    /// A backup of the store is taken, to be restored.
    pub backups: u8,
    pub restores: u8,
    /// A replica is asked to shut down.
    pub stops: u8,
    /// A replica is configured with terms that are not agreed on, or with the agreed ones again.
    pub reconfigurations: u8,
    /// A worker of a delayed proxy gets an earlier policy again, from a lagging replica.
    pub turns_back: u8,
}

impl Scenario {
    /// Zone `a` owns the cell and `b` is the standby, each with a replica; `a` has a proxy that
    /// holds a grant. There are no faults.
    pub fn new(name: &'static str) -> Scenario {
        Scenario {
            name,
            terms: terms(3, 1, 0),
            configured: Vec::new(),
            changes: Vec::new(),
            changed_before: None,
            hears_change: false,
            owners: vec![0],
            standby: vec![1],
            second: None,
            automatic: true,
            hosts: vec![(0, Lines::default()), (1, Lines::default())],
            proxies: vec![(0, 1), (1, 1)],
            of_second: Vec::new(),
            net: Net::default(),
            rounds: false,
            horizon: 8,
            budget: Budget {
                questions: 0,
                writes: 2,
                ..Budget::default()
            },
            wishes: Vec::new(),
            wishes_of_second: 0,
            slow_clocks: Vec::new(),
            prompt: true,
            eager: vec![1],
            eager_late: false,
            left_behind: Vec::new(),
            older_filter: false,
            warm: vec![0],
            mutation: None,
            told_together: false,
            faults_until: u64::MAX,
            writable_at_last: false,
            moves_on_wish_alone: false,
            states_max: None,
        }
    }

    /// Disables one of the rules.
    pub fn without(mut self, clause: Clause) -> Scenario {
        let all = [&mut self.terms].into_iter().chain(&mut self.configured);
        all.for_each(|terms| terms.weakened = Some(clause));
        self
    }

    /// Adds a mistake of a process.
    pub fn but(mut self, mutation: Mutation) -> Scenario {
        self.mutation = Some(mutation);
        self
    }

    /// Adds a second cell with these owners and standby zones. Each zone has another proxy for it,
    /// after those for the first cell. The proxy of the first owner holds a grant, and the others
    /// request grants whenever they may.
    pub fn with_second(mut self, owners: Vec<usize>, standby: Vec<usize>) -> Scenario {
        for zone in 0..2 {
            let proxy = self.proxies.len();
            self.proxies.push((zone, 1));
            self.of_second.push(proxy);
            match owners.first() == Some(&zone) {
                true => self.warm.push(proxy),
                false => self.eager.push(proxy),
            }
        }
        self.second = Some((owners, standby));
        self
    }

    /// The speed of changes of a proxy's routes.
    pub(crate) fn speed_of_routes(&self, proxy: usize) -> Speed {
        match self.left_behind.contains(&proxy) {
            true => self.net.routes,
            false => Speed::AtOnce,
        }
    }

    /// The speed of changes of the policy of a proxy's worker.
    pub(crate) fn speed_of_policy(&self, proxy: usize, worker: usize) -> Speed {
        match (self.left_behind.contains(&proxy), worker) {
            (false, _) => Speed::AtOnce,
            (true, 0) => self.net.policies,
            (true, _) => self.net.policies_of_others,
        }
    }

    /// The cell of a proxy.
    pub(crate) fn cell_of(&self, proxy: usize) -> usize {
        usize::from(self.of_second.contains(&proxy))
    }

    /// The cell of a move request.
    pub(crate) fn cell_of_wish(&self, wish: usize) -> usize {
        usize::from(wish + self.wishes_of_second >= self.wishes.len())
    }

    pub(crate) fn cell(&self, index: usize) -> Name {
        Arc::from(CELLS[index])
    }

    pub(crate) fn rules(&self) -> BTreeMap<Name, CellRules> {
        let zones = |of: &[usize]| of.iter().map(|zone| Scenario::zone(*zone)).collect();
        let rules = |owners: &[usize], standby: &[usize]| CellRules {
            owners: zones(owners),
            standby: zones(standby),
            automatic: self.automatic,
            cool_down: 0,
            epoch_min: 1,
        };
        let first = (self.cell(0), rules(&self.owners, &self.standby));
        let second = self.second.as_ref();
        let second = second.map(|(owners, standby)| (self.cell(1), rules(owners, standby)));
        [first].into_iter().chain(second).collect()
    }

    pub(crate) fn configured(&self, host: usize) -> &Terms {
        self.configured.get(host).unwrap_or(&self.terms)
    }

    pub(crate) fn zone(index: usize) -> Name {
        Arc::from(ZONES[index])
    }

    pub(crate) fn holder(&self, proxy: usize) -> HolderId {
        match self.mutation == Some(Mutation::HolderPerNode) {
            true => HolderId(self.proxies[proxy].0 as u128),
            false => HolderId(proxy as u128),
        }
    }
}

/// Terms of a session and a drain, with this bound of clock drift.
pub fn terms(session_ttl: u64, write_drain: u64, drift_permille: u16) -> Terms {
    match Terms::new(session_ttl, session_ttl, write_drain, 0, drift_permille) {
        Ok(terms) => terms,
        Err(invalid) => unreachable!("{invalid}"),
    }
}
