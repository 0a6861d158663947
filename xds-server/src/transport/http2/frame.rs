//! HTTP/2's frames: a head of nine bytes, and a payload. See RFC 9113, sections 4, 6 and 7.

/// The longest payload that is taken and sent: HTTP/2's default, which everybody takes.
pub(super) const PAYLOAD_BYTES_MAX: usize = 16 * 1024;
pub(super) const HEAD_BYTES: usize = 9;
/// The highest identifier of a stream, and the largest window.
pub(super) const U31_MAX: u32 = u32::MAX >> 1;

/// The kinds of frames. There may be others, which are ignored.
pub(super) mod kind {
    pub(in super::super) const DATA: u8 = 0x0;
    pub(in super::super) const HEADERS: u8 = 0x1;
    pub(in super::super) const PRIORITY: u8 = 0x2;
    pub(in super::super) const RST_STREAM: u8 = 0x3;
    pub(in super::super) const SETTINGS: u8 = 0x4;
    pub(in super::super) const PUSH_PROMISE: u8 = 0x5;
    pub(in super::super) const PING: u8 = 0x6;
    pub(in super::super) const GOAWAY: u8 = 0x7;
    pub(in super::super) const WINDOW_UPDATE: u8 = 0x8;
    pub(in super::super) const CONTINUATION: u8 = 0x9;
}

pub(super) mod flag {
    pub(in super::super) const END_STREAM: u8 = 0x1;
    /// Of SETTINGS and PING.
    pub(in super::super) const ACK: u8 = 0x1;
    pub(in super::super) const END_HEADERS: u8 = 0x4;
    pub(in super::super) const PADDED: u8 = 0x8;
    pub(in super::super) const PRIORITY: u8 = 0x20;
}

pub(super) mod setting {
    pub(in super::super) const ENABLE_PUSH: u16 = 0x2;
    pub(in super::super) const MAX_CONCURRENT_STREAMS: u16 = 0x3;
    pub(in super::super) const INITIAL_WINDOW_SIZE: u16 = 0x4;
    pub(in super::super) const MAX_FRAME_SIZE: u16 = 0x5;
    pub(in super::super) const MAX_HEADER_LIST_SIZE: u16 = 0x6;
}

/// Why a stream or a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Reason {
    NoError = 0x0,
    ProtocolError = 0x1,
    FlowControlError = 0x3,
    StreamClosed = 0x5,
    FrameSizeError = 0x6,
    RefusedStream = 0x7,
    Cancel = 0x8,
    CompressionError = 0x9,
    EnhanceYourCalm = 0xb,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) payload_len: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    /// 0 for the connection.
    pub(super) stream: u32,
}

impl Head {
    pub(super) fn read(bytes: &[u8; HEAD_BYTES]) -> Head {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = *bytes;
        Head {
            payload_len: u32::from_be_bytes([0, l0, l1, l2]) as usize,
            kind,
            flags,
            stream: u32::from_be_bytes([s0, s1, s2, s3]) & U31_MAX,
        }
    }

    pub(super) fn bytes(self) -> [u8; HEAD_BYTES] {
        let [_, l0, l1, l2] = (self.payload_len as u32).to_be_bytes();
        let [s0, s1, s2, s3] = self.stream.to_be_bytes();
        [l0, l1, l2, self.kind, self.flags, s0, s1, s2, s3]
    }

    pub(super) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Appends a frame.
pub(super) fn put(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let head = Head {
        payload_len: payload.len(),
        kind,
        flags,
        stream,
    };
    out.extend_from_slice(&head.bytes());
    out.extend_from_slice(payload);
}

pub(super) fn put_u32(out: &mut Vec<u8>, kind: u8, stream: u32, value: u32) {
    put(out, kind, 0, stream, &value.to_be_bytes());
}

pub(super) fn put_settings(out: &mut Vec<u8>, settings: &[(u16, u32)]) {
    let mut payload = Vec::new();
    for (setting, value) in settings {
        payload.extend_from_slice(&setting.to_be_bytes());
        payload.extend_from_slice(&value.to_be_bytes());
    }
    put(out, kind::SETTINGS, 0, 0, &payload);
}

pub(super) fn put_goaway(out: &mut Vec<u8>, last_stream: u32, reason: Reason) {
    let mut payload = last_stream.to_be_bytes().to_vec();
    payload.extend_from_slice(&(reason as u32).to_be_bytes());
    put(out, kind::GOAWAY, 0, 0, &payload);
}

/// Appends a list of fields, in as many frames as it takes.
pub(super) fn put_headers(out: &mut Vec<u8>, stream: u32, block: &[u8], ends_stream: bool) {
    let mut parts = block.chunks(PAYLOAD_BYTES_MAX).peekable();
    let mut kind = kind::HEADERS;
    let mut flags = if ends_stream { flag::END_STREAM } else { 0 };
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            flags |= flag::END_HEADERS;
        }
        put(out, kind, flags, stream, part);
        (kind, flags) = (kind::CONTINUATION, 0);
    }
}

/// What a padded payload is about; none if the padding is longer than the payload.
pub(super) fn without_padding(head: Head, payload: &[u8]) -> Option<&[u8]> {
    if !head.has(flag::PADDED) {
        return Some(payload);
    }
    let (padding, rest) = payload.split_first()?;
    let len = rest.len().checked_sub(usize::from(*padding))?;
    Some(&rest[..len])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_as_it_is_written() {
        let head = Head {
            payload_len: 0x01_0203,
            kind: kind::PING,
            flags: flag::ACK,
            stream: 0x0405_0607,
        };
        let bytes = [1, 2, 3, 6, 1, 4, 5, 6, 7];
        assert_eq!(head.bytes(), bytes);
        assert_eq!(Head::read(&bytes), head);
        // The first bit of a stream's identifier means nothing.
        assert_eq!(Head::read(&[1, 2, 3, 6, 1, 0x84, 5, 6, 7]), head);
    }

    #[test]
    fn a_long_list_of_fields_goes_on_in_further_frames() {
        let mut out = Vec::new();
        put_headers(&mut out, 1, &vec![7; 2 * PAYLOAD_BYTES_MAX + 1], true);
        let mut heads = Vec::new();
        let mut rest = &out[..];
        while let Some((head, after)) = rest.split_first_chunk() {
            let head = Head::read(head);
            heads.push((head.kind, head.flags, head.payload_len));
            rest = &after[head.payload_len..];
        }
        let full = PAYLOAD_BYTES_MAX;
        let expected = [
            (kind::HEADERS, flag::END_STREAM, full),
            (kind::CONTINUATION, 0, full),
            (kind::CONTINUATION, flag::END_HEADERS, 1),
        ];
        assert_eq!(heads, expected);
    }

    #[test]
    fn padding_is_taken_off() {
        let head = |flags| Head {
            payload_len: 0,
            kind: kind::DATA,
            flags,
            stream: 1,
        };
        let check = |flags, payload: &[u8], expected: Option<&[u8]>| {
            assert_eq!(without_padding(head(flags), payload), expected);
        };
        check(0, &[2, 7, 0, 0], Some(&[2, 7, 0, 0]));
        check(flag::PADDED, &[2, 7, 0, 0], Some(&[7]));
        check(flag::PADDED, &[3, 0, 0, 0], Some(&[]));
        check(flag::PADDED, &[4, 0, 0, 0], None);
        check(flag::PADDED, &[], None);
    }
}
