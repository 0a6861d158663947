//! Requests, on Envoy's workers.

use std::{
    collections::BTreeMap,
    mem,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use filter_core::{
    apply::{FilterHeadersStatus, HostFailed, Reply},
    draws::Draws,
    fence::{
        ending::Ending,
        process::{Process, Reading, Version},
    },
    metrics::Metric,
    refusals::{Kept, RequestId},
    request::{Request, RequestHost},
};

use crate::{
    abi::{EnvoyStream, StreamScheduler},
    clock,
    memory::lends_memory,
    module::Context,
    shared,
};

static IDS: AtomicU32 = AtomicU32::new(1);

thread_local! {
    /// From a random number of its own, in each thread.
    static DRAWS: Draws = Draws::from(clock::random().unwrap_or_default() as u64);
}

/// The filter of one request.
pub(crate) struct Filter {
    id: RequestId,
    context: Arc<Context>,
    request: Request,
    /// It goes no further than here.
    is_stopped: bool,
    /// It is listed in [`LATER`].
    is_listed: bool,
    /// It is over, and was told so.
    is_over: bool,
}

/// What is left to do when the filter is not in use any more.
pub(crate) enum Then {
    /// Nothing: the request goes on.
    Continue,
    /// Nothing: the request is held, or answered.
    Hold,
    /// Answer it.
    Answer(Kept),
    /// A panic, or no filter: nothing is known of the request, so it goes nowhere.
    Refuse,
}

/// The requests that may be answered from the main thread.
static LATER: Mutex<BTreeMap<u32, Later>> = Mutex::new(BTreeMap::new());

struct Later {
    scheduler: StreamScheduler,
    has_body: bool,
    answer: Option<Kept>,
}

impl Filter {
    pub(crate) fn new(context: Arc<Context>) -> Filter {
        let id = RequestId(IDS.fetch_add(1, Ordering::Relaxed));
        Filter {
            id,
            request: context.deciding().request(id),
            context,
            is_stopped: false,
            is_listed: false,
            is_over: false,
        }
    }

    /// A part of the body has come, the last one if `is_last`. Whether it goes on.
    pub(crate) fn goes_on(&mut self, is_last: bool) -> bool {
        if is_last
            && self.is_listed
            && let Ok(mut later) = LATER.lock()
            && let Some(listed) = later.get_mut(&self.id.0)
        {
            listed.has_body = true;
        }
        !self.is_stopped
    }
}

/// A request's headers have come.
pub(crate) fn on_headers(stream: EnvoyStream<'_>, filter: &mut Filter, is_last: bool) -> Then {
    let map = stream.headers();
    let mut proxy = Proxy {
        stream: Some(stream),
        context: &filter.context,
        is_listed: &mut filter.is_listed,
        is_changed: false,
        reply: None,
    };
    let request = &mut filter.request;
    let status = request.on_headers(map.as_deref(), is_last, &mut proxy);
    match (status, proxy.reply) {
        (FilterHeadersStatus::Continue, _) => {
            if proxy.is_changed {
                stream.clear_route_cache();
            }
            Then::Continue
        }
        (FilterHeadersStatus::StopIteration, reply) => {
            filter.is_stopped = true;
            reply.map_or(Then::Hold, Then::Answer)
        }
    }
}

/// The main thread has an answer for a request.
pub(crate) fn on_answer(filter: &mut Filter) -> Then {
    let answer = LATER.lock().ok().and_then(|mut later| {
        let listed = later.get_mut(&filter.id.0)?;
        listed.answer.take()
    });
    match answer {
        Some(answer) => {
            filter.is_stopped = true;
            Then::Answer(answer)
        }
        None => Then::Hold,
    }
}

/// Does what is left to do.
pub(crate) fn finish(then: &Then, stream: EnvoyStream<'_>) {
    match then {
        Then::Continue | Then::Hold => {}
        Then::Answer(answer) => answer.with(|reply| respond(stream, reply)),
        Then::Refuse => stream.respond(503, &[], "the filter failed", "tidegate_panic"),
    }
}

/// Envoy itself sees whether the request is gRPC. It derives the gRPC status from the HTTP status,
/// unless a header says it.
fn respond(stream: EnvoyStream<'_>, reply: &Reply<'_>) {
    let grpc_status = reply.grpc_status.to_string();
    let mut headers = reply.headers.to_vec();
    if reply.is_grpc() {
        headers.push(("grpc-status", &grpc_status));
    }
    stream.respond(reply.status, &headers, reply.body, reply.details);
}

/// A request is over, and Envoy's notes of it are still there.
pub(crate) fn over(stream: EnvoyStream<'_>, filter: &mut Filter) {
    end(Some(stream), filter);
}

/// Envoy destroys the filter of a request. Without the hook before, nothing is known of its end.
pub(crate) fn destroyed(mut filter: Filter) {
    end(None, &mut filter);
}

fn end(stream: Option<EnvoyStream<'_>>, filter: &mut Filter) {
    if mem::replace(&mut filter.is_over, true) {
        return;
    }
    let mut proxy = Proxy {
        stream,
        context: &filter.context,
        is_listed: &mut filter.is_listed,
        is_changed: false,
        reply: None,
    };
    filter.request.over(&mut proxy);
    if filter.is_listed
        && let Ok(mut later) = LATER.lock()
    {
        later.remove(&filter.id.0);
    }
}

/// Whether the body of a request that waits has come: as many bytes as anybody waits for, or none.
pub(crate) fn bytes_of(request: RequestId) -> Option<u64> {
    let later = LATER.lock().ok()?;
    let has_body = later.get(&request.0)?.has_body;
    Some(if has_body { u64::MAX } else { 0 })
}

/// Answers a request, from the main thread.
pub(crate) fn answer(request: RequestId, reply: &Reply<'_>) {
    if let Ok(mut later) = LATER.lock()
        && let Some(listed) = later.get_mut(&request.0)
    {
        listed.answer = Some(Kept::of(reply));
        listed.scheduler.commit();
    }
}

/// The proxy around a request, during one of its hooks.
struct Proxy<'h> {
    /// None while its filter is destroyed.
    stream: Option<EnvoyStream<'h>>,
    context: &'h Context,
    is_listed: &'h mut bool,
    /// A header was changed.
    is_changed: bool,
    /// Kept until the filter is not in use: an answer may destroy it.
    reply: Option<Kept>,
}

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
        if let (Some(stream), Some(id)) = (self.stream, self.context.metric(counter)) {
            stream.count(id, by.into());
        }
    }

    fn record(&mut self, _: Metric, _: u64) {
        // Gauges are those of configurations.
    }
}

impl RequestHost for Proxy<'_> {
    fn set_header(&mut self, name: &str, value: &str) -> Result<(), HostFailed> {
        self.is_changed = true;
        let stream = self.stream.ok_or(HostFailed)?;
        match stream.set_header(name.as_bytes(), value.as_bytes()) {
            true => Ok(()),
            false => Err(HostFailed),
        }
    }

    fn remove_header(&mut self, name: &[u8]) -> Result<(), HostFailed> {
        self.is_changed = true;
        let stream = self.stream.ok_or(HostFailed)?;
        match stream.remove_header(name) {
            true => Ok(()),
            false => Err(HostFailed),
        }
    }

    fn send_reply(&mut self, reply: &Reply<'_>) -> Result<(), HostFailed> {
        self.reply = Some(Kept::of(reply));
        Ok(())
    }

    fn bytes_came(&mut self) -> Option<u64> {
        Some(0)
    }

    fn answered_later(&mut self, request: RequestId) {
        let scheduler = self.stream.and_then(EnvoyStream::scheduler);
        let Some(scheduler) = scheduler else {
            return;
        };
        if let Ok(mut later) = LATER.lock() {
            let listed = Later {
                scheduler,
                has_body: false,
                answer: None,
            };
            later.insert(request.0, listed);
            *self.is_listed = true;
        }
    }

    fn draw(&mut self) -> u64 {
        DRAWS.with(Draws::next)
    }

    fn ending(&mut self) -> Ending {
        let Some(stream) = self.stream else {
            return Ending::default();
        };
        Ending {
            flags: stream.response_flags(),
            details: stream.response_code_details().unwrap_or_default(),
        }
    }
}
