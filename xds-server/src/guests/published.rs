//! A zone's policy as its guests get it.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use policy::{Policy, shard::digest_of_parts};
use protos::{
    Encoded, Encoder,
    guest::{Current, Piece, digest},
};
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::{
    discovery::Snapshots,
    snapshot::{Role, Snapshot, ViewKey},
};

/// A policy in compressed pieces.
#[derive(Debug)]
pub(super) struct Published {
    pub(super) version: u64,
    /// In the order of `current`.
    pub(super) pieces: Vec<Piece>,
    pub(super) current: Current,
}

/// Parts of a policy shorter than this are put together with their neighbours: the head, which
/// changes with every policy, and the tail.
const SHORT_BYTES: usize = 256;

/// Makes policies one after the other. Parts that a policy shares with the previous one are neither
/// encoded nor compressed again.
#[derive(Default)]
struct Publisher {
    encoder: Encoder,
    known: BTreeMap<u64, Piece>,
}

impl Publisher {
    fn publish(&mut self, policy: &Policy) -> Published {
        let policy = match policy {
            Policy::Fallback => Policy::Fallback,
            // The stream carries no secret: any certificate of the mesh opens it.
            Policy::Serving(rules) => Policy::Serving(Box::new((**rules).clone().unexplained())),
        };
        // The guest has its own name for the control plane's cluster.
        let Encoded { pieces, version } = self.encoder.encode(&policy, 0, "");
        let parts = joined(pieces);
        let pieces: Vec<Piece> = parts.iter().map(|part| self.piece(part)).collect();
        let digests = pieces.iter().map(|piece| piece.digest);
        let current = Current {
            pieces: digests.collect(),
            digest: digest_of_parts(parts.iter().map(Bytes::as_ref)),
        };
        let used = pieces.iter().map(|piece| (piece.digest, piece.clone()));
        self.known = used.collect();
        Published {
            version,
            pieces,
            current,
        }
    }

    fn piece(&self, bytes: &[u8]) -> Piece {
        let known = self.known.get(&digest(bytes));
        known.cloned().unwrap_or_else(|| Piece::compress(bytes))
    }
}

/// The same bytes in fewer parts.
fn joined(parts: Vec<Bytes>) -> Vec<Bytes> {
    let mut joined: Vec<Bytes> = Vec::with_capacity(parts.len());
    for part in parts.into_iter().filter(|part| !part.is_empty()) {
        match joined.last_mut() {
            Some(last) if last.len().min(part.len()) < SHORT_BYTES && last.len() < SHORT_BYTES => {
                *last = Bytes::from([&last[..], &part[..]].concat());
            }
            _ => joined.push(part),
        }
    }
    joined
}

/// Publishes the policies of a zone, for as long as there are snapshots.
pub(super) async fn publish(
    zone: Arc<str>,
    mut snapshots: Snapshots,
    publisher: watch::Sender<Option<Arc<Published>>>,
) {
    let mut state = Publisher::default();
    let mut seen = None;
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        // Of a bare mesh nothing is known, so nothing is said of it.
        let snapshot = snapshot.filter(|snapshot| !snapshot.is_bare());
        let policy = snapshot.as_deref().and_then(|it| policy_of(it, &zone));
        match policy {
            Some((policy, version)) if seen != Some(version) => {
                seen = Some(version);
                // The first policy of a large mesh takes a while to compress.
                let made = tokio::task::spawn_blocking(move || {
                    let published = state.publish(&policy);
                    (state, published)
                });
                let Ok((back, published)) = made.await else {
                    warn!(%zone, "the policy of guests could not be made");
                    return;
                };
                state = back;
                debug!(%zone, version = published.version, pieces = published.pieces.len(), "policy for guests");
                publisher.send_replace(Some(Arc::new(published)));
            }
            // A zone that has left the mesh.
            None if snapshot.is_some() && seen.is_some() => {
                seen = None;
                publisher.send_replace(None);
            }
            Some(_) | None => {}
        }
        if snapshots.changed().await.is_err() {
            return;
        }
    }
}

fn policy_of(snapshot: &Snapshot, zone: &Arc<str>) -> Option<(Arc<Policy>, u64)> {
    // The policy is the same for all roles of a zone.
    let view = snapshot.view(&ViewKey {
        zone: Arc::clone(zone),
        role: Role::Gateway,
    })?;
    Some((Arc::clone(view.policy()), view.policy_version()))
}

#[cfg(test)]
mod tests {
    use policy::{
        ClassRule, Explain, Plan, Plans, RegionRule, Route, RouteMatch, Rules, Service, ServiceId,
        Topology, TraceRule, Writes,
    };

    use super::*;

    fn text(parts: &[&str]) -> Vec<Bytes> {
        parts
            .iter()
            .map(|part| Bytes::copy_from_slice(part.as_bytes()))
            .collect()
    }

    #[test]
    fn short_parts_are_joined_and_no_byte_is_lost() {
        let long = "x".repeat(SHORT_BYTES);
        let parts = text(&["head", "more", &long, &long, "", "tail"]);
        let together = joined(parts.clone());
        assert_eq!(together.concat(), parts.concat());
        assert_eq!(together.len(), 3);
    }

    fn rules() -> Rules {
        let topology = Topology::new([("a", "r"), ("b", "r")], []).unwrap();
        let zone = topology.zone_named("a").unwrap();
        let service = |at: usize| Service {
            name: format!("service-{at}"),
            routes: vec![Route {
                host: format!("service-{at}.shop"),
                matches: RouteMatch::Prefix("/".into()),
                class: ClassRule::ByMethod,
            }],
            region_missing: RegionRule::Local,
            region_unknown: RegionRule::Local,
            trace_missing: TraceRule::Generate,
            zone_affinity: None,
            writes: Writes::Free,
            plans: Plans::from_fn(&topology, |_, _| Plan::CLOSED),
        };
        let services = (0..1_000).map(service).collect();
        let explain = Explain {
            header: "x-ask".into(),
            token: "a-secret".into(),
        };
        Rules::new(topology, zone, services, Some(explain)).unwrap()
    }

    #[test]
    fn a_change_of_one_service_is_one_piece_and_the_head() {
        let mut rules = rules();
        let mut publisher = Publisher::default();
        let before = publisher.publish(&Policy::Serving(Box::new(rules.clone())));
        let drained = Plans::from_fn(rules.topology(), |_, _| Plan::Closed { drained: true });
        rules.replan(ServiceId::new(500), drained);
        let after = publisher.publish(&Policy::Serving(Box::new(rules)));
        let pieces = after.current.pieces.iter();
        let new = pieces.filter(|digest| !before.current.pieces.contains(digest));
        assert_eq!(new.count(), 2);
        assert!(after.current.pieces.len() > 6);
        let bytes = after.pieces.iter().flat_map(|piece| piece.bytes().unwrap());
        let bytes: Vec<u8> = bytes.collect();
        assert_eq!(digest(&bytes), after.current.digest);
        let read = protos::decode(&bytes).unwrap();
        assert_eq!(read.version, after.version);
        let Policy::Serving(rules) = read.policy else {
            panic!("{read:?}");
        };
        assert_eq!(rules.explain(), None, "the token is a secret");
    }
}
