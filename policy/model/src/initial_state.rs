//! The state from which an exploration starts.

use std::sync::Arc;

use crate::{Host, Proxy, Scenario, State, change::Change, store::Store};

impl Scenario {
    /// All processes run without faults, and the owner's proxies hold grants.
    pub(crate) fn warmed_up(&self) -> State {
        let calm = Scenario {
            hosts: (self.hosts.iter())
                .map(|(zone, lines)| (*zone, self.lines_before(lines)))
                .collect(),
            net: crate::Net {
                routes: self.net.routes,
                policies: self.net.policies,
                policies_of_others: self.net.policies_of_others,
                ..crate::Net::default()
            },
            eager: Vec::new(),
            ..self.clone()
        };
        let mut state = calm.cold();
        for host in 0..self.hosts.len() {
            let mut change = Change::new(&calm, state);
            change.start(host);
            state = change.done();
        }
        for _ in 0..30 {
            let mut change = Change::new(&calm, state);
            change.tick(None);
            state = change.done();
            let cells = self.rules().into_keys();
            let mut authorities = cells.map(|cell| state.store.authority(&cell));
            if authorities
                .all(|a| a.is_some_and(|a| a.state == policy::fence::AuthorityState::Active))
            {
                break;
            }
        }
        if let Some(ticks) = self.changed_before {
            state = self.changed(&calm, state, ticks);
        }
        let mut change = Change::new(&calm, state);
        for proxy in &self.warm {
            let host = change.hosts_of(*proxy)[0];
            change.ask(*proxy, host);
        }
        state = change.done();
        state.time = 0;
        state
    }

    /// The delays until all processes run.
    fn lines_before(&self, lines: &crate::Lines) -> crate::Lines {
        let steps = match self.changed_before {
            Some(_) => lines.steps,
            None => crate::Speed::AtOnce,
        };
        crate::Lines {
            steps,
            ..crate::Lines::default()
        }
    }

    /// The terms are changed, and time passes.
    fn changed(&self, calm: &Scenario, state: State, ticks: u64) -> State {
        let changing = Scenario {
            hosts: self.hosts.clone(),
            ..calm.clone()
        };
        let told_of_change = Scenario {
            hosts: calm.hosts.clone(),
            ..self.clone()
        };
        let first = match self.hears_change {
            true => &told_of_change,
            false => &changing,
        };
        let mut change = Change::new(first, state);
        self.change_terms(&mut change, 0);
        let mut state = change.done();
        for _ in 0..ticks {
            let mut change = Change::new(&changing, state);
            change.tick(None);
            state = change.done();
        }
        state
    }

    fn cold(&self) -> State {
        let host = |(zone, _): &(usize, _)| {
            Arc::new(Host {
                zone: *zone,
                clock: 0,
                replica: None,
                born: 0,
                untold: Default::default(),
                requests: Vec::new(),
                cut: false,
            })
        };
        let proxies = self.proxies.iter().enumerate();
        let proxy = |(index, (zone, workers)): (usize, &(usize, u64))| {
            Arc::new(Proxy::new(*zone, self.holder(index), *workers))
        };
        State {
            time: 0,
            store: Arc::new(Store::new(1)),
            backup: None,
            hosts: self.hosts.iter().map(host).collect(),
            proxies: proxies.map(proxy).collect(),
            net: Default::default(),
            orphans: Vec::new(),
            left: self.budget,
            wished: 0,
            slowed: 0,
            changed: 0,
            admitted: [0; 2],
            owners: Default::default(),
            broken: None,
        }
    }
}
