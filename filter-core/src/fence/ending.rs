//! The end of a write, by the proxy's notes of it.

/// The proxy's notes of a request that is over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ending {
    /// Its response flags, as bits; none where the proxy does not tell.
    pub flags: Option<u64>,
    /// Its response code details.
    pub details: Vec<u8>,
}

// Bits of the response flags, by their order in Envoy's `StreamInfo::CoreResponseFlag`.
const NO_HEALTHY_UPSTREAM: u64 = 1 << 1;
const UPSTREAM_CONNECTION_FAILURE: u64 = 1 << 5;
const UPSTREAM_OVERFLOW: u64 = 1 << 7;
const NO_ROUTE_FOUND: u64 = 1 << 8;
const UPSTREAM_RETRY_LIMIT_EXCEEDED: u64 = 1 << 15;
const NO_CLUSTER_FOUND: u64 = 1 << 24;

/// With one of these nothing was sent: only attempts that sent nothing are made again, so the last
/// one speaks for all.
const NOTHING_SENT: u64 = NO_HEALTHY_UPSTREAM
    | UPSTREAM_CONNECTION_FAILURE
    | UPSTREAM_OVERFLOW
    | NO_ROUTE_FOUND
    | NO_CLUSTER_FOUND;

impl Ending {
    /// Whether certainly nothing of the write is under way any more: an instance has answered it
    /// completely, or none has got it.
    pub fn is_settled(&self) -> bool {
        match (self.flags, &self.details[..]) {
            (Some(0), b"via_upstream" | b"direct_response") => true,
            (Some(flags), _) => {
                let other = flags & !(NOTHING_SENT | UPSTREAM_RETRY_LIMIT_EXCEEDED);
                flags & NOTHING_SENT != 0 && other == 0
            }
            (None, _) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_settled(flags: u64, details: &str) -> bool {
        let details = details.as_bytes().to_vec();
        let flags = Some(flags);
        Ending { flags, details }.is_settled()
    }

    #[test]
    fn only_an_answer_or_nothing_sent_settles_a_write() {
        assert!(is_settled(0, "via_upstream"));
        assert!(is_settled(0, "direct_response"));
        assert!(is_settled(
            1 << 5,
            "upstream_reset_before_response_started{connection_failure}"
        ));
        assert!(is_settled(1 << 5 | 1 << 15, ""), "after the last attempt");
        assert!(is_settled(1 << 1, "no_healthy_upstream"));
        for (flags, details) in [
            // The client is gone: its connection, its stream.
            (1 << 14, "downstream_remote_disconnect"),
            (1 << 14, "via_upstream"),
            (0, "http2.remote_reset"),
            (0, ""),
            // The instance's answer broke off, or none came.
            (
                1 << 6,
                "upstream_reset_before_response_started{connection_termination}",
            ),
            (
                1 << 4,
                "upstream_reset_after_response_started{remote_reset}",
            ),
            (1 << 2, "upstream_response_timeout"),
            (1 << 22, "max_duration_timeout"),
            // Earlier attempts may have sent bytes.
            (1 << 5 | 1 << 14, ""),
        ] {
            assert!(!is_settled(flags, details), "{flags} {details}");
        }
        assert!(!Ending::default().is_settled());
    }
}
