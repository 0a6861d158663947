//! A configuration of the filter, and its streams to the control plane.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use filter_core::{
    apply::HostFailed,
    metrics::{METRICS, Metric},
    plugin::{Deciding, Plugin},
    stream::{ContextId, Token},
};

use crate::{
    abi::{EnvoyConfig, only_validates},
    grpc::{self, Frames},
    host::Proxy,
    ticker::{self, Ticks},
};

/// A configuration, as Envoy's threads share it.
pub(crate) struct Context {
    /// Used by Envoy's main thread alone, and by the thread that destroys the configuration.
    plugin: Mutex<Plugin>,
    /// The part of it that decides about requests.
    deciding: RwLock<Deciding>,
    /// Envoy's ids of the metrics. All are defined at the start: later Envoy defines none.
    metric_ids: Vec<Option<usize>>,
    streams: Mutex<Vec<Stream>>,
    /// What has come on streams while the plugin was in use, or before its turn.
    events: Mutex<VecDeque<Event>>,
    ticks: Arc<Ticks>,
    is_guest: AtomicBool,
}

struct Stream {
    token: Token,
    /// Envoy's number of it.
    id: u64,
    purpose: Purpose,
    frames: Frames,
    /// The status that it ended with.
    status: Option<u32>,
}

/// The use of a stream.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Messages both ways, for as long as it lasts.
    Stream,
    /// One report, and its status.
    Report,
}

enum Event {
    Message(Token, Vec<u8>),
    Closed(Token),
    ReportFailed,
}

static CONTEXTS: AtomicU32 = AtomicU32::new(1);
static TOKENS: AtomicU32 = AtomicU32::new(1);

/// Takes a configuration in. None if it is rejected.
pub(crate) fn configure(config: EnvoyConfig<'_>, bytes: &[u8]) -> Option<Arc<Context>> {
    let id = ContextId(CONTEXTS.fetch_add(1, Ordering::Relaxed));
    let plugin = Plugin::new(id);
    let mut metric_ids = vec![None; METRICS];
    for metric in Metric::all() {
        if let Some(slot) = metric_ids.get_mut(metric.index()) {
            *slot = config.define(metric.kind(), &metric.name());
        }
    }
    let context = Arc::new(Context {
        deciding: RwLock::new(plugin.deciding()),
        plugin: Mutex::new(plugin),
        metric_ids,
        streams: Mutex::default(),
        events: Mutex::default(),
        ticks: Ticks::new(config.scheduler()?),
        is_guest: AtomicBool::new(false),
    });
    let mut proxy = Proxy {
        config: Some(config),
        context: &context,
    };
    let is_taken = {
        // Locked meanwhile, so that what comes on its streams waits.
        let mut plugin = context.plugin.lock().ok()?;
        let is_taken = plugin.configure(bytes, &mut proxy);
        if !is_taken || only_validates() {
            plugin.removed(&mut proxy);
        }
        context.decide_by(plugin.deciding());
        is_taken
    };
    settle(config, &context);
    is_taken.then_some(context)
}

/// Envoy destroys a configuration, on whatever thread.
pub(crate) fn removed(context: &Arc<Context>) {
    // Whatever else fails: from here on Envoy is not asked for ticks.
    ticker::every(&context.ticks, 0);
    let mut proxy = Proxy {
        config: None,
        context,
    };
    if let Ok(mut plugin) = context.plugin.lock() {
        plugin.removed(&mut proxy);
    }
}

/// A tick is there that the ticker has asked for.
pub(crate) fn on_tick(config: EnvoyConfig<'_>, context: &Context) {
    context.ticks.came();
    let mut proxy = Proxy {
        config: Some(config),
        context,
    };
    if let Ok(mut plugin) = context.plugin.lock() {
        plugin.on_tick(&mut proxy);
        context.decide_by(plugin.deciding());
    }
    settle(config, context);
}

/// The answer on a stream has begun.
pub(crate) fn on_stream_headers(
    config: EnvoyConfig<'_>,
    context: &Context,
    id: u64,
    headers: &[(&[u8], &[u8])],
) {
    if grpc::is_open(headers) {
        on_stream_trailers(context, id, headers);
    } else if context.forget(id).is_some() {
        config.reset(id);
        settle(config, context);
    }
}

/// Bytes have come on a stream. To be followed by [`settle`].
pub(crate) fn on_stream_data(config: EnvoyConfig<'_>, context: &Context, id: u64, bytes: &[u8]) {
    let taken = context.with_stream(id, |stream| (stream.token, stream.frames.take(bytes)));
    match taken {
        Some((token, Ok(messages))) => {
            let messages = messages.into_iter();
            context.push(messages.map(|message| Event::Message(token, message)));
        }
        Some((_, Err(grpc::Broken))) if context.forget(id).is_some() => config.reset(id),
        Some(_) | None => {}
    }
}

/// Headers or trailers, in which a status may stand.
pub(crate) fn on_stream_trailers(context: &Context, id: u64, trailers: &[(&[u8], &[u8])]) {
    if let Some(status) = grpc::status(trailers) {
        context.with_stream(id, |stream| stream.status = Some(status));
    }
}

/// A stream has ended, well or not. Envoy may call this within calls of the module.
pub(crate) fn on_stream_over(config: EnvoyConfig<'_>, context: &Context, id: u64) {
    if context.forget(id).is_some() {
        settle(config, context);
    }
}

/// Gives the plugin what has come on its streams. Where it is in use, its user does so afterwards.
pub(crate) fn settle(config: EnvoyConfig<'_>, context: &Context) {
    let mut proxy = Proxy {
        config: Some(config),
        context,
    };
    while let Ok(mut plugin) = context.plugin.try_lock() {
        let Some(event) = context.pop() else {
            return;
        };
        match event {
            Event::Message(token, message) => plugin.on_message(token, &message, &mut proxy),
            Event::Closed(token) => plugin.on_closed(token, &mut proxy),
            Event::ReportFailed => plugin.on_report_failed(&mut proxy),
        }
        context.decide_by(plugin.deciding());
    }
}

impl Context {
    /// What decides about the next request.
    pub(crate) fn deciding(&self) -> Deciding {
        let deciding = self.deciding.read();
        deciding.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn decide_by(&self, deciding: Deciding) {
        if !self.deciding().is_same(&deciding) {
            let current = self.deciding.write();
            *current.unwrap_or_else(PoisonError::into_inner) = deciding;
        }
    }

    pub(crate) fn metric(&self, metric: Metric) -> Option<usize> {
        *self.metric_ids.get(metric.index())?
    }

    pub(crate) fn ticks(&self) -> &Arc<Ticks> {
        &self.ticks
    }

    pub(crate) fn is_guest(&self) -> bool {
        self.is_guest.load(Ordering::Relaxed)
    }

    pub(crate) fn set_guest(&self) {
        self.is_guest.store(true, Ordering::Relaxed);
    }

    /// Starts a stream to a cluster: a report is sent and ends it, otherwise it stays open.
    pub(crate) fn start(
        &self,
        config: EnvoyConfig<'_>,
        purpose: Purpose,
        cluster: &str,
        path: &str,
        message: &[u8],
        timeout_ms: u64,
    ) -> Result<Token, HostFailed> {
        let is_open = purpose == Purpose::Stream;
        let body = match is_open {
            true => vec![],
            false => grpc::frame(message).ok_or(HostFailed)?,
        };
        let headers = grpc::headers(cluster, path);
        let id = config.start_stream(cluster, &headers, &body, is_open, timeout_ms);
        let id = id.ok_or(HostFailed)?;
        let token = Token(TOKENS.fetch_add(1, Ordering::Relaxed));
        let mut streams = self
            .streams
            .lock()
            .map_err(|PoisonError { .. }| HostFailed)?;
        streams.push(Stream {
            token,
            id,
            purpose,
            frames: Frames::default(),
            status: None,
        });
        Ok(token)
    }

    pub(crate) fn send(
        &self,
        config: EnvoyConfig<'_>,
        token: Token,
        message: &[u8],
    ) -> Result<(), HostFailed> {
        let id = self.id_of(token).ok_or(HostFailed)?;
        let framed = grpc::frame(message).ok_or(HostFailed)?;
        match config.send(id, &framed) {
            true => Ok(()),
            false => Err(HostFailed),
        }
    }

    /// Ends a stream, of which nothing is heard any more.
    pub(crate) fn cancel(&self, config: EnvoyConfig<'_>, token: Token) {
        let Some(id) = self.id_of(token) else {
            return;
        };
        if let Ok(mut streams) = self.streams.lock() {
            streams.retain(|stream| stream.id != id);
        }
        config.reset(id);
    }

    fn id_of(&self, token: Token) -> Option<u64> {
        let streams = self.streams.lock().ok()?;
        let stream = streams.iter().find(|stream| stream.token == token)?;
        Some(stream.id)
    }

    fn with_stream<T>(&self, id: u64, act: impl FnOnce(&mut Stream) -> T) -> Option<T> {
        let mut streams = self.streams.lock().ok()?;
        streams.iter_mut().find(|stream| stream.id == id).map(act)
    }

    /// A stream is no more; its user is told. None where nobody uses it.
    fn forget(&self, id: u64) -> Option<()> {
        let stream = {
            let mut streams = self.streams.lock().ok()?;
            let at = streams.iter().position(|stream| stream.id == id)?;
            streams.swap_remove(at)
        };
        let event = match (stream.purpose, stream.status) {
            (Purpose::Stream, _) => Some(Event::Closed(stream.token)),
            (Purpose::Report, Some(0)) => None,
            (Purpose::Report, _) => Some(Event::ReportFailed),
        };
        self.push(event);
        Some(())
    }

    fn push(&self, events: impl IntoIterator<Item = Event>) {
        if let Ok(mut waiting) = self.events.lock() {
            waiting.extend(events);
        }
    }

    fn pop(&self) -> Option<Event> {
        self.events.lock().ok()?.pop_front()
    }
}
