//! The exploration of all possible steps.

use std::sync::Arc;

use stateright::{Checker as _, HasDiscoveries, Model, Property};

use crate::{Action, Proxy, Scenario, State, change::Change};

const FENCED: &str = "no two zones write";
const WISHED: &str = "no cell moves without cause";
const WRITABLE: &str = "somebody can write at last";

impl State {
    /// Whether each cell has a proxy that would admit a write now.
    fn writable(&self, scenario: &Scenario) -> bool {
        let holds = |proxy: &Arc<Proxy>| {
            let permit = proxy.ledger.permit;
            permit.is_some_and(|permit| permit.until > proxy.clock)
        };
        let mut cells = 0..scenario.rules().len();
        cells.all(|cell| {
            let proxies = self.proxies.iter().enumerate();
            let mut of_cell = proxies.filter(|(at, _)| scenario.cell_of(*at) == cell);
            of_cell.any(|(_, proxy)| holds(proxy))
        })
    }

    /// Whether every cell's epoch is its first one, or one that operators requested.
    fn moved_on_wish_alone(&self, scenario: &Scenario) -> bool {
        let wished = |cell: usize| {
            let wishes = 0..scenario.wishes.len();
            let of_cell = wishes.filter(|wish| scenario.cell_of_wish(*wish) == cell);
            of_cell
                .filter(|wish| self.wished & (1 << wish) != 0)
                .count()
        };
        (0..scenario.rules().len()).all(|cell| {
            let owners = self.owners.keys();
            let epochs = owners.filter(|(of, _)| *of == cell).count();
            epochs <= 1 + wished(cell)
        })
    }
}

impl Model for Scenario {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.warmed_up()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.broken.is_some() {
            return;
        }
        if state.time < self.horizon {
            actions.push(Action::Tick);
            for (bit, clock) in self.slow_clocks.iter().enumerate() {
                if state.slowed & (1 << bit) == 0 {
                    actions.push(Action::TickBut(*clock));
                }
            }
        }
        for index in 0..state.proxies.len() {
            self.proxy_actions(state, index, actions);
        }
        for index in 0..state.hosts.len() {
            self.host_actions(state, index, actions);
            self.request_actions(state, index, actions);
        }
        for message in &state.net {
            actions.push(Action::Arrive(*message));
            if state.left.repeats > 0 {
                actions.push(Action::Repeat(*message));
            }
        }
        actions.extend((0..state.orphans.len()).map(Action::Orphan));
        for wish in 0..self.wishes.len() {
            if state.wished & (1 << wish) == 0 && state.time <= self.faults_until {
                actions.push(Action::MoveRequest(wish));
            }
        }
        for index in 0..self.changes.len() {
            if state.changed & (1 << index) == 0 {
                actions.push(Action::Change(index));
            }
        }
        if state.left.backups > 0 {
            actions.push(Action::Backup);
        }
        if state.left.restores > 0 && state.backup.is_some() {
            actions.push(Action::Restore);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut change = Change::new(self, last.clone());
        self.perform(&mut change, &action);
        let mut next = change.done();
        if next == *last {
            return None;
        }
        Scenario::spend(&mut next.left, &action);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![Property::always(FENCED, |_, state: &State| {
            state.broken.is_none()
        })];
        if self.writable_at_last {
            properties.push(Property::always(
                WRITABLE,
                |scenario: &Scenario, state: &State| {
                    state.time < scenario.horizon || state.writable(scenario)
                },
            ));
        }
        if self.moves_on_wish_alone {
            properties.push(Property::always(
                WISHED,
                |scenario: &Scenario, state: &State| state.moved_on_wish_alone(scenario),
            ));
        }
        properties
    }
}

/// The result of an exploration.
#[derive(Clone, Debug)]
pub struct Found {
    pub states: usize,
    pub depth: usize,
    /// The whole scope was explored.
    pub exhausted: bool,
    /// The shortest trace to a violation.
    pub violation: Option<Vec<Action>>,
}

/// Explores a scenario until it finds a violation or has explored everything.
pub fn explore(scenario: &Scenario) -> Found {
    let states_max = scenario.states_max.unwrap_or(usize::MAX);
    let builder = scenario.clone().checker().threads(1);
    let builder = builder.finish_when(HasDiscoveries::AnyFailures);
    let checker = match scenario.states_max {
        Some(max) => builder.target_state_count(max),
        None => builder,
    };
    let checker = checker.spawn_bfs().join();
    let violation = checker.discoveries().into_values().next();
    Found {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        exhausted: violation.is_none() && checker.state_count() < states_max,
        violation: violation.map(|path| path.into_actions()),
    }
}
