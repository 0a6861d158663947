//! The stable codes of decisions.

use crate::tier::Tier;

/// The reason of a decision: the stable code in headers, logs and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The home zone serves the request.
    HomeZone,
    /// The home zone cannot serve it; another zone of its region does.
    HomeRegion,
    /// The home's region cannot serve the read; another region does.
    RemoteRead,
    /// No policy yet: the read stays in the local zone.
    Fallback,
    /// No service claims the request; Envoy's own routes decide.
    NoService,
    /// The fence has no say in it: a read, or a write of a service that is not fenced. Of guests
    /// that only fence.
    NotFenced,
    RegionMissing,
    RegionUnknown,
    TraceMissing,
    /// The affinity or cell key is repeated, or cannot be decoded.
    KeyInvalid,
    /// Proxies of this mesh have forwarded the request too often: it loops.
    Loop,
    Fenced,
    NoCapacity,
    /// This zone holds the permission to write.
    Admitted,
    /// The write is forwarded to the zone that owns its cell.
    Forwarded,
    /// An enforced fence would reject the write.
    Observed,
    NotOwner,
    StaleEpoch,
    AheadEpoch,
    /// The write was admitted, but exceeded the longest permitted lifetime. The proxy itself sends
    /// this reason.
    WriteTimeout,
}

impl Reason {
    pub const ALL: [Reason; 20] = [
        Reason::HomeZone,
        Reason::HomeRegion,
        Reason::RemoteRead,
        Reason::Fallback,
        Reason::NoService,
        Reason::NotFenced,
        Reason::RegionMissing,
        Reason::RegionUnknown,
        Reason::TraceMissing,
        Reason::KeyInvalid,
        Reason::Loop,
        Reason::Fenced,
        Reason::NoCapacity,
        Reason::Admitted,
        Reason::Forwarded,
        Reason::Observed,
        Reason::NotOwner,
        Reason::StaleEpoch,
        Reason::AheadEpoch,
        Reason::WriteTimeout,
    ];

    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Reason::HomeZone => "home_zone",
            Reason::HomeRegion => "home_region",
            Reason::RemoteRead => "remote_read",
            Reason::Fallback => "fallback",
            Reason::NoService => "no_service",
            Reason::NotFenced => "not_fenced",
            Reason::RegionMissing => "region_missing",
            Reason::RegionUnknown => "region_unknown",
            Reason::TraceMissing => "trace_missing",
            Reason::KeyInvalid => "key_invalid",
            Reason::Loop => "loop",
            Reason::Fenced => "fenced",
            Reason::NoCapacity => "no_capacity",
            Reason::Admitted => "admitted",
            Reason::Forwarded => "forwarded",
            Reason::Observed => "observed",
            Reason::NotOwner => "not_owner",
            Reason::StaleEpoch => "stale_epoch",
            Reason::AheadEpoch => "ahead_epoch",
            Reason::WriteTimeout => "write_timeout",
        }
    }

    /// The reason for using `tier`.
    pub const fn of_tier(tier: Tier) -> Reason {
        match tier {
            Tier::Zone => Reason::HomeZone,
            Tier::Region => Reason::HomeRegion,
            Tier::Remote => Reason::RemoteRead,
        }
    }
}
