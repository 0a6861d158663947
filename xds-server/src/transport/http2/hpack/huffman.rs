//! HPACK's Huffman code. See RFC 7541, section 5.2 and appendix B.
//!
//! The code is canonical: with the lengths alone, codes are given out in order of length and symbol. All tables follow from
//! that, at compile time.

/// The symbol that ends a string. It never stands in one; its code begins with the ones that fill up the last byte.
const END: usize = 256;
const SYMBOLS: usize = 257;
const LEN_MAX: usize = 30;

/// How many bits each symbol's code has.
#[rustfmt::skip]
const LENS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7,
    7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21,
    23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24,
    21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

/// The codes of one length.
#[derive(Clone, Copy)]
struct Codes {
    /// The first code, its bits at the upper end.
    first: u32,
    /// How many there are.
    count: u32,
    /// Where their symbols begin in `ORDER`.
    at: usize,
}

struct Table {
    by_len: [Codes; LEN_MAX + 1],
    /// The symbols in the order of their codes.
    order: [u16; SYMBOLS],
}

const TABLE: Table = {
    let none = Codes {
        first: 0,
        count: 0,
        at: 0,
    };
    let mut table = Table {
        by_len: [none; LEN_MAX + 1],
        order: [0; SYMBOLS],
    };
    let (mut code, mut at) = (0u32, 0);
    let mut len = 1;
    while len <= LEN_MAX {
        code <<= 1;
        let (first, first_at) = (code << (32 - len), at);
        let mut symbol = 0;
        while symbol < SYMBOLS {
            if LENS[symbol] as usize == len {
                table.order[at] = symbol as u16;
                at += 1;
                code += 1;
            }
            symbol += 1;
        }
        table.by_len[len] = Codes {
            first,
            count: (at - first_at) as u32,
            at: first_at,
        };
        len += 1;
    }
    table
};

/// What is no Huffman code.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Invalid;

/// Appends what `coded` stands for; at most 8 bytes for 5.
pub(super) fn decode(coded: &[u8], out: &mut Vec<u8>) -> Result<(), Invalid> {
    let mut coded = coded.iter();
    // The lowest `count` bits of `bits` are to be decoded next.
    let (mut bits, mut count) = (0u64, 0u32);
    loop {
        while count < LEN_MAX as u32 {
            let Some(byte) = coded.next() else { break };
            bits = bits << 8 | u64::from(*byte);
            count += 8;
        }
        // Followed by ones where there are fewer than 32.
        let next = match count.checked_sub(32) {
            Some(later) => bits >> later,
            None => bits << (32 - count) | u64::from(u32::MAX >> count),
        };
        let (symbol, len) = first_symbol(next as u32);
        if len > count {
            let padding = (1 << count) - 1;
            return if count < 8 && bits & padding == padding {
                Ok(())
            } else {
                Err(Invalid)
            };
        }
        if symbol == END {
            return Err(Invalid);
        }
        out.push(symbol as u8);
        count -= len;
        bits &= (1 << count) - 1;
    }
}

/// The symbol whose code `bits` begin with, and how long that is. There always is one: the code is complete.
fn first_symbol(bits: u32) -> (usize, u32) {
    for (len, codes) in TABLE.by_len.iter().enumerate().skip(1) {
        let nth = bits.wrapping_sub(codes.first) >> (32 - len);
        if bits >= codes.first && nth < codes.count {
            let symbol = TABLE.order[codes.at + nth as usize];
            return (usize::from(symbol), len as u32);
        }
    }
    (END, LEN_MAX as u32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The code of a symbol: its bits, and how many.
    fn code(symbol: usize) -> (u32, u32) {
        let len = usize::from(LENS[symbol]);
        let codes = TABLE.by_len[len];
        let order = &TABLE.order[codes.at..codes.at + codes.count as usize];
        let nth = order.iter().position(|s| usize::from(*s) == symbol);
        let first = codes.first >> (32 - len);
        (
            first + nth.expect("a symbol of this length") as u32,
            len as u32,
        )
    }

    /// The straightforward way: a string of ones and zeros.
    fn encode(plain: &[u8]) -> Vec<u8> {
        let code = |byte: &u8| {
            let (code, len) = code(usize::from(*byte));
            format!("{code:0len$b}", len = len as usize)
        };
        let mut bits: String = plain.iter().map(code).collect();
        while !bits.len().is_multiple_of(8) {
            bits.push('1');
        }
        let byte = |at| u8::from_str_radix(&bits[at..at + 8], 2).expect("bits");
        (0..bits.len()).step_by(8).map(byte).collect()
    }

    #[track_caller]
    fn check(coded: &[u8], plain: Result<&[u8], Invalid>) {
        let mut out = Vec::new();
        let decoded = decode(coded, &mut out);
        assert_eq!(decoded.map(|()| &out[..]), plain);
    }

    /// Some rows of the table in the RFC.
    #[test]
    fn codes_are_those_of_the_rfc() {
        assert_eq!(code(usize::from(b'0')), (0x0, 5));
        assert_eq!(code(usize::from(b'z')), (0x7b, 7));
        assert_eq!(code(0), (0x1ff8, 13));
        assert_eq!(code(usize::from(b'\\')), (0x7fff0, 19));
        assert_eq!(code(249), (0xffffffe, 28));
        assert_eq!(code(END), (0x3fffffff, 30));
    }

    /// RFC 7541, appendix C.4 and C.6.
    #[test]
    fn strings_are_those_of_the_rfc() {
        let www = [
            0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff,
        ];
        check(&www, Ok(b"www.example.com"));
        check(&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf], Ok(b"no-cache"));
        check(&[0x64, 0x02], Ok(b"302"));
        check(&[], Ok(b""));
    }

    #[test]
    fn what_is_no_code_is_refused() {
        // `0` and three bits that are not all ones.
        check(&[0b0000_0110], Err(Invalid));
        // More than seven bits of padding.
        check(&[0b0000_0111, 0xff], Err(Invalid));
        check(&[0xff], Err(Invalid));
        // The end.
        check(&[0xff, 0xff, 0xff, 0xff], Err(Invalid));
    }

    proptest! {
        #[test]
        fn strings_come_out_as_they_went_in(plain in prop::collection::vec(any::<u8>(), 0..100)) {
            let mut out = Vec::new();
            prop_assert_eq!(decode(&encode(&plain), &mut out), Ok(()));
            prop_assert_eq!(out, plain);
        }

        #[test]
        fn anything_else_is_an_error_and_no_more(coded in prop::collection::vec(any::<u8>(), 0..100)) {
            let mut out = Vec::new();
            if decode(&coded, &mut out).is_ok() {
                prop_assert_eq!(encode(&out), coded);
            }
        }
    }
}
