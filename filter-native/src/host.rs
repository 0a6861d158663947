//! The proxy around a configuration, during one of its hooks on Envoy's main thread.

use filter_core::{
    applied::ReportHost,
    apply::{HostFailed, Reply},
    fence::{
        control_stream::StreamHost,
        process::{Process, Reading, Version},
    },
    guest::follower::GuestHost,
    metrics::Metric,
    plugin::{Level, PluginHost},
    refusals::RequestId,
    stream::{ContextId, Token},
};
use protos::{fence::HolderSays, guest::GuestSays};

use crate::{
    abi::{self, EnvoyConfig, LogLevel},
    clock,
    memory::lends_memory,
    module::{Context, Purpose},
    node, requests, shared, ticker,
};

pub(crate) struct Proxy<'h> {
    /// None while the configuration is destroyed: then nothing is sent or counted.
    pub(crate) config: Option<EnvoyConfig<'h>>,
    pub(crate) context: &'h Context,
}

/// How long a report may take.
const REPORT_TIMEOUT_MS: u64 = 5_000;

lends_memory!(Proxy<'_>);

impl Process for Proxy<'_> {
    fn now(&mut self) -> Option<Reading> {
        clock::now()
    }

    fn random(&mut self) -> Option<u128> {
        clock::random()
    }

    fn get(&mut self, key: &str) -> Result<Option<(Vec<u8>, Version)>, HostFailed> {
        shared::get(key)
    }

    fn swap(&mut self, key: &str, seen: Option<Version>, value: &[u8]) -> Result<bool, HostFailed> {
        shared::swap(key, seen, value)
    }

    fn count(&mut self, counter: Metric, by: u32) {
        if let (Some(config), Some(id)) = (self.config, self.context.metric(counter)) {
            config.count(id, by.into());
        }
    }

    fn record(&mut self, gauge: Metric, value: u64) {
        if let (Some(config), Some(id)) = (self.config, self.context.metric(gauge)) {
            config.record(id, value);
        }
    }
}

impl Proxy<'_> {
    fn start(&self, purpose: Purpose, cluster: &str, path: &str) -> Result<Token, HostFailed> {
        let config = self.config.ok_or(HostFailed)?;
        self.context.start(config, purpose, cluster, path, &[], 0)
    }

    fn say(&self, token: Token, message: &[u8]) -> Result<(), HostFailed> {
        let config = self.config.ok_or(HostFailed)?;
        self.context.send(config, token, message)
    }
}

impl StreamHost for Proxy<'_> {
    fn open(&mut self, cluster: &str) -> Result<Token, HostFailed> {
        self.start(Purpose::Stream, cluster, "/tidegate.v1.Fence/Hold")
    }

    fn send(&mut self, token: Token, says: &HolderSays) -> Result<(), HostFailed> {
        self.say(token, &says.encode())
    }

    fn cancel(&mut self, token: Token) {
        if let Some(config) = self.config {
            self.context.cancel(config, token);
        }
    }

    fn node(&mut self) -> String {
        node::id()
    }

    fn role(&mut self) -> String {
        match self.context.is_guest() {
            true => "guest".to_owned(),
            false => node::text(&["metadata", "tidegate", "role"]).unwrap_or_default(),
        }
    }

    fn note(&mut self, line: &str) {
        abi::log(LogLevel::Warn, line);
    }
}

impl GuestHost for Proxy<'_> {
    fn follow(&mut self, cluster: &str) -> Result<Token, HostFailed> {
        self.start(Purpose::Stream, cluster, "/tidegate.v1.Guest/Follow")
    }

    fn tell(&mut self, token: Token, says: &GuestSays) -> Result<(), HostFailed> {
        self.say(token, &says.encode())
    }

    fn node_text(&mut self, path: &[&str]) -> Option<String> {
        node::text(path)
    }
}

impl ReportHost for Proxy<'_> {
    fn report(&mut self, cluster: &str, report: &[u8]) -> Result<(), HostFailed> {
        let config = self.config.ok_or(HostFailed)?;
        let path = "/tidegate.v1.Status/Report";
        let timeout_ms = REPORT_TIMEOUT_MS;
        let sent = self
            .context
            .start(config, Purpose::Report, cluster, path, report, timeout_ms);
        sent.map(drop)
    }

    fn name(&mut self) -> String {
        node::id()
    }
}

impl PluginHost for Proxy<'_> {
    fn wake_every(&mut self, period_ms: u32) -> Result<(), HostFailed> {
        match ticker::every(self.context.ticks(), period_ms) {
            true => Ok(()),
            false => Err(HostFailed),
        }
    }

    fn is_guest_now(&mut self) {
        self.context.set_guest();
    }

    fn bytes_of(&mut self, request: RequestId) -> Option<u64> {
        requests::bytes_of(request)
    }

    fn answer(&mut self, request: RequestId, reply: &Reply<'_>) {
        requests::answer(request, reply);
    }

    fn turn_back(&mut self, _: ContextId) {
        // Each call names what it is about.
    }

    fn log(&mut self, level: Level, line: &str) {
        let level = match level {
            Level::Info => LogLevel::Info,
            Level::Error => LogLevel::Error,
        };
        abi::log(level, line);
    }
}
