//! Misbehaving clients, on a virtual clock: time passes while all tasks are idle.

mod frames;
mod in_doubt;

use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::{
    config::core::v3::{Locality, Node},
    service::discovery::v3::DiscoveryRequest,
};
use h2::client::SendRequest;
use http::{Request, Response};
use prost::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::{Notify, watch},
    task::JoinHandle,
    time::{Instant, timeout},
};

use super::*;
use crate::{Kind, Snapshots, View, clients::Clients};

const ADS: &str =
    "http://x/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";
const CDS: &str = "http://x/envoy.service.cluster.v3.ClusterDiscoveryService/StreamClusters";

struct Server {
    services: Arc<Services<crate::Server<Snapshots<View>>>>,
    clients: Clients<()>,
    _publisher: watch::Sender<Option<Arc<View>>>,
}

impl Server {
    fn new() -> Server {
        let view = View::new(Default::default(), Default::default());
        Server::with(Some(Arc::new(view)), Routes::default())
    }

    /// Before the first snapshot: a stream is not read after its first request.
    fn without_snapshot() -> Server {
        Server::with(None, Routes::default())
    }

    /// With a service that echoes its requests.
    fn echoing() -> Server {
        let echo = |request: axum::extract::Request| async { Response::new(request.into_body()) };
        let echo = axum::Router::new().route("/echo", axum::routing::post(echo));
        Server::with(None, Routes::from(echo))
    }

    fn with(view: Option<Arc<View>>, others: Routes) -> Server {
        let (publisher, snapshots) = watch::channel(view);
        let discovery = crate::Server::new(snapshots, ());
        Server {
            clients: discovery.clients().clone(),
            services: Arc::new(Services::new(discovery, others)),
            _publisher: publisher,
        }
    }

    /// A connection, and the task that serves it.
    fn connect(&self) -> (DuplexStream, JoinHandle<()>) {
        connect(&self.services)
    }

    async fn client(&self) -> (SendRequest<Bytes>, JoinHandle<()>) {
        client(&self.services).await
    }
}

/// A connection to a server, and the task that serves it.
fn connect<S: StreamService<Peer = ()>>(
    services: &Arc<Services<S>>,
) -> (DuplexStream, JoinHandle<()>) {
    let (client, server) = duplex(64 * 1024);
    (
        client,
        tokio::spawn(serve(server, (), Arc::clone(services))),
    )
}

async fn client<S: StreamService<Peer = ()>>(
    services: &Arc<Services<S>>,
) -> (SendRequest<Bytes>, JoinHandle<()>) {
    let (client, serving) = connect(services);
    let (requests, connection) = h2::client::handshake(client).await.expect("HTTP/2");
    tokio::spawn(connection);
    (requests, serving)
}

fn post(url: &str) -> Request<()> {
    let request = Request::post(url).header("content-type", "application/grpc");
    request.body(()).expect("a request")
}

fn framed(request: &impl Message) -> Bytes {
    let message = request.encode_to_vec();
    let mut bytes = vec![0];
    bytes.extend_from_slice(&(message.len() as u32).to_be_bytes());
    bytes.extend_from_slice(&message);
    bytes.into()
}

fn hello(type_url: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        node: Some(Node {
            id: "one".to_owned(),
            locality: Some(Locality {
                zone: "here".to_owned(),
                ..Locality::default()
            }),
            ..Node::default()
        }),
        type_url: type_url.to_owned(),
        ..DiscoveryRequest::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_drains_serves_open_streams_and_accepts_no_more() {
    let server = Server::echoing();
    let (mut client, serving) = server.client().await;
    let (response, mut requests) = client
        .send_request(post("http://x/echo"), false)
        .expect("a stream");
    requests
        .send_data(Bytes::from_static(b"before"), false)
        .expect("sent");
    let mut echoed = response.await.expect("a response").into_body();
    assert_eq!(
        &echoed.data().await.expect("data").expect("data")[..],
        b"before"
    );
    server.services.drain().begin();
    // The client hears of it before it asks again.
    tokio::time::sleep(Duration::from_millis(10)).await;
    let another = client.send_request(post("http://x/echo"), true);
    let refused = match another {
        Ok((response, _)) => response.await.is_err(),
        Err(_) => true,
    };
    assert!(refused, "a new stream was served");
    requests
        .send_data(Bytes::from_static(b"after"), true)
        .expect("sent");
    assert_eq!(
        &echoed.data().await.expect("data").expect("data")[..],
        b"after"
    );
    // With its last stream the connection ends.
    timeout(Duration::from_secs(1), serving)
        .await
        .expect("an end")
        .expect("no panic");
    // A new connection is told at once.
    let (mut late, serving) = server.client().await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert!(late.send_request(post("http://x/echo"), true).is_err());
    timeout(Duration::from_secs(1), serving)
        .await
        .expect("an end")
        .expect("no panic");
}

/// The final gRPC status of a stream, after all its messages.
async fn status(response: Response<h2::RecvStream>) -> String {
    let (head, mut body) = response.into_parts();
    if let Some(status) = head.headers.get("grpc-status") {
        return status.to_str().expect("text").to_owned();
    }
    while let Some(data) = body.data().await {
        data.expect("data");
    }
    let trailers = body.trailers().await.expect("an end").expect("trailers");
    trailers["grpc-status"].to_str().expect("text").to_owned()
}

/// The final status of a stream on which `first` is sent.
async fn answer_to(url: &str, first: Bytes) -> String {
    let server = Server::new();
    let (mut client, _) = server.client().await;
    let (response, mut requests) = client.send_request(post(url), false).expect("a stream");
    requests.send_data(first, false).expect("sent");
    let answer = async { status(response.await.expect("an answer")).await };
    let answer = timeout(Duration::from_secs(60), answer).await;
    answer.expect("the stream is refused")
}

#[tokio::test(start_paused = true)]
async fn handshake_timeout_ends_a_silent_connection() {
    let server = Server::new();
    let (_silent, serving) = server.connect();
    let began = Instant::now();
    serving.await.expect("it ends");
    assert_eq!(began.elapsed(), Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn handshake_timeout_ends_a_connection_that_drips_bytes() {
    let server = Server::new();
    let (mut client, serving) = server.connect();
    let began = Instant::now();
    for byte in b"PRI * HTTP/2.0\r\n" {
        // Fails once the server has closed the connection.
        if client.write_all(&[*byte]).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    serving.await.expect("it ends");
    assert!(began.elapsed() < Duration::from_secs(17));
}

#[tokio::test(start_paused = true)]
async fn bytes_that_are_no_http2_end_the_connection_at_once() {
    let server = Server::new();
    let (mut client, serving) = server.connect();
    client
        .write_all(b"GET / HTTP/1.1\r\n\r\n")
        .await
        .expect("written");
    let began = Instant::now();
    serving.await.expect("it ends");
    assert_eq!(began.elapsed(), Duration::ZERO);
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.expect("an end");
}

#[tokio::test(start_paused = true)]
async fn idle_connection_without_a_stream_ends() {
    let server = Server::new();
    let (_client, serving) = server.client().await;
    let began = Instant::now();
    serving.await.expect("it ends");
    assert!(began.elapsed() <= Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn first_request_timeout_ends_the_stream() {
    let server = Server::new();
    let (mut client, _) = server.client().await;
    let (response, _requests) = client.send_request(post(ADS), false).expect("a stream");
    let status = status(response.await.expect("an answer")).await;
    assert_eq!(status, "4", "DEADLINE_EXCEEDED");
}

#[tokio::test(start_paused = true)]
async fn keepalive_ends_the_connection_of_a_client_that_vanished() {
    let server = Server::new();
    let (client, serving) = server.connect();
    let (mut requests, connection) = h2::client::handshake(client).await.expect("HTTP/2");
    let hang = Arc::new(Notify::new());
    let told = Arc::clone(&hang);
    tokio::spawn(async move {
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            _ = &mut connection => {}
            // The stream stays open, and is not read.
            () = told.notified() => std::future::pending().await,
        }
    });
    let (response, mut stream) = requests.send_request(post(ADS), false).expect("a stream");
    stream
        .send_data(framed(&hello(Kind::Cluster.type_url())), false)
        .expect("sent");
    let _body = response.await.expect("an answer");
    assert_eq!(server.clients.count(), 1);
    // While it answers pings it may be silent forever.
    let minutes = Duration::from_secs(600);
    tokio::time::sleep(minutes).await;
    assert_eq!(server.clients.count(), 1);
    hang.notify_one();
    timeout(minutes, serving)
        .await
        .expect("in time")
        .expect("it ends");
    assert_eq!(server.clients.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn separate_service_has_one_type_which_may_be_left_out() {
    let server = Server::new();
    let (mut client, _) = server.client().await;
    let (response, mut stream) = client.send_request(post(CDS), false).expect("a stream");
    stream.send_data(framed(&hello("")), false).expect("sent");
    let mut body = response.await.expect("an answer").into_body();
    body.data().await.expect("a response").expect("of bytes");
    let other = framed(&hello(Kind::Listener.type_url()));
    assert_eq!(answer_to(CDS, other).await, "3", "INVALID_ARGUMENT");
}

#[tokio::test(start_paused = true)]
async fn malformed_requests_get_a_status() {
    let invalid = "3";
    let exhausted = "8";
    let unimplemented = "12";
    let no_protobuf = Bytes::from_static(&[0, 0, 0, 0, 1, 0xff]);
    assert_eq!(answer_to(ADS, no_protobuf).await, invalid);
    let endless = Bytes::from_static(&[0, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(answer_to(ADS, endless).await, exhausted);
    let compressed = Bytes::from_static(&[1, 0, 0, 0, 0]);
    assert_eq!(answer_to(ADS, compressed).await, unimplemented);
    let unknown = "http://x/envoy.service.runtime.v3.RuntimeDiscoveryService/StreamRuntime";
    assert_eq!(answer_to(unknown, Bytes::new()).await, unimplemented);
}

#[tokio::test(start_paused = true)]
async fn concurrent_streams_of_a_connection_are_bounded() {
    let server = Server::new();
    let (mut client, _) = server.client().await;
    let mut open = Vec::new();
    for _ in 0..2 * http2::STREAMS_MAX {
        let (response, mut stream) = client.send_request(post(ADS), false).expect("a stream");
        let first = framed(&hello(Kind::Cluster.type_url()));
        stream.send_data(first, false).expect("sent");
        open.push((response, stream));
        // The client holds back data that the server would reject, so it may take a while; then the
        // rest stays unsent.
        if timeout(
            Duration::from_secs(1),
            futures::future::poll_fn(|context| client.poll_ready(context)),
        )
        .await
        .is_err()
        {
            break;
        }
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(server.clients.count(), http2::STREAMS_MAX);
}

/// Far more than any window holds.
#[tokio::test(start_paused = true)]
async fn tonic_services_take_long_requests_and_give_long_answers() {
    let server = Server::echoing();
    let (mut client, _) = server.client().await;
    let url = "http://x/echo";
    let (response, mut requests) = client.send_request(post(url), false).expect("a stream");
    let said: Bytes = (0..4_000_000u32).map(|at| (at / 7) as u8).collect();
    requests.send_data(said.clone(), true).expect("sent");
    let heard = async {
        let mut body = response.await.expect("an answer").into_body();
        let mut heard = Vec::new();
        while let Some(data) = body.data().await {
            let data = data.expect("data");
            body.flow_control()
                .release_capacity(data.len())
                .expect("it was taken");
            heard.extend_from_slice(&data);
        }
        heard
    };
    let heard = timeout(Duration::from_secs(600), heard).await;
    assert!(heard.expect("in time") == said, "it is not the same");
}

#[tokio::test(start_paused = true)]
async fn finished_streams_leave_nothing_behind() {
    let server = Server::new();
    let (mut client, serving) = server.client().await;
    for _ in 0..5_000 {
        let unknown = post("http://x/nobody.Knows/It");
        let (response, _) = client.send_request(unknown, true).expect("a stream");
        let unimplemented = "12";
        let status = status(response.await.expect("an answer")).await;
        assert_eq!(status, unimplemented);
    }
    // A client without a stream is disconnected.
    timeout(Duration::from_secs(60), serving)
        .await
        .expect("no stream is left")
        .expect("it ends");
}

#[tokio::test(start_paused = true)]
async fn rapid_reset_ends_the_connection_after_a_while() {
    let server = Server::new();
    let (mut client, serving) = server.client().await;
    let first = framed(&hello(Kind::Cluster.type_url()));
    for _ in 0..http2::RESETS_MAX {
        let (response, mut stream) = client.send_request(post(ADS), false).expect("a stream");
        stream.send_data(first.clone(), false).expect("sent");
        let _body = response.await.expect("an answer");
        assert_eq!(server.clients.count(), 1);
        stream.send_reset(h2::Reason::CANCEL);
        while server.clients.count() > 0 {
            tokio::task::yield_now().await;
        }
    }
    let (_response, mut stream) = client.send_request(post(ADS), false).expect("a stream");
    stream.send_reset(h2::Reason::CANCEL);
    let began = Instant::now();
    serving.await.expect("it ends");
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn partial_message_timeout_ends_the_stream() {
    let server = Server::new();
    let (mut client, _) = server.client().await;
    let (response, mut requests) = client.send_request(post(ADS), false).expect("a stream");
    let first = framed(&hello(Kind::Cluster.type_url()));
    requests.send_data(first, false).expect("sent");
    let began = Instant::now();
    // A megabyte is promised, and a tenth of it arrives.
    let mut begun = vec![0; 100_000];
    begun[..5].copy_from_slice(&[0, 0, 0x10, 0, 0]);
    requests.send_data(begun.into(), false).expect("sent");
    let status = status(response.await.expect("an answer")).await;
    assert_eq!(status, "4", "DEADLINE_EXCEEDED");
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(60) && took < Duration::from_secs(61));
}
