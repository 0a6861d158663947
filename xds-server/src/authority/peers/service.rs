//! The tonic service for the streams of other replicas.

use std::pin::Pin;

use futures::Stream;
use policy::fence::SessionId;
use protos::{
    peers::{CalledSays, CallerSays},
    wire,
};
use registry::authority::session_id;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};
use tracing::debug;

use super::{
    MESSAGE_BYTES_MAX, Message, Network, PROOF_TIMEOUT, Says,
    proof::{Doubt, Hearing, Opening, Side, Speaking, draw_nonce},
};
use crate::generated::peers_server::{Peers, PeersServer};

/// The service.
#[derive(Clone)]
pub struct PeersService {
    network: Network,
}

/// The service for a tonic server.
pub fn service(network: Network) -> PeersServer<PeersService> {
    PeersServer::new(PeersService { network }).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

type Out = mpsc::Sender<Result<wire::PeerResponse, Status>>;

#[tonic::async_trait]
impl Peers for PeersService {
    type ListenStream = Pin<Box<dyn Stream<Item = Result<wire::PeerResponse, Status>> + Send>>;

    async fn listen(
        &self,
        request: Request<Streaming<wire::PeerRequest>>,
    ) -> Result<Response<Self::ListenStream>, Status> {
        let (out, outgoing) = mpsc::channel(1);
        let network = self.network.clone();
        tokio::spawn(async move {
            if let Err(status) = hear(&network, request.into_inner(), &out).await {
                debug!(%status, "the stream of another replica has ended");
                let _ = out.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

/// Handles one stream to its end.
async fn hear(
    network: &Network,
    mut incoming: Streaming<wire::PeerRequest>,
    out: &Out,
) -> Result<(), Status> {
    let opened = timeout(PROOF_TIMEOUT, open(network, &mut incoming, out));
    let late = |_| Status::deadline_exceeded("the first message must prove the caller's session");
    let ((from, to), (mut speaking, mut hearing)) = opened.await.map_err(late)??;
    let mut link = network.answers.open((from.clone(), to.clone()));
    loop {
        tokio::select! {
            next = link.next(out) => {
                let (room, round) = next?;
                room.send(Ok(CalledSays::Heard(speaking.prove(round)).into()));
            }
            says = next(&mut incoming) => match says? {
                Some(CallerSays::Beat(proved)) => {
                    let doubted = |doubt| network.trouble.doubted(&from.incarnation, doubt);
                    let round = hearing.hear(&proved).map_err(doubted)?;
                    let message = Message {
                        from: from.clone(),
                        to: to.clone(),
                        says: Says::Beat(round),
                    };
                    network.receive(message).await?;
                }
                Some(_) => return Err(Status::invalid_argument("that was said already")),
                None => return Ok(()),
            },
        }
    }
}

/// Verifies the caller's session, and proves its own.
async fn open(
    network: &Network,
    incoming: &mut Streaming<wire::PeerRequest>,
    out: &Out,
) -> Result<((SessionId, SessionId), (Speaking, Hearing)), Status> {
    let Some(CallerSays::Hello { from, to, nonce }) = next(incoming).await? else {
        return Err(Status::invalid_argument("say hello first"));
    };
    let roster = network.roster.borrow().clone();
    let known = session_id(&from).zip(session_id(&to));
    let known = known.and_then(|(from, to)| {
        let theirs = roster.others.get(&from)?.secret.clone();
        let ours = roster.own.get(&to)?.clone();
        Some((from, to, theirs, ours))
    });
    // A new session will be seen in a moment.
    let Some((from_id, to_id, theirs, ours)) = known else {
        return Err(Status::unavailable(
            "this replica does not know one of these sessions",
        ));
    };
    let own = draw_nonce().ok_or_else(|| Status::internal("no randomness"))?;
    let opening = Opening {
        from: &from,
        to: &to,
        nonces: [nonce, own],
    };
    let proof = opening.prove(Side::Called, &ours);
    say(out, CalledSays::Welcome { nonce: own, proof }).await?;
    let Some(CallerSays::Proof(proof)) = next(incoming).await? else {
        return Err(Status::invalid_argument(
            "the caller's session is not proved",
        ));
    };
    if !opening.proves(Side::Caller, &theirs, &proof) {
        return Err(network.trouble.doubted(&from, Doubt::Caller));
    }
    let messages = opening.messages(Side::Called, [&theirs, &ours]);
    Ok(((from_id, to_id), messages))
}

async fn say(out: &Out, says: CalledSays) -> Result<(), Status> {
    let sent = out.send(Ok(says.into())).await;
    sent.map_err(|_| Status::cancelled("the caller is gone"))
}

/// The next message; none when the caller has ended the stream.
async fn next(incoming: &mut Streaming<wire::PeerRequest>) -> Result<Option<CallerSays>, Status> {
    let Some(message) = incoming.next().await.transpose()? else {
        return Ok(None);
    };
    let says = CallerSays::try_from(message);
    says.map(Some)
        .map_err(|error| Status::invalid_argument(error.to_string()))
}
