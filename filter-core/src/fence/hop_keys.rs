//! The keys that hops are signed with, as the workers of a process share them.
//!
//! The control plane tells them on the speaker's stream, and they stand in the proxy's shared data,
//! which no part of its admin interface shows. They outlast the stream: without a control plane
//! hops are signed and checked as before.

use policy::hop::{BUCKET_US, HopKeys};
use protos::fence::GrantorSays;

use super::{
    ledger::PREFIX,
    process::{self, Process},
};

fn key() -> String {
    format!("{PREFIX}hop")
}

/// Keeps the keys from the control plane. Where this fails the next stream repeats them.
pub fn keep(process: &mut (impl Process + ?Sized), says: &GrantorSays) {
    let said = says.encode();
    let changed = |bytes: Option<&[u8]>| (bytes != Some(&said)).then(|| said.clone());
    process::change(process, &key(), |bytes| Some((changed(bytes), ())));
}

/// The keys, and the time bucket of now.
pub fn read(process: &mut (impl Process + ?Sized)) -> HopKeys {
    let Ok(Some((bytes, _))) = process.get(&key()) else {
        return HopKeys::Untold;
    };
    match (GrantorSays::decode(&bytes), process.now()) {
        (Ok(GrantorSays::HopKeys(Some(keys))), Some(at)) => HopKeys::Held {
            keys,
            bucket: at.wall_us / BUCKET_US,
        },
        (Ok(GrantorSays::HopKeys(None)), _) => HopKeys::Withheld,
        _ => HopKeys::Untold,
    }
}

#[cfg(test)]
mod tests {
    use policy::hop::Keys;

    use super::*;
    use crate::fence::testing::Fake;

    #[test]
    fn keys_are_what_was_said_last() {
        let mut fake = Fake::default();
        fake.at.wall_us = 3 * BUCKET_US + 7;
        assert_eq!(read(&mut fake), HopKeys::Untold);
        keep(&mut fake, &GrantorSays::HopKeys(None));
        assert_eq!(read(&mut fake), HopKeys::Withheld);
        let keys = Keys::new(vec!["0123456789abcdef".into()]).unwrap();
        keep(&mut fake, &GrantorSays::HopKeys(Some(keys.clone())));
        assert_eq!(read(&mut fake), HopKeys::Held { keys, bucket: 3 });
        fake.put(&key(), b"?");
        assert_eq!(read(&mut fake), HopKeys::Untold);
        fake.fails = true;
        assert_eq!(read(&mut fake), HopKeys::Untold);
    }
}
