//! What stands in the way of a guest: findings as data. Their names are stable: scripts match on
//! them.

use std::fmt;

/// Whether the fence holds in spite of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Severity {
    Warning,
    /// The fence is open somewhere, or requests fail.
    Error,
}

impl Severity {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) problem: Problem,
    /// Where in the configuration: `listeners[ingress].filter_chains[0]...`.
    pub(crate) place: String,
}

/// A way past the guest to a cluster of fenced services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// A connection manager without the guest.
    Manager,
    /// The guest is disabled on the route.
    Disabled,
    /// A TCP proxy, which runs no HTTP filters.
    Tcp,
    /// Filters of their own for an upgrade.
    Upgrade,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    NoGuest,
    Incomplete { kind: &'static str },
    RoutesUnread { what: String },
    GuestConfiguration { error: String },
    GuestsDiffer,
    GuestOptional,
    FailOpen { has_net: bool },
    FailClosed,
    FetchedModule,
    ZoneUnknown { zone: String },
    ZoneMissing,
    UnfencedListsFenced { listed: String, fenced: String },
    ClassesListFenced { listed: String, fenced: String },
    DrainUnsaid,
    DrainAboveTerms { drain_ms: u64, terms_ms: u64 },
    StripMissing,
    StripOrder,
    MarkBeforeStrip { filter: String },
    MarkForged { header: String },
    FilterBetween { filter: String },
    NetMissing,
    NetOrder,
    NetShadow,
    NetOpen { policy: String },
    NetDisabled,
    NormalizePath,
    MergeSlashes,
    EscapedSlashes,
    HostDot,
    CaseInsensitive,
    ControlPlaneMissing { cluster: String },
    ControlPlaneHttp1 { cluster: String },
    ControlPlaneKeepalive { cluster: String },
    UnboundedWrite,
    LongWrite { ms: u64, max_ms: u64 },
    Retries { on: String },
    Hedging,
    Mirror,
    RoutesIgnoreGuest,
    ClusterHeaderUnset,
    ClusterUnknown { cluster: String },
    WayPast { way: Way, cluster: String },
    OpenDestination { cluster: String },
}

impl Problem {
    pub(crate) const fn severity(&self) -> Severity {
        use Problem::*;
        match self {
            Incomplete { .. }
            | RoutesUnread { .. }
            | GuestOptional
            | FailClosed
            | FetchedModule => Severity::Warning,
            FailOpen { has_net: true } | DrainUnsaid | MarkBeforeStrip { .. } => Severity::Warning,
            FilterBetween { .. } | NetShadow | ControlPlaneKeepalive { .. } => Severity::Warning,
            OpenDestination { .. } => Severity::Warning,
            _ => Severity::Error,
        }
    }

    /// Its stable name.
    pub(crate) const fn name(&self) -> &'static str {
        use Problem::*;
        match self {
            NoGuest => "no_guest",
            Incomplete { .. } => "incomplete",
            RoutesUnread { .. } => "routes_unread",
            GuestConfiguration { .. } => "guest_configuration",
            GuestsDiffer => "guests_differ",
            GuestOptional => "guest_optional",
            FailOpen { .. } => "fail_open",
            FailClosed => "fail_closed",
            FetchedModule => "fetched_module",
            ZoneUnknown { .. } => "zone_unknown",
            ZoneMissing => "zone_missing",
            UnfencedListsFenced { .. } => "unfenced_lists_fenced",
            ClassesListFenced { .. } => "classes_list_fenced",
            DrainUnsaid => "drain_unsaid",
            DrainAboveTerms { .. } => "drain_above_terms",
            StripMissing => "strip_missing",
            StripOrder => "strip_order",
            MarkBeforeStrip { .. } => "mark_before_strip",
            MarkForged { .. } => "mark_forged",
            FilterBetween { .. } => "filter_between",
            NetMissing => "net_missing",
            NetOrder => "net_order",
            NetShadow => "net_shadow",
            NetOpen { .. } => "net_open",
            NetDisabled => "net_disabled",
            NormalizePath => "normalize_path",
            MergeSlashes => "merge_slashes",
            EscapedSlashes => "escaped_slashes",
            HostDot => "host_dot",
            CaseInsensitive => "case_insensitive",
            ControlPlaneMissing { .. } => "control_plane_missing",
            ControlPlaneHttp1 { .. } => "control_plane_http1",
            ControlPlaneKeepalive { .. } => "control_plane_keepalive",
            UnboundedWrite => "unbounded_write",
            LongWrite { .. } => "long_write",
            Retries { .. } => "retries",
            Hedging => "hedging",
            Mirror => "mirror",
            RoutesIgnoreGuest => "routes_ignore_guest",
            ClusterHeaderUnset => "cluster_header_unset",
            ClusterUnknown { .. } => "cluster_unknown",
            WayPast { .. } => "way_past",
            OpenDestination { .. } => "open_destination",
        }
    }

    /// What to do.
    pub(crate) const fn remedy(&self) -> &'static str {
        use Problem::*;
        match self {
            NoGuest => "add the pieces that `tidegate guest` prints",
            Incomplete { .. } => "check a live Envoy: --guest http://HOST:PORT/config_dump",
            RoutesUnread { .. } => "check a live Envoy, or these routes by hand",
            GuestConfiguration { .. } => {
                "correct the field; until then reads pass and writes are rejected"
            }
            GuestsDiffer => "give all guests of one Envoy the same control_plane and zone",
            GuestOptional => "remove is_optional: an Envoy without wasm would leave the filter out",
            FailOpen { .. } => "use failure_policy: FAIL_RELOAD",
            FailClosed => {
                "use FAIL_RELOAD: after a trap a worker rejects every request until a restart"
            }
            FetchedModule => {
                "put the module on the disk: until it is fetched, requests are rejected or pass without it"
            }
            ZoneUnknown { .. } => "name a zone of Tidegate's configuration",
            ZoneMissing => "set node.locality.zone, or name the zone in the guest's configuration",
            UnfencedListsFenced { .. } => "take the entry out of `unfenced`",
            ClassesListFenced { .. } => {
                "take the entry out of `classes`, or give the route this class in Tidegate's configuration"
            }
            DrainUnsaid => "set drain_ms to the max_stream_duration of the routes",
            DrainAboveTerms { .. } => {
                "lower drain_ms and the routes' max_stream_duration to authority.write_drain_ms"
            }
            StripMissing => {
                "add a header_mutation filter with remove_on_match on the prefix x-tidegate before the guest"
            }
            StripOrder => "move the filter before the guest",
            MarkBeforeStrip { .. } => {
                "move the strip to the front: here the header is a client's, or is removed"
            }
            MarkForged { .. } => "leave headers x-tidegate* to the guest: instances trust them",
            FilterBetween { .. } => {
                "move the filter before the guest, or make sure that it changes neither path, host nor headers"
            }
            NetMissing => "add the RBAC filter that `tidegate guest` prints, behind the guest",
            NetOrder => {
                "move the net behind the guest: it rejects requests that the guest has not marked yet"
            }
            NetShadow => "shadow_rules reject nothing: right under `observe` alone",
            NetOpen { .. } => "remove the policy: writes pass without the guest",
            NetDisabled => "remove the typed_per_filter_config of the net",
            NormalizePath => "set normalize_path: true",
            MergeSlashes => "set merge_slashes: true",
            EscapedSlashes => "set path_with_escaped_slashes_action: REJECT_REQUEST",
            HostDot => "set strip_trailing_host_dot: true",
            CaseInsensitive => {
                "remove case_sensitive: false; Tidegate compares paths with their case"
            }
            ControlPlaneMissing { .. } => "add the cluster, or correct control_plane",
            ControlPlaneHttp1 { .. } => {
                "set explicit_http_config: {http2_protocol_options: ...}: gRPC needs HTTP/2"
            }
            ControlPlaneKeepalive { .. } => {
                "set connection_keepalive, or a silent connection is noticed late"
            }
            UnboundedWrite => "set max_stream_duration to at most authority.write_drain_ms",
            LongWrite { .. } => "lower max_stream_duration",
            Retries { .. } => {
                "set retry_on: connect-failure,refused-stream: the others may send a write twice"
            }
            Hedging => "remove hedge_policy: it sends a write twice",
            Mirror => "remove request_mirror_policies: they send a write twice",
            RoutesIgnoreGuest => {
                "add routes with cluster_header: x-tidegate-to, or that match on x-tidegate-home"
            }
            ClusterHeaderUnset => "use mode route: with mode fence the guest names no cluster",
            ClusterUnknown { .. } => "add the cluster, or correct `clusters` of the guest",
            WayPast { way, .. } => match way {
                Way::Manager => "add the pieces to this connection manager, too",
                Way::Disabled => "enable the guest on this route",
                Way::Tcp => "remove the way, or restrict it to callers that never write",
                Way::Upgrade => "remove `filters` of the upgrade, or put the pieces into them, too",
            },
            OpenDestination { .. } => {
                "make sure that no instance of a fenced service can be reached so"
            }
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Problem::*;
        match self {
            NoGuest => f.write_str("no connection manager has the guest"),
            Incomplete { kind } => write!(f, "{kind} come by xDS, and do not stand in this file"),
            RoutesUnread { what } => write!(f, "routes were not checked: {what}"),
            GuestConfiguration { error } => {
                write!(f, "the guest rejects its configuration: {error}")
            }
            GuestsDiffer => f.write_str("two guests name another control_plane or zone"),
            GuestOptional => f.write_str("the guest is optional"),
            FailOpen { .. } => f.write_str("a guest that has trapped is passed by"),
            FailClosed => f.write_str("a guest that has trapped does not come back"),
            FetchedModule => f.write_str("Envoy fetches the module"),
            ZoneUnknown { zone } => {
                write!(f, "the zone {zone:?} is not in Tidegate's configuration")
            }
            ZoneMissing => f.write_str("the node has no zone where the guest looks for one"),
            UnfencedListsFenced { listed, fenced } => {
                write!(
                    f,
                    "`unfenced` has {listed}, which takes writes of the fenced {fenced}"
                )
            }
            ClassesListFenced { listed, fenced } => {
                write!(
                    f,
                    "`classes` has {listed}, which takes writes of the fenced {fenced} as reads"
                )
            }
            DrainUnsaid => f.write_str("the guest does not say drain_ms"),
            DrainAboveTerms { drain_ms, terms_ms } => {
                write!(
                    f,
                    "drain_ms {drain_ms} is above write_drain_ms {terms_ms}: the guest admits nothing"
                )
            }
            StripMissing => f.write_str("nothing removes x-tidegate* of clients before the guest"),
            StripOrder => {
                f.write_str("the filter that removes x-tidegate* stands behind the guest")
            }
            MarkBeforeStrip { filter } => write!(f, "{filter} uses x-tidegate* before the strip"),
            MarkForged { header } => write!(f, "the route sets {header}"),
            FilterBetween { filter } => write!(
                f,
                "{filter} may change requests behind the guest's decision"
            ),
            NetMissing => f.write_str("no net behind the guest"),
            NetOrder => f.write_str("the net stands before the guest"),
            NetShadow => f.write_str("the net has only shadow_rules"),
            NetOpen { policy } => write!(f, "the net's policy {policy:?} permits any request"),
            NetDisabled => f.write_str("the net is changed for this route"),
            NormalizePath => {
                f.write_str("paths are not normalized: /a/../orders passes as another path")
            }
            MergeSlashes => f.write_str("slashes are not merged: //orders passes as another path"),
            EscapedSlashes => {
                f.write_str("escaped slashes are kept: /a%2F..%2Forders passes as another path")
            }
            HostDot => {
                f.write_str("a dot behind the host is kept: shop.example. passes as another host")
            }
            CaseInsensitive => {
                f.write_str("the route takes /ORDERS, which the guest takes for another path")
            }
            ControlPlaneMissing { cluster } => {
                write!(f, "the guest's control_plane {cluster:?} is no cluster")
            }
            ControlPlaneHttp1 { cluster } => {
                write!(f, "the cluster {cluster:?} does not speak HTTP/2")
            }
            ControlPlaneKeepalive { cluster } => {
                write!(f, "the cluster {cluster:?} has no keepalive")
            }
            UnboundedWrite => f.write_str("a write of a fenced service may live without end"),
            LongWrite { ms, max_ms } => write!(
                f,
                "a write may live for {ms} ms, and the fence waits {max_ms} ms"
            ),
            Retries { on } => write!(f, "a write is retried on {on}"),
            Hedging => f.write_str("a write is hedged"),
            Mirror => f.write_str("a write is mirrored"),
            RoutesIgnoreGuest => {
                f.write_str("no route follows the guest, though its mode is route")
            }
            ClusterHeaderUnset => f.write_str("the route waits for x-tidegate-to"),
            ClusterUnknown { cluster } => {
                write!(f, "the guest would name {cluster:?}, which is no cluster")
            }
            WayPast { way, cluster } => match way {
                Way::Manager => write!(f, "requests reach {cluster:?} without the guest"),
                Way::Disabled => write!(f, "the guest is disabled, and requests reach {cluster:?}"),
                Way::Tcp => write!(f, "a TCP proxy reaches {cluster:?} without the guest"),
                Way::Upgrade => write!(f, "upgrades to {cluster:?} pass without the guest"),
            },
            OpenDestination { cluster } => {
                write!(
                    f,
                    "{cluster:?} leads to any address that a client names, without the guest"
                )
            }
        }
    }
}
