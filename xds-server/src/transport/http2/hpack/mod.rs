//! HPACK: how HTTP/2 writes lists of fields. See RFC 7541.
//!
//! What is received may use all of it. What is sent is so little that it is written plainly: no field is remembered, and no
//! string is Huffman-coded.

mod fields;
mod huffman;

use std::collections::VecDeque;

use fields::STATIC;

use super::LIST_BYTES_MAX;

/// How much a decoder remembers unless it has said otherwise, in bytes as HPACK counts them.
const TABLE_BYTES_MAX: usize = 4096;
/// What HPACK counts for a field besides its name and value.
pub(super) const FIELD_BYTES: usize = 32;
/// How much a list may unfold to. What is longer than a request may be is told so, but who names a long field that is
/// remembered over and over makes two bytes into thousands.
const UNFOLDED_BYTES_MAX: usize = 2 * LIST_BYTES_MAX;
/// The longest length or index that is taken: far more than a list of fields may have.
const INTEGER_MAX: usize = 1 << 20;

/// What is no list of fields. The connection cannot go on: both sides no longer remember the same.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Invalid;

impl From<huffman::Invalid> for Invalid {
    fn from(_: huffman::Invalid) -> Invalid {
        Invalid
    }
}

/// What is remembered of the lists before.
#[derive(Debug)]
pub(super) struct Decoder {
    /// The last one first.
    fields: VecDeque<Field>,
    bytes: usize,
    bytes_max: usize,
}

#[derive(Debug)]
struct Field {
    /// The name and then the value.
    text: Box<[u8]>,
    name_len: usize,
}

impl Field {
    fn bytes(&self) -> usize {
        self.text.len() + FIELD_BYTES
    }
}

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder {
            fields: VecDeque::new(),
            bytes: 0,
            bytes_max: TABLE_BYTES_MAX,
        }
    }
}

impl Decoder {
    /// Hands each field of `block` to `take`, as name and value.
    pub(super) fn decode(
        &mut self,
        mut block: &[u8],
        mut take: impl FnMut(&[u8], &[u8]),
    ) -> Result<(), Invalid> {
        let (mut name, mut value) = (Vec::new(), Vec::new());
        let mut may_resize = true;
        let mut room = UNFOLDED_BYTES_MAX;
        let mut take = |name: &[u8], value: &[u8]| -> Result<(), Invalid> {
            let len = name.len() + value.len() + FIELD_BYTES;
            room = room.checked_sub(len).ok_or(Invalid)?;
            take(name, value);
            Ok(())
        };
        while let Some(first) = block.first() {
            let (prefix_bits, is_remembered) = match *first {
                0b1000_0000.. => {
                    let (name, value) = self.field(integer(&mut block, 7)?)?;
                    take(name, value)?;
                    may_resize = false;
                    continue;
                }
                0b0010_0000..0b0100_0000 if may_resize => {
                    self.resize(integer(&mut block, 5)?)?;
                    continue;
                }
                0b0010_0000..0b0100_0000 => return Err(Invalid),
                0b0100_0000..0b1000_0000 => (6, true),
                0b0000_0000..0b0010_0000 => (4, false),
            };
            may_resize = false;
            name.clear();
            value.clear();
            match integer(&mut block, prefix_bits)? {
                0 => string(&mut block, &mut name)?,
                index => name.extend_from_slice(self.field(index)?.0),
            }
            string(&mut block, &mut value)?;
            take(&name, &value)?;
            if is_remembered {
                self.remember(&name, &value);
            }
        }
        Ok(())
    }

    fn field(&self, index: usize) -> Result<(&[u8], &[u8]), Invalid> {
        let index = index.checked_sub(1).ok_or(Invalid)?;
        if let Some((name, value)) = STATIC.get(index) {
            return Ok((name.as_bytes(), value.as_bytes()));
        }
        let field = self.fields.get(index - STATIC.len()).ok_or(Invalid)?;
        Ok(field.text.split_at(field.name_len))
    }

    fn remember(&mut self, name: &[u8], value: &[u8]) {
        let field = Field {
            text: [name, value].concat().into(),
            name_len: name.len(),
        };
        self.bytes += field.bytes();
        self.fields.push_front(field);
        self.forget();
    }

    fn resize(&mut self, bytes_max: usize) -> Result<(), Invalid> {
        if bytes_max > TABLE_BYTES_MAX {
            return Err(Invalid);
        }
        self.bytes_max = bytes_max;
        self.forget();
        Ok(())
    }

    /// Forgets the oldest fields, until there is no more than may be. That may be all of them.
    fn forget(&mut self) {
        while self.bytes > self.bytes_max {
            let Some(oldest) = self.fields.pop_back() else {
                return;
            };
            self.bytes -= oldest.bytes();
        }
    }
}

/// Takes an integer that begins with the lowest `prefix_bits` bits of the first byte. See RFC 7541, section 5.1.
fn integer(block: &mut &[u8], prefix_bits: u32) -> Result<usize, Invalid> {
    let mask = (1 << prefix_bits) - 1;
    let mut value = usize::from(byte(block)? & mask);
    if value < usize::from(mask) {
        return Ok(value);
    }
    for shift in [0, 7, 14] {
        let byte = byte(block)?;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return if value <= INTEGER_MAX {
                Ok(value)
            } else {
                Err(Invalid)
            };
        }
    }
    Err(Invalid)
}

fn string(block: &mut &[u8], out: &mut Vec<u8>) -> Result<(), Invalid> {
    let is_coded = block.first().ok_or(Invalid)? & 0x80 != 0;
    let len = integer(block, 7)?;
    let (string, rest) = block.split_at_checked(len).ok_or(Invalid)?;
    *block = rest;
    if is_coded {
        huffman::decode(string, out)?;
    } else {
        out.extend_from_slice(string);
    }
    Ok(())
}

fn byte(block: &mut &[u8]) -> Result<u8, Invalid> {
    let (first, rest) = block.split_first().ok_or(Invalid)?;
    *block = rest;
    Ok(*first)
}

/// Appends a response's `:status`.
pub(super) fn put_status(out: &mut Vec<u8>, status: http::StatusCode) {
    const STATUS: usize = 8;
    const STATUS_200: u8 = 0x88;
    if status == http::StatusCode::OK {
        out.push(STATUS_200);
    } else {
        put_integer(out, 0, 4, STATUS);
        put_string(out, status.as_str().as_bytes());
    }
}

/// Appends a field that need not be remembered.
pub(super) fn put_field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.push(0);
    put_string(out, name.as_bytes());
    put_string(out, value);
}

fn put_string(out: &mut Vec<u8>, string: &[u8]) {
    put_integer(out, 0, 7, string.len());
    out.extend_from_slice(string);
}

/// Appends an integer whose first byte begins with `first`.
fn put_integer(out: &mut Vec<u8>, first: u8, prefix_bits: u32, mut value: usize) {
    let mask = (1 << prefix_bits) - 1;
    if value < mask {
        out.push(first | value as u8);
        return;
    }
    out.push(first | mask as u8);
    value -= mask;
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Fields = Vec<(String, String)>;

    fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Fields, Invalid> {
        let mut fields = Vec::new();
        decoder.decode(block, |name, value| {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            fields.push((text(name), text(value)));
        })?;
        Ok(fields)
    }

    fn hex(text: &str) -> Vec<u8> {
        let text: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
        let byte = |pair: &[char]| u8::from_str_radix(&String::from_iter(pair), 16).expect("hex");
        text.chunks(2).map(byte).collect()
    }

    fn fields(expected: &[(&str, &str)]) -> Fields {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        expected.iter().map(owned).collect()
    }

    /// RFC 7541, appendix C.3 and C.4: three requests on one connection, the same plain and Huffman-coded.
    #[test]
    fn requests_are_those_of_the_rfc() {
        let first = [
            (":method", "GET"),
            (":scheme", "http"),
            (":path", "/"),
            (":authority", "www.example.com"),
        ];
        let second = [&first[..], &[("cache-control", "no-cache")]].concat();
        let third = [
            (":method", "GET"),
            (":scheme", "https"),
            (":path", "/index.html"),
            (":authority", "www.example.com"),
            ("custom-key", "custom-value"),
        ];
        let plain = [
            "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "8286 84be 5808 6e6f 2d63 6163 6865",
            "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
        ];
        let coded = [
            "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
            "8286 84be 5886 a8eb 1064 9cbf",
            "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
        ];
        for requests in [plain, coded] {
            let mut decoder = Decoder::default();
            for (request, expected) in requests.iter().zip([&first[..], &second, &third]) {
                assert_eq!(decode(&mut decoder, &hex(request)), Ok(fields(expected)));
            }
            assert_eq!(decoder.bytes, 164);
        }
    }

    /// RFC 7541, appendix C.5: a table of 256 bytes, in which not all have room.
    #[test]
    fn what_has_no_room_is_forgotten() {
        let mut decoder = Decoder::default();
        decode(&mut decoder, &hex("3fe101")).expect("a size of 256");
        let first = "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d";
        decode(&mut decoder, &hex(first)).expect("fields");
        assert_eq!((decoder.fields.len(), decoder.bytes), (4, 222));
        let second = decode(&mut decoder, &hex("4803 3330 37c1 c0bf")).expect("fields");
        let expected = [
            (":status", "307"),
            ("cache-control", "private"),
            ("date", "Mon, 21 Oct 2013 20:13:21 GMT"),
            ("location", "https://www.example.com"),
        ];
        assert_eq!(second, fields(&expected));
        assert_eq!((decoder.fields.len(), decoder.bytes), (4, 222));
        // One that is longer than the whole table leaves it empty.
        let mut long = vec![0x40];
        put_string(&mut long, b"x");
        put_string(&mut long, &[b'y'; 300]);
        assert_eq!(decode(&mut decoder, &long).map(|f| f.len()), Ok(1));
        assert_eq!((decoder.fields.len(), decoder.bytes), (0, 0));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for block in [
            "80",           // the index 0
            "be",           // a field that is not remembered
            "ff",           // half an integer
            "ffffffff01",   // an endless one
            "7f80808080",   // the same for a name
            "4003",         // half a string
            "0085ffffffff", // a string that is no Huffman code
            "3fe21f",       // a table of more than 4,096 bytes
            "8220",         // another size in the middle
        ] {
            assert_eq!(
                decode(&mut Decoder::default(), &hex(block)),
                Err(Invalid),
                "{block}"
            );
        }
    }

    proptest! {
        #[test]
        fn fields_come_out_as_they_went_in(
            sent in prop::collection::vec(("[a-z-]{0,300}", "[ -~]{0,300}"), 0..10),
            status in 200u16..600,
        ) {
            let mut block = Vec::new();
            put_status(&mut block, http::StatusCode::from_u16(status).expect("a status"));
            for (name, value) in &sent {
                put_field(&mut block, name, value.as_bytes());
            }
            let decoded = decode(&mut Decoder::default(), &block).expect("fields");
            prop_assert_eq!(&decoded[0], &(":status".to_owned(), status.to_string()));
            prop_assert_eq!(&decoded[1..], &sent[..]);
        }

        #[test]
        fn whatever_comes_there_is_never_more_than_may_be(
            blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..8),
        ) {
            let mut decoder = Decoder::default();
            for block in blocks {
                if decode(&mut decoder, &block).is_err() {
                    break;
                }
                let bytes: usize = decoder.fields.iter().map(Field::bytes).sum();
                prop_assert!(bytes == decoder.bytes && bytes <= TABLE_BYTES_MAX);
            }
        }
    }
}
