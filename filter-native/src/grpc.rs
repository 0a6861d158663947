//! gRPC on a stream of HTTP/2: its frames, headers and statuses.
//!
//! <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>. Messages are never compressed:
//! no encoding is offered.

use protos::guest::POLICY_BYTES_MAX;

/// The flag and the length before each message.
const PREFIX_BYTES: usize = 5;
/// A longer message is taken for an attack: nothing that is sent here comes near.
const MESSAGE_BYTES_MAX: usize = POLICY_BYTES_MAX;

/// The headers of a call to `path` at a cluster.
pub(crate) fn headers<'c>(cluster: &'c str, path: &'c str) -> [(&'c str, &'c str); 6] {
    [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        // As Envoy's own gRPC client does.
        (":authority", cluster),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]
}

/// A message with its prefix. None if it is too long for one.
pub(crate) fn frame(message: &[u8]) -> Option<Vec<u8>> {
    let length = u32::try_from(message.len()).ok()?;
    let mut framed = Vec::with_capacity(PREFIX_BYTES + message.len());
    framed.push(0);
    framed.extend(length.to_be_bytes());
    framed.extend_from_slice(message);
    Some(framed)
}

/// The received bytes that are no whole message yet.
#[derive(Debug, Default)]
pub(crate) struct Frames(Vec<u8>);

/// The peer does not speak gRPC, or does so in a way that was not offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Broken;

impl Frames {
    /// More bytes have come. Gives the messages that are whole now.
    ///
    /// # Errors
    ///
    /// [`Broken`] for a message that is compressed or too long. The stream is of no use any more.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, Broken> {
        self.0.extend_from_slice(bytes);
        let mut messages = Vec::new();
        let mut rest = &self.0[..];
        while let Some(([flag, length @ ..], body)) = rest.split_first_chunk::<PREFIX_BYTES>() {
            let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| Broken)?;
            if *flag != 0 || length > MESSAGE_BYTES_MAX {
                return Err(Broken);
            }
            let Some((message, behind)) = body.split_at_checked(length) else {
                break;
            };
            messages.push(message.to_vec());
            rest = behind;
        }
        let taken = self.0.len() - rest.len();
        self.0.drain(..taken);
        Ok(messages)
    }
}

/// The status that a call ended with, in its headers or trailers; none where they have none.
pub(crate) fn status(headers: &[(&[u8], &[u8])]) -> Option<u32> {
    let (_, status) = headers.iter().find(|(name, _)| *name == b"grpc-status")?;
    std::str::from_utf8(status).ok()?.parse().ok()
}

/// Whether an answer has begun on which messages may come.
pub(crate) fn is_open(headers: &[(&[u8], &[u8])]) -> bool {
    let status = headers.iter().find(|(name, _)| *name == b":status");
    matches!(status, Some((_, b"200")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_out_whole_whatever_pieces_they_came_in() {
        let messages = [&b"one"[..], b"", &[7; 70_000]];
        let framed = messages.iter().map(|message| frame(message).unwrap());
        let bytes: Vec<u8> = framed.flatten().collect();
        for size in [1, 4, 5, 6, 1_000, bytes.len()] {
            let mut frames = Frames::default();
            let pieces = bytes.chunks(size).map(|piece| frames.take(piece).unwrap());
            let back: Vec<Vec<u8>> = pieces.flatten().collect();
            assert_eq!(back, messages, "pieces of {size} bytes");
            assert!(frames.0.is_empty());
        }
    }

    #[test]
    fn compressed_and_endless_messages_break_the_stream() {
        assert_eq!(Frames::default().take(&[1, 0, 0, 0, 0]), Err(Broken));
        assert_eq!(Frames::default().take(&[0, 255, 0, 0, 0]), Err(Broken));
        assert_eq!(Frames::default().take(&[0, 3, 0, 0]), Ok(vec![]));
    }

    #[test]
    fn a_status_is_read_from_headers_and_trailers() {
        let headers: [(&[u8], &[u8]); 2] = [(b":status", b"200"), (b"grpc-status", b"7")];
        assert_eq!((is_open(&headers), status(&headers)), (true, Some(7)));
        let other: [(&[u8], &[u8]); 2] = [(b":status", b"503"), (b"grpc-status", b"\xff")];
        assert_eq!((is_open(&other), status(&other)), (false, None));
        assert_eq!((is_open(&[]), status(&[])), (false, None));
    }
}
