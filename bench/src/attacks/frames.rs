//! HTTP/2 frame by frame, unlike any library, and a proxy's first messages in frames.

use std::io;

use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::proxy::{Locality, Node};

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;
/// A frame type that no RFC defines.
pub(super) const UNKNOWN: u8 = 77;

pub(super) const END_STREAM: u8 = 0x1;
pub(super) const END_HEADERS: u8 = 0x4;
const ACK: u8 = 0x1;

/// The largest payload that a server must accept.
pub(super) const PAYLOAD_BYTES_MAX: usize = 16 * 1024;
const CANCEL: u32 = 8;

/// RFC 9113, section 7, from 0.
const CODES: [&str; 14] = [
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
];

pub(super) fn code_name(code: u32) -> &'static str {
    CODES.get(code as usize).copied().unwrap_or("another code")
}

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Preface, settings, and the acknowledgement of the server's settings, which it has yet to send.
pub(super) fn preface() -> Vec<u8> {
    let settings = frame(SETTINGS, 0, 0, &[]);
    let acknowledged = frame(SETTINGS, ACK, 0, &[]);
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        &settings[..],
        &acknowledged,
    ]
    .concat()
}

/// A literal header field with one of the static table's names; no value here exceeds 126 bytes.
pub(super) fn field(name: u8, value: &[u8]) -> Vec<u8> {
    debug_assert!(value.len() < 127);
    let mut bytes = match name {
        ..15 => vec![name],
        _ => vec![15, name - 15],
    };
    bytes.push(value.len() as u8);
    bytes.extend(value);
    bytes
}

/// The header fields of a request for all resources.
pub(super) fn discovery() -> Vec<u8> {
    let (post, http, path, content_type) = (0x83, 0x86, 4, 31);
    let mut bytes = vec![post, http];
    bytes.extend(field(
        path,
        b"/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources",
    ));
    bytes.extend(field(content_type, b"application/grpc"));
    bytes
}

pub(super) fn open(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &discovery())
}

pub(super) fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())
}

/// The fields of `envoy.service.discovery.v3.DiscoveryRequest` in a proxy's first request.
#[derive(Clone, PartialEq, prost::Message)]
struct Request {
    #[prost(message, optional, tag = "2")]
    node: Option<Node>,
    #[prost(string, tag = "4")]
    type_url: String,
}

/// A stream with a proxy's first request.
pub(super) fn introduce(stream: u32, zone: &str) -> Vec<u8> {
    let request = Request {
        node: Some(Node {
            id: "attacker".to_owned(),
            locality: Some(Locality {
                region: String::new(),
                zone: zone.to_owned(),
            }),
        }),
        type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned(),
    };
    let request = request.encode_to_vec();
    let message = [&begin_message(request.len() as u32)[..], &request].concat();
    [open(stream), frame(DATA, 0, stream, &message)].concat()
}

/// The head of a gRPC message of that length.
pub(super) fn begin_message(bytes: u32) -> [u8; 5] {
    let [a, b, c, d] = bytes.to_be_bytes();
    [0, a, b, c, d]
}

/// A frame of the server, without its payload unless it is needed here.
#[derive(Debug, PartialEq)]
pub(super) enum Heard {
    GoAway(u32),
    StreamReset(u32),
    Other,
}

/// The next frame.
pub(super) async fn hear(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Heard> {
    let mut head = [0; 9];
    from.read_exact(&mut head).await?;
    let [l0, l1, l2, kind, ..] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, l0, l1, l2]) as usize];
    from.read_exact(&mut payload).await?;
    let code = |at: usize| {
        let bytes = payload.get(at..)?.first_chunk::<4>()?;
        Some(u32::from_be_bytes(*bytes))
    };
    let heard = match kind {
        GOAWAY => code(4).map(Heard::GoAway),
        RST_STREAM => code(0).map(Heard::StreamReset),
        _ => None,
    };
    Ok(heard.unwrap_or(Heard::Other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_matters_of_a_server_is_heard() {
        let bytes = [
            frame(SETTINGS, 0, 0, &[0; 12]),
            frame(RST_STREAM, 0, 3, &7_u32.to_be_bytes()),
            frame(GOAWAY, 0, 0, &[0, 0, 0, 3, 0, 0, 0, 11, b'w', b'h', b'y']),
            frame(GOAWAY, 0, 0, &[0; 3]),
        ]
        .concat();
        let mut from = &bytes[..];
        for expected in [
            Heard::Other,
            Heard::StreamReset(7),
            Heard::GoAway(11),
            Heard::Other,
        ] {
            assert_eq!(hear(&mut from).await.expect("a frame"), expected);
        }
        assert!(hear(&mut from).await.is_err());
        assert_eq!(code_name(11), "ENHANCE_YOUR_CALM");
        assert_eq!(code_name(99), "another code");
    }
}
