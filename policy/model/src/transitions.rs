//! The effect of each action.

use std::sync::Arc;

use policy::fence::{
    Agreed, Condition, Input, Key, Layout, Move, MoveRejected, Transaction, Write,
};

use crate::{Action, Budget, Mutation, Scenario, State, change::Change};

impl Scenario {
    /// An operator's move request, at the replica that receives it.
    fn wish(&self, change: &mut Change<'_>, index: usize) -> Result<(), MoveRejected> {
        let (host, to, cause) = &self.wishes[index];
        let next = Move {
            id: Arc::from("wish"),
            to: to.iter().map(|zone| Scenario::zone(*zone)).collect(),
            cause: *cause,
            reason: Arc::from(""),
            epoch_min: (change.state.owners.keys().map(|(_, epoch)| *epoch).max()).unwrap_or(0),
            hold: 0,
        };
        let cell = self.cell(self.cell_of_wish(index));
        let at = change.host(*host);
        let now = at.clock;
        let replica = at.replica.as_mut().ok_or(MoveRejected::NoSession)?;
        let effects = replica.request_move(&cell, next, true, now)?;
        change.tell_effects(*host, effects);
        Ok(())
    }

    pub(crate) fn change_terms(&self, change: &mut Change<'_>, index: usize) {
        let next = Agreed::of(&self.changes[index], Layout::default());
        let Some((at, agreement)) = change.state.store.terms() else {
            return;
        };
        if agreement.next.is_some() {
            return;
        }
        let transaction = Transaction {
            conditions: vec![Condition::PutAt(Key::Terms, at)],
            writes: vec![Write::Terms(agreement.widened(next))],
        };
        change.commit(&transaction);
        change.state.changed |= 1 << index;
    }

    /// An operator gives a replica a wrong configuration, or corrects it.
    fn reconfigure(&self, change: &mut Change<'_>, index: usize) {
        let Some(replica) = &change.state.hosts[index].replica else {
            return;
        };
        let mut own = Agreed::of(&self.terms, Layout::default());
        own.session_ttl += u64::from(replica.acts());
        change.tell(index, Input::Configured(own));
    }

    fn stop(&self, change: &mut Change<'_>, index: usize) {
        if self.mutation != Some(Mutation::StopUnclean) {
            change.tell(index, Input::Stop);
            return;
        }
        let id = match &change.state.hosts[index].replica {
            Some(replica) => replica.id().clone(),
            None => return,
        };
        change.crash(index);
        let cells = self.rules().into_keys();
        let grantors = cells.map(|cell| Write::Delete(Key::Grantor(cell, id.clone())));
        let session = Write::Delete(Key::Session(id.clone()));
        change.commit(&Transaction {
            conditions: Vec::new(),
            writes: grantors.chain([session]).collect(),
        });
    }

    pub(crate) fn perform(&self, change: &mut Change<'_>, action: &Action) {
        let terms = &self.terms;
        match action {
            Action::Tick => change.tick(None),
            Action::TickBut(clock) => {
                let at = self.slow_clocks.iter().position(|slow| slow == clock);
                change.state.slowed |= 1 << at.unwrap_or(0);
                change.tick(Some(*clock));
            }
            Action::Write { proxy, worker } => {
                let before = change.state.admitted_writes();
                change.write(*proxy, *worker);
                if change.state.admitted_writes() > before || change.state.broken.is_some() {
                    change.state.left.writes -= 1;
                }
            }
            Action::End { proxy, write } => change.proxy(*proxy).end(*write, terms),
            Action::Abandon { proxy, write } => change.proxy(*proxy).abandon(*write, terms),
            Action::Look { proxy, worker } => change.proxy(*proxy).look(*worker, terms),
            Action::Acknowledge(proxy) => change.acknowledge(*proxy),
            Action::TakeRoutes(proxy) => change.proxy(*proxy).take_routes(),
            Action::TakePolicy { proxy, worker } => change.proxy(*proxy).take_policy(*worker),
            Action::TakeEarlierPolicy {
                proxy,
                worker,
                earlier,
            } => {
                change.state.left.turns_back -= 1;
                change.proxy(*proxy).take_earlier_policy(*worker, *earlier);
            }
            Action::Ask { proxy, host } => change.ask(*proxy, *host),
            Action::Arrive(message) => {
                change.state.net.remove(message);
                change.arrive(*message);
            }
            Action::Repeat(message) => change.arrive(*message),
            Action::Apply { host, request } => change.apply(*host, *request),
            Action::Answer { host, request } => change.answer(*host, *request),
            Action::TimeOut { host, request } => change.time_out(*host, *request),
            Action::Told(host) => {
                let untold = &mut change.host(*host).untold;
                let told = match self.told_together {
                    true => untold.len(),
                    false => 1,
                };
                let told: Vec<_> = untold.drain(..told).flatten().collect();
                for input in told {
                    change.tell(*host, input);
                }
            }
            Action::Orphan(index) => {
                let transaction = change.state.orphans.remove(*index);
                change.commit(&transaction);
            }
            Action::Crash(host) => change.crash(*host),
            Action::Restart(host) => change.start(*host),
            Action::Cut(host) => change.host(*host).cut = true,
            Action::Mend(host) => change.mend(*host),
            Action::MoveRequest(index) => {
                if self.wish(change, *index).is_ok() {
                    change.state.wished |= 1 << index;
                }
            }
            Action::Change(index) => self.change_terms(change, *index),
            Action::LoseWorker { proxy, worker } => {
                change.proxy(*proxy).lose(*worker, self.mutation);
            }
            Action::Relist(host) => change.relist(*host),
            Action::Backup => change.state.backup = Some(change.state.store.clone()),
            Action::Restore => change.restore(),
            Action::Stop(host) => self.stop(change, *host),
            Action::Reconfigure(host) => self.reconfigure(change, *host),
        }
    }

    pub(crate) fn spend(left: &mut Budget, action: &Action) {
        let of = match action {
            Action::Ask { .. } => &mut left.questions,
            Action::Repeat(_) => &mut left.repeats,
            Action::End { .. } => &mut left.ends,
            Action::TimeOut { .. } => &mut left.timeouts,
            Action::Crash(_) => &mut left.crashes,
            Action::Restart(_) => &mut left.restarts,
            Action::Cut(_) => &mut left.cuts,
            Action::LoseWorker { .. } => &mut left.workers_lost,
            Action::Relist(_) => &mut left.relists,
            Action::Backup => &mut left.backups,
            Action::Restore => &mut left.restores,
            Action::Stop(_) => &mut left.stops,
            Action::Reconfigure(_) => &mut left.reconfigurations,
            _ => return,
        };
        *of -= 1;
    }
}

impl State {
    fn admitted_writes(&self) -> usize {
        self.proxies.iter().map(|proxy| proxy.writes.len()).sum()
    }
}
