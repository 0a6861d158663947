//! A number for a configuration, equal on replicas whose proxies are to get the same.

use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

/// Digests have so many bits, so that they are exact in metrics.
const BITS: u32 = 48;

/// The fields that differ between replicas that are otherwise the same: addresses, files and the
/// zone of their own.
const OWN: [&str; 3] = ["listen", "store", "state"];

/// The digest of a configuration file. Comments, order of keys and the replica's own addresses do not matter.
pub(super) fn digest(text: &str) -> u64 {
    let mut value: Value = match serde_saphyr::from_str(text) {
        Ok(value) => value,
        // The file was read before, as a configuration; a number of its bytes is as good.
        Err(_) => Value::String(text.to_owned()),
    };
    if let Value::Object(fields) = &mut value {
        for own in OWN {
            fields.remove(own);
        }
        if let Some(Value::Object(authority)) = fields.get_mut("authority") {
            authority.remove("zones");
        }
    }
    // Maps of JSON values are sorted by key.
    xxh3_64(value.to_string().as_bytes()) >> (u64::BITS - BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_of_what_replicas_have_in_common() {
        let one = "listen: {admin: 1}\nzones: [{name: a, region: r}]\nguard: {vanish_percent: 5}\nauthority: {zones: [a], write_drain_ms: 9}";
        let same = "# a comment\nauthority: {write_drain_ms: 9, zones: [b]}\nguard:\n  vanish_percent: 5\nstore: {etcd: {}}\nzones:\n  - region: r\n    name: a\n";
        assert_eq!(digest(one), digest(same));
        for other in [
            one.replace("vanish_percent: 5", "vanish_percent: 6"),
            one.replace("write_drain_ms: 9", "write_drain_ms: 8"),
            one.replace("name: a", "name: b"),
        ] {
            assert_ne!(digest(one), digest(&other), "{other}");
        }
        assert!(digest(one) < 1 << BITS);
    }
}
