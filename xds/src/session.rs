//! One stream: it connects the requests, the snapshots, and the wire.

use std::{marker::PhantomData, sync::Arc, time::Duration};

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::Node;
use prost::Message;
use tokio::time::{sleep, timeout};
use tonic::Status;
use tracing::{debug, warn};

use crate::{
    clients::{Client, Entry},
    discovery::{Discovery, Events, Key},
    emptied::{Brought, Evidence, Verdict},
    grace::Grace,
    renewals::Renewals,
    request::{self, Wire},
    resource::Kind,
    response::{self, TooLong},
    retries::Retries,
    server::{Scope, Server},
    stream::{Answer, StaleNonce, Stream, Variant},
    transport::{Gone, Incoming, Outgoing},
};

/// The most names that one stream may subscribe to and hold: more than any mesh has, to bound its
/// memory.
const NAMES_MAX: usize = 500_000;

/// How long a new stream may take to send its first request.
const INTRODUCTION_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a stream ends.
enum End {
    /// The client has left, or the server shuts down: not an error.
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

/// A stream after its client's first request.
pub(super) struct Session<D: Discovery, W> {
    server: Server<D>,
    scope: Scope,
    connected: Connected<D::Key>,
    wire: PhantomData<W>,
}

/// Removes the client from the list and reports that, however the stream ends.
struct Connected<K: Key> {
    entry: Entry<K>,
    events: Arc<dyn Events<K>>,
}

impl<K: Key> Connected<K> {
    fn new(entry: Entry<K>, events: Arc<dyn Events<K>>) -> Connected<K> {
        events.connected(&entry.client);
        Connected { entry, events }
    }
}

impl<K: Key> Drop for Connected<K> {
    fn drop(&mut self) {
        self.events.disconnected(&self.entry.client);
    }
}

/// A client that arrives before the first snapshot waits for it.
async fn first_snapshot<D: Discovery>(server: &mut Server<D>) -> Result<Arc<D::Snapshot>, End> {
    let first = server.snapshots.wait_for(Option::is_some).await;
    first.ok().and_then(|first| first.clone()).ok_or(End::Quiet)
}

impl<D: Discovery, W: Wire> Session<D, W> {
    /// Serves a stream to its end.
    pub(super) async fn run(
        server: Server<D>,
        scope: Scope,
        peer: D::Peer,
        mut requests: Incoming,
        mut responses: Outgoing,
    ) {
        // Boxed, so that the state of the introduction is not kept while the stream lasts.
        let introduced = Self::introduce(server, scope, peer, &mut requests);
        let introduced = Box::pin(introduced).await;
        let end = match introduced {
            Ok(mut session) => match session.serve(&mut requests, &mut responses).await {
                Ok(never) => match never {},
                Err(end) => end,
            },
            Err(end) => end,
        };
        if let End::Status(status) = end {
            // Fails only if the client is gone already.
            let _ = responses.finish(&status);
        }
    }

    async fn introduce(
        mut server: Server<D>,
        scope: Scope,
        peer: D::Peer,
        requests: &mut Incoming,
    ) -> Result<Session<D, W>, End> {
        let first = timeout(INTRODUCTION_TIMEOUT, requests.next()).await;
        let first = first
            .map_err(|_| Status::deadline_exceeded("the first request did not arrive in time"))?;
        let first = first?.ok_or(End::Quiet)?;
        let first_bytes = first.len();
        let first = server
            .turns
            .take(first_bytes, || decode::<W>(first))
            .await?;
        let snapshot = first_snapshot(&mut server).await?;
        let node = W::node(&first);
        let discovery = &server.discovery;
        let key = discovery.admit(&peer, node, W::VARIANT, &snapshot)?;
        let view = discovery.view(&snapshot, &key).ok_or(End::Quiet)?;
        let mut stream = Stream::new(W::VARIANT, view);
        if understands_ttl(node, W::VARIANT) {
            stream = stream.with_ttl();
        }
        let node_id = node.map_or("", |node| node.id.as_str());
        let client = Client::new(node_id, key, W::VARIANT);
        if let Scope::Only(_) = scope {
            stream = stream.of_one_kind();
        }
        let is_in_doubt = discovery.is_in_doubt(&snapshot);
        let mut newcomer = Newcomer::<D, W> {
            server,
            scope,
            client,
            stream,
            evidence: Evidence::of(scope),
            wire: PhantomData,
        };
        newcomer.take_first(&first, first_bytes).await?;
        if is_in_doubt {
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
        let Client { node_id, key, .. } = &self.connected.entry.client;
        let mut moves_away = self.server.discovery.moves_away(key, node_id);
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
                    self.server.turns.take(request.len(), work).await?;
                }
                status = &mut moves_away => return Err(status.into()),
                changed = self.server.snapshots.changed() => {
                    changed.map_err(|_| End::Quiet)?;
                    self.look();
                }
            }
        }
    }

    /// Applies the current snapshot.
    fn look(&mut self) {
        let snapshot = self.server.snapshots.borrow_and_update().clone();
        let entry = &self.connected.entry;
        let discovery = &self.server.discovery;
        let view = snapshot.and_then(|snapshot| discovery.view(&snapshot, &entry.client.key));
        let turned = entry.set_orphaned(view.is_none());
        match view {
            Some(view) => entry.stream().set_view(view),
            None if turned => self.server.events.orphaned(&entry.client),
            None => {}
        }
    }

    /// Handles a request.
    fn take(&self, request: &W::Request) -> Result<(), Status> {
        let node = self.connected.entry.client.node_id.as_str();
        let Some(kind) = kind_of::<W>(self.scope, node, request)? else {
            return Ok(());
        };
        let taken = Taken::of::<W>(&mut self.connected.entry.stream(), kind, request);
        taken.note(&*self.server.events, node)
    }

    fn send_due(&self, responses: &mut Outgoing) -> Result<(), End> {
        // Bounded: a kind that was sent is not due before it is answered.
        while let Some(outgoing) = {
            let mut stream = self.connected.entry.stream();
            stream.next_due()
        } {
            let (resources, renewals) = (outgoing.resources.len(), outgoing.renewed.len());
            (self.server.events).responds(outgoing.kind, resources, renewals);
            let frame = response::encode(W::VARIANT, &outgoing).map_err(|TooLong| {
                Status::resource_exhausted(format!(
                    "the resources of {} do not fit into one message",
                    outgoing.kind.as_str()
                ))
            })?;
            responses.send(frame)?;
        }
        Ok(())
    }
}

/// A stream before its client's first request.
struct Newcomer<D: Discovery, W> {
    server: Server<D>,
    scope: Scope,
    client: Client<D::Key>,
    stream: Stream,
    evidence: Evidence,
    wire: PhantomData<W>,
}

impl<D: Discovery, W: Wire> Newcomer<D, W> {
    async fn take_first(
        &mut self,
        request: &W::Request,
        request_bytes: usize,
    ) -> Result<(), Status> {
        let turns = self.server.turns.clone();
        turns
            .take(request_bytes, || self.take(request, Evidence::first))
            .await
    }

    async fn take_next(&mut self, request: Bytes) -> Result<(), Status> {
        let turns = self.server.turns.clone();
        let work = || self.take(&decode::<W>(request.clone())?, Evidence::add);
        turns.take(request.len(), work).await
    }

    /// Handles a request, and its evidence.
    fn take(
        &mut self,
        request: &W::Request,
        add: impl FnOnce(&mut Evidence, Option<Kind>, Brought),
    ) -> Result<(), Status> {
        let node = self.client.node_id.as_str();
        let Some(kind) = kind_of::<W>(self.scope, node, request)? else {
            return Ok(());
        };
        let brought = W::brings(request, kind, self.stream.view());
        add(&mut self.evidence, Some(kind), brought);
        let taken = Taken::of::<W>(&mut self.stream, kind, request);
        taken.note(&*self.server.events, node)
    }

    /// A client that holds other clusters or endpoints proves that the snapshot is empty by
    /// mistake. It gets no response, and keeps its resources, until a snapshot is not in doubt.
    async fn wait_out_emptiness(&mut self, requests: &mut Incoming) -> Result<(), End> {
        let late = sleep(INTRODUCTION_TIMEOUT);
        tokio::pin!(late);
        let mut held_back = None;
        // Ends with the stream, with its verdict, or when the snapshot is no longer empty.
        loop {
            match self.evidence.verdict() {
                Verdict::Serve => return Ok(()),
                Verdict::Listen => {}
                Verdict::HoldBack => {
                    held_back.get_or_insert_with(|| {
                        self.server.events.held_back(&self.client.node_id);
                        self.server.held_back.enter()
                    });
                }
            }
            tokio::select! {
                request = requests.next() => self.take_next(request?.ok_or(End::Quiet)?).await?,
                () = &mut late, if !self.evidence.is_late => self.evidence.is_late = true,
                changed = self.server.snapshots.changed() => {
                    changed.map_err(|_| End::Quiet)?;
                    let snapshot = self.server.snapshots.borrow_and_update().clone();
                    let snapshot = snapshot.ok_or(End::Quiet)?;
                    let discovery = &self.server.discovery;
                    let view = discovery.view(&snapshot, &self.client.key).ok_or(End::Quiet)?;
                    self.stream.set_view(view);
                    if !discovery.is_in_doubt(&snapshot) {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Lists the client as connected.
    fn settle(self) -> Session<D, W> {
        let entry = self.server.clients.enter(self.client, self.stream);
        Session {
            connected: Connected::new(entry, Arc::clone(&self.server.events)),
            server: self.server,
            scope: self.scope,
            wire: PhantomData,
        }
    }
}

/// The kind of a request; none for a type that is not served. On a separate service the type may be
/// omitted.
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
            "this service serves only {}: use the aggregated service for other types",
            kind.type_url()
        ))),
    }
}

/// The result of a request.
struct Taken {
    kind: Kind,
    answer: Result<Answer, StaleNonce>,
    /// How many names the stream has afterwards.
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

    /// Reports a rejection. An error if the client has too many names.
    fn note<K: Key>(self, events: &dyn Events<K>, node: &str) -> Result<(), Status> {
        match self.answer {
            Ok(Answer::Refused(refused)) => events.refused(node, self.kind, &refused),
            Ok(Answer::Accepted | Answer::None) => {}
            Err(StaleNonce) => debug!(node, kind = self.kind.as_str(), "stale nonce"),
        }
        if self.names > NAMES_MAX {
            warn!(node, "more than {NAMES_MAX} names, stream ended");
            return Err(too_many_names());
        }
        Ok(())
    }
}

/// A shorter message cannot have more than [`NAMES_MAX`] names.
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

/// Whether a client supports times to live, by its `node.client_features`.
fn understands_ttl(node: Option<&Node>, variant: Variant) -> bool {
    let has = |names: &[&str]| {
        let features = node.map_or(&[][..], |node| &node.client_features);
        features.iter().any(|it| names.contains(&it.as_str()))
    };
    // Envoy's list of features and its description of the protocol differ.
    let in_sotw = [
        "xds.config.resource-in-sotw",
        "xds.config.supports-resource-in-sotw",
    ];
    has(&["xds.config.supports-resource-ttl"]) && (variant == Variant::Delta || has(&in_sotw))
}
