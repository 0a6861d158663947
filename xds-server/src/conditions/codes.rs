//! The one table of codes. A code never changes its meaning, and its number is never reused.
//!
//! To add one: add a block below, in its area, with the next free number; then generate the page
//! again with `tidegate codes --markdown`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The severity of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Everything is served. It may not stay so, or a requested change is not done.
    Warning,
    /// Requests are rejected or may be soon, or a protection is lost.
    Error,
}

impl Severity {
    /// The name for metrics and operators.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

/// The kind of state or rule that a code names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A state that begins and ends. The replica stays ready: it serves its known state.
    Condition,
    /// A state in which `/readyz` answers 503.
    NotReady,
    /// A safety rule that rejects a command. `--accept CODE --reason TEXT` overrides it.
    Rule,
}

/// Everything about a code.
#[derive(Debug)]
pub struct Entry {
    pub code: Code,
    /// `TGnnnn`.
    pub id: &'static str,
    /// A stable name, for metrics and operators.
    pub name: &'static str,
    pub severity: Severity,
    pub kind: Kind,
    /// One line.
    pub meaning: &'static str,
    pub what_to_do: &'static str,
}

/// The areas, by the digit after `TG`.
pub(super) const AREAS: [(char, &str); 8] = [
    ('1', "Fence and authority"),
    ('2', "Store"),
    ('3', "Registry and world"),
    ('4', "xDS and proxies"),
    ('5', "Configuration and certificates"),
    ('6', "Clocks"),
    ('7', "Safety rules of commands"),
    ('8', "Istio"),
];

macro_rules! codes {
    ($($code:ident = $id:literal, $name:literal, $severity:ident, $kind:ident;
        is: $meaning:literal, do: $what_to_do:literal;)+) => {
        /// A code: a state that may need an operator's action, or a rule that rejects a command.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $(#[doc = $meaning] $code,)+
        }

        impl Code {
            /// All of them, in the order of the table.
            pub const ALL: &'static [Code] = &[$(Code::$code,)+];

            /// The table's entry for the code.
            pub const fn entry(self) -> &'static Entry {
                match self {
                    $(Code::$code => &Entry {
                        code: Code::$code,
                        id: $id,
                        name: $name,
                        severity: Severity::$severity,
                        kind: Kind::$kind,
                        meaning: $meaning,
                        what_to_do: $what_to_do,
                    },)+
                }
            }
        }
    };
}

codes! {
    // TG1: fence and authority

    NoSession = "TG1001", "no_session", Error, Condition;
        is: "This replica has no session in the store, so it gives no grants: its zone's proxies reject fenced writes unless another replica of the zone grants.",
        do: "Look at the store's conditions (TG2...) and at the path from this replica to the store. It begins a new session automatically once the store accepts writes.";

    NotRegistered = "TG1002", "not_registered", Error, Condition;
        is: "This replica's zone owns the cell, but the replica cannot register as its grantor, so it gives no grants for it.",
        do: "Look at the detail and at the store's conditions (TG2...). It registers automatically once the store accepts writes.";

    TermsDiffer = "TG1003", "terms_differ", Error, Condition;
        is: "This replica's time-outs, shards or cell keys differ from the terms that all replicas agreed on, so it gives no grants.",
        do: "Give this replica the same configuration as the others, or change the terms of all: `tidegate terms change --config FILE`.";

    StoreOfAnotherId = "TG1004", "store_of_another_id", Error, Condition;
        is: "The cell's authority was recorded in a store with another cluster ID (a restored backup), so no replica grants or moves it.",
        do: "Make sure that no old store is still in use, then run `tidegate override CELL --to ZONE --reason TEXT`.";

    SessionRenewedAloud = "TG1005", "session_renewed_aloud", Warning, Condition;
        is: "Replicas do not receive each other's beats, so sessions are renewed by writes: this works, but the store's history grows faster.",
        do: "Open the path between the replicas' xDS ports, and see the detail for the unreachable replica.";

    CellWithoutOwner = "TG1006", "cell_without_owner", Error, Condition;
        is: "No replica of any owner zone is registered to grant for the cell, so all its writes are rejected.",
        do: "Start a replica in an owner zone, or move the cell: `tidegate move CELL --to ZONE`.";

    SettlingTooLong = "TG1007", "settling_too_long", Error, Condition;
        is: "The cell has been settling for longer than its terms require: all its writes are rejected meanwhile.",
        do: "Start a replica in the cell's new owner zone; after the full wait it makes the cell active.";

    FencingTooLong = "TG1008", "fencing_too_long", Error, Condition;
        is: "A move of the cell has been fencing for longer than its terms require: all its writes are rejected meanwhile.",
        do: "Check the grantors in `tidegate get cells`: each deregisters once its proxies have acknowledged or its session has ended. `tidegate override` ends their sessions.";

    TargetWithoutProxies = "TG1009", "target_without_proxies", Warning, Condition;
        is: "A standby zone of the cell has no proxy that could hold grants, so after a takeover all writes would be rejected.",
        do: "Start a gateway in that zone, or remove the zone from the cell's `standby`.";

    CellNotRecorded = "TG1010", "cell_not_recorded", Error, Condition;
        is: "The store has no authority record for a configured cell, so its writes are rejected.",
        do: "A replica of an owner zone writes the record automatically once the store accepts writes. If the record was deleted, run `tidegate override CELL --to ZONE --reason TEXT`.";

    ProxyOfOtherTerms = "TG1011", "proxy_of_other_terms", Error, Condition;
        is: "A connected proxy has a policy of other terms than the agreed ones, so it gets no grants and rejects fenced writes.",
        do: "Look at the detail. `tidegate get proxies` shows why it lacks the current policy: repair its discovery stream, or the resource that it rejects (TG4001). Update a filter (`tidegate_filter.wasm`) that reports no terms.";

    OwnerWithoutProxies = "TG1012", "owner_without_proxies", Error, Condition;
        is: "No Envoy of a zone that owns the cell is connected to hold grants, so all writes of the cell are rejected.",
        do: "Start a gateway in an owner zone, or look at its connection to that zone's control plane; or move the cell: `tidegate move CELL --to ZONE`.";

    OwnerWithoutInstances = "TG1013", "owner_without_instances", Error, Condition;
        is: "No zone that owns the cell has a usable instance of a service with fenced writes, so these writes are rejected.",
        do: "`tidegate get zones` shows why: start or repair instances in an owner zone, release the zone if it is drained, or move the cell: `tidegate move CELL --to ZONE`.";

    ReplicaJoins = "TG1014", "replica_joins", Warning, NotReady;
        is: "The replica has started, and has no session yet, or is not registered to grant for the cells of its zone.",
        do: "Wait: it ends with the session, after five seconds, or when the store fails. Then other conditions tell what is missing.";

    PeerUnreached = "TG1021", "peer_unreached", Warning, Condition;
        is: "This replica cannot open a stream to another replica, so it renews its session by writes: this works, but the store's history grows faster.",
        do: "Look at the detail. A certificate must have the name that the other replica advertises (`listen.advertise_name`); an address must lead to its xDS port.";

    // TG2: store

    StoreUnreachable = "TG2001", "store_unreachable", Error, Condition;
        is: "No member of the store can be reached (mode L1): the last good state is served.",
        do: "Check that etcd runs, and the addresses, firewalls and certificates between this replica and it.";

    StoreDegraded = "TG2002", "store_degraded", Error, Condition;
        is: "The store answers but cannot serve reads (mode L2): the last good state is served, computed weights are frozen.",
        do: "Check etcd's quorum: `etcdctl endpoint status --cluster` shows members without a leader.";

    StoreReadOnly = "TG2003", "store_read_only", Error, Condition;
        is: "Writes to the store fail (mode L3): nothing is registered or granted, the last known state is served.",
        do: "Look at the detail and at the other conditions of the store. The condition ends when a test write, every second, succeeds.";

    StoreFull = "TG2004", "store_full", Error, Condition;
        is: "etcd has raised its NOSPACE alarm: its quota is used up, and it rejects every write.",
        do: "Compact and defragment etcd, or raise `--quota-backend-bytes`; then `etcdctl alarm disarm`.";

    StoreCorrupt = "TG2005", "store_corrupt", Error, Condition;
        is: "etcd has raised its CORRUPT alarm: members disagree about the data, and it rejects every request that the alarm covers.",
        do: "Replace the corrupt member as etcd's documentation on data corruption says; then `etcdctl alarm disarm`.";

    StoreForbidden = "TG2006", "store_forbidden", Error, Condition;
        is: "The store denies this replica access: it is not authenticated, or its role lacks a permission.",
        do: "Give the replica's etcd user read and write access to the prefix `/tidegate/`.";

    StoreBusy = "TG2007", "store_busy", Warning, Condition;
        is: "etcd rejects requests because it has too many of them.",
        do: "Find the client that loads etcd, and check its disk: `etcdctl endpoint status` shows how far it lags.";

    StoreSlow = "TG2008", "store_slow", Warning, Condition;
        is: "Writes to the store are so slow that sessions are at risk.",
        do: "Look at etcd's disk (`etcd_disk_wal_fsync_duration_seconds`) and at the round trip between its members.";

    StateStale = "TG2009", "state_stale", Warning, Condition;
        is: "The store has not confirmed the served state, which may be stale.",
        do: "Look at the other conditions of the store. The condition ends when the store confirms the state.";

    StoreDoubted = "TG2010", "store_doubted", Error, Condition;
        is: "The store's content cannot have followed from the last known state (a restored or emptied store): the last good state is served, and proxies that hold more resources keep them.",
        do: "If the store is the right one, run `tidegate confirm`: it reaches all replicas.";

    StateNotKept = "TG2011", "state_not_kept", Warning, Condition;
        is: "The last good state cannot be written to `state.path`: after a start without the store the replica would have nothing to serve.",
        do: "Look at the detail: the disk may be full, or the directory not writable.";

    CompactionRefused = "TG2012", "compaction_refused", Warning, Condition;
        is: "`store.etcd.compaction` is set, and this replica does not compact etcd's history: etcd holds keys that are not Tidegate's, or does not permit it.",
        do: "Look at the detail. Give Tidegate a separate etcd, or remove the setting and let etcd compact itself (`--auto-compaction-mode`).";

    StoreCredentialsUnusable = "TG2013", "store_credentials_unusable", Error, Condition;
        is: "Renewed files of `store.etcd.tls` or `store.etcd.user` cannot be used: the last good ones stay in use, and a restart would fail.",
        do: "Correct the file that the detail names: certificate and key have to belong together, and a password has to stand in the first line.";

    StoreCertificateEnds = "TG2014", "store_certificate_ends", Error, Condition;
        is: "A certificate of `store.etcd.tls` ends soon, or has ended: then no new connection to etcd opens.",
        do: "Renew the file that the subject names. The replica takes it without a restart.";

    // TG3: registry and world

    NothingToServe = "TG3001", "nothing_to_serve", Error, NotReady;
        is: "The replica has nothing to serve: the store has not been listed yet, and there is no last good state on disk.",
        do: "Look at the store's conditions (TG2...). Set `state.path`, so that a restart without the store serves the last good state.";

    ChangeHeld = "TG3002", "change_held", Error, Condition;
        is: "A change in the store is implausible (most instances gone at once), so the previous instances are served.",
        do: "Look at `tidegate get zones`. If the change is intended, run `tidegate confirm`, which reaches all replicas; if not, repair the registry.";

    RecordsUnused = "TG3003", "records_unused", Warning, Condition;
        is: "Records in the store are unreadable or name an unknown service or zone, and are ignored.",
        do: "`GET /v1/instances` lists records with the reason. Correct or delete them.";

    // TG4: xDS and proxies

    ResourceRefused = "TG4001", "resource_refused", Error, Condition;
        is: "Proxies reject a resource (NACK) and keep its previous version.",
        do: "`tidegate get proxies` shows the message of each proxy. Correct the configuration that the message names; a proxy of another version may lack a feature.";

    PolicyRefused = "TG4002", "policy_refused", Error, Condition;
        is: "A filter cannot read its new policy, and applies the previous one.",
        do: "Update the filter (`tidegate_filter.wasm`) of that proxy to this version of the control plane.";

    PolicyBehind = "TG4003", "policy_behind", Warning, Condition;
        is: "A filter has not applied the current policy for longer than a minute.",
        do: "Look at the proxy's log and its connection to the control plane: `tidegate get proxies` shows both.";

    ProxyOrphaned = "TG4004", "proxy_orphaned", Error, Condition;
        is: "A proxy names a zone that is not configured: the control plane rejects it. A proxy that was connected before keeps its last state and gets no more updates.",
        do: "Correct `node.locality.zone` in the proxy's bootstrap, or configure the zone.";

    GuestWithoutGrants = "TG4005", "guest_without_grants", Error, Condition;
        is: "A guest follows the policy of its zone, but its certificate does not prove that it stands there, so it gets no grants and rejects fenced writes.",
        do: "Permit its identity in `access.proxies` with the role `guest` and exactly one zone, or give it a certificate of that zone. `listen.tls.guest_ca` has to be the CA of its mesh.";

    GuestOutlivesDrain = "TG4006", "guest_outlives_drain", Error, Condition;
        is: "The routes around a guest let a write live longer than the fence waits for it, so the guest admits no fenced write.",
        do: "Lower `max_stream_duration` of the host's routes and `drain_ms` of the guest, or raise `authority.write_drain_ms` (`tidegate terms change`).";

    GuestProblem = "TG4007", "guest_problem", Error, Condition;
        is: "A guest cannot keep a promise, and rejects writes meanwhile.",
        do: "Look at the detail: it names the part of the guest's configuration, or of its proxy, that is to be changed.";

    GuestListsFenced = "TG4008", "guest_lists_fenced", Error, Condition;
        is: "A guest lists a route of a fenced service as unfenced, or as a read: without a policy it lets these writes pass.",
        do: "Take the entry out of the guest's lists and its net (`tidegate guest` prints both), and restart it. A guest that will not come back: `tidegate forget-guest GUEST --zone ZONE`.";

    GuestListsNotKept = "TG4009", "guest_lists_not_kept", Warning, Condition;
        is: "The lists of a guest are not in the store: other replicas do not know them while the guest is away, and may accept a configuration that fences what it lists.",
        do: "Look at the detail and at the store's conditions (TG2...). Where too many guests have lists, remove those of guests that are gone: `tidegate forget-guest GUEST --zone ZONE`.";

    // TG5: configuration and certificates

    ConfigRefused = "TG5001", "config_refused", Error, Condition;
        is: "The configuration file was rejected: the last good configuration stays in force, and a restart would fail.",
        do: "Correct the file at the line and field that the detail names. `tidegate check --config FILE` checks it without applying it.";

    ConfigUnreadable = "TG5002", "config_unreadable", Error, Condition;
        is: "The configuration file cannot be read: the last good configuration stays in force, and a restart would fail.",
        do: "Put the file back, or correct its permissions.";

    ConfigNeedsRestart = "TG5003", "config_needs_restart", Warning, Condition;
        is: "The configuration file changes `listen`, `store` or `state`: these take effect after a restart.",
        do: "Restart the replica, or revert the change.";

    ConfigDiffers = "TG5004", "config_differs", Warning, Condition;
        is: "Replicas run with different configurations, so their proxies get different ones.",
        do: "Compare the digests in the detail, and give all replicas the same file. The condition ends when a rollout is complete.";

    TlsFilesUnusable = "TG5010", "tls_files_unusable", Error, Condition;
        is: "Certificate, key or CA on disk are unusable: the previous ones stay in force until they expire.",
        do: "Correct the files that the detail names; they are read again when they change.";

    CertificateEndsSoon = "TG5011", "certificate_ends_soon", Warning, Condition;
        is: "A certificate in force expires soon.",
        do: "Renew it: replace the files; they take effect without a restart.";

    CertificateEnded = "TG5012", "certificate_ended", Error, Condition;
        is: "A certificate in force has expired: its TLS handshakes fail.",
        do: "Renew it: replace the files; they take effect without a restart.";

    HopKeysUnguarded = "TG5021", "hop_keys_unguarded", Warning, Condition;
        is: "Gateways sign forwarded writes, but `access.proxies` is missing: any client that claims to be a gateway gets the secrets of `authority.forward_token`.",
        do: "Set `listen.tls` and list the gateways' certificates in `access.proxies`, then replace the secrets. Without forwarded writes omit `forward_token`.";

    // TG6: clocks

    ClockSlewed = "TG6001", "clock_slewed", Error, Condition;
        is: "This machine's clock is slewed faster than the agreed drift allows, so deadlines of grants could be wrong.",
        do: "Lower the maximum slew rate of the time daemon (chrony: `maxslewrate`), or raise `drift_permille` everywhere.";

    // TG7: safety rules of commands

    DrainsLastZone = "TG7001", "drains_last_zone", Error, Rule;
        is: "The drain would leave a service without a zone that serves its writes.",
        do: "Drain another zone, or release one first.";

    AlreadyOwner = "TG7002", "already_owner", Warning, Rule;
        is: "The cell belongs to that zone already: another move costs an epoch and a pause of all its writes.",
        do: "Usually nothing. To end the present owner's grants, accept the rule for an override: `tidegate override CELL --to ZONE --accept TG7002 --reason TEXT`.";

    NoProxiesThere = "TG7003", "no_proxies_there", Error, Rule;
        is: "The new owner zone has no proxy that could hold grants, so all writes would be rejected there.",
        do: "Start a gateway in that zone first.";

    NoInstancesThere = "TG7004", "no_instances_there", Error, Rule;
        is: "The new owner zone has no healthy instance of a service with writes in the cell.",
        do: "Start instances in that zone first, or choose another zone.";

    // TG7005 was a rule about a zone's last instance, which no command enforced: the agent warns.

    NoReplicaThere = "TG7006", "no_replica_there", Error, Rule;
        is: "No replica of the control plane serves the new owner zone, so no replica could grant writes there.",
        do: "Start a replica in that zone first, or choose another zone.";

    // TG8: Istio

    IstioUnreachable = "TG8001", "istio_unreachable", Error, Condition;
        is: "The Kubernetes API server does not answer, or refuses to list Istio's objects, so weights and instances do not reach the Istio mesh. Its proxies keep what they have.",
        do: "Look at the detail: the path to the API server, the credentials (`istio.kubeconfig`), the role (docs/guides/istio-objects.md), and Istio's CustomResourceDefinitions.";

    IstioForeignObject = "TG8002", "istio_foreign_object", Error, Condition;
        is: "An object of somebody else has the host of a service. Istio does not merge two of them, so Tidegate does not create its own; objects that exist are kept up to date.",
        do: "Merge the object with that of `tidegate get istio-objects -o yaml`, or remove the host from it.";

    IstioObjectFailed = "TG8003", "istio_object_failed", Error, Condition;
        is: "The API server refuses to apply or delete an object of Istio, so the mesh has an earlier state of it.",
        do: "Look at the detail. With a conflict, another manager has set a field of the object: let it give the field up. With a refused request, see the role in docs/guides/istio-objects.md.";
}

impl Code {
    /// `TGnnnn`.
    pub const fn id(self) -> &'static str {
        self.entry().id
    }

    /// The stable name.
    pub const fn name(self) -> &'static str {
        self.entry().name
    }

    pub const fn severity(self) -> Severity {
        self.entry().severity
    }

    pub const fn kind(self) -> Kind {
        self.entry().kind
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

/// A text that is not a code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a code: use one like TG1001, or its name; `tidegate codes` lists them")]
pub struct UnknownCode(pub String);

impl FromStr for Code {
    type Err = UnknownCode;

    /// Accepts `TG1001`, also in lower case, and the name.
    fn from_str(text: &str) -> Result<Code, UnknownCode> {
        let all = Code::ALL.iter().copied();
        let mut same =
            all.filter(|code| code.id().eq_ignore_ascii_case(text) || code.name() == text);
        same.next().ok_or_else(|| UnknownCode(text.to_owned()))
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.id())
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Code, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn codes_are_unique_well_formed_and_in_order() {
        let ids: Vec<&str> = Code::ALL.iter().map(|code| code.id()).collect();
        assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
        let names: BTreeSet<&str> = Code::ALL.iter().map(|code| code.name()).collect();
        assert_eq!(names.len(), ids.len(), "two codes have one name");
        for code in Code::ALL {
            let (id, name, entry) = (code.id(), code.name(), code.entry());
            let number = id.strip_prefix("TG").unwrap_or("");
            assert!(number.len() == 4 && number.parse::<u32>().is_ok(), "{id}");
            let area = number.chars().next();
            assert!(AREAS.iter().any(|(digit, _)| Some(*digit) == area), "{id}");
            let rule = area == Some('7');
            assert_eq!(rule, code.kind() == Kind::Rule, "{id}: TG7 are the rules");
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            assert!(name.chars().all(plain), "{name}");
            for text in [entry.meaning, entry.what_to_do] {
                assert!(text.ends_with('.') && !text.contains('\n'), "{id}: {text}");
            }
        }
    }

    #[test]
    fn a_code_is_found_by_id_and_by_name() {
        for code in Code::ALL {
            assert_eq!(code.id().parse(), Ok(*code));
            assert_eq!(code.id().to_lowercase().parse(), Ok(*code));
            assert_eq!(code.name().parse(), Ok(*code));
        }
        let error = "TG9999".parse::<Code>().unwrap_err();
        assert!(error.to_string().contains("tidegate codes"), "{error}");
    }
}
