//! The scope of an exploration: its processes, their possible faults, and how many of each.

use std::sync::Arc;

use policy::fence::{Cause, Clause, HolderId, Name, Terms};

use crate::Mutation;

/// One exploration.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub terms: Terms,
    /// The configuration of each replica; empty: `terms` for all.
    pub configured: Vec<Terms>,
    /// New terms that operators may ask for, each once.
    pub changes: Vec<Terms>,
    /// The first of them was made so many ticks before the start. Delays apply since then, and
    /// delays of steps always.
    pub changed_before: Option<u64>,
    /// All replicas hear of that change at once, whatever is slow.
    pub hears_change: bool,
    /// Every owner at first, and who stands by, by index into [`ZONES`].
    pub owners: Vec<usize>,
    pub standby: Vec<usize>,
    /// The same of a second cell, where there is one.
    pub second: Option<(Vec<usize>, Vec<usize>)>,
    /// Whether cells move by themselves.
    pub automatic: bool,
    /// The zone of each replica, and what is slow for it.
    pub hosts: Vec<(usize, Lines)>,
    /// The zone of each proxy, and how many workers it has.
    pub proxies: Vec<(usize, u64)>,
    /// The proxies that write to the second cell; the others write to the first. What a real proxy
    /// keeps of two cells has nothing in common but the connection.
    pub of_second: Vec<usize>,
    pub net: Net,
    /// Whether replicas can renew their sessions in rounds: else they do not reach each other.
    pub rounds: bool,
    /// Ticks after the start.
    pub horizon: u64,
    pub budget: Budget,
    /// Moves that operators may ask for, each once: through which replica, and to which zones.
    pub wishes: Vec<(usize, Vec<usize>, Cause)>,
    /// How many of the last of these are about the second cell.
    pub wishes_of_second: usize,
    /// Whose clock may miss a tick, each once.
    pub slow_clocks: Vec<Clock>,
    /// Proxies let go and acknowledge as soon as they can.
    pub prompt: bool,
    /// The proxies that ask whenever there may be something to be had.
    pub eager: Vec<usize>,
    /// Delays of the others apply to them too.
    pub eager_late: bool,
    /// The proxies for which changes of routes and policies are as slow as [`Net`] says. Those of
    /// others come at once.
    pub left_behind: Vec<usize>,
    /// Proxies do not say which terms their policies are of.
    pub older_filter: bool,
    /// The proxies that hold a grant when it starts.
    pub warm: Vec<usize>,
    pub mutation: Option<Mutation>,
    /// A replica that is told late is told everything at once.
    pub told_together: bool,
    /// After this nothing more crashes, is cut off or is wished for.
    pub faults_until: u64,
    /// Whether a cell that nobody can write to at the horizon is a violation.
    pub writable_at_last: bool,
    /// Whether a cell that moves more often than operators wished for is a violation.
    pub moves_on_wish_alone: bool,
    /// The state count at which to give up; none to go through everything.
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
    /// News of changes on their way to the replica.
    pub watch: Speed,
}

/// Delays between replicas and proxies that are not eager.
#[derive(Clone, Copy, Debug, Default)]
pub struct Net {
    pub questions: Speed,
    pub grants: Speed,
    pub revocations: Speed,
    pub acknowledgements: Speed,
    /// Changes of a proxy's routes, and of the policy of its first worker, and of the others'.
    /// Those that come first come at once.
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

/// How often each thing may still happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    pub questions: u8,
    pub writes: u8,
    /// A write ends before its longest.
    pub ends: u8,
    /// A write's client gives up, and its instance goes on.
    pub abandons: u8,
    pub crashes: u8,
    pub restarts: u8,
    /// A replica loses the store for a while.
    pub cuts: u8,
    /// A replica does not wait for an answer any more.
    pub timeouts: u8,
    /// A message arrives twice.
    pub repeats: u8,
    pub workers_lost: u8,
    /// A replica lists the store anew: news that has not reached it until then never does.
    pub relists: u8,
    /// The state of the store is put aside, to be restored.
    pub backups: u8,
    pub restores: u8,
    /// A replica is asked to end.
    pub stops: u8,
    /// A replica is configured with other terms than those that are agreed on, or with those again.
    pub reconfigurations: u8,
    /// A worker of a proxy that is left behind gets an earlier policy again, from a replica that
    /// lags.
    pub turns_back: u8,
}

impl Scenario {
    /// Zone `a` owns the cell and `b` stands by, each with a replica; `a` has a proxy that holds a
    /// grant. Nothing goes wrong.
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

    /// Without one of the rules.
    pub fn without(mut self, clause: Clause) -> Scenario {
        let all = [&mut self.terms].into_iter().chain(&mut self.configured);
        all.for_each(|terms| terms.weakened = Some(clause));
        self
    }

    /// With a process that does not do what it should.
    pub fn but(mut self, mutation: Mutation) -> Scenario {
        self.mutation = Some(mutation);
        self
    }

    /// With a second cell, which these zones own and stand by for. Each zone has another proxy for
    /// it, after those for the first cell, of which the one of the first owner holds a grant and
    /// the others ask whenever they may.
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

    /// How fast a proxy's routes change.
    pub(crate) fn speed_of_routes(&self, proxy: usize) -> Speed {
        match self.left_behind.contains(&proxy) {
            true => self.net.routes,
            false => Speed::AtOnce,
        }
    }

    /// How fast the policy of a proxy's worker does.
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

    /// The cell of a wish.
    pub(crate) fn cell_of_wish(&self, wish: usize) -> usize {
        usize::from(wish + self.wishes_of_second >= self.wishes.len())
    }

    pub(crate) fn cell(&self, index: usize) -> Name {
        Arc::from(CELLS[index])
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

/// Terms of a session and a drain, with clocks that may drift by so much.
pub fn terms(session_ttl: u64, write_drain: u64, drift_permille: u16) -> Terms {
    match Terms::new(session_ttl, session_ttl, write_drain, 0, drift_permille) {
        Ok(terms) => terms,
        Err(invalid) => unreachable!("{invalid}"),
    }
}
