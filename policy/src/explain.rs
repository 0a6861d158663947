//! The steps of an explanation, as sentences.

use alloc::{string::String, vec::Vec};
use core::fmt;

use crate::{class::Class, facts::VIA_MAX, plan::WEIGHT_TOTAL, tier::Tier};

/// One step on the way to a decision, as [`explain`](crate::explain()) lists them. `Display` gives
/// a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    FallbackPolicy,
    Service(String),
    NoService,
    Class(Class),
    /// The home is the local zone, because the request has no valid `X-Region-ID`.
    LocalHome {
        zone: String,
        missing: bool,
    },
    Home(String),
    HomeInRegion {
        region: String,
        zone: String,
    },
    RegionDemanded {
        missing: bool,
    },
    TraceDemanded,
    KeyInvalid,
    /// The number of proxies that have forwarded the request.
    Loop(u32),
    Tier {
        home: String,
        tier: Tier,
    },
    Targets(Vec<(String, u32)>),
    /// The part of [`WEIGHT_TOTAL`](crate::WEIGHT_TOTAL) requests that exceeds the capacity: the
    /// route table rejects them.
    Shed(u32),
    Closed {
        home: String,
        class: Class,
        /// An operator has drained a zone that the request could have used.
        drained: bool,
    },
    /// Pinned to this cluster.
    Pinned(String),
    /// The cell of a write, and its owners as this proxy knows them.
    Cell {
        cell: String,
        owners: Vec<String>,
        epoch: u64,
    },
    /// This proxy holds a grant.
    Granted {
        epoch: u64,
    },
    NotGranted,
    /// The write was forwarded here with another epoch than ours.
    OtherEpoch {
        presented: u64,
        ours: u64,
    },
    /// Forwarded to this owner's gateways.
    Forwarded(String),
    /// The control plane has not sent this proxy a key to sign hops yet.
    NoHopKey,
    /// An enforced fence would reject the write.
    Observed,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let presence = |missing: &bool| if *missing { "missing" } else { "unknown" };
        match self {
            Step::FallbackPolicy => {
                f.write_str("no policy has arrived yet: reads stay local, writes are fenced")
            }
            Step::Service(name) => write!(f, "host and path belong to service {name}"),
            Step::NoService => f.write_str("no service claims this host and path"),
            Step::Class(class) => write!(f, "it is a {}", class.as_str()),
            Step::LocalHome { zone, missing } => write!(
                f,
                "X-Region-ID is {}: the home is the local zone {zone}",
                presence(missing)
            ),
            Step::Home(zone) => write!(f, "X-Region-ID names the home {zone}"),
            Step::HomeInRegion { region, zone } => write!(
                f,
                "X-Region-ID names the region {region}: {zone} represents it"
            ),
            Step::RegionDemanded { missing } => write!(
                f,
                "X-Region-ID is {}, and the service requires a valid one",
                presence(missing)
            ),
            Step::TraceDemanded => f.write_str("the service requires exactly one X-Trace-ID"),
            Step::KeyInvalid => f.write_str(
                "its affinity or cell key is repeated, or has an invalid percent-encoding",
            ),
            Step::Loop(via) => write!(
                f,
                "{via} proxies of this mesh have forwarded it, and the limit is {VIA_MAX}: it loops"
            ),
            Step::Tier { home, tier } => {
                write!(f, "the nearest usable tier seen from {home} is {tier}")
            }
            Step::Targets(targets) => {
                f.write_str("shares:")?;
                targets
                    .iter()
                    .try_for_each(|(zone, weight)| write!(f, " {zone} {weight}/{WEIGHT_TOTAL}"))
            }
            Step::Shed(shed) => write!(
                f,
                "{shed}/{WEIGHT_TOTAL} of these requests are rejected: they exceed the capacity of all zones that they may use"
            ),
            Step::Closed {
                home,
                class,
                drained,
            } => write!(
                f,
                "each zone that a {} of {home} may use is drained, full, or without a healthy instance{}",
                class.as_str(),
                if *drained {
                    ": an operator has drained one"
                } else {
                    ""
                }
            ),
            Step::Pinned(cluster) => write!(f, "its affinity key keeps it in {cluster}"),
            Step::Cell {
                cell,
                owners,
                epoch,
            } => {
                write!(f, "it belongs to cell {cell}, epoch {epoch}, owned by")?;
                match owners.as_slice() {
                    [] => f.write_str(" no zone that this proxy knows"),
                    owners => owners.iter().try_for_each(|owner| write!(f, " {owner}")),
                }
            }
            Step::Granted { epoch } => {
                write!(f, "this zone holds a grant to write for epoch {epoch}")
            }
            Step::NotGranted => f.write_str("this zone holds no grant to write"),
            Step::OtherEpoch { presented, ours } => write!(
                f,
                "it was forwarded with epoch {presented}, and the epoch here is {ours}"
            ),
            Step::Forwarded(zone) => write!(f, "it is forwarded to {zone}, which decides"),
            Step::NoHopKey => f.write_str(
                "it would be forwarded to its owner, but this proxy has no key yet to sign it with",
            ),
            Step::Observed => {
                f.write_str("the fence only observes: it admits a write that it would reject")
            }
        }
    }
}
