//! The life of a configuration of the filter: read, followed, applied, and gone.
//!
//! Generic over the proxy, so that every host runs the same: a host translates its callbacks into
//! calls of [`Plugin`], and [`PluginHost`] into its calls.

use std::sync::Arc;

use policy::{Policy, guest::Guest};
use protos::{InvalidPolicy, PluginConfig};

use crate::{
    applied::{self, Applied, ReportHost},
    apply::{HostFailed, Reply},
    fence::{
        election,
        worker::{Worker, terms_of},
    },
    guest::{self, config::is_guest, follower::GuestHost},
    memory::{Memory, join, with_applied, with_worker},
    metrics::Metric,
    plugin_config,
    refusals::RequestId,
    request::Request,
    stream::{ContextId, Token},
};

/// The proxy as the life of a configuration needs it.
pub trait PluginHost: GuestHost + ReportHost + Memory {
    /// Has the current root context woken this often; 0 for never.
    fn wake_every(&mut self, period_ms: u32) -> Result<(), HostFailed>;
    /// Somebody else configures the proxy. From now on its role on streams is `guest`.
    fn is_guest_now(&mut self);
    /// How many bytes of a request that waits have come. None where the proxy does not tell.
    fn bytes_of(&mut self, request: RequestId) -> Option<u64>;
    /// Answers a request outside of its own callbacks. Once an answer has begun the proxy resets
    /// the request instead. Where even this fails the request is held until it times out.
    fn answer(&mut self, request: RequestId, reply: &Reply<'_>);
    /// The calls that follow are about this root context again, and not about a request.
    fn turn_back(&mut self, context: ContextId);
    /// Writes a line to the proxy's log.
    fn log(&mut self, level: Level, line: &str);
}

/// The importance of a line in the proxy's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Info,
    Error,
}

/// How often a worker checks its permits, where writes are fenced: the longest that a
/// revocation takes to be seen.
const TICK_MS: u32 = 10;

/// The filter with one configuration, in one worker.
#[derive(Debug)]
pub struct Plugin {
    context: ContextId,
    policy: Arc<Policy>,
    /// Present where somebody else configures the proxy.
    guest: Option<guest::Plugin>,
    /// How often it is woken; 0 for never.
    tick_ms: u32,
}

/// What decides about requests: a policy, and the guest where somebody else configures the proxy.
#[derive(Clone, Debug)]
pub struct Deciding {
    policy: Arc<Policy>,
    guest: Option<Arc<Guest>>,
}

impl Deciding {
    /// A request comes.
    pub fn request(self, id: RequestId) -> Request {
        Request::new(id, self.policy, self.guest)
    }

    /// Whether both are the very same, not only equal.
    pub fn is_same(&self, other: &Deciding) -> bool {
        let guests = (self.guest.as_ref()).zip(other.guest.as_ref());
        Arc::ptr_eq(&self.policy, &other.policy)
            && self.guest.is_some() == other.guest.is_some()
            && guests.is_none_or(|(one, two)| Arc::ptr_eq(one, two))
    }
}

impl Plugin {
    /// Without a configuration, it is the fallback.
    pub fn new(context: ContextId) -> Plugin {
        Plugin {
            context,
            policy: Arc::new(Policy::Fallback),
            guest: None,
            tick_ms: 0,
        }
    }

    /// Takes a configuration in: a policy, or that of a guest. False if it is to be rejected; then
    /// the proxy keeps the one before.
    pub fn configure<H: PluginHost>(&mut self, configuration: &[u8], host: &mut H) -> bool {
        if is_guest(configuration) {
            self.configure_guest(configuration, host);
            return true;
        }
        match H::decoder(|decoder| plugin_config::read(decoder, configuration)) {
            Some(Ok(config)) => {
                self.decide_by(config, host);
                true
            }
            Some(Err(error)) => {
                reject(&error, host);
                applied::refused(configuration, &error, host);
                false
            }
            None => false,
        }
    }

    /// Some time has passed, as asked for by [`PluginHost::wake_every`].
    pub fn on_tick<H: PluginHost>(&mut self, host: &mut H) {
        self.follow(host);
        with_worker::<H, _>(|worker| worker.tick(self.context, host));
        self.refuse_what_waits(host);
        self.end_old_writes(host);
        let (context, passed_ms) = (self.context, self.tick_ms);
        with_applied::<H, _, _>(host, |applied, host| {
            applied.tick(context, passed_ms, host);
        });
    }

    /// A message has come on a stream.
    pub fn on_message<H: PluginHost>(&mut self, token: Token, message: &[u8], host: &mut H) {
        if H::follower(|follower| follower.owns(token)) == Some(true) {
            if let Some(guest) = &mut self.guest {
                H::follower(|follower| guest.on_message(message, follower, host));
                self.follow(host);
            }
        } else {
            let context = self.context;
            with_worker::<H, _>(|worker| worker.on_message(context, token, message, host));
        }
    }

    /// A stream has ended.
    pub fn on_closed<H: PluginHost>(&mut self, token: Token, host: &mut H) {
        if H::follower(|follower| follower.closed(token, host)) != Some(true) {
            with_worker::<H, _>(|worker| worker.closed(token, host));
        }
    }

    /// A report did not arrive, or was not taken.
    pub fn on_report_failed<H: PluginHost>(&mut self, host: &mut H) {
        with_applied::<H, _, _>(host, |applied, _| Applied::failed(applied));
    }

    /// What decides about the next request.
    pub fn deciding(&self) -> Deciding {
        Deciding {
            policy: Arc::clone(&self.policy),
            guest: self.guest.as_ref().map(|guest| Arc::clone(&guest.guest)),
        }
    }

    /// A request comes. It ends on the policy that it began with.
    pub fn request(&self, id: RequestId) -> Request {
        self.deciding().request(id)
    }

    /// The proxy has done with this configuration.
    pub fn removed<H: PluginHost>(&mut self, host: &mut H) {
        // Otherwise the proxy goes on to wake a context that is no more, and there is one for each
        // edition of the policy.
        if self.tick_ms > 0 {
            let _ = host.wake_every(0);
        }
        with_worker::<H, _>(|worker| worker.removed(self.context));
        H::follower(|follower| follower.lost(self.context));
        with_applied::<H, _, _>(host, |applied, _| applied.removed(self.context));
    }

    /// Becomes a guest. A guest's configuration is never rejected.
    fn configure_guest<H: PluginHost>(&mut self, configuration: &[u8], host: &mut H) {
        let (guest, outcome) = guest::Plugin::configured(configuration, host);
        match &outcome {
            Ok(()) => host.log(Level::Info, &guest.describe()),
            Err(why) => {
                host.log(
                    Level::Error,
                    &format!("{why}: until this is mended reads pass, and writes are rejected"),
                );
                host.count(Metric::PolicyRejected, 1);
            }
        }
        host.is_guest_now();
        join::<H>(host);
        let follows = guest.has_control_plane();
        self.guest = Some(guest);
        self.wake(follows, false, host);
        self.follow(host);
    }

    /// Follows the policy of a guest, and decides by a new one.
    fn follow<H: PluginHost>(&mut self, host: &mut H) {
        let Some(guest) = &mut self.guest else {
            return;
        };
        let elected = with_worker::<H, _>(|worker| election::elect(host, worker.permits.me()));
        let context = self.context;
        let read = H::decoder(|decoder| {
            H::follower(|it| guest.tick(context, elected.flatten(), it, decoder, host))
        });
        match read.flatten() {
            Some(Ok(Some(config))) => self.decide_by(config, host),
            Some(Err(error)) => reject(&error, host),
            Some(Ok(None)) | None => {}
        }
    }

    /// Decides by this policy from the next request on.
    fn decide_by<H: PluginHost>(&mut self, config: PluginConfig, host: &mut H) {
        host.log(Level::Info, &plugin_config::describe(&config));
        host.record(Metric::PolicyVersion, config.version);
        host.record(Metric::PolicyGeneration, config.generation);
        let context = self.context;
        let reports = with_applied::<H, _, _>(host, |applied, host| {
            applied.configured(context, &config, host)
        });
        self.policy = Arc::new(config.policy);
        let fenced = self.fence(host);
        self.wake(fenced || self.guest.is_some(), reports == Some(true), host);
    }

    /// Ends the writes of a guest that have lived for as long as the fence waits for them.
    fn end_old_writes<H: PluginHost>(&self, host: &mut H) {
        let Some(terms) = terms_of(&self.policy).filter(|_| self.guest.is_some()) else {
            return;
        };
        if H::deadlines(|deadlines| deadlines.is_empty()) != Some(false) {
            return;
        }
        let now_us = host.now().map(|at| at.monotonic_us);
        let due = H::deadlines(|deadlines| deadlines.due(now_us, terms.write_drain));
        for (request, answer) in due.into_iter().flatten() {
            answer.with(|reply| host.answer(request, reply));
        }
        host.turn_back(self.context);
    }

    /// Takes part in the fence; false if the policy has none.
    fn fence<H: PluginHost>(&self, host: &mut H) -> bool {
        if terms_of(&self.policy).is_none() {
            return false;
        }
        join::<H>(host);
        let configured = |worker: &mut Worker| worker.configured(self.context, &self.policy);
        if with_worker::<H, _>(configured).is_none() {
            host.log(Level::Error, "no random numbers: writes stay fenced");
        }
        true
    }

    /// Answers the requests whose bodies have come since they were refused.
    fn refuse_what_waits<H: PluginHost>(&self, host: &mut H) {
        let now_us = match H::refusals(|refusals| refusals.is_empty()) {
            Some(false) => host.now().map_or(u64::MAX, |at| at.monotonic_us),
            _ => return,
        };
        let due = H::refusals(|refusals| refusals.due(now_us, |request| host.bytes_of(request)));
        for (request, refusal) in due.into_iter().flatten() {
            refusal.with(|reply| host.answer(request, reply));
        }
        host.turn_back(self.context);
    }

    /// Has itself woken as often as is needed.
    fn wake<H: PluginHost>(&mut self, fenced: bool, reports: bool, host: &mut H) {
        let needed_ms = match (fenced, reports) {
            (true, _) => TICK_MS,
            (false, true) => applied::TICK_MS,
            (false, false) => 0,
        };
        if needed_ms == self.tick_ms {
            return;
        }
        match host.wake_every(needed_ms) {
            Ok(()) => self.tick_ms = needed_ms,
            Err(HostFailed) if fenced => {
                host.log(Level::Error, "no ticks: writes stay fenced");
            }
            Err(HostFailed) => {}
        }
    }
}

fn reject<H: PluginHost>(error: &InvalidPolicy, host: &mut H) {
    host.log(Level::Error, &format!("policy refused: {error}"));
    host.count(Metric::PolicyRejected, 1);
}

#[cfg(test)]
mod tests;
