//! The streams to other replicas: one from each own session to each other session, reopened
//! whenever it ends.

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use policy::fence::SessionId;
use protos::{
    peers::{CalledSays, CallerSays},
    wire,
};
use registry::{
    authority::{PeerRecord, Secret},
    backoff::Backoff,
    causes::{chain, in_one_line},
};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::{Sleep, sleep, timeout},
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Status, Streaming, transport::Endpoint};
use tracing::debug;

use super::{
    MESSAGE_BYTES_MAX, Message, Network, PROOF_TIMEOUT, Pair, Roster, Says,
    proof::{Doubt, Hearing, Opening, Side, Speaking, draw_nonce},
    trouble::Reached,
};
use crate::{generated::peers_client::PeersClient, net::tls::Dialer};

/// How long a connection may take to open.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The first and the longest pause before a stream is reopened. A stream that worked starts again
/// at the first.
const REST_MIN: Duration = Duration::from_millis(50);
const REST_MAX: Duration = Duration::from_secs(2);
/// The pause after a rejected certificate: it stays rejected until an operator replaces it, and
/// both sides log each attempt.
const REST_REFUSED: Duration = Duration::from_secs(30);
/// A stream without an acknowledged beat for this long is reopened.
const SILENCE_MAX: Duration = Duration::from_secs(3);

/// Keeps a stream open from each own session to each session of others. Ends with the process.
pub(super) async fn run(network: Network, dialer: Dialer) {
    let mut rosters = network.roster.subscribe();
    let mut calls = JoinSet::new();
    let mut open: BTreeMap<Pair, (PeerRecord, AbortHandle)> = BTreeMap::new();
    loop {
        let roster = Arc::clone(&rosters.borrow_and_update());
        open.retain(|(from, to), (record, call)| {
            let wanted = roster.own.contains_key(from) && roster.others.get(to) == Some(record);
            if !wanted {
                call.abort();
            }
            wanted
        });
        for (pair, secret, record) in wanted(&roster) {
            open.entry(pair.clone()).or_insert_with(|| {
                let call = Call {
                    network: network.clone(),
                    dialer: dialer.clone(),
                    pair,
                    secret: secret.clone(),
                    record: record.clone(),
                };
                (record.clone(), calls.spawn(call.keep()))
            });
        }
        // Removes aborted calls from the set; the others do not end.
        while calls.try_join_next().is_some() {}
        if rosters.changed().await.is_err() {
            return;
        }
    }
}

fn wanted(roster: &Roster) -> impl Iterator<Item = (Pair, &Secret, &PeerRecord)> {
    roster.own.iter().flat_map(|(from, secret)| {
        let others = roster.others.iter();
        others.map(move |(to, record)| ((from.clone(), to.clone()), secret, record))
    })
}

struct Call {
    network: Network,
    dialer: Dialer,
    pair: (SessionId, SessionId),
    secret: Secret,
    record: PeerRecord,
}

impl Call {
    async fn keep(self) {
        let (from, to) = (&self.pair.0.incarnation, &self.pair.1.incarnation);
        let mut reached = Reached::new(&self.network.trouble, from, to);
        let mut backoff = Backoff::new(REST_MIN, REST_MAX);
        loop {
            let mut came_to = CameTo::Nothing;
            if let Err(failure) = self.once(&mut reached, &mut came_to).await {
                let Failure { status, lasts } = failure;
                let address = &self.record.address;
                debug!(session = %to, address, %status, "no stream to another replica");
                if came_to == CameTo::Nothing {
                    let why = format!("{address}: {}", status.message());
                    reached.no(&why, lasts);
                }
                if lasts && came_to != CameTo::Heard {
                    sleep(REST_REFUSED).await;
                    continue;
                }
                if came_to == CameTo::Heard {
                    backoff.reset();
                }
            }
            sleep(backoff.next_pause()).await;
        }
    }

    /// Runs one stream to its end, and records its outcome.
    async fn once(&self, reached: &mut Reached, came_to: &mut CameTo) -> Result<(), Failure> {
        let invalid = |error| Status::invalid_argument(format!("{error}"));
        let endpoint = Endpoint::try_from(format!("http://{}", self.record.address));
        let endpoint = endpoint.map_err(invalid)?.connect_timeout(CONNECT_TIMEOUT);
        let connector = self
            .dialer
            .to(&self.record.address, &self.record.server_name);
        let channel = timeout(PROOF_TIMEOUT, endpoint.connect_with_connector(connector));
        let late = |_| Status::deadline_exceeded("no connection");
        let channel = channel.await.map_err(late)?;
        let channel = channel.map_err(|error| Failure {
            status: Status::unavailable(in_one_line(&error)),
            lasts: is_refused_certificate(&error),
        })?;
        let (out, outgoing) = mpsc::channel(1);
        let opening = async {
            let mut client = PeersClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
            let nonce = draw_nonce().ok_or_else(|| Status::internal("no randomness"))?;
            let (from, to) = (&*self.pair.0.incarnation, &*self.pair.1.incarnation);
            let hello = CallerSays::Hello {
                from: from.to_owned(),
                to: to.to_owned(),
                nonce,
            };
            say(&out, hello).await?;
            let answers = client.listen(ReceiverStream::new(outgoing)).await?;
            let mut answers = answers.into_inner();
            let Some(CalledSays::Welcome { nonce: its, proof }) = next(&mut answers).await? else {
                return Err(Status::invalid_argument("no welcome"));
            };
            let nonces = [nonce, its];
            let opening = Opening { from, to, nonces };
            if !opening.proves(Side::Called, &self.record.secret, &proof) {
                return Err(self.network.trouble.doubted(to, Doubt::Called));
            }
            let proof = opening.prove(Side::Caller, &self.secret);
            say(&out, CallerSays::Proof(proof)).await?;
            let secrets = [&self.secret, &self.record.secret];
            Ok((answers, opening.messages(Side::Caller, secrets)))
        };
        let late = |_| Status::deadline_exceeded("no proof");
        let (answers, messages) = timeout(PROOF_TIMEOUT, opening).await.map_err(late)??;
        *came_to = CameTo::Opened;
        reached.yes();
        Ok(self.beat(&out, answers, messages, came_to).await?)
    }

    /// Sends beats, and receives the acknowledgements.
    async fn beat(
        &self,
        out: &mpsc::Sender<wire::PeerRequest>,
        mut answers: Streaming<wire::PeerResponse>,
        (mut speaking, mut hearing): (Speaking, Hearing),
        came_to: &mut CameTo,
    ) -> Result<(), Status> {
        let mut link = self.network.calls.open(self.pair.clone());
        let patience = sleep(SILENCE_MAX);
        tokio::pin!(patience);
        let mut waits = false;
        loop {
            tokio::select! {
                next = link.next(out) => {
                    let (room, round) = next?;
                    room.send(CallerSays::Beat(speaking.prove(round)).into());
                    if !waits {
                        waits = true;
                        Sleep::reset(patience.as_mut(), in_a_while());
                    }
                }
                says = next(&mut answers) => match says? {
                    Some(CalledSays::Heard(proved)) => {
                        let round = hearing.hear(&proved).map_err(|doubt| {
                            self.network.trouble.doubted(&self.pair.1.incarnation, doubt)
                        })?;
                        waits = false;
                        *came_to = CameTo::Heard;
                        let message = Message {
                            from: self.pair.1.clone(),
                            to: self.pair.0.clone(),
                            says: Says::Heard(round),
                        };
                        self.network.receive(message).await?;
                    }
                    Some(_) => return Err(Status::invalid_argument("that was said already")),
                    None => return Ok(()),
                },
                () = &mut patience, if waits => {
                    return Err(Status::deadline_exceeded("no beat was acknowledged"));
                }
            }
        }
    }
}

/// How far a stream got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CameTo {
    Nothing,
    /// Both sides have proved their sessions.
    Opened,
    /// A beat was acknowledged.
    Heard,
}

/// Why a stream has ended.
struct Failure {
    status: Status,
    /// It is permanent without an operator.
    lasts: bool,
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Failure {
            status,
            lasts: false,
        }
    }
}

fn in_a_while() -> tokio::time::Instant {
    #[allow(
        clippy::disallowed_methods,
        reason = "no rule of the fence rests on it"
    )]
    let now = tokio::time::Instant::now();
    now + SILENCE_MAX
}

type Source<'e> = &'e (dyn std::error::Error + 'static);

/// Whether one side rejects the other's certificate.
fn is_refused_certificate(error: Source<'_>) -> bool {
    let io = |error: Source<'_>| error.downcast_ref::<io::Error>().map(io::Error::kind);
    let mut kinds = chain(error).filter_map(io);
    // Errors of rustls.
    kinds.any(|kind| kind == io::ErrorKind::InvalidData)
}

async fn say(out: &mpsc::Sender<wire::PeerRequest>, says: CallerSays) -> Result<(), Status> {
    let sent = out.send(says.into()).await;
    sent.map_err(|_| Status::unavailable("the stream has ended"))
}

async fn next(answers: &mut Streaming<wire::PeerResponse>) -> Result<Option<CalledSays>, Status> {
    let Some(message) = answers.next().await.transpose()? else {
        return Ok(None);
    };
    let says = CalledSays::try_from(message);
    says.map(Some)
        .map_err(|error| Status::invalid_argument(error.to_string()))
}
