//! Other replicas: the connection to each, and their messages to this process.

use std::collections::BTreeMap;

use policy::fence::{Input, Name, SessionId};

use super::Engine;
use crate::authority::{
    StoreEvent,
    peers::{Message, Roster, Says},
    records,
};

impl Engine {
    /// Applies the address of a session.
    pub(super) fn take_peer(&mut self, fact: &StoreEvent) {
        let before = self.reached.len();
        let changed = match fact {
            StoreEvent::Listed { entries, .. } => {
                self.reached = entries.iter().filter_map(records::peer).collect();
                true
            }
            StoreEvent::Put(entry) => match records::peer(entry) {
                Some((id, peer)) => self.reached.insert(id, peer.clone()) != Some(peer),
                None => false,
            },
            StoreEvent::Deleted { key, .. } => {
                let id = records::session_of(key);
                id.is_some_and(|id| self.reached.remove(&id).is_some())
            }
            StoreEvent::Doubted => false,
        };
        if changed || self.reached.len() != before {
            self.tell_roster();
        }
    }

    /// Updates the network's list of sessions.
    pub(super) fn tell_roster(&self) {
        let own = self.replicas.iter().filter_map(|(zone, replica)| {
            let secret = self.secrets.get(zone)?;
            Some((replica.id().clone(), secret.clone()))
        });
        let own: BTreeMap<_, _> = own.collect();
        let others = self.reached.iter().filter(|(id, _)| !own.contains_key(*id));
        let others = others
            .map(|(id, peer)| (id.clone(), peer.clone()))
            .collect();
        self.sources.peers.post.follow(Roster { own, others });
    }

    /// Sends to another replica, in this process or elsewhere.
    pub(super) fn tell_peer(&mut self, zone: &Name, to: SessionId, says: Says) {
        let Some(replica) = self.replicas.get(zone) else {
            return;
        };
        let from = replica.id().clone();
        let message = Message { from, to, says };
        match self.is_own(&message.to) {
            true => self.hear(message),
            false => self.sources.peers.post.send(message),
        }
    }

    pub(super) fn is_own(&self, id: &SessionId) -> bool {
        let replica = self.replicas.get(&id.zone);
        replica.is_some_and(|replica| replica.id() == id)
    }

    /// Handles a message of another replica.
    pub(super) fn hear(&mut self, message: Message) {
        let Message { from, to, says } = message;
        // For an incarnation that has ended.
        if !self.is_own(&to) {
            return;
        }
        let zone = to.zone.clone();
        let input = match says {
            Says::Beat(round) => Input::Beat { from, to, round },
            Says::Heard(round) => Input::Heard {
                by: from,
                of: to,
                round,
            },
        };
        self.handle(&zone, input);
    }
}
