//! One stream: its state between the requests, the snapshots, and the wire.

use std::{marker::PhantomData, sync::Arc, time::Duration};

use bytes::Bytes;
use prost::Message;
use tokio::time::{Instant, sleep, timeout};
use tonic::Status;
use tracing::{debug, info, warn};

use super::{
    emptied::{Brought, Evidence, Verdict},
    grace::Grace,
    node::{InvalidNode, Proxy},
    proxies::Entry,
    renewals::Renewals,
    request::{self, Wire},
    response::{self, TooLong},
    retries::Retries,
    service::{Ads, Scope},
    stream::{Answer, StaleNonce, Stream, Variant},
};
use crate::{
    access::Caller,
    metrics::{KindLabel, Metrics, ReasonLabel},
    resource::Kind,
    snapshot::Snapshot,
    transport::{Gone, Incoming, Outgoing},
};

/// Names that one stream may subscribe to and hold: more than any mesh has, and a bound on its memory.
const NAMES_MAX: usize = 500_000;

/// How many names of what was refused are logged.
const REFUSED_NAMES_LOGGED: usize = 10;

/// How long a new stream may take to introduce itself.
const INTRODUCTION_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a stream ends.
enum End {
    /// The client has left, or all is over; nothing is wrong with that.
    Quiet,
    Status(Status),
}

impl From<Gone> for End {
    fn from(_: Gone) -> End {
        End::Quiet
    }
}

impl From<Status> for End {
    fn from(status: Status) -> End {
        End::Status(status)
    }
}

/// A stream whose client has introduced itself.
pub(super) struct Session<W> {
    ads: Ads,
    scope: Scope,
    connected: Connected,
    wire: PhantomData<W>,
}

/// Leaves the list of proxies, and the count, however the stream ends.
struct Connected {
    entry: Entry,
    metrics: Arc<Metrics>,
}

impl Connected {
    fn new(entry: Entry, metrics: Arc<Metrics>) -> Connected {
        metrics.xds_streams.inc();
        Connected { entry, metrics }
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.metrics.xds_streams.dec();
        info!(node = self.entry.proxy.id, "proxy disconnected");
    }
}

async fn first_snapshot(
    ads: &mut Ads,
    is_fit: impl Fn(&Snapshot) -> bool,
) -> Result<Arc<Snapshot>, End> {
    let fits = |snapshot: &Option<Arc<Snapshot>>| snapshot.as_deref().is_some_and(&is_fit);
    match ads.snapshots.wait_for(fits).await {
        Ok(snapshot) => Ok(snapshot.clone().unwrap_or_default()),
        Err(_) => Err(End::Quiet),
    }
}

impl<W: Wire> Session<W> {
    /// Serves a stream to its end.
    pub(super) async fn run(
        ads: Ads,
        scope: Scope,
        caller: Caller,
        mut requests: Incoming,
        mut responses: Outgoing,
    ) {
        // On the heap, so that what only the introduction needs is not kept while the stream lasts.
        let introduced = Box::pin(Session::<W>::introduce(ads, scope, caller, &mut requests)).await;
        let end = match introduced {
            Ok(mut session) => match session.serve(&mut requests, &mut responses).await {
                Ok(never) => match never {},
                Err(end) => end,
            },
            Err(end) => end,
        };
        if let End::Status(status) = end {
            // It fails only if the client is gone already.
            let _ = responses.finish(&status);
        }
    }

    async fn introduce(
        mut ads: Ads,
        scope: Scope,
        caller: Caller,
        requests: &mut Incoming,
    ) -> Result<Session<W>, End> {
        let first = timeout(INTRODUCTION_TIMEOUT, requests.next()).await;
        let first =
            first.map_err(|_| Status::deadline_exceeded("the first request did not come"))?;
        let first = first?.ok_or(End::Quiet)?;
        let first_bytes = first.len();
        let first = ads.turns.take(first_bytes, || decode::<W>(first)).await?;
        // A proxy that comes before the first snapshot waits for it.
        let snapshot = first_snapshot(&mut ads, |_| true).await?;
        let rules = ads.gate.rules();
        let permits = |zone: &str, role| rules.view(&caller, zone, role);
        let proxy = Proxy::introduce(W::node(&first), &snapshot, permits).map_err(|error| {
            if let InvalidNode::UnknownZone { id, zone, .. } = &error {
                ads.proxies.reject(id, zone, Instant::now());
            }
            refusal(&ads.metrics, error)
        })?;
        drop(rules);
        let view = snapshot.view(&proxy.view).ok_or(End::Quiet)?;
        proxy
            .can_use(view, W::VARIANT)
            .map_err(|error| refusal(&ads.metrics, error))?;
        let mut stream = Stream::new(W::VARIANT, Arc::clone(view));
        if proxy.understands_ttl(W::VARIANT) {
            stream = stream.with_ttl();
        }
        if let Scope::Only(_) = scope {
            stream = stream.of_one_kind();
        }
        let mut newcomer = Newcomer::<W> {
            ads,
            scope,
            proxy,
            stream,
            evidence: Evidence::of(scope),
            wire: PhantomData,
        };
        newcomer.take_first(&first, first_bytes).await?;
        if snapshot.is_bare() {
            newcomer.wait_out_emptiness(requests).await?;
        }
        Ok(newcomer.settle())
    }

    async fn serve(
        &mut self,
        requests: &mut Incoming,
        responses: &mut Outgoing,
    ) -> Result<std::convert::Infallible, End> {
        let mut renewals = Renewals::default();
        let mut retries = Retries::default();
        let mut grace = Grace::default();
        let Proxy { id, view, .. } = &self.connected.entry.proxy;
        let mut sent_home = self.ads.homes.sent_home(&view.zone, id);
        // Ends with the stream.
        loop {
            self.send_due(responses)?;
            renewals.follow(&self.connected.entry.stream());
            retries.follow(&self.connected.entry.stream());
            grace.follow(&self.connected.entry.stream());
            tokio::select! {
                () = renewals.due() => renewals.begin(&mut self.connected.entry.stream()),
                () = retries.due() => retries.begin(&mut self.connected.entry.stream()),
                () = grace.over() => self.connected.entry.stream().end_grace(),
                request = requests.next() => {
                    let request = request?.ok_or(End::Quiet)?;
                    let work = || self.take(&decode::<W>(request.clone())?);
                    self.ads.turns.take(request.len(), work).await?;
                }
                status = &mut sent_home => return Err(status.into()),
                changed = self.ads.snapshots.changed() => {
                    changed.map_err(|_| End::Quiet)?;
                    self.look();
                }
            }
        }
    }

    /// Takes in the present snapshot.
    fn look(&mut self) {
        let snapshot = self.ads.snapshots.borrow_and_update().clone();
        let proxy = &self.connected.entry.proxy;
        let view = snapshot.as_ref().and_then(|s| s.view(&proxy.view));
        let turned = self.connected.entry.set_orphaned(view.is_none());
        match view {
            Some(view) => self.connected.entry.stream().set_view(Arc::clone(view)),
            None if turned => warn!(
                node = proxy.id,
                zone = %proxy.view.zone,
                "the zone was taken out of the configuration, or its gRPC clients are no longer served: this proxy keeps its last state and learns nothing more"
            ),
            None => {}
        }
    }

    /// Takes in a request.
    fn take(&self, request: &W::Request) -> Result<(), Status> {
        let node = self.connected.entry.proxy.id.as_str();
        let Some(kind) = kind_of::<W>(self.scope, node, request)? else {
            return Ok(());
        };
        let taken = Taken::of::<W>(&mut self.connected.entry.stream(), kind, request);
        taken.note(&self.ads.metrics, node)
    }

    fn send_due(&self, responses: &mut Outgoing) -> Result<(), End> {
        // Bounded: a kind that was sent is not due before it is answered.
        while let Some(outgoing) = {
            let mut stream = self.connected.entry.stream();
            stream.next_due()
        } {
            let sent = self.ads.sent.of(outgoing.kind);
            sent.responses.inc();
            sent.resources.inc_by(outgoing.resources.len() as u64);
            sent.renewals.inc_by(outgoing.renewed.len() as u64);
            let frame = response::encode(W::VARIANT, &outgoing).map_err(|TooLong| {
                Status::resource_exhausted(format!(
                    "all of {} do not fit into one message",
                    outgoing.kind.as_str()
                ))
            })?;
            responses.send(frame)?;
        }
        Ok(())
    }
}

/// A stream whose client is about to introduce itself.
struct Newcomer<W> {
    ads: Ads,
    scope: Scope,
    proxy: Proxy,
    stream: Stream,
    evidence: Evidence,
    wire: PhantomData<W>,
}

impl<W: Wire> Newcomer<W> {
    async fn take_first(
        &mut self,
        request: &W::Request,
        request_bytes: usize,
    ) -> Result<(), Status> {
        let turns = self.ads.turns.clone();
        turns
            .take(request_bytes, || self.take(request, Evidence::first))
            .await
    }

    async fn take_next(&mut self, request: Bytes) -> Result<(), Status> {
        let turns = self.ads.turns.clone();
        let work = || self.take(&decode::<W>(request.clone())?, Evidence::add);
        turns.take(request.len(), work).await
    }

    /// Takes in a request, and what it shows.
    fn take(
        &mut self,
        request: &W::Request,
        add: impl FnOnce(&mut Evidence, Option<Kind>, Brought),
    ) -> Result<(), Status> {
        let node = self.proxy.id.as_str();
        let Some(kind) = kind_of::<W>(self.scope, node, request)? else {
            return Ok(());
        };
        let brought = W::brings(request, kind, self.stream.view());
        add(&mut self.evidence, Some(kind), brought);
        let taken = Taken::of::<W>(&mut self.stream, kind, request);
        taken.note(&self.ads.metrics, node)
    }

    /// A client that holds other clusters or endpoints shows that the store, which has no instance, was emptied. It is sent
    /// nothing, and serves what it has, until there are instances, or an operator says that there are none.
    async fn wait_out_emptiness(&mut self, requests: &mut Incoming) -> Result<(), End> {
        let late = sleep(INTRODUCTION_TIMEOUT);
        tokio::pin!(late);
        let mut held_back = None;
        // Ends with the stream, with its verdict, or with the emptiness.
        loop {
            match self.evidence.verdict() {
                Verdict::Serve => return Ok(()),
                Verdict::Listen => {}
                Verdict::HoldBack => {
                    held_back.get_or_insert_with(|| {
                        let node = self.proxy.id.as_str();
                        warn!(node, "the proxy is sent nothing: it holds other clusters or endpoints than the store, which has no instance, gives it");
                        self.ads.held_back.enter()
                    });
                }
            }
            tokio::select! {
                request = requests.next() => self.take_next(request?.ok_or(End::Quiet)?).await?,
                () = &mut late, if !self.evidence.is_late => self.evidence.is_late = true,
                changed = self.ads.snapshots.changed() => {
                    changed.map_err(|_| End::Quiet)?;
                    let snapshot = self.ads.snapshots.borrow_and_update().clone();
                    let snapshot = snapshot.ok_or(End::Quiet)?;
                    let view = snapshot.view(&self.proxy.view).ok_or(End::Quiet)?;
                    self.stream.set_view(Arc::clone(view));
                    if !snapshot.is_bare() {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Lists the proxy as connected.
    fn settle(self) -> Session<W> {
        let zone = &self.proxy.view.zone;
        info!(node = self.proxy.id, %zone, variant = ?W::VARIANT, scope = ?self.scope, "proxy connected");
        let entry = self.ads.proxies.enter(self.proxy, W::VARIANT, self.stream);
        Session {
            connected: Connected::new(entry, Arc::clone(&self.ads.metrics)),
            ads: self.ads,
            scope: self.scope,
            wire: PhantomData,
        }
    }
}

/// What a request is about; none for a type that is not served. On a separate service the type goes without saying.
fn kind_of<W: Wire>(
    scope: Scope,
    node: &str,
    request: &W::Request,
) -> Result<Option<Kind>, Status> {
    let type_url = W::type_url(request);
    match scope {
        Scope::Everything => {
            let served = |kind: &Kind| W::VARIANT == Variant::Delta || kind.in_state_of_the_world();
            let kind = Kind::of_type_url(type_url).filter(served);
            if kind.is_none() {
                debug!(node, type_url, "not served");
            }
            Ok(kind)
        }
        Scope::Only(kind) if type_url.is_empty() || type_url == kind.type_url() => Ok(Some(kind)),
        Scope::Only(kind) => Err(Status::invalid_argument(format!(
            "this service has {} alone: ask the aggregated one for other types",
            kind.type_url()
        ))),
    }
}

/// A request that a stream has taken in.
struct Taken {
    kind: Kind,
    answer: Result<Answer, StaleNonce>,
    /// How many names the stream has after it.
    names: usize,
}

impl Taken {
    fn of<W: Wire>(stream: &mut Stream, kind: Kind, request: &W::Request) -> Taken {
        let answer = W::take(stream, kind, request);
        let names = stream.names();
        Taken {
            kind,
            answer,
            names,
        }
    }

    /// Counts and logs a refusal. An error if the client has too many names.
    fn note(self, metrics: &Metrics, node: &str) -> Result<(), Status> {
        let kind = self.kind.as_str();
        match self.answer {
            Ok(Answer::Refused(refused)) => {
                let label = KindLabel { kind };
                metrics.xds_nacks.get_or_create(&label).inc();
                warn!(
                    node,
                    kind,
                    resources = ?refused.resources.iter().take(REFUSED_NAMES_LOGGED).collect::<Vec<_>>(),
                    count = refused.resources.len(),
                    message = refused.message,
                    "refused; not sent again until it changes (a listener: tried again), the proxy keeps what it had"
                );
            }
            Ok(Answer::Accepted | Answer::None) => {}
            Err(StaleNonce) => debug!(node, kind, "stale nonce"),
        }
        if self.names > NAMES_MAX {
            warn!(node, "more than {NAMES_MAX} names, stream ended");
            return Err(too_many_names());
        }
        Ok(())
    }
}

/// A message of fewer bytes has no more than [`NAMES_MAX`] names.
const MANY_NAMES_BYTES_MIN: usize = 2 * NAMES_MAX;

fn decode<W: Wire>(message: Bytes) -> Result<W::Request, Status> {
    if message.len() > MANY_NAMES_BYTES_MIN && request::count_names(&message) > NAMES_MAX {
        return Err(too_many_names());
    }
    W::Request::decode(message)
        .map_err(|error| Status::invalid_argument(format!("not a discovery request: {error}")))
}

fn too_many_names() -> Status {
    Status::resource_exhausted(format!(
        "more than {NAMES_MAX} resource names on one stream"
    ))
}

fn refusal(metrics: &Metrics, error: InvalidNode) -> Status {
    warn!(%error, "stream refused");
    let reason = match error {
        InvalidNode::Missing => "no_node",
        InvalidNode::UnknownZone { .. } => "unknown_zone",
        InvalidNode::UnknownRole { .. } => "unknown_role",
        InvalidNode::OnDemand { .. } => "on_demand",
        InvalidNode::NotPermitted { .. } => "not_permitted",
        InvalidNode::GrpcNotServed { .. } => "grpc_not_served",
    };
    let label = ReasonLabel { reason };
    metrics.streams_refused.get_or_create(&label).inc();
    error.into()
}
