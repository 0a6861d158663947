//! Local replies of the proxy.

use alloc::{format, string::String};

use crate::reason::Reason;

/// The `content-type` of [`Refusal::problem`].
pub const PROBLEM_JSON: &str = "application/problem+json";

/// Why a request is rejected, in every form that a client may need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: Reason,
    /// HTTP status.
    pub status: u16,
    /// gRPC status code, for gRPC requests.
    pub grpc_status: u8,
    /// An explanation and advice for the caller. It contains no byte of the request.
    pub detail: &'static str,
    /// `Retry-After`, if a retry can help.
    pub retry_after_s: Option<u32>,
}

const INVALID_ARGUMENT: u8 = 3;
const DEADLINE_EXCEEDED: u8 = 4;
const FAILED_PRECONDITION: u8 = 9;
const UNAVAILABLE: u8 = 14;

impl Refusal {
    pub const REGION_MISSING: Refusal = Refusal {
        reason: Reason::RegionMissing,
        status: 400,
        grpc_status: INVALID_ARGUMENT,
        detail: "this service demands X-Region-ID: send the name of a zone or region",
        retry_after_s: None,
    };
    pub const REGION_UNKNOWN: Refusal = Refusal {
        reason: Reason::RegionUnknown,
        status: 400,
        grpc_status: INVALID_ARGUMENT,
        detail: "X-Region-ID names no known zone or region, or is repeated",
        retry_after_s: None,
    };
    pub const TRACE_MISSING: Refusal = Refusal {
        reason: Reason::TraceMissing,
        status: 400,
        grpc_status: INVALID_ARGUMENT,
        detail: "this service demands exactly one X-Trace-ID",
        retry_after_s: None,
    };
    pub const FENCED: Refusal = Refusal {
        reason: Reason::Fenced,
        status: 503,
        grpc_status: UNAVAILABLE,
        detail: "this proxy has no policy yet and admits no writes: try again",
        retry_after_s: Some(1),
    };
    pub const KEY_INVALID: Refusal = Refusal {
        reason: Reason::KeyInvalid,
        status: 400,
        grpc_status: INVALID_ARGUMENT,
        detail: "the key that places this request is repeated, or has an invalid percent-encoding: send it once, percent-encoded",
        retry_after_s: None,
    };
    pub const LOOP: Refusal = Refusal {
        reason: Reason::Loop,
        status: 508,
        grpc_status: FAILED_PRECONDITION,
        detail: "the request loops between proxies: an instance is registered with the address of a proxy that sends requests to it",
        retry_after_s: None,
    };
    /// For a write that was admitted and then cut off by the proxy: its outcome is unknown.
    pub const WRITE_TIMEOUT: Refusal = Refusal {
        reason: Reason::WriteTimeout,
        status: 408,
        grpc_status: DEADLINE_EXCEEDED,
        detail: "the write took longer than write_drain_ms, which bounds every fenced write, its body included: its outcome is unknown",
        retry_after_s: None,
    };
    /// The zone owns the cell, but this proxy holds no grant.
    pub const NO_GRANT: Refusal = Refusal {
        detail: "this zone holds no permission to write at the moment: try again",
        ..Refusal::FENCED
    };
    pub const NOT_OWNER: Refusal = Refusal {
        reason: Reason::NotOwner,
        status: 421,
        grpc_status: FAILED_PRECONDITION,
        detail: "another zone takes these writes: send it there, x-tidegate-owner names it",
        retry_after_s: None,
    };
    pub const STALE_EPOCH: Refusal = Refusal {
        reason: Reason::StaleEpoch,
        status: 412,
        grpc_status: FAILED_PRECONDITION,
        detail: "the write was forwarded with an epoch that has ended: retry it",
        retry_after_s: None,
    };
    pub const AHEAD_EPOCH: Refusal = Refusal {
        reason: Reason::AheadEpoch,
        status: 503,
        grpc_status: UNAVAILABLE,
        detail: "the write was forwarded with an epoch that this zone does not know yet: the zone lags, and admits no write",
        retry_after_s: Some(1),
    };
    pub const NO_CAPACITY: Refusal = Refusal {
        reason: Reason::NoCapacity,
        status: 503,
        grpc_status: UNAVAILABLE,
        detail: "each zone that this request may use is drained, full, or without a healthy instance",
        retry_after_s: Some(1),
    };

    /// As [`Refusal::NO_CAPACITY`], but caused by an operator.
    pub const DRAINED: Refusal = Refusal {
        detail: "an operator has drained the zones that this request may use: no other zone has a healthy instance",
        ..Refusal::NO_CAPACITY
    };

    /// For requests without a place in any plan.
    pub const fn closed(drained: bool) -> Refusal {
        match drained {
            true => Refusal::DRAINED,
            false => Refusal::NO_CAPACITY,
        }
    }

    /// The body: problem details as of RFC 9457, with the reason as an extension member.
    pub fn problem(&self) -> String {
        // Only static text without quotes or backslashes is inserted, so nothing needs escaping (a
        // test holds this).
        let reason = self.reason.as_str();
        format!(
            r#"{{"type":"urn:tidegate:problem:{reason}","title":"{title}","status":{status},"reason":"{reason}","detail":"{detail}"}}"#,
            title = self.title(),
            status = self.status,
            detail = self.detail,
        )
    }

    /// The status in words.
    pub fn title(&self) -> &'static str {
        match self.status {
            400 => "Bad Request",
            408 => "Request Timeout",
            412 => "Precondition Failed",
            421 => "Misdirected Request",
            508 => "Loop Detected",
            _ => "Service Unavailable",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_need_no_escaping() {
        for refusal in [
            Refusal::REGION_MISSING,
            Refusal::REGION_UNKNOWN,
            Refusal::TRACE_MISSING,
            Refusal::KEY_INVALID,
            Refusal::LOOP,
            Refusal::WRITE_TIMEOUT,
            Refusal::FENCED,
            Refusal::NO_GRANT,
            Refusal::NOT_OWNER,
            Refusal::STALE_EPOCH,
            Refusal::AHEAD_EPOCH,
            Refusal::NO_CAPACITY,
            Refusal::DRAINED,
        ] {
            assert!(!refusal.detail.contains(['"', '\\']), "{}", refusal.detail);
            assert!(refusal.problem().contains(refusal.reason.as_str()));
        }
    }
}
