//! The streams of proxies: their connections, each one's zone and replica, and proxies that have to
//! connect elsewhere.

use std::{collections::BTreeSet, time::Duration};

use policy::fence::{HolderId, Input, Name, Replica, Withheld};
use protos::fence::{GrantorSays, HolderSays};
use tokio::{sync::mpsc, time::Instant};
use tracing::warn;

use super::Engine;
use crate::{
    authority::JoinError,
    conditions::{Code, Found},
};

/// A proxy process that is connected.
pub(super) struct Stream {
    pub(super) number: u64,
    zone: Name,
    node: String,
    says: mpsc::Sender<GrantorSays>,
    /// Why the proxy's last request for grants was withheld.
    withheld: Option<Withheld>,
}

/// A proxy gets the policy of new terms within moments. After this time without it something is
/// wrong.
const WITHHELD_PATIENCE: Duration = Duration::from_secs(5);
const WITHHELD_LOOK: Duration = Duration::from_millis(500);

impl Engine {
    /// A proxy connects to the replica of its zone: returns the number of its stream.
    pub(super) fn join(
        &mut self,
        holder: HolderId,
        zone: &Name,
        node: String,
        says: mpsc::Sender<GrantorSays>,
    ) -> Result<u64, JoinError> {
        let Some(replica) = self.replicas.get(zone) else {
            let zones: Vec<&str> = self.replicas.keys().map(|zone| &**zone).collect();
            return Err(JoinError::OtherZone {
                zone: zone.clone(),
                zones: zones.join(", "),
            });
        };
        if !self.serves(zone) {
            return Err(match replica.acts() {
                true => JoinError::NoSession,
                false => JoinError::TermsDiffer,
            });
        }
        self.leave(holder);
        self.streams_opened += 1;
        let number = self.streams_opened;
        let stream = Stream {
            number,
            zone: zone.clone(),
            node,
            says,
            withheld: None,
        };
        self.streams.insert(holder, stream);
        self.count_streams();
        Ok(number)
    }

    /// Handles a proxy's message; messages on a stream that was replaced are ignored.
    pub(super) fn said(&mut self, holder: HolderId, stream: u64, says: HolderSays) {
        let open = self.streams.get(&holder);
        let open = open.filter(|open| open.number == stream);
        let Some(zone) = open.map(|open| open.zone.clone()) else {
            return;
        };
        let input = match says {
            HolderSays::Ask { nonce, terms } => Input::Asked {
                holder,
                nonce,
                terms,
            },
            HolderSays::Drained { cell, fence } => Input::Drained {
                holder,
                cell,
                fence,
            },
            HolderSays::Hello { .. } => return,
        };
        self.handle(&zone, input);
    }

    fn count_streams(&self) {
        let metrics = &self.sources.metrics;
        metrics.fence_streams.set(self.streams.len() as i64);
    }

    /// A slow proxy loses its stream, and sends everything again on the next one.
    pub(super) fn say(&mut self, holder: HolderId, says: GrantorSays) {
        let Some(stream) = self.streams.get(&holder) else {
            return;
        };
        let Err(error) = stream.says.try_send(says) else {
            return;
        };
        // A closed channel means that the stream has ended, which is about to be noticed.
        if matches!(error, mpsc::error::TrySendError::Full(_)) {
            warn!(
                node = stream.node,
                "a proxy does not read its messages: its stream is closed"
            );
            self.leave(holder);
        }
    }

    pub(super) fn leave(&mut self, holder: HolderId) {
        if let Some(stream) = self.streams.remove(&holder) {
            self.count_streams();
            self.handle(&stream.zone, Input::Disconnected(holder));
        }
    }

    /// Whether this replica can serve the proxies of its zone.
    pub(super) fn serves(&self, zone: &Name) -> bool {
        let replica = self.replicas.get(zone);
        let now = self.now();
        let reborn = || {
            self.reborn_until
                .get(zone)
                .is_some_and(|until| now < *until)
        };
        let alive = |replica: &Replica| {
            replica.acts() && (replica.session().left(now) > 0 || replica.believes() && reborn())
        };
        self.stopping.is_empty() && replica.is_some_and(alive)
    }

    /// A replica without a session grants nothing, so its proxies have to connect to another
    /// replica of their zone.
    pub(super) fn send_away(&mut self) {
        let zones = self.replicas.keys().cloned();
        let idle: BTreeSet<Name> = zones.filter(|zone| !self.serves(zone)).collect();
        let streams = self.streams.iter();
        let away = streams.filter(|(_, stream)| idle.contains(&stream.zone));
        let away: Vec<HolderId> = away.map(|(holder, _)| *holder).collect();
        for holder in away {
            self.leave(holder);
        }
    }

    /// The number of connected proxies of a zone.
    pub(super) fn connected(&self, zone: &Name) -> u32 {
        let of_zone = self.streams.values().filter(|stream| stream.zone == *zone);
        u32::try_from(of_zone.count()).unwrap_or(u32::MAX)
    }

    /// Records why a proxy was withheld grants; none: it was not.
    pub(super) fn note_withheld(&mut self, holder: HolderId, withheld: Option<Withheld>) {
        if let Some(stream) = self.streams.get_mut(&holder) {
            stream.withheld = withheld;
        }
    }

    /// Reports the proxies that are withheld grants for long, since their policy has other terms.
    pub(super) fn look_at_withheld(&mut self) {
        // There may be many, and each message wakes the engine.
        let now = Instant::now();
        if now < self.withheld_after {
            return;
        }
        self.withheld_after = now + WITHHELD_LOOK;
        let streams = self.streams.values();
        let found = streams.filter_map(|stream| {
            let refused = || (self.sources.refusals)(&stream.node);
            let detail = withheld_detail(stream.withheld?, refused);
            let found = Found::new(Code::ProxyOfOtherTerms, stream.node.as_str(), detail);
            Some(found.after(WITHHELD_PATIENCE))
        });
        self.withheld.look(found.collect(), now);
    }
}

/// Why a proxy is withheld grants, with its own rejection, which may be why it lacks the current
/// policy.
fn withheld_detail(withheld: Withheld, refused: impl FnOnce() -> Option<String>) -> String {
    match withheld {
        Withheld::OtherTerms => {
            let refused = refused().map(|refused| format!("; it rejects {refused}"));
            let refused = refused.unwrap_or_default();
            format!("its policy has other terms than the agreed ones{refused}")
        }
        Withheld::UnsaidTerms => "its filter does not report its policy's terms".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_without_the_present_policy_is_told_of_with_what_it_refuses() {
        let refused = || Some("ecds tidegate: no such mode".to_owned());
        let detail = withheld_detail(Withheld::OtherTerms, refused);
        assert!(
            detail.ends_with("; it rejects ecds tidegate: no such mode"),
            "{detail}"
        );
        let detail = withheld_detail(Withheld::OtherTerms, || None);
        assert!(detail.ends_with("the agreed ones"), "{detail}");
        let detail = withheld_detail(Withheld::UnsaidTerms, refused);
        assert!(!detail.contains("rejects"), "{detail}");
    }
}
