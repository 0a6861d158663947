//! From the proxy's callbacks to [`apply`] and [`Worker`], and back. Translates, and nothing else.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use filter_core::{
    applied::{self, Applied, ReportHost},
    apply::{FilterHeadersStatus, Host, HostFailed, Reply, apply_as},
    deadlines::Deadlines,
    draws::Draws,
    fence::{
        control_stream::{ContextId, StreamHost, Token},
        election, hop_keys,
        permits::Permits,
        process::{Process, Reading, Version},
        worker::{Worker, terms_of},
    },
    guest::{
        self,
        config::is_guest,
        follower::{Follower, GuestHost},
    },
    metrics::{Metric, MetricIds},
    plugin_config,
    refusals::{Refusals, RequestId},
};
use policy::{Policy, fence::WorkerId, guest::Guest, hop::HopKeys};
use protos::{Decoder, PluginConfig, fence::HolderSays, guest::GuestSays};
use proxy_wasm::{
    hostcalls,
    traits::{Context, HttpContext, RootContext},
    types::{Action, ContextType, LogLevel},
};

use crate::host;

thread_local! {
    /// This worker's decoder of policies. It outlives the root contexts, of which each policy has
    /// one.
    static DECODER: RefCell<Decoder> = RefCell::new(Decoder::default());
    static METRIC_IDS: MetricIds = const { MetricIds::new() };
    /// From a random number of its own. Without one all workers draw alike, which is as evenly
    /// spread.
    static DRAWS: Draws = Draws::from(host::random().unwrap_or_default() as u64);
    /// This worker's part in the fence. None until there is something to fence, or for want of a
    /// random number.
    static WORKER: RefCell<Option<Worker>> = const { RefCell::new(None) };
    /// The refusals of this worker that wait for a body.
    static REFUSALS: RefCell<Refusals> = const { RefCell::new(Refusals::new()) };
    /// Somebody else configures the proxy.
    static IS_GUEST: Cell<bool> = const { Cell::new(false) };
    /// This worker's stream for the policy of its guests.
    static FOLLOWER: RefCell<Follower> = RefCell::new(Follower::default());
    /// The admitted writes that this worker ends by itself.
    static DEADLINES: RefCell<Deadlines> = const { RefCell::new(Deadlines::new()) };
    /// This worker's part in the reports of applied policies. None before the first, or for want of
    /// a random number.
    static APPLIED: RefCell<Option<Applied>> = const { RefCell::new(None) };
}

fn with_id(metric: Metric, act: impl FnOnce(u32) -> Result<(), HostFailed>) {
    let define = |metric: Metric| host::define_metric(metric.kind(), &metric.name()).ok();
    METRIC_IDS.with(|ids| {
        if let Some(id) = ids.get(metric, define) {
            // A metric that cannot be written is no reason to fail anything.
            let _ = act(id);
        }
    });
}

fn count(counter: Metric, by: u32) {
    with_id(counter, |id| host::increment_metric(id, by));
}

fn record(gauge: Metric, value: u64) {
    with_id(gauge, |id| host::record_metric(id, value));
}

/// Lets this worker's part in the fence act, if it has one. Nothing that it calls leads back here;
/// were it otherwise, the inner call would do nothing: then a write is not admitted, or its end not
/// noticed, and a fence waits longer.
fn with_worker<T>(act: impl FnOnce(&mut Worker) -> T) -> Option<T> {
    WORKER.with(|worker| Some(act(worker.try_borrow_mut().ok()?.as_mut()?)))
}

/// Lets this worker's waiting refusals act.
fn with_refusals<T>(act: impl FnOnce(&mut Refusals) -> T) -> Option<T> {
    REFUSALS.with(|refusals| Some(act(&mut *refusals.try_borrow_mut().ok()?)))
}

/// Lets this worker's stream for policies act.
fn with_follower<T>(act: impl FnOnce(&mut Follower) -> T) -> Option<T> {
    FOLLOWER.with(|follower| Some(act(&mut *follower.try_borrow_mut().ok()?)))
}

/// Lets the list of this worker's admitted writes act.
fn with_deadlines<T>(act: impl FnOnce(&mut Deadlines) -> T) -> Option<T> {
    DEADLINES.with(|deadlines| Some(act(&mut *deadlines.try_borrow_mut().ok()?)))
}

/// Makes this worker's part in the fence.
fn join() {
    WORKER.with(|worker| {
        let Ok(mut worker) = worker.try_borrow_mut() else {
            return;
        };
        if worker.is_none() {
            let me = host::random().map(|bits| WorkerId(bits as u64));
            *worker = me.map(|me| Worker::new(Permits::new(me)));
        }
    });
}

/// Lets this worker's part in the reports act, if it has one.
fn with_applied<T>(act: impl FnOnce(&mut Applied) -> T) -> Option<T> {
    APPLIED.with(|applied| {
        let mut applied = applied.try_borrow_mut().ok()?;
        if applied.is_none() {
            *applied = host::random().map(|bits| Applied::new(bits as u64));
        }
        Some(act(applied.as_mut()?))
    })
}

/// How often a worker checks its permits, where writes are fenced: the longest that a
/// revocation takes to be seen.
const TICK_MS: u32 = 10;

proxy_wasm::main! {{
    // Sets up the panic hook as well: should the filter trap after all, the log says where.
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|context| Box::new(Plugin {
        context: ContextId(context),
        policy: Rc::new(Policy::Fallback),
        guest: None,
        tick_ms: 0,
    }));
}}

/// The filter with one configuration, in one worker.
struct Plugin {
    context: ContextId,
    policy: Rc<Policy>,
    /// Present where somebody else configures the proxy.
    guest: Option<guest::Plugin>,
    /// How often it is woken; 0 for never.
    tick_ms: u32,
}

impl Context for Plugin {
    fn on_grpc_stream_message(&mut self, token: u32, size: usize) {
        let (Some(message), token) = (host::grpc_message(size), Token(token)) else {
            return;
        };
        if with_follower(|follower| follower.owns(token)) == Some(true) {
            if let Some(guest) = &mut self.guest {
                with_follower(|follower| guest.on_message(&message, follower, &mut Envoy));
                self.follow();
            }
        } else {
            with_worker(|worker| worker.on_message(self.context, token, &message, &mut Envoy));
        }
    }

    fn on_grpc_call_response(&mut self, _: u32, status: u32, _: usize) {
        // Only reports are such calls.
        if status != 0 {
            with_applied(Applied::failed);
        }
    }

    fn on_grpc_stream_close(&mut self, token: u32, _: u32) {
        // Otherwise the proxy keeps a stream that is no more, and trips over it when this context
        // goes.
        let _ = host::grpc_cancel(token);
        let token = Token(token);
        if with_follower(|follower| follower.closed(token, &mut Envoy)) != Some(true) {
            with_worker(|worker| worker.closed(token, &mut Envoy));
        }
    }
}

impl RootContext for Plugin {
    fn on_configure(&mut self, size: usize) -> bool {
        let configuration = host::configuration(size).unwrap_or_default();
        if is_guest(&configuration) {
            self.configure_guest(&configuration);
            return true;
        }
        let read = DECODER.with_borrow_mut(|decoder| plugin_config::read(decoder, &configuration));
        match read {
            Ok(config) => {
                self.decide_by(config);
                true
            }
            Err(error) => {
                log(LogLevel::Error, &format!("policy refused: {error}"));
                count(Metric::PolicyRejected, 1);
                applied::refused(&configuration, &error, &mut Envoy);
                false
            }
        }
    }

    fn on_tick(&mut self) {
        self.follow();
        with_worker(|worker| worker.tick(self.context, &mut Envoy));
        self.refuse_what_waits();
        self.end_old_writes();
        with_applied(|applied| applied.tick(self.context, self.tick_ms, &mut Envoy));
    }

    fn create_http_context(&self, context: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(RequestContext {
            id: RequestId(context),
            policy: Rc::clone(&self.policy),
            guest: self.guest.as_ref().map(|guest| Rc::clone(&guest.guest)),
            in_flight: None,
            complete: false,
        }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

impl Plugin {
    /// Becomes a guest. A guest's configuration is never rejected.
    fn configure_guest(&mut self, configuration: &[u8]) {
        let (guest, outcome) = guest::Plugin::configured(configuration, &mut Envoy);
        match &outcome {
            Ok(()) => log(LogLevel::Info, &guest.describe()),
            Err(why) => {
                log(
                    LogLevel::Error,
                    &format!("{why}: until this is mended reads pass, and writes are rejected"),
                );
                count(Metric::PolicyRejected, 1);
            }
        }
        IS_GUEST.set(true);
        join();
        let is_usable = guest.is_usable();
        self.guest = Some(guest);
        self.wake(is_usable, false);
        self.follow();
    }

    /// Follows the policy of a guest, and decides by a new one.
    fn follow(&mut self) {
        let Some(guest) = &mut self.guest else {
            return;
        };
        let elected = with_worker(|worker| election::elect(&mut Envoy, worker.permits.me()));
        let context = self.context;
        let read = DECODER.with_borrow_mut(|decoder| {
            with_follower(|it| guest.tick(context, elected.flatten(), it, decoder, &mut Envoy))
        });
        match read {
            Some(Ok(Some(config))) => self.decide_by(config),
            Some(Err(error)) => {
                log(LogLevel::Error, &format!("policy refused: {error}"));
                count(Metric::PolicyRejected, 1);
            }
            Some(Ok(None)) | None => {}
        }
    }

    /// Decides by this policy from the next request on.
    fn decide_by(&mut self, config: PluginConfig) {
        log(LogLevel::Info, &plugin_config::describe(&config));
        record(Metric::PolicyVersion, config.version);
        record(Metric::PolicyGeneration, config.generation);
        let reports = with_applied(|it| it.configured(self.context, &config, &mut Envoy));
        self.policy = Rc::new(config.policy);
        let fenced = self.fence();
        self.wake(fenced || self.guest.is_some(), reports == Some(true));
    }

    /// Ends the writes of a guest that have lived for as long as the fence waits for them.
    fn end_old_writes(&self) {
        let Some(terms) = terms_of(&self.policy).filter(|_| self.guest.is_some()) else {
            return;
        };
        if with_deadlines(|deadlines| deadlines.is_empty()) != Some(false) {
            return;
        }
        let now_us = host::now().map(|at| at.monotonic_us);
        let due = with_deadlines(|deadlines| deadlines.due(now_us, terms.write_drain));
        for (request, answer) in due.into_iter().flatten() {
            // Once its answer has begun the proxy resets the request.
            if host::turn_to(request.0).is_ok() {
                let _ = answer.with(host::send_local_response);
            }
        }
        let _ = host::turn_to(self.context.0);
    }

    /// Takes part in the fence; false if the policy has none.
    fn fence(&self) -> bool {
        if terms_of(&self.policy).is_none() {
            return false;
        }
        join();
        let fenced = with_worker(|worker| worker.configured(self.context, &self.policy));
        if fenced.is_none() {
            log(LogLevel::Error, "no random numbers: writes stay fenced");
        }
        true
    }

    /// Answers the requests whose bodies have come since they were refused.
    fn refuse_what_waits(&self) {
        let now_us = match with_refusals(|refusals| refusals.is_empty()) {
            Some(false) => host::now().map_or(u64::MAX, |at| at.monotonic_us),
            _ => return,
        };
        let came = |request: RequestId| match host::turn_to(request.0) {
            Ok(()) => host::request_bytes(),
            Err(HostFailed) => None,
        };
        let due = with_refusals(|refusals| refusals.due(now_us, came));
        for (request, refusal) in due.into_iter().flatten() {
            // Where even this fails the request is held until it times out.
            if host::turn_to(request.0).is_ok() {
                let _ = refusal.with(host::send_local_response);
            }
        }
        let _ = host::turn_to(self.context.0);
    }

    /// Has itself woken as often as is needed.
    fn wake(&mut self, fenced: bool, reports: bool) {
        let needed_ms = match (fenced, reports) {
            (true, _) => TICK_MS,
            (false, true) => applied::TICK_MS,
            (false, false) => 0,
        };
        if needed_ms == self.tick_ms {
            return;
        }
        match host::set_tick_period(needed_ms) {
            Ok(()) => self.tick_ms = needed_ms,
            Err(HostFailed) if fenced => log(LogLevel::Error, "no ticks: writes stay fenced"),
            Err(HostFailed) => {}
        }
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        // Otherwise the proxy goes on to wake a context that is no more, and there is one for each
        // edition of the policy.
        if self.tick_ms > 0 {
            let _ = host::set_tick_period(0);
        }
        with_worker(|worker| worker.removed(self.context));
        with_follower(|follower| follower.lost(self.context));
        with_applied(|applied| applied.removed(self.context));
    }
}

fn log(level: LogLevel, line: &str) {
    let _ = hostcalls::log(level, line);
}

/// One request. It ends on the policy that it began with.
struct RequestContext {
    id: RequestId,
    policy: Rc<Policy>,
    guest: Option<Rc<Guest>>,
    /// Its count as a write in flight.
    in_flight: Option<InFlight>,
    /// The request ends with its headers.
    complete: bool,
}

struct InFlight {
    cell: Box<str>,
    /// None until it is admitted.
    admitted_us: Option<u64>,
}

impl Context for RequestContext {}

impl HttpContext for RequestContext {
    fn on_http_request_headers(&mut self, _: usize, end_of_stream: bool) -> Action {
        self.complete = end_of_stream;
        let map = host::request_headers();
        let (policy, guest) = (Rc::clone(&self.policy), self.guest.clone());
        match apply_as(guest.as_deref(), &policy, map.as_deref(), self) {
            FilterHeadersStatus::Continue => Action::Continue,
            FilterHeadersStatus::StopIteration => Action::Pause,
        }
    }
}

impl Drop for RequestContext {
    /// The proxy has done with the request, retries and body included.
    fn drop(&mut self) {
        with_refusals(|refusals| refusals.forget(self.id));
        if self.guest.is_some() && self.in_flight.is_some() {
            with_deadlines(|deadlines| deadlines.forget(self.id));
        }
        let admitted = self.in_flight.as_ref().and_then(|write| write.admitted_us);
        match admitted.filter(|_| !host::ending().is_settled()) {
            Some(admitted_us) => self.abandon(admitted_us),
            None => self.end(),
        }
    }
}

impl RequestContext {
    fn end(&mut self) {
        if let (Some(write), Some(terms)) = (self.in_flight.take(), terms_of(&self.policy)) {
            with_worker(|worker| worker.permits.end(&write.cell, terms, &mut Envoy));
        }
    }

    fn abandon(&mut self, admitted_us: u64) {
        if let (Some(write), Some(terms)) = (self.in_flight.take(), terms_of(&self.policy)) {
            let cell = &write.cell;
            with_worker(|worker| {
                let permits = &mut worker.permits;
                permits.abandon(cell, admitted_us, terms, &mut Envoy);
            });
        }
    }

    /// Whether the refusal is kept until the body has come. Only where the fence has this worker
    /// woken every few milliseconds.
    fn wait(&self, reply: &Reply<'_>) -> bool {
        let wakes = !self.complete && terms_of(&self.policy).is_some();
        if !wakes || reply.awaited_body.is_none() {
            return false;
        }
        let (Some(came), Some(at)) = (host::request_bytes(), host::now()) else {
            return false;
        };
        let keep = |refusals: &mut Refusals| refusals.keep(self.id, reply, came, at.monotonic_us);
        with_refusals(keep) == Some(true)
    }
}

impl Host for RequestContext {
    fn set(&mut self, name: &str, value: &str) -> Result<(), HostFailed> {
        host::set_request_header(name.as_bytes(), value.as_bytes())
    }

    fn remove(&mut self, name: &[u8]) -> Result<(), HostFailed> {
        host::remove_request_header(name)
    }

    fn reply(&mut self, reply: &Reply<'_>) -> Result<(), HostFailed> {
        match self.wait(reply) {
            true => Ok(()),
            false => host::send_local_response(reply),
        }
    }

    fn count(&mut self, counter: Metric, by: u32) {
        count(counter, by);
    }

    fn admit(&mut self, cell: &str, grpc: bool) -> Option<u64> {
        // Should the proxy ever show a request twice, the first one counts no more.
        self.end();
        let policy = Rc::clone(&self.policy);
        let terms = terms_of(&policy)?;
        let write = self.in_flight.insert(InFlight {
            cell: cell.into(),
            admitted_us: None,
        });
        let admitted = with_worker(|worker| worker.permits.admit(cell, terms, &mut Envoy))??;
        write.admitted_us = Some(admitted.at_us);
        if self.guest.is_some() {
            with_deadlines(|deadlines| deadlines.admitted(self.id, admitted.at_us, grpc));
        }
        Some(admitted.epoch)
    }

    fn release(&mut self, _: &str) {
        self.end();
    }

    fn hop_keys(&mut self) -> HopKeys {
        hop_keys::read(&mut Envoy)
    }

    fn draw(&mut self) -> u64 {
        DRAWS.with(Draws::next)
    }
}

/// The proxy around this worker.
struct Envoy;

impl Process for Envoy {
    fn now(&mut self) -> Option<Reading> {
        host::now()
    }

    fn random(&mut self) -> Option<u128> {
        host::random()
    }

    fn get(&mut self, key: &str) -> Result<Option<(Vec<u8>, Version)>, HostFailed> {
        host::get_shared(key)
    }

    fn swap(&mut self, key: &str, seen: Option<Version>, value: &[u8]) -> Result<bool, HostFailed> {
        host::swap_shared(key, seen, value)
    }

    fn count(&mut self, counter: Metric, by: u32) {
        count(counter, by);
    }

    fn record(&mut self, gauge: Metric, value: u64) {
        record(gauge, value);
    }
}

impl StreamHost for Envoy {
    fn open(&mut self, cluster: &str) -> Result<Token, HostFailed> {
        host::grpc_open(cluster, "tidegate.v1.Fence", "Hold").map(Token)
    }

    fn send(&mut self, token: Token, says: &HolderSays) -> Result<(), HostFailed> {
        host::grpc_send(token.0, &says.encode())
    }

    fn cancel(&mut self, token: Token) {
        let _ = host::grpc_cancel(token.0);
    }

    fn node(&mut self) -> String {
        host::node_id().unwrap_or_default()
    }

    fn role(&mut self) -> String {
        match IS_GUEST.get() {
            true => "guest".to_owned(),
            false => host::node_role().unwrap_or_default(),
        }
    }

    fn note(&mut self, line: &str) {
        log(LogLevel::Warn, line);
    }
}

impl GuestHost for Envoy {
    fn follow(&mut self, cluster: &str) -> Result<Token, HostFailed> {
        host::grpc_open(cluster, "tidegate.v1.Guest", "Follow").map(Token)
    }

    fn tell(&mut self, token: Token, says: &GuestSays) -> Result<(), HostFailed> {
        host::grpc_send(token.0, &says.encode())
    }

    fn node_text(&mut self, path: &[&str]) -> Option<String> {
        host::node_text(path)
    }
}

impl ReportHost for Envoy {
    fn report(&mut self, cluster: &str, report: &[u8]) -> Result<(), HostFailed> {
        host::grpc_call(cluster, "tidegate.v1.Status", "Report", report)
    }

    fn name(&mut self) -> String {
        host::node_id().unwrap_or_default()
    }
}
