//! Proxies that could hold grants, by zone: as reported by the sessions of all replicas, and by
//! this process's own.

use std::collections::{BTreeMap, BTreeSet};

use policy::fence::{Name, SessionId, Sessions, Terms};
use registry::authority::parse_key;

use super::{Speakers, StoreEvent, records};

/// See the module's text.
#[derive(Default)]
pub(super) struct Presence {
    /// The number of proxies that each session reported.
    said: BTreeMap<SessionId, u32>,
    /// Whether the own session of a zone last reported any proxies.
    stated: BTreeMap<Name, bool>,
    /// Since when a zone has had no proxies here although its session reports some.
    empty_since: BTreeMap<Name, u64>,
    /// The zones without proxies, as last sent to the replicas.
    unheld: BTreeSet<Name>,
}

impl Presence {
    /// Applies an event of the store.
    pub(super) fn hear(&mut self, fact: &StoreEvent) {
        match fact {
            StoreEvent::Listed { entries, .. } => {
                self.said = entries.iter().filter_map(records::proxies).collect();
            }
            StoreEvent::Put(entry) => self.said.extend(records::proxies(entry)),
            StoreEvent::Deleted { key, .. } => {
                if let Some(Ok(policy::fence::Key::Session(id))) = parse_key(key) {
                    self.said.remove(&id);
                }
            }
            StoreEvent::Doubted => {}
        }
    }

    /// The own session of a zone was put with this report.
    pub(super) fn stated(&mut self, zone: &Name, any: bool) {
        self.stated.insert(zone.clone(), any);
    }

    /// Whether the session of a zone has to be put again: at once when the first proxy has
    /// connected. When the last one has disconnected, only after a while, since most reconnect.
    pub(super) fn is_to_be_restated(
        &mut self,
        zone: &Name,
        any: bool,
        now: u64,
        patience: u64,
    ) -> bool {
        let stated = self.stated.get(zone).copied();
        if any || stated != Some(true) {
            self.empty_since.remove(zone);
            return any && stated == Some(false);
        }
        let since = *self.empty_since.entry(zone.clone()).or_insert(now);
        now >= since.saturating_add(patience)
    }

    /// The zones with live sessions that all report no proxy. It excludes zones without a session, and
    /// zones with a session that does not report.
    pub(super) fn unheld(&self, sessions: &Sessions, now: u64, terms: &Terms) -> BTreeSet<Name> {
        let living = sessions
            .present()
            .filter(|(id, _)| !sessions.over(id, now, terms));
        let mut held = BTreeMap::<&Name, bool>::new();
        for (id, _) in living {
            *held.entry(&id.zone).or_default() |= self.said.get(id) != Some(&0);
        }
        let unheld = held.into_iter().filter(|(_, held)| !held);
        unheld.map(|(zone, _)| zone.clone()).collect()
    }

    /// Whether these differ from the zones last sent to the replicas; they are sent now.
    pub(super) fn unheld_changes(&mut self, unheld: &BTreeSet<Name>) -> bool {
        let changes = self.unheld != *unheld;
        if changes {
            self.unheld.clone_from(unheld);
        }
        changes
    }

    /// The replicas of each zone.
    pub(super) fn zones(
        &self,
        sessions: &Sessions,
        now: u64,
        terms: &Terms,
    ) -> BTreeMap<String, Speakers> {
        let living = sessions
            .present()
            .filter(|(id, _)| !sessions.over(id, now, terms));
        let mut zones = BTreeMap::<String, Speakers>::new();
        for (id, _) in living {
            let zone = zones.entry(id.zone.to_string()).or_default();
            zone.replicas = zone.replicas.saturating_add(1);
            if let Some(said) = self.said.get(id) {
                zone.proxies = Some(zone.proxies.unwrap_or(0).saturating_add(*said));
            }
        }
        zones
    }
}
