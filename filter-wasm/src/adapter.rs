//! From the proxy's callbacks to [`Plugin`] and [`Request`], and back. Translates, and nothing else.

use std::cell::{Cell, RefCell};

use filter_core::{
    applied::{Applied, ReportHost},
    apply::{FilterHeadersStatus, HostFailed, Reply},
    deadlines::Deadlines,
    draws::Draws,
    fence::{
        control_stream::StreamHost,
        ending::Ending,
        process::{Process, Reading, Version},
        worker::Worker,
    },
    guest::follower::{Follower, GuestHost},
    memory::Memory,
    metrics::{Metric, MetricIds},
    plugin::{Level, Plugin, PluginHost},
    refusals::{Refusals, RequestId},
    request::{Request, RequestHost},
    stream::{ContextId, Token},
};
use protos::{Decoder, fence::HolderSays, guest::GuestSays};
use proxy_wasm::{
    hostcalls,
    traits::{Context, HttpContext, RootContext},
    types::{Action, ContextType, LogLevel},
};

use crate::host;

thread_local! {
    // This worker's memory. It outlives the root contexts, of which each policy has one.
    static DECODER: RefCell<Decoder> = RefCell::new(Decoder::default());
    static WORKER: RefCell<Option<Worker>> = const { RefCell::new(None) };
    static REFUSALS: RefCell<Refusals> = const { RefCell::new(Refusals::new()) };
    static FOLLOWER: RefCell<Follower> = RefCell::new(Follower::default());
    static DEADLINES: RefCell<Deadlines> = const { RefCell::new(Deadlines::new()) };
    static APPLIED: RefCell<Option<Applied>> = const { RefCell::new(None) };

    static METRIC_IDS: MetricIds = const { MetricIds::new() };
    /// From a random number of its own. Without one all workers draw alike, which is as evenly
    /// spread.
    static DRAWS: Draws = Draws::from(host::random().unwrap_or_default() as u64);
    /// Somebody else configures the proxy.
    static IS_GUEST: Cell<bool> = const { Cell::new(false) };
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

proxy_wasm::main! {{
    // Sets up the panic hook as well: should the filter trap after all, the log says where.
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|context| Box::new(Root(Plugin::new(ContextId(context)))));
}}

/// The filter with one configuration, in one worker.
struct Root(Plugin);

impl Context for Root {
    fn on_grpc_stream_message(&mut self, token: u32, size: usize) {
        if let Some(message) = host::grpc_message(size) {
            self.0.on_message(Token(token), &message, &mut Envoy);
        }
    }

    fn on_grpc_call_response(&mut self, _: u32, status: u32, _: usize) {
        // Only reports are such calls.
        if status != 0 {
            self.0.on_report_failed(&mut Envoy);
        }
    }

    fn on_grpc_stream_close(&mut self, token: u32, _: u32) {
        // Otherwise the proxy keeps a stream that is no more, and trips over it when this context
        // goes.
        let _ = host::grpc_cancel(token);
        self.0.on_closed(Token(token), &mut Envoy);
    }
}

impl RootContext for Root {
    fn on_configure(&mut self, size: usize) -> bool {
        let configuration = host::configuration(size).unwrap_or_default();
        self.0.configure(&configuration, &mut Envoy)
    }

    fn on_tick(&mut self) {
        self.0.on_tick(&mut Envoy);
    }

    fn create_http_context(&self, context: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Http(self.0.request(RequestId(context)))))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        self.0.removed(&mut Envoy);
    }
}

struct Http(Request);

impl Context for Http {}

impl HttpContext for Http {
    fn on_http_request_headers(&mut self, _: usize, end_of_stream: bool) -> Action {
        let map = host::request_headers();
        match self.0.on_headers(map.as_deref(), end_of_stream, &mut Envoy) {
            FilterHeadersStatus::Continue => Action::Continue,
            FilterHeadersStatus::StopIteration => Action::Pause,
        }
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        self.0.over(&mut Envoy);
    }
}

/// The proxy around this worker. A call is about the context whose callback runs.
struct Envoy;

impl Memory for Envoy {
    fn decoder<T>(act: impl FnOnce(&mut Decoder) -> T) -> Option<T> {
        DECODER.with(|part| Some(act(&mut *part.try_borrow_mut().ok()?)))
    }

    fn worker<T>(act: impl FnOnce(&mut Option<Worker>) -> T) -> Option<T> {
        WORKER.with(|part| Some(act(&mut *part.try_borrow_mut().ok()?)))
    }

    fn refusals<T>(act: impl FnOnce(&mut Refusals) -> T) -> Option<T> {
        REFUSALS.with(|part| Some(act(&mut *part.try_borrow_mut().ok()?)))
    }

    fn follower<T>(act: impl FnOnce(&mut Follower) -> T) -> Option<T> {
        FOLLOWER.with(|part| Some(act(&mut *part.try_borrow_mut().ok()?)))
    }

    fn deadlines<T>(act: impl FnOnce(&mut Deadlines) -> T) -> Option<T> {
        DEADLINES.with(|part| Some(act(&mut *part.try_borrow_mut().ok()?)))
    }

    fn applied<T>(act: impl FnOnce(&mut Option<Applied>) -> T) -> Option<T> {
        APPLIED.with(|part| Some(act(&mut *part.try_borrow_mut().ok()?)))
    }
}

impl PluginHost for Envoy {
    fn wake_every(&mut self, period_ms: u32) -> Result<(), HostFailed> {
        host::set_tick_period(period_ms)
    }

    fn is_guest_now(&mut self) {
        IS_GUEST.set(true);
    }

    fn bytes_of(&mut self, request: RequestId) -> Option<u64> {
        host::turn_to(request.0).ok()?;
        host::request_bytes()
    }

    fn answer(&mut self, request: RequestId, reply: &Reply<'_>) {
        if host::turn_to(request.0).is_ok() {
            let _ = host::send_local_response(reply);
        }
    }

    fn turn_back(&mut self, context: ContextId) {
        let _ = host::turn_to(context.0);
    }

    fn log(&mut self, level: Level, line: &str) {
        let level = match level {
            Level::Info => LogLevel::Info,
            Level::Error => LogLevel::Error,
        };
        let _ = hostcalls::log(level, line);
    }
}

impl RequestHost for Envoy {
    fn set_header(&mut self, name: &str, value: &str) -> Result<(), HostFailed> {
        host::set_request_header(name.as_bytes(), value.as_bytes())
    }

    fn remove_header(&mut self, name: &[u8]) -> Result<(), HostFailed> {
        host::remove_request_header(name)
    }

    fn send_reply(&mut self, reply: &Reply<'_>) -> Result<(), HostFailed> {
        host::send_local_response(reply)
    }

    fn bytes_came(&mut self) -> Option<u64> {
        host::request_bytes()
    }

    fn answered_later(&mut self, _: RequestId) {
        // Any context can be turned to.
    }

    fn draw(&mut self) -> u64 {
        DRAWS.with(Draws::next)
    }

    fn ending(&mut self) -> Ending {
        host::ending()
    }
}

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
        with_id(counter, |id| host::increment_metric(id, by));
    }

    fn record(&mut self, gauge: Metric, value: u64) {
        with_id(gauge, |id| host::record_metric(id, value));
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
        let _ = hostcalls::log(LogLevel::Warn, line);
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
