//! Clients that write HTTP/2 frame by frame, unlike any library.
//!
//! | attack, or rule of RFC 9113 | test |
//! | --- | --- |
//! | 4.2, 5.1, 5.1.1, 6.9: invalid frames | [`a_frame_that_cannot_be_ends_the_connection`] |
//! | 5.1.2: too many streams at once | [`a_stream_beyond_the_limit_is_refused`] |
//! | 5.2: more data than the window allows | [`data_beyond_the_window_end_the_connection`] |
//! | 5.5: unknown frames | [`unknown_frames_are_ignored`] |
//! | 6.5.2: invalid SETTINGS values | [`settings_that_cannot_be_end_the_connection`] |
//! | Rapid reset (CVE-2023-44487), at once | [`rapid_reset_at_once_ends_the_connection`] |
//! | ... of streams that do not notice | [`rapid_reset_of_streams_that_wait_ends_the_connection`] |
//! | ... by malformed requests (CVE-2025-8671) | [`malformed_requests_without_end_end_the_connection`] |
//! | CONTINUATION flood (CVE-2024-27316) | [`continuation_flood_ends_the_connection`] |
//! | HPACK bomb, long header lists | [`hpack_bomb_ends_the_connection`], [`a_list_of_fields_beyond_the_limit_is_refused`] |
//! | Empty DATA flood (CVE-2019-9518) | [`empty_data_flood_ends_the_connection`] |
//! | Small DATA, unread | [`small_data_flood_ends_the_connection`], [`small_data_are_read`] |
//! | PING, SETTINGS flood (CVE-2019-9512, -9515) | [`ping_flood_and_settings_flood_are_not_read_without_end`] |
//! | An idle client that keeps sending | [`a_client_that_talks_without_a_stream_is_sent_away`] |
//! | A client that sends and does not answer PINGs | [`any_frame_is_a_sign_of_life`] |

use tokio::{
    io::{ReadHalf, WriteHalf, split},
    sync::mpsc,
};

use super::*;

mod kind {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PUSH_PROMISE: u8 = 5;
    pub(super) const PING: u8 = 6;
    pub(super) const GOAWAY: u8 = 7;
    pub(super) const WINDOW_UPDATE: u8 = 8;
    pub(super) const CONTINUATION: u8 = 9;
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

const NO_ERROR: u32 = 0;
const FLOW_CONTROL_ERROR: u32 = 3;
const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;

/// Longer than any test may take, on the virtual clock.
const LONG: Duration = Duration::from_secs(600);

#[derive(Debug)]
struct Received {
    kind: u8,
    stream: u32,
    payload: Vec<u8>,
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A literal header field with one of the static table's names.
fn field(name: u8, value: &str) -> Vec<u8> {
    let name = match name {
        ..15 => vec![name],
        _ => vec![15, name - 15],
    };
    [&name[..], &[value.len() as u8], value.as_bytes()].concat()
}

/// The header fields of a discovery request.
fn discovery() -> Vec<u8> {
    let (post, http, path, content_type) = (0x83, 0x86, 4, 31);
    let ads = ADS.strip_prefix("http://x").expect("our own");
    let rest = [field(path, ads), field(content_type, "application/grpc")];
    [vec![post, http], rest.concat()].concat()
}

fn open(stream: u32) -> Vec<u8> {
    frame(kind::HEADERS, END_HEADERS, stream, &discovery())
}

/// A proxy's first request on a stream.
fn introduce(stream: u32) -> Vec<u8> {
    let first = framed(&hello(Kind::Cluster.type_url()));
    [open(stream), frame(kind::DATA, 0, stream, &first)].concat()
}

fn reset(stream: u32) -> Vec<u8> {
    frame(kind::RST_STREAM, 0, stream, &[0, 0, 0, 8])
}

struct Client {
    to: WriteHalf<DuplexStream>,
    heard: mpsc::UnboundedReceiver<Received>,
    serving: JoinHandle<()>,
}

impl Client {
    async fn new(server: &Server) -> Client {
        let (client, serving) = server.connect();
        let (from, to) = split(client);
        let (hears, heard) = mpsc::unbounded_channel();
        tokio::spawn(listen(from, hears));
        let mut client = Client { to, heard, serving };
        let settings = frame(kind::SETTINGS, 0, 0, &[]);
        let ack = frame(kind::SETTINGS, ACK, 0, &[]);
        assert!(client.send(&[PREFACE, &settings, &ack].concat()).await);
        client
    }

    /// Whether the server has accepted the bytes; otherwise it has closed the connection.
    async fn send(&mut self, bytes: &[u8]) -> bool {
        let written = timeout(LONG, self.to.write_all(bytes)).await;
        written.expect("the server reads or leaves").is_ok()
    }

    /// The next frame of this kind.
    async fn next(&mut self, kind: u8) -> Received {
        let next = async {
            loop {
                let frame = self.heard.recv().await.expect("no end");
                if frame.kind == kind {
                    return frame;
                }
            }
        };
        timeout(LONG, next).await.expect("a frame")
    }

    /// The error code of the GOAWAY that the server sends at once.
    async fn farewell(mut self) -> u32 {
        let began = Instant::now();
        let goaway = self.next(kind::GOAWAY).await;
        self.serving.await.expect("it ends");
        assert_eq!(began.elapsed(), Duration::ZERO);
        u32::from_be_bytes(goaway.payload[4..8].try_into().expect("four bytes"))
    }
}

async fn listen(mut from: ReadHalf<DuplexStream>, hears: mpsc::UnboundedSender<Received>) {
    let mut head = [0; 9];
    while from.read_exact(&mut head).await.is_ok() {
        let [l0, l1, l2, kind, _, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, l0, l1, l2]) as usize];
        if from.read_exact(&mut payload).await.is_err() {
            return;
        }
        let stream = u32::from_be_bytes(stream);
        // The receiver may be gone.
        let _ = hears.send(Received {
            kind,
            stream,
            payload,
        });
    }
}

/// Another proxy is still served.
async fn assert_serves(server: &Server) {
    let (mut client, _) = server.client().await;
    let (response, mut stream) = client.send_request(post(ADS), false).expect("a stream");
    let first = framed(&hello(Kind::Cluster.type_url()));
    stream.send_data(first, false).expect("sent");
    let mut body = response.await.expect("an answer").into_body();
    body.data().await.expect("a response").expect("of bytes");
}

/// The error code for a client that sends a flood.
async fn check_flood(begin: &[u8], flood: impl Fn(u32) -> Vec<u8>, expected: u32) {
    let server = Server::new();
    let mut client = Client::new(&server).await;
    assert!(client.send(begin).await);
    for n in 0..100_000 {
        if !client.send(&flood(n)).await {
            assert_eq!(client.farewell().await, expected);
            assert_serves(&server).await;
            return;
        }
    }
    panic!("the server took all of it");
}

/// These bytes end the connection with an error.
async fn check_frame(bytes: &[u8]) {
    let server = Server::new();
    let mut client = Client::new(&server).await;
    client.send(&introduce(1)).await;
    client.next(kind::DATA).await;
    client.send(bytes).await;
    assert_ne!(client.farewell().await, NO_ERROR, "{bytes:?}");
}

#[tokio::test(start_paused = true)]
async fn a_frame_that_cannot_be_ends_the_connection() {
    let too_long = frame(kind::DATA, 0, 1, &vec![0; 16_385]);
    check_frame(&too_long).await;
    check_frame(&frame(kind::PING, 0, 0, &[0; 7])).await;
    check_frame(&frame(kind::PING, 0, 1, &[0; 8])).await;
    check_frame(&frame(kind::DATA, 0, 0, &[0])).await;
    check_frame(&frame(kind::DATA, 0, 3, &[0])).await;
    check_frame(&open(2)).await;
    check_frame(&reset(5)).await;
    let promise = frame(kind::PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2]);
    check_frame(&promise).await;
    check_frame(&frame(kind::CONTINUATION, 0, 1, &[])).await;
    let nothing = frame(kind::WINDOW_UPDATE, 0, 0, &[0; 4]);
    check_frame(&nothing).await;
    let too_wide = frame(kind::WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]);
    check_frame(&too_wide).await;
    // Another frame between the frames of a header list.
    let begun = frame(kind::HEADERS, 0, 3, &discovery());
    let between = [begun, frame(kind::PING, 0, 0, &[0; 8])].concat();
    check_frame(&between).await;
}

#[tokio::test(start_paused = true)]
async fn settings_that_cannot_be_end_the_connection() {
    let (push, window, frame_size) = (2, 4, 5);
    for (name, value) in [
        (push, 2),
        (window, 1 << 31),
        (frame_size, (1 << 14) - 1),
        (frame_size, 1 << 24),
    ] {
        let setting = [&[0, name], &u32::to_be_bytes(value)[..]].concat();
        check_frame(&frame(kind::SETTINGS, 0, 0, &setting)).await;
    }
    check_frame(&frame(kind::SETTINGS, 0, 0, &[0; 5])).await;
}

#[tokio::test(start_paused = true)]
async fn unknown_frames_are_ignored() {
    let server = Server::new();
    let mut client = Client::new(&server).await;
    client.send(&frame(77, 0xff, 12, &[7; 100])).await;
    client.send(&introduce(1)).await;
    client.next(kind::DATA).await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_beyond_the_limit_is_refused() {
    let server = Server::new();
    let mut client = Client::new(&server).await;
    let streams = (0..http2::STREAMS_MAX as u32).map(|n| 2 * n + 1);
    for stream in streams {
        assert!(client.send(&introduce(stream)).await);
        client.next(kind::DATA).await;
    }
    let one_more = 2 * http2::STREAMS_MAX as u32 + 1;
    assert!(client.send(&open(one_more)).await);
    let refused = client.next(kind::RST_STREAM).await;
    assert_eq!(refused.stream, one_more);
    assert_eq!(refused.payload, REFUSED_STREAM.to_be_bytes());
    assert_eq!(server.clients.count(), http2::STREAMS_MAX);
    // One stream is reset and another is opened, in one write.
    let instead = [reset(1), introduce(one_more + 2)].concat();
    assert!(client.send(&instead).await);
    while client.next(kind::DATA).await.stream != one_more + 2 {}
    assert_serves(&server).await;
}

#[tokio::test(start_paused = true)]
async fn data_beyond_the_window_end_the_connection() {
    let server = Server::without_snapshot();
    let mut client = Client::new(&server).await;
    // Its stream is not read for now.
    client.send(&introduce(1)).await;
    let data = frame(kind::DATA, 0, 1, &[0; 16_384]);
    let sent = 256 * 1024 / 16_384;
    for _ in 0..sent - 1 {
        assert!(client.send(&data).await);
    }
    client.send(&data).await;
    assert_eq!(client.farewell().await, FLOW_CONTROL_ERROR);
}

#[tokio::test(start_paused = true)]
async fn rapid_reset_at_once_ends_the_connection() {
    let flood = |n| {
        let streams = (0..100).map(|more| 2 * (100 * n + more) + 1);
        let resets = streams.map(|stream| [open(stream), reset(stream)].concat());
        resets.collect::<Vec<_>>().concat()
    };
    check_flood(&[], flood, ENHANCE_YOUR_CALM).await;
}

/// Streams whose tasks have not noticed count as long as they exist.
#[tokio::test(start_paused = true)]
async fn rapid_reset_of_streams_that_wait_ends_the_connection() {
    let server = Server::without_snapshot();
    let mut client = Client::new(&server).await;
    let mut broken_off = 0;
    while client.send(&introduce(2 * broken_off + 1)).await {
        settle().await;
        client.send(&reset(2 * broken_off + 1)).await;
        settle().await;
        broken_off += 1;
        assert!(broken_off < 5_000, "there is no end");
    }
    assert!(broken_off > http2::RESETS_MAX);
    assert_eq!(client.farewell().await, ENHANCE_YOUR_CALM);
}

#[tokio::test(start_paused = true)]
async fn malformed_requests_without_end_end_the_connection() {
    let no_path = [0x83, 0x86];
    let flood = |n| frame(kind::HEADERS, END_HEADERS, 2 * n + 1, &no_path);
    check_flood(&[], flood, ENHANCE_YOUR_CALM).await;
}

#[tokio::test(start_paused = true)]
async fn continuation_flood_ends_the_connection() {
    let begin = frame(kind::HEADERS, 0, 1, &discovery());
    let more = |_| frame(kind::CONTINUATION, 0, 1, &field(32, "x"));
    check_flood(&begin, more, ENHANCE_YOUR_CALM).await;
    let empty = |_| frame(kind::CONTINUATION, 0, 1, &[]);
    check_flood(&begin, empty, ENHANCE_YOUR_CALM).await;
}

/// One field is put into the dynamic table, and then referenced repeatedly: a byte for four
/// thousand.
#[tokio::test(start_paused = true)]
async fn hpack_bomb_ends_the_connection() {
    let server = Server::new();
    let mut client = Client::new(&server).await;
    let (cookie, long) = (0x40 | 32, [b'x'; 100]);
    let remembered = [&[cookie, 100], &long[..]].concat();
    let newest = 0x80 | 62;
    let fields = [discovery(), remembered, vec![newest; 8_000]].concat();
    let request = frame(kind::HEADERS, END_HEADERS | END_STREAM, 1, &fields);
    client.send(&request).await;
    assert_eq!(client.farewell().await, ENHANCE_YOUR_CALM);
    assert_serves(&server).await;
}

#[tokio::test(start_paused = true)]
async fn a_list_of_fields_beyond_the_limit_is_refused() {
    let server = Server::new();
    let (mut client, _) = server.client().await;
    let mut request = post(ADS);
    let long = "x".repeat(16 * 1024).parse().expect("a value");
    request.headers_mut().insert("long", long);
    let (response, _) = client.send_request(request, true).expect("a stream");
    let response = timeout(LONG, response).await.expect("in time");
    let status = response.expect("an answer").status();
    assert_eq!(status, http::StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    assert_serves(&server).await;
}

#[tokio::test(start_paused = true)]
async fn empty_data_flood_ends_the_connection() {
    let flood = |_| frame(kind::DATA, 0, 1, &[]);
    check_flood(&introduce(1), flood, ENHANCE_YOUR_CALM).await;
}

#[tokio::test(start_paused = true)]
async fn small_data_flood_ends_the_connection() {
    let server = Server::without_snapshot();
    let mut client = Client::new(&server).await;
    client.send(&introduce(1)).await;
    let mut sent = 0;
    while client.send(&frame(kind::DATA, 0, 1, &[0])).await {
        sent += 1;
        assert!(sent < 5_000, "the server keeps all of them");
    }
    assert_eq!(client.farewell().await, ENHANCE_YOUR_CALM);
}

/// A request that arrives byte by byte is valid.
#[tokio::test(start_paused = true)]
async fn small_data_are_read() {
    let server = Server::new();
    let mut client = Client::new(&server).await;
    client.send(&open(1)).await;
    for request in 0..200 {
        for byte in framed(&hello(Kind::Cluster.type_url())) {
            assert!(client.send(&frame(kind::DATA, 0, 1, &[byte])).await);
            settle().await;
        }
        if request == 0 {
            client.next(kind::DATA).await;
        }
    }
}

/// The client does not read. Its requests are not read any more once the answers have no room.
#[tokio::test(start_paused = true)]
async fn ping_flood_and_settings_flood_are_not_read_without_end() {
    let server = Server::new();
    for flood in [
        frame(kind::PING, 0, 0, &[0; 8]),
        frame(kind::SETTINGS, 0, 0, &[]),
    ] {
        let (mut client, serving) = server.connect();
        let settings = frame(kind::SETTINGS, 0, 0, &[]);
        let begin = [PREFACE, &settings].concat();
        client.write_all(&begin).await.expect("written");
        let flood = flood.repeat(1_000);
        let mut sent = 0;
        let began = Instant::now();
        // The server closes the connection after it has read nothing for a while.
        while client.write_all(&flood).await.is_ok() {
            sent += flood.len();
            assert!(sent < 1024 * 1024, "the server reads all of it");
        }
        serving.await.expect("it ends");
        assert!(began.elapsed() <= Duration::from_secs(90));
        assert_serves(&server).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_talks_without_a_stream_is_sent_away() {
    let server = Server::new();
    let mut client = Client::new(&server).await;
    let began = Instant::now();
    let something = frame(kind::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]);
    while client.send(&something).await {
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(began.elapsed() < LONG, "it may stay");
    }
    assert!(began.elapsed() <= Duration::from_secs(65));
}

#[tokio::test(start_paused = true)]
async fn any_frame_is_a_sign_of_life() {
    let server = Server::new();
    let mut client = Client::new(&server).await;
    client.send(&introduce(1)).await;
    let began = Instant::now();
    let something = frame(kind::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]);
    // No PING is answered.
    while began.elapsed() < LONG {
        assert!(client.send(&something).await);
        tokio::time::sleep(Duration::from_secs(20)).await;
    }
    assert_eq!(server.clients.count(), 1);
    tokio::time::sleep(Duration::from_secs(90)).await;
    assert_eq!(server.clients.count(), 0);
    client.serving.await.expect("it ends");
}

/// Lets all tasks run.
async fn settle() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}
