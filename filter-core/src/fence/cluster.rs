//! How a cluster is named where a stream is opened.

/// Whether the proxy would take these bytes for an encoded message instead of the name of a
/// cluster.
///
/// Where a stream is opened it tries to read a `GrpcService` message, and only what is none is a
/// name. A name that reads as a message would end in a status that the SDK panics on. Most names do
/// not, `tidegate` among them; such as do are `xd` or `p1p2`.
pub fn reads_as_message(mut bytes: &[u8]) -> bool {
    let at = &mut bytes;
    let mut groups = vec![];
    while !at.is_empty() {
        if skip_field(at, &mut groups).is_none() {
            return false;
        }
    }
    groups.is_empty()
}

fn skip_field(at: &mut &[u8], groups: &mut Vec<u64>) -> Option<()> {
    let tag = take_varint(at)?;
    let field = tag >> 3;
    if field == 0 {
        return None;
    }
    match tag & 7 {
        0 => take_varint(at).map(|_| ()),
        1 => skip(at, 8),
        2 => {
            let size = usize::try_from(take_varint(at)?).ok()?;
            skip(at, size)
        }
        3 => {
            groups.push(field);
            Some(())
        }
        4 => (groups.pop()? == field).then_some(()),
        5 => skip(at, 4),
        _ => None,
    }
}

fn skip(at: &mut &[u8], size: usize) -> Option<()> {
    *at = at.get(size..)?;
    Some(())
}

fn take_varint(at: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = at.split_first()?;
        *at = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if *byte < 0x80 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn few_names_read_as_messages() {
        for name in [
            "tidegate",
            "xds",
            "control-plane",
            "control_plane",
            "fence",
            "ads",
        ] {
            assert!(!reads_as_message(name.as_bytes()), "{name}");
        }
        for name in ["", "xd", "p1p2", "bAa", "cd"] {
            let expected = name != "bAa";
            assert_eq!(reads_as_message(name.as_bytes()), expected, "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = reads_as_message(&bytes);
        }

        #[test]
        fn a_message_reads_as_one(cell: String, nonce: u64) {
            use protos::fence::HolderSays;
            let fence = policy::fence::Stamp::default();
            let drained = HolderSays::Drained { cell: cell.as_str().into(), fence };
            prop_assert!(reads_as_message(&drained.encode()));
            let ask = HolderSays::Ask { nonce, terms: None };
            prop_assert!(reads_as_message(&ask.encode()));
        }
    }
}
