//! The names of the headers that Tidegate reads and writes. All of them are contracts.

/// The zone or region that the request names as its home.
pub const REGION_ID: &str = "x-region-id";
/// Correlates the log lines of one request.
pub const TRACE_ID: &str = "x-trace-id";

/// Only Tidegate sets headers with this prefix: copies from outside are removed.
///
/// The prefix has no hyphen at the end: many servers read `x-tidegate_home` as `x-tidegate-home`.
pub const INTERNAL_PREFIX: &str = "x-tidegate";
/// The home zone.
pub const HOME: &str = "x-tidegate-home";
/// `read` or `write`.
pub const CLASS: &str = "x-tidegate-class";
/// The cluster that the filter chose.
pub const TO: &str = "x-tidegate-to";
/// `zone`, `region` or `remote`.
pub const TIER: &str = "x-tidegate-tier";
/// The cell of a write.
pub const CELL: &str = "x-tidegate-cell";
/// The epoch for which a write was admitted: upstreams and storage compare it.
pub const EPOCH: &str = "x-tidegate-epoch";
/// How long an admitted write may live, in milliseconds. The filter sends it to the route, which
/// removes it. Absent if the agreed terms were never changed.
pub const WRITE_DRAIN: &str = "x-tidegate-write-drain-ms";
/// How often a write was forwarded between zones: 1, or absent.
pub const HOP: &str = "x-tidegate-hop";
/// In the response to a write that was sent to the wrong zone: the zone that owns its cell.
pub const OWNER: &str = "x-tidegate-owner";
/// Between zones: proves by its value, a [signature](crate::hop), that another zone's gateway
/// forwards this write. Its name is outside of [`INTERNAL_PREFIX`], since listeners remove that
/// prefix before the filter runs.
pub const FORWARDED: &str = "tidegate-hop";
/// Between zones: the epoch with which the other zone's proxy forwards this write.
pub const PRESENTED_EPOCH: &str = "tidegate-epoch";
/// The number of our proxies that have forwarded a request; may be absent. Outside of
/// [`INTERNAL_PREFIX`], since it has to survive from one proxy to the next.
pub const VIA: &str = "tidegate-via";
/// The reason code: in the access log always, in the response for callers that may see it.
pub const DECISION: &str = "x-tidegate-decision";
/// Set on the request of a caller that may see the decision; the route copies it to the response's
/// [`DECISION`].
pub const EXPLAIN: &str = "x-tidegate-explain";
/// The cluster to fall back to if the home is not local.
pub const ALT_ROUTE: &str = "x-envoy-upstream-alt-route";

/// Whether to remove a header from outside. `_` in a name counts as `-`: many servers treat both
/// alike.
pub fn is_internal(name: &[u8]) -> bool {
    name.get(..INTERNAL_PREFIX.len())
        .is_some_and(|start| is_folded(start, INTERNAL_PREFIX))
        || is_folded(name, ALT_ROUTE)
        || is_between_zones(name)
}

/// Whether a header is only used between the proxies of two zones.
pub fn is_between_zones(name: &[u8]) -> bool {
    [FORWARDED, PRESENTED_EPOCH]
        .iter()
        .any(|own| is_folded(name, own))
}

/// Whether a server may read `name` as `own`, which is lower case: the case is ignored, and `_`
/// counts as `-`.
fn is_folded(name: &[u8], own: &str) -> bool {
    let fold = |byte: &u8| match byte {
        b'_' => b'-',
        byte => byte.to_ascii_lowercase(),
    };
    name.len() == own.len() && name.iter().map(fold).eq(own.bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_an_internal_name_is_internal() {
        for name in [
            "x-tidegate-epoch",
            "x_tidegate-epoch",
            "x_tidegate_epoch",
            "X_Tidegate-Home",
            "x-tidegate",
            "x_tidegatex",
            "tidegate-hop",
            "tidegate_hop",
            "Tidegate_Epoch",
            "tidegate-epoch",
            "x_envoy-upstream_alt-route",
        ] {
            assert!(is_internal(name.as_bytes()), "{name}");
        }
        for name in [
            "tidegate",
            "tidegate-via",
            "tidegate-hops",
            "x-tide",
            "",
            "xx-tidegate",
        ] {
            assert!(!is_internal(name.as_bytes()), "{name}");
        }
        assert!(is_between_zones(b"tidegate_HOP") && !is_between_zones(b"x-tidegate-hop"));
    }
}
