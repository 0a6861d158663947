//! The decision, and its explanation by the very code that makes it.

use alloc::{
    borrow::Cow,
    string::{String, ToString},
    vec::Vec,
};
use core::fmt;

use crate::{
    cells::{CellId, Enforcement, Fencing},
    facts::{Facts, Home, VIA_MAX},
    headers,
    hop::Signer,
    plan::{Plan, Tier, WEIGHT_TOTAL},
    refusal::Refusal,
    rules::{Policy, Rules},
    service::{Class, RegionRule, Service, ServiceId, TraceRule},
    topology::ZoneId,
};

/// Why a decision is what it is: the stable code in headers, logs and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The home zone serves it.
    HomeZone,
    /// The home zone cannot; its region does.
    HomeRegion,
    /// The home's region cannot; a read goes to another one.
    RemoteRead,
    /// No policy yet: a read stays in the local zone.
    Fallback,
    /// No service claims this request; Envoy's own routes decide.
    NoService,
    RegionMissing,
    RegionUnknown,
    TraceMissing,
    /// The affinity or cell key stands more than once, or cannot be decoded.
    KeyInvalid,
    /// Proxies of this mesh have sent the request on too often: it goes round in circles.
    Loop,
    Fenced,
    NoCapacity,
    /// This zone holds the permission to write.
    Admitted,
    /// The write goes to the zone that owns its cell.
    Forwarded,
    /// The write would be refused, were the fence enforced.
    Observed,
    NotOwner,
    StaleEpoch,
    AheadEpoch,
    /// The write was admitted, and lived longer than writes may. Said by the proxy itself.
    WriteTimeout,
}

impl Reason {
    pub const ALL: [Reason; 19] = [
        Reason::HomeZone,
        Reason::HomeRegion,
        Reason::RemoteRead,
        Reason::Fallback,
        Reason::NoService,
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

/// What to do with a request, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision<'p> {
    pub outcome: Outcome<'p>,
    pub reason: Reason,
    /// Of a write that this zone may not admit: the zone that owns its cell.
    pub owner: Option<&'p str>,
}

/// What to do with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<'p> {
    /// Not a request that Tidegate routes: change nothing.
    Pass,
    /// Stamp and go on.
    Route(Routed<'p>),
    /// Answer here.
    Refuse(Refusal),
}

/// A request that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routed<'p> {
    pub class: Class,
    /// None under the fallback policy, which knows no tiers.
    pub tier: Option<Tier>,
    /// The home zone's name; none under the fallback policy, which knows no zones.
    pub home: Option<&'p str>,
    /// The home is not the viewing zone.
    pub foreign: bool,
    /// The one cluster that the request goes to, by its affinity key or by what was drawn for it;
    /// or the gateways that it is forwarded to.
    pub pin: Option<&'p str>,
    /// What a fenced write carries.
    pub write: Option<FencedWrite<'p>>,
}

/// What a write to a fenced service carries on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FencedWrite<'p> {
    /// Its cell; none where there is a single one, which the route knows.
    pub cell: Option<&'p str>,
    /// The epoch that it was admitted for, or by which it is forwarded.
    pub epoch: u64,
    /// Another zone's proxy has forwarded it.
    pub hop: bool,
    /// How long it may live, in milliseconds, where it has to say so: [`headers::WRITE_DRAIN`].
    pub drain_ms: Option<u64>,
}

impl<'p> Routed<'p> {
    /// The headers to set: as few as the route table needs to choose, since each costs a call into
    /// the proxy, and for most requests two: the cluster, and the home or the class. A home alone
    /// means a read, a class alone the viewing zone. The chosen route adds the rest of what
    /// upstreams see, and takes requests without a tier for those that their home serves.
    ///
    /// A fenced write is told by its epoch; one that is forwarded by the gateways that it goes to. Where it brings a home as well, it
    /// says its class: to a route table that does not know (yet, or any more) that the service is fenced, a home alone is a read.
    pub fn stamps(&self) -> impl Iterator<Item = (&'static str, Cow<'p, str>)> + use<'p> {
        let forwarded = self.write.is_some() && self.pin.is_some();
        let pinned = self.pin.is_some() && !forwarded;
        let write = self.class == Class::Write;
        let plain_write = write && self.write.is_none();
        let home = self.home.filter(|_| self.foreign || !write);
        let unclear = match self.write {
            Some(_) => home.is_some(),
            None => home.is_none(),
        };
        let class = (plain_write || unclear).then_some(self.class.as_str());
        let tier = self.tier.filter(|tier| pinned && *tier != Tier::Zone);
        let epoch = self.write.map(|write| write.epoch.to_string());
        let epoch_header = match forwarded {
            true => headers::PRESENTED_EPOCH,
            false => headers::EPOCH,
        };
        let cell = self.write.and_then(|write| write.cell);
        let drain = self.write.filter(|_| !forwarded);
        let drain = drain.and_then(|write| write.drain_ms);
        let drain = drain.map(|drain_ms| (headers::WRITE_DRAIN, drain_ms.to_string()));
        let hop = self.write.filter(|write| write.hop).map(|_| "1");
        let texts = [
            (headers::CLASS, class),
            (headers::HOME, home),
            (headers::TO, self.pin),
            (headers::TIER, tier.map(Tier::as_str)),
            (
                headers::DECISION,
                tier.map(|tier| Reason::of_tier(tier).as_str()),
            ),
            (headers::CELL, cell),
            (headers::HOP, hop),
        ];
        let texts = texts.into_iter();
        texts
            .filter_map(|(name, value)| Some((name, Cow::Borrowed(value?))))
            .chain(epoch.map(|epoch| (epoch_header, Cow::Owned(epoch))))
            .chain(drain.map(|(name, drain)| (name, Cow::Owned(drain))))
    }
}

/// One step on the way to a decision, as [`explain`] lists them. `Display` gives a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    FallbackPolicy,
    Service(String),
    NoService,
    Class(Class),
    /// The home is the viewing zone, for want of a valid `X-Region-ID`.
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
    /// So many proxies have sent it on.
    Loop(u32),
    Tier {
        home: String,
        tier: Tier,
    },
    Targets(Vec<(String, u32)>),
    /// So many of [`WEIGHT_TOTAL`](crate::WEIGHT_TOTAL) requests fit nowhere: the route table refuses them.
    Shed(u32),
    Closed {
        home: String,
        class: Class,
        /// An operator has drained a zone that it might have used.
        drained: bool,
    },
    /// To this cluster.
    Pinned(String),
    /// The cell of a write, and who owns it as far as this proxy was told.
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
    /// The write was forwarded here by this epoch, which is not ours.
    OtherEpoch {
        presented: u64,
        ours: u64,
    },
    /// To this owner's gateways.
    Forwarded(String),
    /// The control plane has not given this proxy a key to sign hops with yet.
    NoHopKey,
    /// It would be refused, were the fence enforced.
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
                "X-Region-ID is {}: the home is the viewing zone {zone}",
                presence(missing)
            ),
            Step::Home(zone) => write!(f, "X-Region-ID names the home {zone}"),
            Step::HomeInRegion { region, zone } => write!(
                f,
                "X-Region-ID names the region {region}: {zone} stands for it"
            ),
            Step::RegionDemanded { missing } => write!(
                f,
                "X-Region-ID is {}, and the service demands a valid one",
                presence(missing)
            ),
            Step::TraceDemanded => f.write_str("the service demands exactly one X-Trace-ID"),
            Step::KeyInvalid => f.write_str(
                "its affinity or cell key stands more than once, or has a percent sign that encodes no byte",
            ),
            Step::Loop(via) => write!(
                f,
                "{via} proxies of this mesh have sent it on, which ends at {VIA_MAX}: it goes round in circles"
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
                "{shed}/{WEIGHT_TOTAL} of these requests are refused: no zone that they may use has room for them"
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
                    [] => f.write_str(" nobody that is known here"),
                    owners => owners.iter().try_for_each(|owner| write!(f, " {owner}")),
                }
            }
            Step::Granted { epoch } => {
                write!(f, "this zone holds a grant to write for epoch {epoch}")
            }
            Step::NotGranted => f.write_str("this zone holds no grant to write"),
            Step::OtherEpoch { presented, ours } => write!(
                f,
                "it was forwarded by epoch {presented}, and here it is {ours}"
            ),
            Step::Forwarded(zone) => write!(f, "it is forwarded to {zone}, which decides"),
            Step::NoHopKey => f.write_str(
                "it would be forwarded to its owner, but this proxy has no key yet to sign it with",
            ),
            Step::Observed => f.write_str("the fence only observes: what it would refuse goes on"),
        }
    }
}

/// Decides about a request. Pure and total.
pub fn decide<'p>(policy: &'p Policy, facts: &Facts) -> Decision<'p> {
    decide_noting(policy, facts, &mut |_| {})
}

/// Decides, and lists the steps.
pub fn explain<'p>(policy: &'p Policy, facts: &Facts) -> (Decision<'p>, Vec<Step>) {
    let mut steps = Vec::new();
    let decision = decide_noting(policy, facts, &mut |step| steps.push(step()));
    (decision, steps)
}

/// `note` gets each step as a closure, so that deciding alone builds none of them.
fn decide_noting<'p>(
    policy: &'p Policy,
    facts: &Facts,
    note: &mut impl FnMut(&dyn Fn() -> Step),
) -> Decision<'p> {
    // What no service claims goes nowhere.
    let goes_on = matches!(policy, Policy::Fallback) || facts.service.is_some();
    if let Some(via) = facts.via.filter(|via| goes_on && *via >= VIA_MAX) {
        note(&|| Step::Loop(via));
        return refuse(Refusal::LOOP);
    }
    match policy {
        Policy::Fallback => {
            note(&|| Step::FallbackPolicy);
            note(&|| Step::Class(facts.class));
            decide_without_rules(facts)
        }
        Policy::Serving(rules) => match facts.service.and_then(|id| Some((id, rules.service(id)?)))
        {
            Some((id, service)) => {
                note(&|| Step::Service(service.name.clone()));
                note(&|| Step::Class(facts.class));
                decide_by_rules(rules, id, service, facts, note).unwrap_or_else(refuse)
            }
            None => {
                note(&|| Step::NoService);
                Decision {
                    outcome: Outcome::Pass,
                    reason: Reason::NoService,
                    owner: None,
                }
            }
        },
    }
}

fn refuse<'p>(refusal: Refusal) -> Decision<'p> {
    Decision {
        outcome: Outcome::Refuse(refusal),
        reason: refusal.reason,
        owner: None,
    }
}

/// Safe on its own: whatever this proxy does not know, it admits no write.
fn decide_without_rules<'p>(facts: &Facts) -> Decision<'p> {
    match facts.class {
        Class::Write => refuse(Refusal::FENCED),
        Class::Read => Decision {
            outcome: Outcome::Route(Routed {
                class: Class::Read,
                tier: None,
                home: None,
                foreign: false,
                pin: None,
                write: None,
            }),
            reason: Reason::Fallback,
            owner: None,
        },
    }
}

fn decide_by_rules<'p>(
    rules: &'p Rules,
    id: ServiceId,
    service: &'p Service,
    facts: &Facts,
    note: &mut impl FnMut(&dyn Fn() -> Step),
) -> Result<Decision<'p>, Refusal> {
    let home = find_home(rules, service, facts.home, note)?;
    if !facts.traced && service.trace_missing == TraceRule::Reject {
        note(&|| Step::TraceDemanded);
        return Err(Refusal::TRACE_MISSING);
    }
    if facts.key_invalid {
        note(&|| Step::KeyInvalid);
        return Err(Refusal::KEY_INVALID);
    }
    if let (Some(cell), Some(fencing)) = (facts.cell, rules.fencing()) {
        return decide_fenced(rules, fencing, service, cell, home, facts, note);
    }
    let home_name = rules.topology().zone_name(home);
    let plan = service.plans.get(home, facts.class);
    let (tier, targets, shed) = match plan {
        Plan::Open {
            tier,
            targets,
            shed,
        } => (tier, targets, shed),
        Plan::Closed { drained } => {
            note(&|| Step::Closed {
                home: home_name.into(),
                class: facts.class,
                drained: *drained,
            });
            return Err(Refusal::closed(*drained));
        }
    };
    note(&|| Step::Tier {
        home: home_name.into(),
        tier: *tier,
    });
    note(&|| {
        let named = |zone| rules.topology().zone_name(zone).into();
        Step::Targets(targets.iter().map(|t| (named(t.zone), t.weight)).collect())
    });
    if *shed > 0 {
        note(&|| Step::Shed(*shed));
    }
    if facts.draw.is_some_and(|draw| plan.sheds(draw)) {
        return Err(Refusal::NO_CAPACITY);
    }
    let zone = match facts.key_digest {
        Some(digest) => plan.zone_of_key(rules.topology(), digest),
        None => facts.draw.and_then(|draw| plan.zone_of_draw(draw)),
    };
    let pinned = zone.and_then(|zone| {
        let cluster = rules.cluster(id, zone, facts.class)?;
        if facts.key_digest.is_some() {
            note(&|| Step::Pinned(cluster.into()));
        }
        Some((cluster, plan.tier_of(rules.topology(), home, zone)))
    });
    // Without a draw it is the nearest.
    let tier = pinned.and_then(|(_, tier)| tier).unwrap_or(*tier);
    Ok(Decision {
        outcome: Outcome::Route(Routed {
            class: facts.class,
            tier: Some(tier),
            home: Some(home_name),
            foreign: home != rules.viewer(),
            pin: pinned.map(|(cluster, _)| cluster),
            write: None,
        }),
        reason: Reason::of_tier(tier),
        owner: None,
    })
}

/// A write is admitted where a grant is held, whatever was pushed. Elsewhere it goes to an owner, or is refused.
fn decide_fenced<'p>(
    rules: &'p Rules,
    fencing: &'p Fencing,
    service: &'p Service,
    cell: CellId,
    home: ZoneId,
    facts: &Facts,
    note: &mut impl FnMut(&dyn Fn() -> Step),
) -> Result<Decision<'p>, Refusal> {
    let topology = rules.topology();
    let viewer = rules.viewer();
    let cell = fencing.cell(cell).ok_or(Refusal::NO_GRANT)?;
    note(&|| Step::Cell {
        cell: cell.name.clone(),
        owners: (cell.owners.iter())
            .map(|zone| topology.zone_name(*zone).into())
            .collect(),
        epoch: cell.epoch,
    });
    note(&|| match facts.granted {
        Some(epoch) => Step::Granted { epoch },
        None => Step::NotGranted,
    });
    let ours = facts.granted.unwrap_or(cell.epoch);
    let presented = facts.presented.filter(|_| facts.forwarded);
    if let Some(presented) = presented.filter(|presented| *presented != ours) {
        note(&|| Step::OtherEpoch { presented, ours });
        return Err(match presented < ours {
            true => Refusal::STALE_EPOCH,
            false => Refusal::AHEAD_EPOCH,
        });
    }
    let observed = facts.granted.is_none() && fencing.enforcement == Enforcement::Observe;
    if observed {
        note(&|| Step::Observed);
    }
    let here = facts.granted.or(observed.then_some(cell.epoch));
    let routed = |pin, epoch, tier| Routed {
        class: Class::Write,
        tier,
        home: Some(topology.zone_name(home)),
        foreign: home != viewer,
        pin,
        write: Some(FencedWrite {
            cell: (fencing.cells().len() > 1).then_some(cell.name.as_str()),
            epoch,
            hop: facts.forwarded,
            drain_ms: (fencing.terms.changed).then_some(fencing.terms.write_drain / 1_000),
        }),
    };
    let serves = |target: &crate::plan::Target| target.zone == viewer;
    let local = service.plans.get(viewer, Class::Write).targets();
    if let Some(epoch) = here.filter(|_| local.iter().any(serves)) {
        return Ok(Decision {
            outcome: Outcome::Route(routed(None, epoch, Some(Tier::Zone))),
            reason: match observed {
                true => Reason::Observed,
                false => Reason::Admitted,
            },
            owner: None,
        });
    }
    if here.is_none() && cell.owners.contains(&viewer) {
        return Err(Refusal::NO_GRANT);
    }
    let drained = matches!(
        service.plans.get(viewer, Class::Write),
        Plan::Closed { drained: true }
    );
    let closed = || match here {
        Some(_) => Refusal::closed(drained),
        None => Refusal::NO_GRANT,
    };
    let owner = Fencing::nearest_owner(topology, cell, viewer).ok_or_else(closed)?;
    let owner_name = topology.zone_name(owner);
    let may_forward = !facts.hop && fencing.may_forward(topology, cell, viewer, owner);
    if may_forward && facts.signer == Signer::Untold {
        note(&|| Step::NoHopKey);
        return Err(closed());
    }
    if may_forward
        && facts.signer == Signer::Holds
        && let Some(gateway) = rules.gateway(owner)
    {
        note(&|| Step::Forwarded(owner_name.into()));
        let tier = topology.tier(viewer, owner);
        return Ok(Decision {
            outcome: Outcome::Route(routed(Some(gateway), cell.epoch, Some(tier))),
            reason: Reason::Forwarded,
            owner: Some(owner_name),
        });
    }
    Ok(match here {
        Some(_) => refuse(Refusal::closed(drained)),
        None => Decision {
            owner: Some(owner_name),
            ..refuse(Refusal::NOT_OWNER)
        },
    })
}

fn find_home(
    rules: &Rules,
    service: &Service,
    home: Home,
    note: &mut impl FnMut(&dyn Fn() -> Step),
) -> Result<ZoneId, Refusal> {
    let name = |zone| rules.topology().zone_name(zone).into();
    let (rule, refusal, missing) = match home {
        Home::Zone(zone) => {
            note(&|| Step::Home(name(zone)));
            return Ok(zone);
        }
        Home::Region(region) => match rules.topology().home_in(region, rules.viewer()) {
            Some(zone) => {
                note(&|| Step::HomeInRegion {
                    region: rules.topology().region_name(region).into(),
                    zone: name(zone),
                });
                return Ok(zone);
            }
            None => (service.region_unknown, Refusal::REGION_UNKNOWN, false),
        },
        Home::Missing => (service.region_missing, Refusal::REGION_MISSING, true),
        Home::Unknown => (service.region_unknown, Refusal::REGION_UNKNOWN, false),
    };
    match rule {
        RegionRule::Local => {
            let zone = rules.viewer();
            note(&|| Step::LocalHome {
                zone: name(zone),
                missing,
            });
            Ok(zone)
        }
        RegionRule::Reject => {
            note(&|| Step::RegionDemanded { missing });
            Err(refusal)
        }
    }
}
