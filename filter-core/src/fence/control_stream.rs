//! The stream to the control plane: it asks for grants, installs them, and acknowledges fences, for
//! the whole process.
//!
//! This state does not last: the next stream repeats everything that was lost with a stream, or
//! with its worker.

use std::collections::BTreeMap;

use policy::{
    Fencing,
    cells::CELLS_MAX,
    fence::{Asker, Grant, HolderId, Name, Stamp, TermsId, Withheld},
};
use protos::{
    fence::{GrantorSays, HolderSays, NODE_BYTES_MAX, ROLE_BYTES_MAX},
    status::cut,
};

use super::{
    hop_keys, ledger,
    process::{Process, Reading},
};
use crate::{
    apply::HostFailed,
    metrics::Metric,
    stream::{ContextId, Link, Stream, Token},
};

/// The proxy as the control stream needs it.
pub trait StreamHost: Process {
    /// Opens a stream to a cluster of the proxy, on behalf of the current root context.
    fn open(&mut self, cluster: &str) -> Result<Token, HostFailed>;
    fn send(&mut self, token: Token, says: &HolderSays) -> Result<(), HostFailed>;
    /// Ends the stream at once.
    fn cancel(&mut self, token: Token);
    /// The proxy's name, for people.
    fn node(&mut self) -> String;
    /// The proxy's role in its bootstrap.
    fn role(&mut self) -> String;
    /// Writes a warning to the proxy's log.
    fn note(&mut self, line: &str);
}

/// A control plane that does not answer for this long is taken to be gone.
const ANSWER_US: u64 = 1_000_000;
/// The most fences that are worked on: more than there can be cells, and some of another
/// configuration's.
const FENCES_MAX: usize = 2 * CELLS_MAX;

/// The stream and its state.
#[derive(Debug)]
pub struct ControlStream {
    link: Link,
    asker: Asker,
    /// When the last question was asked.
    asked: Option<Reading>,
    /// The terms in that question.
    said: TermsId,
    /// Why the last answer had no grants.
    withheld: Option<Withheld>,
    /// Grants may be had that were not there yet when the open question was answered.
    invited: bool,
    /// Revocations that are not yet acknowledged.
    fences: BTreeMap<Name, Stamp>,
    /// The ends of installed grants: for the gauge alone.
    until: BTreeMap<Name, u64>,
    holding: Option<usize>,
}

/// The process of a stream, and its rules.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'p> {
    pub context: ContextId,
    pub holder: HolderId,
    pub zone: &'p str,
    pub fencing: &'p Fencing,
}

impl Default for ControlStream {
    fn default() -> ControlStream {
        ControlStream {
            link: Link::default(),
            asker: Asker::default(),
            asked: None,
            said: TermsId::NONE,
            withheld: None,
            invited: false,
            fences: BTreeMap::new(),
            until: BTreeMap::new(),
            holding: None,
        }
    }
}

impl ControlStream {
    /// Takes the due steps. To be called every few milliseconds, and after each change.
    pub fn drive(&mut self, identity: &Identity<'_>, host: &mut impl StreamHost) {
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
            let unanswered = |since: u64| at.monotonic_us.saturating_sub(since) >= ANSWER_US;
            if self.asker.open_since().is_some_and(unanswered) {
                self.fail(at, host);
            } else {
                self.ask_if_due(stream.token, identity, at, host);
                self.acknowledge(stream.token, identity, at, host);
            }
        }
        self.tell_holding(at.monotonic_us, host);
    }

    fn open(&mut self, identity: &Identity<'_>, at: Reading, host: &mut impl StreamHost) {
        let hello = HolderSays::Hello {
            holder: identity.holder,
            zone: Name::from(identity.zone),
            node: cut(&host.node(), NODE_BYTES_MAX).to_owned(),
            role: cut(&host.role(), ROLE_BYTES_MAX).to_owned(),
        };
        match host.open(&identity.fencing.control_plane) {
            Ok(token) => {
                self.link.opened(Stream {
                    token,
                    context: identity.context,
                    holder: identity.holder,
                });
                self.asker = Asker::default();
                self.asked = None;
                self.send(token, &hello, at, host);
            }
            Err(HostFailed) => self.back_off(at),
        }
    }

    fn send(&mut self, token: Token, says: &HolderSays, at: Reading, host: &mut impl StreamHost) {
        if host.send(token, says).is_err() {
            self.fail(at, host);
        }
    }

    fn ask_if_due(
        &mut self,
        token: Token,
        identity: &Identity<'_>,
        at: Reading,
        host: &mut impl StreamHost,
    ) {
        let every_us = identity.fencing.terms.grant_ttl / 4;
        let is_due = |asked: Reading| {
            at.monotonic_us.saturating_sub(asked.monotonic_us) >= every_us
                || at.jumped_since(asked.lead_us())
        };
        let open = self.asker.open_since().is_some();
        // Grants under other terms do not count under this policy.
        let other_terms = self.said != identity.fencing.terms.id;
        if !open && (self.invited || other_terms || self.asked.is_none_or(is_due)) {
            self.invited = false;
            self.asked = Some(at);
            let nonce = self.asker.ask(at.monotonic_us);
            self.said = identity.fencing.terms.id;
            let terms = Some(self.said).filter(|terms| *terms != TermsId::NONE);
            self.send(token, &HolderSays::Ask { nonce, terms }, at, host);
        }
    }

    /// Records revocations, which may be done already, and says which of them nothing stands
    /// against any more.
    fn acknowledge(
        &mut self,
        token: Token,
        identity: &Identity<'_>,
        at: Reading,
        host: &mut impl StreamHost,
    ) {
        let terms = &identity.fencing.terms;
        let mut over = Vec::new();
        for (cell, fence) in &self.fences {
            let drained = ledger::change(host, cell, |entry| {
                entry.ledger.revoke(*fence);
                entry.ledger.drained(at.monotonic_us, terms)
            });
            if let Some(drained) = drained.flatten().filter(|drained| drained >= fence) {
                over.push((Name::clone(cell), drained));
            }
        }
        for (cell, fence) in over {
            self.fences.remove(&cell);
            self.send(token, &HolderSays::Drained { cell, fence }, at, host);
        }
    }

    /// A message of the control plane. False if it was not on this stream.
    pub fn on_message(
        &mut self,
        token: Token,
        says: GrantorSays,
        fencing: &Fencing,
        host: &mut impl StreamHost,
    ) -> bool {
        if !self.link.owns(token) {
            return false;
        }
        match says {
            GrantorSays::Grants {
                nonce,
                grants,
                withheld,
            } => {
                if self.install(nonce, grants, fencing, host) {
                    self.tell_withheld(withheld, host);
                }
            }
            GrantorSays::Revoke { cell, fence } => self.revoke(cell, fence, host),
            GrantorSays::Invite => self.invited = true,
            keys @ GrantorSays::HopKeys(_) => hop_keys::keep(host, &keys),
        }
        true
    }

    /// False if it answers no open question.
    fn install(
        &mut self,
        nonce: u64,
        grants: Vec<(Name, Grant)>,
        fencing: &Fencing,
        host: &mut impl StreamHost,
    ) -> bool {
        let terms = &fencing.terms;
        let Some(asked_us) = self.asker.answered(nonce, terms) else {
            return false;
        };
        self.link.works();
        let (Some(at), Some(asked)) = (host.now(), self.asked) else {
            return true;
        };
        if asked.monotonic_us != asked_us || at.jumped_since(asked.lead_us()) {
            // The age of these is unknown.
            return true;
        }
        if self.said != terms.id {
            // The policy has changed since: these were given to the one before.
            return true;
        }
        for (cell, grant) in grants {
            if !fencing.cells().iter().any(|own| own.name == *cell) {
                continue;
            }
            let grant = Grant {
                ttl: grant.ttl.min(terms.grant_ttl),
                ..grant
            };
            let installed = ledger::change(host, &cell, |entry| {
                let ledger = &mut entry.ledger;
                let installed = ledger.install(&grant, asked_us, at.monotonic_us, terms);
                if installed {
                    entry.lead_us = asked.lead_us();
                }
                installed
            });
            if installed == Some(true) {
                host.count(Metric::GrantsInstalled, 1);
                let until = asked_us.saturating_add(grant.ttl);
                self.until.insert(cell, until);
            }
        }
        true
    }

    /// Logs once why nothing is granted, and once that it is over.
    fn tell_withheld(&mut self, withheld: Option<Withheld>, host: &mut impl StreamHost) {
        if self.withheld == withheld {
            return;
        }
        self.withheld = withheld;
        host.record(Metric::FenceWithheld, u64::from(withheld.is_some()));
        host.note(match withheld {
            Some(Withheld::OtherTerms) => {
                "no grants: this policy has other terms than the agreed ones, and writes stay fenced until a policy with these arrives"
            }
            Some(Withheld::UnsaidTerms) => {
                "no grants: this policy names no terms, and the agreed terms have changed"
            }
            None => "grants are given again: the policy has the agreed terms",
        });
    }

    fn revoke(&mut self, cell: Name, fence: Stamp, host: &mut impl StreamHost) {
        host.count(Metric::FenceRevocations, 1);
        let revoked = ledger::change(host, &cell, |entry| {
            entry.ledger.revoke(fence);
            entry.ledger.permit.is_none()
        });
        if revoked == Some(true) {
            self.until.remove(&cell);
        }
        // More is not kept: the control plane waits for a fence that is not acknowledged.
        if self.fences.len() < FENCES_MAX || self.fences.contains_key(&cell) {
            let newest = self.fences.entry(cell).or_default();
            *newest = fence.max(*newest);
        }
    }

    /// The proxy has closed a stream.
    pub fn closed(&mut self, token: Token, host: &mut impl StreamHost) {
        if self.link.owns(token) {
            host.count(Metric::StreamResets, 1);
            self.back_off(host.now().unwrap_or_default());
        }
    }

    /// A root context is gone, and its streams with it.
    pub fn lost(&mut self, context: ContextId) {
        if self.owner() == Some(context) {
            self.link.ended();
            self.forget();
        }
    }

    /// Another worker is elected now.
    pub fn leave(&mut self, host: &mut impl StreamHost) {
        if let Some(stream) = self.link.open() {
            host.cancel(stream.token);
            self.link.ended();
            self.forget();
        }
        self.until.clear();
        self.holding = None;
    }

    /// The root context that the stream belongs to.
    pub fn owner(&self) -> Option<ContextId> {
        self.link.owner()
    }

    fn fail(&mut self, at: Reading, host: &mut impl StreamHost) {
        if let Some(stream) = self.link.open() {
            host.count(Metric::StreamResets, 1);
            host.cancel(stream.token);
            self.back_off(at);
        }
    }

    fn back_off(&mut self, at: Reading) {
        self.link.failed(at.monotonic_us);
        self.forget();
    }

    /// Drops what was said on the stream that has ended.
    fn forget(&mut self) {
        // Its answer cannot come any more.
        self.asker = Asker::default();
        self.invited = false;
        // A revocation that is not acknowledged is repeated on the next stream.
        self.fences.clear();
    }

    fn tell_holding(&mut self, now_us: u64, host: &mut impl StreamHost) {
        self.until.retain(|_, until| *until > now_us);
        let holding = self.until.len();
        if self.holding != Some(holding) {
            self.holding = Some(holding);
            host.record(Metric::FenceHolding, holding as u64);
        }
    }
}
