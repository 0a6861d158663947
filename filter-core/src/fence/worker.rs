//! One worker's whole part: its permits, and the control stream while it is elected.

use std::sync::Arc;

use policy::{Fencing, Policy, Rules, fence::Terms};
use protos::fence::GrantorSays;

use super::{
    control_stream::{ControlStream, Identity, StreamHost},
    election,
    permits::Permits,
};
use crate::stream::{ContextId, Token};

/// A worker. Lives as long as its memory, through all plugin configurations.
#[derive(Debug)]
pub struct Worker {
    pub permits: Permits,
    stream: ControlStream,
    /// The root contexts with a fence, in the order in which they were configured. The last one
    /// counts; the others are those of requests that still end on an older one.
    contexts: Vec<(ContextId, Arc<Policy>)>,
}

/// The rules and fence of a policy.
fn fence_of(policy: &Policy) -> Option<(&Rules, &Fencing)> {
    match policy {
        Policy::Serving(rules) => Some((rules, rules.fencing()?)),
        Policy::Fallback => None,
    }
}

/// The terms of a policy's fence, if it has one.
pub fn terms_of(policy: &Policy) -> Option<&Terms> {
    Some(&fence_of(policy)?.1.terms)
}

impl Worker {
    pub fn new(permits: Permits) -> Worker {
        Worker {
            permits,
            stream: ControlStream::default(),
            contexts: Vec::new(),
        }
    }

    /// A root context has a policy from now on. True if it is to be woken every few milliseconds.
    pub fn configured(&mut self, context: ContextId, policy: &Arc<Policy>) -> bool {
        self.contexts.retain(|(known, _)| *known != context);
        let fenced = fence_of(policy).is_some();
        if fenced {
            self.contexts.push((context, Arc::clone(policy)));
        }
        fenced
    }

    /// A root context is gone.
    pub fn removed(&mut self, context: ContextId) {
        self.contexts.retain(|(known, _)| *known != context);
        self.stream.lost(context);
    }

    /// A few milliseconds have passed.
    pub fn tick(&mut self, context: ContextId, host: &mut impl StreamHost) {
        let Some((current, policy)) = self.contexts.last() else {
            return;
        };
        let (current, policy) = (*current, Arc::clone(policy));
        let Some((rules, fencing)) = fence_of(&policy) else {
            return;
        };
        if context != current {
            // Only it can end a stream that it opened; the current one opens the next.
            if self.stream.owner() == Some(context) {
                self.stream.leave(host);
            }
            return;
        }
        self.permits.look(&fencing.terms, host);
        let elsewhere = (self.stream.owner()).is_some_and(|owner| owner != current);
        match election::elect(host, self.permits.me()) {
            // Its context is about to go, or will end the stream at its next tick.
            Some(_) if elsewhere => {}
            Some(holder) => {
                let identity = Identity {
                    context,
                    holder,
                    zone: rules.topology().zone_name(rules.viewer()),
                    fencing,
                };
                self.stream.drive(&identity, host);
            }
            None if elsewhere => {}
            None => self.stream.leave(host),
        }
    }

    /// A message has come on a stream of this root context.
    pub fn on_message(
        &mut self,
        context: ContextId,
        token: Token,
        message: &[u8],
        host: &mut impl StreamHost,
    ) {
        // Bytes that are no message are ignored, as are messages of a later version.
        let Ok(says) = GrantorSays::decode(message) else {
            return;
        };
        let policy = self.contexts.last().map(|(_, policy)| Arc::clone(policy));
        let Some((_, fencing)) = policy.as_deref().and_then(fence_of) else {
            return;
        };
        if self.stream.on_message(token, says, fencing, host) {
            // Releases the revoked permits, acknowledges them, and asks if invited.
            self.tick(context, host);
        }
    }

    /// A stream of this worker has ended.
    pub fn closed(&mut self, token: Token, host: &mut impl StreamHost) {
        self.stream.closed(token, host);
    }
}
