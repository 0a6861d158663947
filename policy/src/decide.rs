//! The decision, and its explanation by the very code that makes it.

use alloc::{string::String, vec::Vec};
use core::fmt;

use crate::{
    facts::{Facts, Home},
    headers,
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
    Fenced,
    NoCapacity,
}

impl Reason {
    pub const ALL: [Reason; 10] = [
        Reason::HomeZone,
        Reason::HomeRegion,
        Reason::RemoteRead,
        Reason::Fallback,
        Reason::NoService,
        Reason::RegionMissing,
        Reason::RegionUnknown,
        Reason::TraceMissing,
        Reason::Fenced,
        Reason::NoCapacity,
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
            Reason::Fenced => "fenced",
            Reason::NoCapacity => "no_capacity",
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
    /// The one cluster that the request's affinity key pins it to.
    pub pin: Option<&'p str>,
}

impl<'p> Routed<'p> {
    /// The headers to set: as few as the route table needs to choose, since each costs a call into the proxy, and for most
    /// requests a single one. A home alone means a read, a class alone the viewing zone. The chosen route adds the rest of
    /// what upstreams see; only pinned requests, whose route knows no more than they say, bring everything.
    pub fn stamps(&self) -> impl Iterator<Item = (&'static str, &'p str)> + use<'p> {
        let pinned = self.pin.is_some();
        let write = self.class == Class::Write;
        let home = self.home.filter(|_| pinned || self.foreign || !write);
        let class = (pinned || write || home.is_none()).then_some(self.class.as_str());
        let tier = self.tier.filter(|_| pinned).map(Tier::as_str);
        [
            (headers::CLASS, class),
            (headers::HOME, home),
            (headers::TO, self.pin),
            (headers::TIER, tier),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
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
    },
    /// To this cluster.
    Pinned(String),
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
            Step::Closed { home, class } => write!(
                f,
                "no zone that a {} of {home} may use has a healthy instance, and room",
                class.as_str()
            ),
            Step::Pinned(cluster) => write!(f, "its affinity key keeps it in {cluster}"),
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
                }
            }
        },
    }
}

fn refuse<'p>(refusal: Refusal) -> Decision<'p> {
    Decision {
        outcome: Outcome::Refuse(refusal),
        reason: refusal.reason,
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
            }),
            reason: Reason::Fallback,
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
    let home_name = rules.topology().zone_name(home);
    let plan = service.plans.get(home, facts.class);
    let Plan::Open {
        tier,
        targets,
        shed,
    } = plan
    else {
        note(&|| Step::Closed {
            home: home_name.into(),
            class: facts.class,
        });
        return Err(Refusal::NO_CAPACITY);
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
    let pin = facts.key_digest.and_then(|digest| {
        let zone = plan.zone_of_key(rules.topology(), digest)?;
        let cluster = rules.cluster(id, zone, facts.class)?;
        note(&|| Step::Pinned(cluster.into()));
        Some(cluster)
    });
    Ok(Decision {
        outcome: Outcome::Route(Routed {
            class: facts.class,
            tier: Some(*tier),
            home: Some(home_name),
            foreign: home != rules.viewer(),
            pin,
        }),
        reason: Reason::of_tier(*tier),
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
