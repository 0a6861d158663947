//! A minimum of HTTP/2, gRPC and delta xDS for simulated proxies: thousands of them share the
//! machine with the measured server, and a complete client would cost more than either server.
//!
//! One stream per connection, one message in most frames; a response is scanned, not decoded.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use prost::Message;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const PATH: &[u8] =
    b"/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
pub(super) const ENDPOINTS: &str =
    "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";

/// The only stream of a connection.
const STREAM: u32 = 1;
const FRAME_HEADER_BYTES: usize = 9;
const GRPC_HEADER_BYTES: usize = 5;
/// The protocol's largest window: no server ever waits for this client.
const WINDOW_MAX: u32 = (1 << 31) - 1;
/// The initial size of every window.
const WINDOW_DEFAULT: u32 = 65_535;
/// The consumed bytes after which windows are enlarged again.
const CONSUMED_MAX: u32 = 1 << 29;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const ACK: u8 = 0x1;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;

/// The fields of `envoy.service.discovery.v3.DeltaDiscoveryRequest` in a proxy's first request.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DeltaRequest {
    #[prost(message, optional, tag = "1")]
    pub(super) node: Option<Node>,
    #[prost(string, tag = "2")]
    pub(super) type_url: String,
    #[prost(string, repeated, tag = "3")]
    pub(super) subscribe: Vec<String>,
    #[prost(map = "string, string", tag = "5")]
    pub(super) initial_versions: HashMap<String, String>,
}

/// The used fields of `envoy.config.core.v3.Node`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Node {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    #[prost(string, tag = "2")]
    pub(super) cluster: String,
    #[prost(message, optional, tag = "4")]
    pub(super) locality: Option<Locality>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Locality {
    #[prost(string, tag = "1")]
    pub(super) region: String,
    #[prost(string, tag = "2")]
    pub(super) zone: String,
}

/// Everything that a client sends before it has received anything: preface, settings, the call, the
/// first request.
pub(super) fn opening(authority: &str, request: &DeltaRequest) -> Vec<u8> {
    let mut out = PREFACE.to_vec();
    let mut settings = Vec::new();
    // No table for compressed headers, no push, the largest window.
    for (setting, value) in [(1u16, 0), (2, 0), (4, WINDOW_MAX)] {
        settings.extend(setting.to_be_bytes());
        settings.extend(u32::to_be_bytes(value));
    }
    frame(&mut out, SETTINGS, 0, 0, &settings);
    let more = WINDOW_MAX - WINDOW_DEFAULT;
    frame(&mut out, WINDOW_UPDATE, 0, 0, &more.to_be_bytes());
    frame(
        &mut out,
        HEADERS,
        END_HEADERS,
        STREAM,
        &headers(authority.as_bytes()),
    );
    message(&mut out, &request.encode_to_vec());
    out
}

/// Header fields by their number in HPACK's static table, or with literal names; none exceeds 126
/// bytes.
fn headers(authority: &[u8]) -> Vec<u8> {
    // `:method: POST` and `:scheme: http`, then `:path` and `:authority` with our values.
    let mut block = vec![0x83, 0x86, 0x04];
    literal(&mut block, PATH);
    block.push(0x01);
    literal(&mut block, authority);
    // `content-type` is number 31.
    block.extend([0x0f, 0x10]);
    literal(&mut block, b"application/grpc");
    block.push(0x00);
    literal(&mut block, b"te");
    literal(&mut block, b"trailers");
    block
}

fn literal(block: &mut Vec<u8>, text: &[u8]) {
    debug_assert!(text.len() < 127);
    block.push(text.len() as u8);
    block.extend(text);
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    frame_header(out, payload.len(), kind, flags, stream);
    out.extend(payload);
}

fn frame_header(out: &mut Vec<u8>, len: usize, kind: u8, flags: u8, stream: u32) {
    out.extend(&(len as u32).to_be_bytes()[1..]);
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
}

/// A gRPC message in one frame; requests here are far below a frame's 16 KB.
fn message(out: &mut Vec<u8>, body: &[u8]) {
    frame_header(out, GRPC_HEADER_BYTES + body.len(), DATA, 0, STREAM);
    out.push(0);
    out.extend((body.len() as u32).to_be_bytes());
    out.extend(body);
}

/// The beginning of every acknowledgement.
pub(super) struct Acknowledgement(Vec<u8>);

impl Acknowledgement {
    pub(super) fn new() -> Acknowledgement {
        let request = DeltaRequest {
            type_url: ENDPOINTS.to_owned(),
            ..DeltaRequest::default()
        };
        Acknowledgement(request.encode_to_vec())
    }

    /// Writes the request that acknowledges the response with this nonce.
    pub(super) fn of(&self, nonce: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let len = u8::try_from(nonce.len()).ok().filter(|len| *len < 128);
        let len = len.context("a nonce of more than 127 bytes")?;
        let body = self.0.len() + 2 + nonce.len();
        frame_header(out, GRPC_HEADER_BYTES + body, DATA, 0, STREAM);
        out.push(0);
        out.extend((body as u32).to_be_bytes());
        out.extend(&self.0);
        // `response_nonce`, field 6.
        out.extend([6 << 3 | 2, len]);
        out.extend(nonce);
        Ok(())
    }
}

/// Splits the bytes of a connection into messages. Buffers nothing while it waits for the next.
#[derive(Default)]
pub(super) struct Reader {
    /// An incomplete frame.
    frames: Vec<u8>,
    /// An incomplete message.
    message: Vec<u8>,
    consumed: u32,
}

impl Reader {
    /// Passes every message that `bytes` completes to `take`, and writes the protocol's answers to
    /// `out`. Fails if the server ends the stream or the connection, or violates the protocol.
    pub(super) fn read(
        &mut self,
        bytes: &[u8],
        out: &mut Vec<u8>,
        mut take: impl FnMut(&[u8], &mut Vec<u8>) -> Result<()>,
    ) -> Result<()> {
        let earlier = std::mem::take(&mut self.frames);
        let joined;
        let mut rest = bytes;
        if !earlier.is_empty() {
            joined = [&earlier, bytes].concat();
            rest = &joined;
        }
        while let Some((header, after)) = rest.split_first_chunk::<FRAME_HEADER_BYTES>() {
            let len = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
            let Some((payload, after)) = after.split_at_checked(len) else {
                break;
            };
            self.frame(header[3], header[4], payload, out, &mut take)?;
            rest = after;
        }
        self.frames = rest.to_vec();
        Ok(())
    }

    fn frame(
        &mut self,
        kind: u8,
        flags: u8,
        payload: &[u8],
        out: &mut Vec<u8>,
        take: &mut impl FnMut(&[u8], &mut Vec<u8>) -> Result<()>,
    ) -> Result<()> {
        match kind {
            DATA | HEADERS if flags & END_STREAM != 0 => {
                bail!("the server ended the stream: {}", readable(payload))
            }
            DATA => {
                self.consumed += payload.len() as u32;
                self.data(unpadded(flags, payload)?, out, take)?;
                if self.consumed > CONSUMED_MAX {
                    for stream in [0, STREAM] {
                        let more = self.consumed.to_be_bytes();
                        frame(out, WINDOW_UPDATE, 0, stream, &more);
                    }
                    self.consumed = 0;
                }
            }
            SETTINGS if flags & ACK == 0 => frame(out, SETTINGS, ACK, 0, &[]),
            PING if flags & ACK == 0 => frame(out, PING, ACK, 0, payload),
            RST_STREAM => bail!("the server reset the stream: {payload:?}"),
            GOAWAY => bail!("the server ends the connection: {}", readable(payload)),
            _ => {}
        }
        Ok(())
    }

    fn data(
        &mut self,
        payload: &[u8],
        out: &mut Vec<u8>,
        take: &mut impl FnMut(&[u8], &mut Vec<u8>) -> Result<()>,
    ) -> Result<()> {
        let earlier = std::mem::take(&mut self.message);
        let mut joined = earlier;
        let mut rest = payload;
        if !joined.is_empty() {
            joined.extend(payload);
            rest = &joined;
        }
        while let Some((header, after)) = rest.split_first_chunk::<GRPC_HEADER_BYTES>() {
            let [compressed, len @ ..] = *header;
            ensure!(compressed == 0, "a compressed message");
            let Some((body, after)) = after.split_at_checked(u32::from_be_bytes(len) as usize)
            else {
                break;
            };
            take(body, out)?;
            rest = after;
        }
        // Large messages have many frames: the joined bytes are extended, not copied for each.
        let done = joined.len().saturating_sub(rest.len());
        self.message = match joined.is_empty() {
            true => rest.to_vec(),
            false if done == 0 => joined,
            false => joined.split_off(done),
        };
        Ok(())
    }
}

fn unpadded(flags: u8, payload: &[u8]) -> Result<&[u8]> {
    if flags & PADDED == 0 {
        return Ok(payload);
    }
    let (padding, rest) = payload.split_first().context("no length of the padding")?;
    let len = rest.len().checked_sub(usize::from(*padding));
    let data = len.and_then(|len| rest.get(..len));
    data.context("more padding than payload")
}

/// Its text, if it is readable.
fn readable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.replace(
        |c: char| c.is_control() || c == char::REPLACEMENT_CHARACTER,
        " ",
    )
}

/// The content of a `DeltaDiscoveryResponse`.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Response<'m> {
    pub(super) nonce: &'m [u8],
    pub(super) removed: u32,
}

/// One `envoy.service.discovery.v3.Resource`.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Resource<'m> {
    pub(super) name: &'m [u8],
    pub(super) version: &'m [u8],
    /// The length of the encoded resource itself, with its type.
    pub(super) body_bytes: usize,
}

impl<'m> Response<'m> {
    pub(super) fn parse(
        message: &'m [u8],
        mut resource: impl FnMut(Resource<'m>) -> Result<()>,
    ) -> Result<Response<'m>> {
        let mut response = Response::default();
        fields(message, |number, value| {
            match number {
                2 => resource(Resource::parse(value)?)?,
                5 => response.nonce = value,
                6 => response.removed += 1,
                _ => {}
            }
            Ok(())
        })?;
        ensure!(!response.nonce.is_empty(), "a response without a nonce");
        Ok(response)
    }
}

impl<'m> Resource<'m> {
    fn parse(message: &'m [u8]) -> Result<Resource<'m>> {
        let mut resource = Resource::default();
        fields(message, |number, value| {
            match number {
                1 => resource.version = value,
                2 => resource.body_bytes = value.len(),
                3 => resource.name = value,
                _ => {}
            }
            Ok(())
        })?;
        Ok(resource)
    }
}

/// Iterates over the length-delimited fields of a message. Other fields do not matter here.
fn fields<'m>(
    mut message: &'m [u8],
    mut take: impl FnMut(u64, &'m [u8]) -> Result<()>,
) -> Result<()> {
    while !message.is_empty() {
        let key = varint(&mut message)?;
        match key & 7 {
            0 => drop(varint(&mut message)?),
            2 => {
                let len = varint(&mut message)? as usize;
                let (value, rest) = message.split_at_checked(len).context("a cut field")?;
                message = rest;
                take(key >> 3, value)?;
            }
            kind => bail!("a field of the unexpected wire type {kind}"),
        }
    }
    Ok(())
}

fn varint(message: &mut &[u8]) -> Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first().context("a cut number")?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    bail!("a number of more than 10 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A response with the resource `a` (version 7, body of 3 bytes), one removed name and the
    /// nonce 12.
    const RESPONSE: &[u8] = b"\x12\x0b\x0a\x017\x12\x03xyz\x1a\x01a\x32\x01b\x2a\x0212";

    fn framed(body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        message(&mut bytes, body);
        bytes
    }

    fn read(reader: &mut Reader, bytes: &[u8]) -> Result<(Vec<Vec<u8>>, Vec<u8>)> {
        let (mut messages, mut out) = (Vec::new(), Vec::new());
        reader.read(bytes, &mut out, |message, _| {
            messages.push(message.to_vec());
            Ok(())
        })?;
        Ok((messages, out))
    }

    #[test]
    fn a_response_is_looked_through() {
        let mut resources = Vec::new();
        let response = Response::parse(RESPONSE, |resource| {
            resources.push((resource.name, resource.version, resource.body_bytes));
            Ok(())
        });
        let expected = Response {
            nonce: b"12",
            removed: 1,
        };
        assert_eq!(response.unwrap(), expected);
        assert_eq!(resources, [(&b"a"[..], &b"7"[..], 3)]);
        for cut in 1..RESPONSE.len() {
            // Parsing terminates, with any result.
            let _ = Response::parse(&RESPONSE[..cut], |_| Ok(()));
        }
    }

    #[test]
    fn messages_are_found_however_the_bytes_come() {
        let bytes = [framed(b"one"), framed(b""), framed(&[7; 300])].concat();
        let expected = [b"one".to_vec(), vec![], vec![7; 300]];
        for cut in 0..bytes.len() {
            let mut reader = Reader::default();
            let (first, second) = bytes.split_at(cut);
            let mut messages = read(&mut reader, first).unwrap().0;
            messages.extend(read(&mut reader, second).unwrap().0);
            assert_eq!(messages, expected, "cut at {cut}");
        }
    }

    #[test]
    fn a_message_may_span_frames() {
        let whole = framed(&[7; 300]);
        let body = &whole[FRAME_HEADER_BYTES..];
        let mut reader = Reader::default();
        for (part, count) in [(&body[..3], 0), (&body[3..100], 0), (&body[100..], 1)] {
            let mut bytes = Vec::new();
            frame(&mut bytes, DATA, 0, STREAM, part);
            assert_eq!(read(&mut reader, &bytes).unwrap().0.len(), count);
        }
    }

    #[test]
    fn pings_and_settings_are_answered_and_an_end_is_an_error() {
        let mut reader = Reader::default();
        let mut bytes = Vec::new();
        frame(&mut bytes, SETTINGS, 0, 0, &[]);
        frame(&mut bytes, PING, 0, 0, b"12345678");
        let mut expected = Vec::new();
        frame(&mut expected, SETTINGS, ACK, 0, &[]);
        frame(&mut expected, PING, ACK, 0, b"12345678");
        assert_eq!(read(&mut reader, &bytes).unwrap().1, expected);
        for (kind, flags) in [(HEADERS, END_STREAM), (RST_STREAM, 0), (GOAWAY, 0)] {
            let mut bytes = Vec::new();
            frame(&mut bytes, kind, flags, STREAM, b"why?");
            assert!(read(&mut reader, &bytes).is_err());
        }
    }
}
