//! An attacker on the path between two replicas: it reads, withholds, forges and replays their
//! messages, and knows no secret.

use protos::wire::{self, peer_request, peer_response};
use tokio::sync::watch::Sender;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::{
    generated::{
        peers_client::PeersClient,
        peers_server::{Peers as PeersTrait, PeersServer},
    },
    metrics::ReasonLabel,
};

/// The fate of a beat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attack {
    /// It is forwarded unchanged.
    None,
    /// It is dropped, and acknowledged by a forged message.
    MakeUp,
    /// It is dropped, and the last genuine acknowledgement is changed to its round.
    Change,
    /// It is dropped, and reflected as its own acknowledgement.
    SendBack,
    /// It is dropped, and the last genuine acknowledgement is replayed.
    Repeat,
    /// It is changed to another round.
    ChangeBeat,
    /// It is sent twice.
    RepeatBeat,
}

#[derive(Clone)]
struct Attacker {
    attack: Arc<Sender<Attack>>,
    /// The callee.
    called: SocketAddr,
    /// Its last acknowledgement, on any stream.
    genuine: Arc<Mutex<Option<wire::Proved>>>,
}

type Out<T> = mpsc::Sender<T>;

fn heard(proved: wire::Proved) -> Result<wire::PeerResponse, Status> {
    Ok(wire::PeerResponse {
        message: Some(peer_response::Message::Heard(wire::PeerHeard {
            proved: Some(proved),
        })),
    })
}

fn beat(proved: wire::Proved) -> wire::PeerRequest {
    wire::PeerRequest {
        message: Some(peer_request::Message::Beat(wire::PeerBeat {
            proved: Some(proved),
        })),
    }
}

impl Attacker {
    /// Forwards the caller's messages, or attacks them.
    async fn carry(
        self,
        mut calls: Streaming<wire::PeerRequest>,
        onwards: Out<wire::PeerRequest>,
        back: Out<Result<wire::PeerResponse, Status>>,
    ) {
        while let Some(Ok(call)) = calls.next().await {
            let attack = *self.attack.borrow();
            let said = match &call.message {
                Some(peer_request::Message::Beat(said)) => said.proved.clone().unwrap(),
                _ => {
                    let _ = onwards.send(call).await;
                    continue;
                }
            };
            let genuine = || self.genuine.lock().unwrap().clone().unwrap();
            let answer = match attack {
                Attack::None => {
                    let _ = onwards.send(call).await;
                    continue;
                }
                Attack::ChangeBeat => {
                    let round = said.round + 1_000;
                    let _ = onwards.send(beat(wire::Proved { round, ..said })).await;
                    continue;
                }
                Attack::RepeatBeat => {
                    let _ = onwards.send(call.clone()).await;
                    let _ = onwards.send(call).await;
                    continue;
                }
                Attack::MakeUp => wire::Proved {
                    proof: vec![7; 32],
                    ..said
                },
                Attack::Change => wire::Proved {
                    round: said.round,
                    ..genuine()
                },
                Attack::SendBack => said,
                Attack::Repeat => genuine(),
            };
            let _ = back.send(heard(answer)).await;
        }
    }

    /// Forwards the callee's messages, and keeps them.
    async fn carry_back(
        self,
        mut answers: Streaming<wire::PeerResponse>,
        back: Out<Result<wire::PeerResponse, Status>>,
    ) {
        while let Some(answer) = answers.next().await {
            if let Ok(wire::PeerResponse {
                message: Some(peer_response::Message::Heard(heard)),
            }) = &answer
            {
                *self.genuine.lock().unwrap() = heard.proved.clone();
            }
            if back.send(answer).await.is_err() {
                return;
            }
        }
    }
}

#[tonic::async_trait]
impl PeersTrait for Attacker {
    type ListenStream = ReceiverStream<Result<wire::PeerResponse, Status>>;

    async fn listen(
        &self,
        request: Request<Streaming<wire::PeerRequest>>,
    ) -> Result<Response<Self::ListenStream>, Status> {
        let (onwards, outgoing) = mpsc::channel(8);
        let (back, answering) = mpsc::channel(8);
        let carried = self
            .clone()
            .carry(request.into_inner(), onwards, back.clone());
        tokio::spawn(carried);
        let this = self.clone();
        tokio::spawn(async move {
            let client = PeersClient::connect(format!("http://{}", this.called)).await;
            let mut client = client.map_err(|_| Status::unavailable("no called"))?;
            let answers = client.listen(ReceiverStream::new(outgoing)).await?;
            this.carry_back(answers.into_inner(), back).await;
            Ok::<_, Status>(())
        });
        Ok(Response::new(ReceiverStream::new(answering)))
    }
}

/// Two replicas, and an attacker between them. The first one calls the second.
struct Scene {
    caller: Peers,
    called: Peers,
    attack: Arc<Sender<Attack>>,
    counts: [Metrics; 2],
    /// The round of the last beat.
    round: u64,
}

impl Scene {
    async fn new() -> Scene {
        let (caller, at_caller, counts) = counted().await;
        let (called, at_called, counts_of_called) = counted().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at_attacker = listener.local_addr().unwrap();
        let attack = Arc::new(Sender::new(Attack::None));
        let attacker = Attacker {
            attack: attack.clone(),
            called: at_called,
            genuine: Arc::default(),
        };
        let server = Server::builder().add_service(PeersServer::new(attacker));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let (at, of) = (roster(("a", 1), &[("b", at_attacker, 2)]), at_caller);
        caller.post.follow(at);
        called.post.follow(roster(("b", 2), &[("a", of, 1)]));
        Scene {
            caller,
            called,
            attack,
            counts: [counts, counts_of_called],
            round: 0,
        }
    }

    /// A beat arrives, and its acknowledgement.
    async fn is_heard(&mut self) {
        self.attack.send_replace(Attack::None);
        while self.called.messages.try_recv().is_ok() {}
        self.round += 1;
        let beat = message("a", "b", Says::Beat(self.round));
        say(&self.caller, &mut self.called, beat).await;
        let answer = message("b", "a", Says::Heard(self.round));
        say(&self.called, &mut self.caller, answer).await;
        // A beat that is sent again may arrive again.
        while self.caller.messages.try_recv().is_ok() {}
    }

    fn refused(&self, reason: &'static str) -> [u64; 2] {
        let label = ReasonLabel { reason };
        let count = |counts: &Metrics| counts.peer_messages_refused.get_or_create(&label).get();
        [count(&self.counts[0]), count(&self.counts[1])]
    }

    /// Sends beats until the first (0) or the second replica (1) rejects a message for this reason.
    /// Returns the beats and acknowledgements of that time that were accepted.
    async fn attacked(&mut self, attack: Attack, by: usize, reason: &'static str) -> Vec<Says> {
        self.attack.send_replace(attack);
        let (before, first) = (self.refused(reason)[by], self.round + 1);
        let mut came = vec![];
        let refused = async {
            while self.refused(reason)[by] == before {
                self.round += 1;
                let beat = message("a", "b", Says::Beat(self.round));
                self.caller.post.send(beat);
                sleep(Duration::from_millis(5)).await;
                came.extend(self.caller.messages.try_recv().map(|m| m.says));
                came.extend(self.called.messages.try_recv().map(|m| m.says));
                let made_up = |says: &Says| matches!(says, Says::Heard(r) if *r >= first);
                assert!(
                    !came.iter().any(made_up),
                    "{attack:?}: was never said: {came:?}"
                );
            }
        };
        let refused = timeout(PATIENCE, refused).await;
        refused.unwrap_or_else(|_| panic!("{attack:?}: nothing is refused; heard: {came:?}"));
        // An acknowledgement from before the attack may arrive late.
        came.retain(|says| match says {
            Says::Beat(round) | Says::Heard(round) => *round >= first,
        });
        came
    }
}

#[tokio::test]
async fn nobody_on_the_way_acknowledges_a_beat_in_another_ones_name() {
    let mut scene = Scene::new().await;
    scene.is_heard().await;
    for (attack, reason) in [
        (Attack::MakeUp, "unproved"),
        (Attack::Change, "unproved"),
        (Attack::SendBack, "unproved"),
        // It was sent on this stream before the attack began.
        (Attack::Repeat, "repeated"),
        // Now on another stream.
        (Attack::Repeat, "unproved"),
    ] {
        if reason == "repeated" {
            scene.is_heard().await;
        }
        let came = scene.attacked(attack, 0, reason).await;
        assert_eq!(came, [], "{attack:?}");
    }
    // The stream is reopened, and genuine messages arrive.
    scene.is_heard().await;
}

#[tokio::test]
async fn nobody_on_the_way_keeps_a_replica_alive_that_is_not() {
    let mut scene = Scene::new().await;
    scene.is_heard().await;
    let came = scene.attacked(Attack::ChangeBeat, 1, "unproved").await;
    assert_eq!(came, []);
    scene.is_heard().await;
    let came = scene.attacked(Attack::RepeatBeat, 1, "repeated").await;
    // The first of the two is genuine.
    assert!(came.len() <= 1, "{came:?}");
    scene.is_heard().await;
}
