//! Values with versions that the process shares, as a proxy's shared data are.
//!
//! They outlast every configuration. A module that was loaded from another file has values of its
//! own, and so is another holder of grants.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use filter_core::{apply::HostFailed, fence::process::Version};

#[derive(Debug)]
struct Values {
    values: BTreeMap<String, (Vec<u8>, Version)>,
    newest: Version,
}

static VALUES: Mutex<Values> = Mutex::new(Values {
    values: BTreeMap::new(),
    newest: Version::MIN,
});

pub(crate) fn get(key: &str) -> Result<Option<(Vec<u8>, Version)>, HostFailed> {
    let values = VALUES.lock().map_err(|PoisonError { .. }| HostFailed)?;
    Ok(values.values.get(key).cloned())
}

/// Replaces the value of that version, or makes one where there is none. False if there is another.
pub(crate) fn swap(key: &str, seen: Option<Version>, value: &[u8]) -> Result<bool, HostFailed> {
    let mut values = VALUES.lock().map_err(|PoisonError { .. }| HostFailed)?;
    if values.values.get(key).map(|(_, version)| *version) != seen {
        return Ok(false);
    }
    // A value would have to stay for four billion changes to meet its version again.
    let newest = values.newest.checked_add(1).unwrap_or(Version::MIN);
    values.newest = newest;
    values
        .values
        .insert(key.to_owned(), (value.to_vec(), newest));
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_replaced_only_in_the_version_that_was_seen() {
        assert_eq!(get("a"), Ok(None));
        assert_eq!(swap("a", Some(Version::MIN), b"1"), Ok(false));
        assert_eq!(swap("a", None, b"1"), Ok(true));
        assert_eq!(swap("a", None, b"2"), Ok(false));
        let (value, first) = get("a").unwrap().unwrap();
        assert_eq!(value, b"1");
        assert_eq!(swap("a", Some(first), b"2"), Ok(true));
        assert_eq!(swap("a", Some(first), b"3"), Ok(false));
        assert_eq!(get("a").unwrap().unwrap().0, b"2");
    }

    #[test]
    fn threads_lose_no_change() {
        let add = || {
            for _ in 0..1_000 {
                loop {
                    let (value, version) = get("b").unwrap().unzip();
                    let next =
                        value.map_or(0, |value| u32::from_le_bytes(value.try_into().unwrap())) + 1;
                    if swap("b", version, &next.to_le_bytes()).unwrap() {
                        break;
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(add);
            }
        });
        assert_eq!(get("b").unwrap().unwrap().0, 4_000_u32.to_le_bytes());
    }
}
