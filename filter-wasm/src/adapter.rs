//! From the proxy's callbacks to [`carry_out`] and back. Translates, and nothing else.

use std::rc::Rc;

use policy::Policy;
use proxy_wasm::{
    hostcalls,
    traits::{Context, HttpContext, RootContext},
    types::{Action, BufferType, ContextType, LogLevel},
};

use crate::{
    carry_out::{Host, HostFailed, Reply, Verdict, carry_out},
    edition, host,
    metrics::{Metric, MetricIds},
};

thread_local! {
    static METRIC_IDS: MetricIds = const { MetricIds::new() };
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

proxy_wasm::main! {{
    // Sets up the panic hook as well: should the filter trap after all, the log says where.
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|_| Box::new(Plugin { policy: Rc::new(Policy::Fallback) }));
}}

/// The filter with one configuration, in one worker.
struct Plugin {
    policy: Rc<Policy>,
}

impl Context for Plugin {}

impl RootContext for Plugin {
    fn on_configure(&mut self, size: usize) -> bool {
        let bytes = hostcalls::get_buffer(BufferType::PluginConfiguration, 0, size);
        match edition::read(&bytes.ok().flatten().unwrap_or_default()) {
            Ok(edition) => {
                log(LogLevel::Info, &edition::describe(&edition));
                record(Metric::PolicyVersion, edition.version);
                record(Metric::PolicyGeneration, edition.generation);
                self.policy = Rc::new(edition.policy);
                true
            }
            Err(error) => {
                log(LogLevel::Error, &format!("policy refused: {error}"));
                count(Metric::PolicyRejected, 1);
                false
            }
        }
    }

    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        let policy = Rc::clone(&self.policy);
        Some(Box::new(Request { policy }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

fn log(level: LogLevel, line: &str) {
    let _ = hostcalls::log(level, line);
}

/// One request. It ends on the policy that it began with.
struct Request {
    policy: Rc<Policy>,
}

impl Context for Request {}

impl HttpContext for Request {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        let map = host::request_headers();
        match carry_out(&self.policy, map.as_deref(), &mut Envoy) {
            Verdict::GoesOn => Action::Continue,
            Verdict::Stops => Action::Pause,
        }
    }
}

/// The proxy around the current request.
struct Envoy;

impl Host for Envoy {
    fn set(&mut self, name: &str, value: &str) -> Result<(), HostFailed> {
        host::set_request_header(name.as_bytes(), value.as_bytes())
    }

    fn remove(&mut self, name: &[u8]) -> Result<(), HostFailed> {
        host::remove_request_header(name)
    }

    fn reply(&mut self, reply: &Reply<'_>) -> Result<(), HostFailed> {
        host::send_local_response(reply)
    }

    fn count(&mut self, counter: Metric, by: u32) {
        count(counter, by);
    }
}
