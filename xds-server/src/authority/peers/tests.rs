//! Replicas with real connections.

mod attacker;

use std::{net::SocketAddr, time::Duration};

use futures::FutureExt;
use policy::fence::{Name, SessionId};
use registry::authority::{PeerRecord, Secret, incarnation};
use tokio::{
    net::TcpListener,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

fn id(zone: &str) -> SessionId {
    SessionId {
        zone: Name::from(zone),
        incarnation: incarnation(zone, 1),
    }
}

fn record(address: SocketAddr, secret: u8) -> PeerRecord {
    PeerRecord {
        address: address.to_string(),
        server_name: "localhost".to_owned(),
        secret: Secret::new([secret; 32]),
    }
}

async fn replica() -> (Peers, SocketAddr) {
    let (peers, address, _) = counted().await;
    (peers, address)
}

/// A replica, and its counters.
async fn counted() -> (Peers, SocketAddr, Metrics) {
    let metrics = Metrics::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let reach = Reach::of(address, None, None, &[]);
    assert_eq!(reach.address, address.to_string());
    let (peers, network) = Peers::start(reach, Dialer::plain(), metrics.clone());
    let server = Server::builder().add_service(service(network));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    (peers, address, metrics)
}

fn roster(own: (&str, u8), others: &[(&str, SocketAddr, u8)]) -> Roster {
    let secret = Secret::new([own.1; 32]);
    let other =
        |(zone, address, secret): &(&str, SocketAddr, u8)| (id(zone), record(*address, *secret));
    Roster {
        own: [(id(own.0), secret)].into(),
        others: others.iter().map(other).collect(),
    }
}

/// Repeats the message until it arrives: messages before a stream is open are lost.
async fn say(from: &Peers, to: &mut Peers, message: Message) {
    let said = async {
        loop {
            from.post.send(message.clone());
            if let Ok(got) = timeout(Duration::from_millis(20), to.messages.recv()).await {
                assert_eq!(got.as_ref(), Some(&message));
                return;
            }
        }
    };
    timeout(PATIENCE, said).await.expect("a message");
}

fn message(from: &str, to: &str, says: Says) -> Message {
    Message {
        from: id(from),
        to: id(to),
        says,
    }
}

#[tokio::test]
async fn beats_and_acknowledgements_go_between_those_that_know_the_secrets() {
    let (a, at_a) = replica().await;
    let (mut b, at_b) = replica().await;
    let (mut other, at_other) = replica().await;
    let (a_secret, b_secret) = (1, 2);
    a.post.follow(roster(
        ("a", a_secret),
        &[("b", at_b, b_secret), ("c", at_other, 3)],
    ));
    b.post
        .follow(roster(("b", b_secret), &[("a", at_a, a_secret)]));
    // Another process listens at c's old address, and does not know its secret.
    other
        .post
        .follow(roster(("c", 9), &[("a", at_a, a_secret)]));
    let mut a = a;
    say(&a, &mut b, message("a", "b", Says::Beat(7))).await;
    say(&b, &mut a, message("b", "a", Says::Heard(7))).await;
    for round in 8..12 {
        a.post.send(message("a", "c", Says::Beat(round)));
        say(&a, &mut b, message("a", "b", Says::Beat(round))).await;
        while a.messages.try_recv().is_ok() {}
    }
    assert!(other.messages.try_recv().is_err(), "it is spoken to");

    // A caller that does not know the secret of its claimed session is rejected.
    let (impostor, _) = replica().await;
    impostor
        .post
        .follow(roster(("a", 8), &[("b", at_b, b_secret)]));
    for _ in 0..20 {
        impostor.post.send(message("a", "b", Says::Beat(99)));
        sleep(Duration::from_millis(10)).await;
    }
    while let Ok(message) = b.messages.try_recv() {
        assert_ne!(message.says, Says::Beat(99), "an impostor is heard");
    }
}

#[tokio::test]
async fn a_slow_stream_gets_the_newest_round() {
    let links = Links::default();
    let pair = (id("a"), id("b"));
    let (out, mut slow) = mpsc::channel(1);
    let mut first = links.open(pair.clone());
    for round in 1..100 {
        links.send(&pair, round);
    }
    let (room, round) = first.next(&out).await.unwrap();
    assert_eq!(round, 99);
    room.send(round);
    // Unread messages wait; meanwhile a newer round replaces an older one.
    for round in 100..200 {
        links.send(&pair, round);
        assert!(first.next(&out).now_or_never().is_none());
    }
    assert_eq!(slow.recv().await, Some(99));
    assert_eq!(first.next(&out).await.unwrap().1, 199);
    assert!(first.next(&out).now_or_never().is_none(), "nothing is new");

    // Another stream of the pair ends this one, and stays when this one is dropped.
    let mut second = links.open(pair.clone());
    assert!(first.next(&out).await.is_err());
    drop(first);
    links.send(&pair, 200);
    assert_eq!(second.next(&out).await.unwrap().1, 200);
    drop(second);
    assert!(links.all().is_empty());
}

#[test]
fn a_replica_is_reached_where_it_says_or_listens() {
    let bound = SocketAddr::from(([10, 0, 0, 7], 18_000));
    let reach = Reach::of(bound, None, None, &[]);
    assert_eq!(reach.address, "10.0.0.7:18000");
    assert_eq!(reach.server_name, "10.0.0.7");
    let reach = Reach::of(bound, Some("cp-1.tidegate:18000"), None, &[]);
    assert_eq!(reach.server_name, "cp-1.tidegate");
    let reach = Reach::of(bound, Some("[2001:db8::1]:18000"), Some("tidegate"), &[]);
    assert_eq!(reach.address, "[2001:db8::1]:18000");
    assert_eq!(reach.server_name, "tidegate");
    let any = SocketAddr::from(([0, 0, 0, 0], 18_000));
    let reach = Reach::of(any, None, None, &["http://127.0.0.1:2379".to_owned()]);
    assert_eq!(reach.address, "127.0.0.1:18000", "on the way to the store");
}
