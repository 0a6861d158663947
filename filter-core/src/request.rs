//! The life of a request: decided, answered or sent on, and over.

use std::sync::Arc;

use policy::{Policy, guest::Guest, hop::HopKeys};

use crate::{
    apply::{FilterHeadersStatus, Host, HostFailed, Reply, apply_as},
    fence::{ending::Ending, hop_keys, process::Process, worker::terms_of},
    memory::{Memory, with_worker},
    metrics::Metric,
    refusals::{Refusals, RequestId},
};

/// The proxy as the life of a request needs it.
pub trait RequestHost: Process + Memory {
    /// Makes `value` the only value of a request header.
    fn set_header(&mut self, name: &str, value: &str) -> Result<(), HostFailed>;
    /// Removes every copy of a request header.
    fn remove_header(&mut self, name: &[u8]) -> Result<(), HostFailed>;
    /// Answers the request at once.
    fn send_reply(&mut self, reply: &Reply<'_>) -> Result<(), HostFailed>;
    /// How many bytes of the request have come, its headers included or not.
    fn bytes_came(&mut self) -> Option<u64>;
    /// The request may be answered later, outside of its own callbacks.
    fn answered_later(&mut self, request: RequestId);
    /// A number that no client can foresee well enough to choose its zone; evenly spread.
    fn draw(&mut self) -> u64;
    /// The proxy's notes of the request, which is over.
    fn ending(&mut self) -> Ending;
}

/// One request. It ends on the policy that it began with.
#[derive(Debug)]
pub struct Request {
    id: RequestId,
    policy: Arc<Policy>,
    guest: Option<Arc<Guest>>,
    /// Its count as a write in flight.
    in_flight: Option<InFlight>,
    /// The request ends with its headers.
    complete: bool,
}

#[derive(Debug)]
struct InFlight {
    cell: Box<str>,
    /// None until it is admitted.
    admitted_us: Option<u64>,
}

impl Request {
    /// Decided by `policy`, by a `guest` where somebody else configures the proxy.
    pub fn new(id: RequestId, policy: Arc<Policy>, guest: Option<Arc<Guest>>) -> Request {
        Request {
            id,
            policy,
            guest,
            in_flight: None,
            complete: false,
        }
    }

    /// Its headers have come: `map` encodes them, none where the proxy gave none.
    /// `end_of_stream` if it ends with them.
    pub fn on_headers<H: RequestHost>(
        &mut self,
        map: Option<&[u8]>,
        end_of_stream: bool,
        host: &mut H,
    ) -> FilterHeadersStatus {
        self.complete = end_of_stream;
        let (policy, guest) = (Arc::clone(&self.policy), self.guest.clone());
        let mut live = Live {
            request: self,
            host,
        };
        apply_as(guest.as_deref(), &policy, map, &mut live)
    }

    /// The proxy has done with the request, retries and body included.
    pub fn over<H: RequestHost>(&mut self, host: &mut H) {
        H::refusals(|refusals| refusals.forget(self.id));
        if self.guest.is_some() && self.in_flight.is_some() {
            H::deadlines(|deadlines| deadlines.forget(self.id));
        }
        let admitted = self.in_flight.as_ref().and_then(|write| write.admitted_us);
        match admitted.filter(|_| !host.ending().is_settled()) {
            Some(admitted_us) => self.abandon(admitted_us, host),
            None => self.end(host),
        }
    }

    fn end<H: RequestHost>(&mut self, host: &mut H) {
        if let (Some(write), Some(terms)) = (self.in_flight.take(), terms_of(&self.policy)) {
            with_worker::<H, _>(|worker| worker.permits.end(&write.cell, terms, host));
        }
    }

    fn abandon<H: RequestHost>(&mut self, admitted_us: u64, host: &mut H) {
        if let (Some(write), Some(terms)) = (self.in_flight.take(), terms_of(&self.policy)) {
            let cell = &write.cell;
            with_worker::<H, _>(|worker| {
                let permits = &mut worker.permits;
                permits.abandon(cell, admitted_us, terms, host);
            });
        }
    }

    /// Whether the refusal is kept until the body has come. Only where the fence has this worker
    /// woken every few milliseconds.
    fn wait<H: RequestHost>(&self, reply: &Reply<'_>, host: &mut H) -> bool {
        let wakes = !self.complete && terms_of(&self.policy).is_some();
        if !wakes || reply.awaited_body.is_none() {
            return false;
        }
        let (Some(came), Some(at)) = (host.bytes_came(), host.now()) else {
            return false;
        };
        host.answered_later(self.id);
        let keep = |refusals: &mut Refusals| refusals.keep(self.id, reply, came, at.monotonic_us);
        H::refusals(keep) == Some(true)
    }
}

/// A request with its proxy, while a decision about it is applied.
struct Live<'r, H> {
    request: &'r mut Request,
    host: &'r mut H,
}

impl<H: RequestHost> Host for Live<'_, H> {
    fn set(&mut self, name: &str, value: &str) -> Result<(), HostFailed> {
        self.host.set_header(name, value)
    }

    fn remove(&mut self, name: &[u8]) -> Result<(), HostFailed> {
        self.host.remove_header(name)
    }

    fn reply(&mut self, reply: &Reply<'_>) -> Result<(), HostFailed> {
        match self.request.wait(reply, self.host) {
            true => Ok(()),
            false => self.host.send_reply(reply),
        }
    }

    fn count(&mut self, counter: Metric, by: u32) {
        self.host.count(counter, by);
    }

    fn admit(&mut self, cell: &str, grpc: bool) -> Option<u64> {
        let Live { request, host } = self;
        // Should the proxy ever show a request twice, the first one counts no more.
        request.end(*host);
        let policy = Arc::clone(&request.policy);
        let terms = terms_of(&policy)?;
        let write = request.in_flight.insert(InFlight {
            cell: cell.into(),
            admitted_us: None,
        });
        let admitted = with_worker::<H, _>(|worker| worker.permits.admit(cell, terms, *host))??;
        write.admitted_us = Some(admitted.at_us);
        if request.guest.is_some() {
            host.answered_later(request.id);
            H::deadlines(|deadlines| deadlines.admitted(request.id, admitted.at_us, grpc));
        }
        Some(admitted.epoch)
    }

    fn release(&mut self, _: &str) {
        self.request.end(self.host);
    }

    fn hop_keys(&mut self) -> HopKeys {
        hop_keys::read(self.host)
    }

    fn draw(&mut self) -> u64 {
        self.host.draw()
    }
}
