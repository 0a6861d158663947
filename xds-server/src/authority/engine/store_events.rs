//! Passes events of the store to the replicas, and to the watchers of operations.

use std::sync::Arc;

use policy::fence::{Authority, Cause, Input, Name};
use registry::authority::OPERATIONS_PREFIX;
use tracing::{info, warn};

use super::Engine;
use crate::authority::{Operation, StoreEvent, records};

impl Engine {
    pub(super) fn take_event(&mut self, fact: StoreEvent) {
        self.take_peer(&fact);
        self.presence.hear(&fact);
        self.said.take(&fact);
        self.terms_dirty = true;
        let input = match fact {
            StoreEvent::Listed {
                cluster,
                revision,
                entries,
            } => {
                let (listing, operations) = records::listing(cluster, revision, &entries);
                self.operations = operations;
                self.tell_operations();
                Some(Input::Listed(listing))
            }
            StoreEvent::Put(entry) => match entry.key.strip_prefix(OPERATIONS_PREFIX) {
                Some(id) => {
                    records::take_operation(&mut self.operations, id, &entry.value);
                    self.tell_operations();
                    None
                }
                None => records::put(&entry),
            },
            StoreEvent::Deleted { key, revision } => match key.strip_prefix(OPERATIONS_PREFIX) {
                Some(id) => {
                    self.operations.remove(id);
                    self.tell_operations();
                    None
                }
                None => records::deleted(&key, revision),
            },
            StoreEvent::Doubted => {
                warn!("this replica distrusts the store's content: it grants and moves nothing");
                Some(Input::Doubted)
            }
        };
        if let Some(input) = input {
            if let Input::Authority {
                cell,
                authority: Some(authority),
                ..
            } = &input
            {
                log_authority(cell, authority);
            }
            self.broadcast(&input);
        }
    }

    pub(super) fn tell_operations(&self) {
        let all = self.operations.iter().map(|(id, record)| Operation {
            id: id.clone(),
            record: record.clone(),
        });
        let mut all: Vec<Operation> = all.collect();
        let last = |o: &Operation| o.record.steps.last().map_or(0, |step| step.at_unix_ms);
        all.sort_by_key(|operation| std::cmp::Reverse(last(operation)));
        self.told.send_replace(Arc::new(all));
    }
}

fn log_authority(cell: &Name, authority: &Authority) {
    let Authority { epoch, owners, .. } = authority;
    match &authority.state {
        policy::fence::AuthorityState::Active => info!(%cell, epoch, ?owners, "authority: active"),
        policy::fence::AuthorityState::Settling => {
            info!(%cell, epoch, ?owners, unsettled = ?authority.unsettled, "authority: settling")
        }
        policy::fence::AuthorityState::Fencing(next) => {
            let (to, cause, reason) = (&next.to, next.cause, &next.reason);
            match cause {
                Cause::Operator | Cause::Override => {
                    info!(%cell, epoch, from = ?owners, ?to, ?cause, %reason, "authority: fencing");
                }
                Cause::SessionLost | Cause::Unfit => {
                    warn!(%cell, epoch, from = ?owners, ?to, ?cause, %reason, "authority: fencing, by itself");
                }
            }
        }
    }
}
