//! The streams on which guests follow their policy, on tonic.

use std::{collections::BTreeSet, pin::Pin, time::Duration};

use futures::Stream;
use protos::{
    guest::{GuestSays, Hello, PolicySays},
    wire,
};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info, warn};

use super::{Guests, Policies, published::Published};
use crate::{
    generated::guest_server::{Guest, GuestServer},
    metrics::ReasonLabel,
    net::{access::Caller, tls::Peer},
};

/// How long a new stream may take to introduce itself.
const INTRODUCTION_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest message of a guest, in bytes: its lists and the digests of what it holds.
const MESSAGE_BYTES_MAX: usize = 256 * 1024;

/// The service for a tonic server.
pub fn service(guests: Guests) -> GuestServer<Guests> {
    GuestServer::new(guests).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

type Outgoing = mpsc::Sender<Result<wire::PolicyMessage, Status>>;

#[tonic::async_trait]
impl Guest for Guests {
    type FollowStream = Pin<Box<dyn Stream<Item = Result<wire::PolicyMessage, Status>> + Send>>;

    async fn follow(
        &self,
        request: Request<Streaming<wire::GuestMessage>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let (out, outgoing) = mpsc::channel(1);
        let guests = self.clone();
        let caller = Peer::of(request.extensions());
        tokio::spawn(async move {
            // The proxy gets the error; where the proxy is gone it is not needed.
            if let Err(status) = follow(guests, caller, request.into_inner(), &out).await {
                let _ = out.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

async fn follow(
    guests: Guests,
    caller: Caller,
    mut incoming: Streaming<wire::GuestMessage>,
    out: &Outgoing,
) -> Result<(), Status> {
    let first = tokio::time::timeout(INTRODUCTION_TIMEOUT, next(&mut incoming)).await;
    let first = first.map_err(|_| Status::deadline_exceeded("say hello first"))??;
    let hello = match first {
        Some(GuestSays::Hello(hello)) => hello,
        Some(GuestSays::Poll) => return Err(Status::invalid_argument("say hello first")),
        None => return Ok(()),
    };
    let policies = guests.admit(&caller, &hello)?;
    let is_proven = guests.rules.guest_grants(&caller, &hello.zone).is_ok();
    let _presence = guests.connected.enter(&caller, &hello, is_proven);
    let Hello {
        zone,
        node,
        mode,
        held,
        ..
    } = hello;
    info!(node, %zone, ?mode, "guest follows the policy");
    let moves_away = guests.homes.sent_home(&zone, &node);
    let ended = tokio::select! {
        ended = send_policies(policies, held, incoming, out) => ended,
        status = moves_away => Err(status),
    };
    debug!(node, "a guest's stream for policies has ended");
    ended
}

impl Guests {
    fn admit(&self, caller: &Caller, hello: &Hello) -> Result<Policies, Status> {
        let refuse = |reason, status: Status| {
            warn!(
                node = hello.node,
                error = status.message(),
                "stream refused"
            );
            let label = ReasonLabel { reason };
            self.metrics.streams_refused.get_or_create(&label).inc();
            Err(status)
        };
        if let Err(error) = self.rules.rules().follow(caller) {
            return refuse(
                "not_permitted",
                Status::permission_denied(error.to_string()),
            );
        }
        let Some(zones) = self.known_zones() else {
            return refuse("starting", no_policy_yet());
        };
        if !zones.iter().any(|zone| **zone == *hello.zone) {
            let error = match hello.problems.as_slice() {
                [] => format!(
                    "it says zone {:?}: no zone of the mesh, which has {}",
                    hello.zone,
                    zones.join(", ")
                ),
                problems => problems.join("; "),
            };
            let now = Instant::now();
            self.connected.reject(&hello.node, error.clone(), now);
            return refuse("unknown_zone", Status::not_found(error));
        }
        Ok(self.of_zone(&hello.zone))
    }
}

/// Sends the present policy, and each that follows it. Policies that come faster than the guest
/// takes them are passed over, but for the last.
async fn send_policies(
    mut policies: Policies,
    held: Vec<u64>,
    mut incoming: Streaming<wire::GuestMessage>,
    out: &Outgoing,
) -> Result<(), Status> {
    let mut held: BTreeSet<u64> = held.into_iter().collect();
    let mut sent = None;
    loop {
        let present = policies.borrow_and_update().clone();
        match &present {
            Some(policy) if sent != Some(policy.version) => {
                sent = Some(policy.version);
                if send(policy, &held, out).await.is_err() {
                    return Ok(());
                }
                held = policy.current.pieces.iter().copied().collect();
            }
            None if sent.is_some() => {
                return Err(Status::not_found("the zone has left the mesh"));
            }
            Some(_) | None => {}
        }
        tokio::select! {
            changed = policies.changed() => if changed.is_err() {
                return Err(Status::unavailable("the control plane ends: open another stream"));
            },
            said = next(&mut incoming) => match said? {
                Some(GuestSays::Poll) => {
                    let Some(policy) = present else {
                        return Err(no_policy_yet());
                    };
                    let says = PolicySays::Current(policy.current.clone());
                    if out.send(Ok((&says).into())).await.is_err() {
                        return Ok(());
                    }
                }
                Some(GuestSays::Hello(_)) => {
                    return Err(Status::invalid_argument("say hello once"));
                }
                None => return Ok(()),
            },
        }
    }
}

fn no_policy_yet() -> Status {
    Status::unavailable("there is no policy yet: open another stream")
}

/// The guest is gone.
struct Gone;

async fn send(policy: &Published, held: &BTreeSet<u64>, out: &Outgoing) -> Result<(), Gone> {
    let fresh = policy.pieces.iter().filter(|it| !held.contains(&it.digest));
    let pieces = fresh.map(|piece| PolicySays::Piece(piece.clone()));
    let current = PolicySays::Current(policy.current.clone());
    for says in pieces.chain([current]) {
        out.send(Ok((&says).into())).await.map_err(|_| Gone)?;
    }
    Ok(())
}

/// The next message; none when the proxy has ended the stream, or is gone.
async fn next(incoming: &mut Streaming<wire::GuestMessage>) -> Result<Option<GuestSays>, Status> {
    match incoming.next().await {
        Some(Ok(message)) => {
            let says = GuestSays::try_from(message);
            says.map(Some)
                .map_err(|error| Status::invalid_argument(error.to_string()))
        }
        Some(Err(status)) if status.code() == tonic::Code::OutOfRange => Err(status),
        Some(Err(_)) | None => Ok(None),
    }
}
