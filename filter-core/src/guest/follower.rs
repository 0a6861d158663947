//! The stream by which the elected worker follows the policy, for the whole process.
//!
//! Received pieces go into the shared data ([`Place`]), where every worker reads them. This state
//! does not last: the next stream repeats everything that was lost with a stream, or with its
//! worker, except the pieces that the process holds.

use std::collections::BTreeMap;

use policy::fence::{HolderId, Name};
use protos::guest::{Current, GuestSays, Hello, PIECES_MAX, PROBLEM_BYTES_MAX, Piece, PolicySays};

use super::{Config, pieces::Place};
use crate::{
    apply::HostFailed,
    fence::{control_stream::StreamHost, process::Reading},
    metrics::Metric,
    stream::{ContextId, Link, Stream, Token},
};

/// The proxy as a guest needs it.
pub trait GuestHost: StreamHost {
    /// Opens a stream for policies to a cluster of the proxy, on behalf of the current root
    /// context.
    fn follow(&mut self, cluster: &str) -> Result<Token, HostFailed>;
    /// Sends a message on such a stream.
    fn tell(&mut self, token: Token, says: &GuestSays) -> Result<(), HostFailed>;
    /// A text of the proxy's node, by its path below `xds.node`.
    fn node_text(&mut self, path: &[&str]) -> Option<String>;
}

/// A control plane that said nothing for this long is asked for a sign of life.
const SILENT_US: u64 = 5_000_000;
/// One that does not answer for this long is taken to be gone.
const ANSWER_US: u64 = 2_000_000;

/// The stream and its state.
#[derive(Debug, Default)]
pub struct Follower {
    link: Link,
    /// When something was heard last on the stream, or it was opened.
    heard_us: u64,
    /// When a sign of life was asked for that has not come yet.
    polled_us: Option<u64>,
    /// Of the policy that the last stream was opened for.
    place: Option<Place>,
    /// The pieces that were received, or were there before. Those of the last policy alone.
    pieces: BTreeMap<u64, Piece>,
    /// The shared pieces are damaged: the next stream brings all of them.
    damaged: bool,
}

/// The process of a stream, and its guest.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'g> {
    pub context: ContextId,
    pub holder: HolderId,
    /// Empty where it is not known.
    pub zone: &'g str,
    /// Why it is the fallback for good.
    pub problem: Option<&'g str>,
    pub config: &'g Config,
    pub place: &'g Place,
}

impl Follower {
    /// Takes the due steps. To be called every few milliseconds.
    pub fn drive(&mut self, identity: &Identity<'_>, host: &mut impl GuestHost) {
        let Some(at) = host.now() else {
            return;
        };
        if self.link.is_of_another(identity.context, identity.holder) {
            self.leave(host);
        }
        if self.link.is_due(at.monotonic_us) {
            self.open(identity, at, host);
        }
        if let Some(stream) = self.link.open() {
            let since = |us: u64| at.monotonic_us.saturating_sub(us);
            match self.polled_us {
                Some(polled_us) if since(polled_us) >= ANSWER_US => self.fail(at, host),
                None if since(self.heard_us) >= SILENT_US => {
                    self.polled_us = Some(at.monotonic_us);
                    self.send(stream.token, &GuestSays::Poll, at, host);
                }
                _ => {}
            }
        }
    }

    fn open(&mut self, identity: &Identity<'_>, at: Reading, host: &mut impl GuestHost) {
        let held = match self.damaged {
            true => Vec::new(),
            false => identity.place.held(host),
        };
        self.place = Some(identity.place.clone());
        self.pieces = held
            .into_iter()
            .map(|piece| (piece.digest, piece))
            .collect();
        let hello = GuestSays::Hello(Hello {
            holder: identity.holder,
            zone: Name::from(identity.zone),
            node: host.node(),
            mode: identity.config.guest.mode,
            drain_ms: identity.config.guest.drain_ms,
            unfenced: identity.config.unfenced.clone(),
            classes: identity.config.classes.clone(),
            held: self.pieces.keys().copied().collect(),
            problems: identity.problem.map(clipped).into_iter().collect(),
        });
        match host.follow(&identity.config.control_plane) {
            Ok(token) => {
                self.link.opened(Stream {
                    token,
                    context: identity.context,
                    holder: identity.holder,
                });
                self.heard(at);
                self.send(token, &hello, at, host);
            }
            Err(HostFailed) => self.link.failed(at.monotonic_us),
        }
    }

    fn send(&mut self, token: Token, says: &GuestSays, at: Reading, host: &mut impl GuestHost) {
        if host.tell(token, says).is_err() {
            self.fail(at, host);
        }
    }

    /// Whether the open stream brings this policy.
    pub fn follows(&self, place: &Place) -> bool {
        self.owner().is_some() && self.place.as_ref() == Some(place)
    }

    /// Whether this is the token of the open stream.
    pub fn owns(&self, token: Token) -> bool {
        self.link.owns(token)
    }

    /// A message has come on the open stream.
    pub fn on_message(&mut self, message: &[u8], place: &Place, host: &mut impl GuestHost) {
        let (Some(_), Some(at)) = (self.link.open(), host.now()) else {
            return;
        };
        self.heard(at);
        // Bytes that are no message are ignored, as are messages of a later version.
        let Ok(says) = PolicySays::decode(message) else {
            return;
        };
        match says {
            PolicySays::Piece(piece) if self.pieces.len() < 2 * PIECES_MAX => {
                self.pieces.insert(piece.digest, piece);
            }
            // More than two policies can have: it says nothing sensible.
            PolicySays::Piece(_) => self.fail(at, host),
            PolicySays::Current(current) => match place.publish(&current, &self.pieces, host) {
                true => self.published(&current),
                // A new stream brings what is missing.
                false => self.fail(at, host),
            },
        }
    }

    fn published(&mut self, current: &Current) {
        self.link.works();
        self.damaged = false;
        let pieces = current.pieces.iter();
        let kept = pieces.filter_map(|digest| self.pieces.remove_entry(digest));
        self.pieces = kept.collect();
    }

    /// The shared policy is damaged: has everything sent again.
    pub fn refetch(&mut self, host: &mut impl GuestHost) {
        if let (Some(_), Some(at)) = (self.link.open(), host.now()) {
            self.damaged = true;
            self.fail(at, host);
        }
    }

    /// The proxy has closed a stream. False if it was not this one.
    pub fn closed(&mut self, token: Token, host: &mut impl GuestHost) -> bool {
        if !self.owns(token) {
            return false;
        }
        host.count(Metric::StreamResets, 1);
        self.link
            .failed(host.now().unwrap_or_default().monotonic_us);
        true
    }

    /// A root context is gone, and its streams with it.
    pub fn lost(&mut self, context: ContextId) {
        if self.owner() == Some(context) {
            self.link.ended();
        }
    }

    /// Another worker is elected now, or another context keeps the stream.
    pub fn leave(&mut self, host: &mut impl GuestHost) {
        if let Some(stream) = self.link.open() {
            host.cancel(stream.token);
            self.link.ended();
        }
        self.pieces.clear();
    }

    /// The root context that the stream belongs to.
    pub fn owner(&self) -> Option<ContextId> {
        self.link.owner()
    }

    fn fail(&mut self, at: Reading, host: &mut impl GuestHost) {
        if let Some(stream) = self.link.open() {
            host.count(Metric::StreamResets, 1);
            host.cancel(stream.token);
            self.link.failed(at.monotonic_us);
        }
    }

    fn heard(&mut self, at: Reading) {
        self.heard_us = at.monotonic_us;
        self.polled_us = None;
    }
}

/// No longer than the control plane takes it.
fn clipped(problem: &str) -> String {
    let mut clipped = problem.to_owned();
    clipped.truncate(clipped.floor_char_boundary(PROBLEM_BYTES_MAX));
    clipped
}
