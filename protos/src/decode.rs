//! From untrusted bytes to the domain.

use alloc::{boxed::Box, string::String, vec::Vec};
use core::num::NonZeroU32;

use policy::{
    Cell, Class, ClassRule, Enforcement, Explain, Fencing, Forward, InvalidFencing, InvalidRules,
    InvalidTopology, KeySource, Link, Plan, Plans, Policy, RegionRule, Route, RouteMatch, Rules,
    Service, Target, Topology, TraceRule, WEIGHT_TOTAL, Writes, ZoneId,
    fence::{InvalidTerms, Terms, TermsId},
};
use prost::Message;

use crate::{PluginConfig, wire};

/// Why bytes are not a policy. Every variant names the field.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum InvalidPolicy {
    #[error("not a tidegate.v1.Policy: {0}")]
    Malformed(prost::DecodeError),
    #[error("{field}: missing")]
    Missing { field: &'static str },
    #[error("rules.viewer: {0:?} is none of rules.zones")]
    UnknownViewer(String),
    #[error("{field}: there is no zone {index}")]
    ZoneIndex { field: &'static str, index: u32 },
    #[error(
        "rules.services[{service}].plans: {found}, where {expected} are needed: reads and writes of every zone"
    )]
    PlanCount {
        service: String,
        found: usize,
        expected: usize,
    },
    #[error("rules.services[{service}].plans.targets: weights add up to {sum}, not {WEIGHT_TOTAL}")]
    Weights { service: String, sum: u64 },
    #[error(
        "rules.services[{service}].plans.shed: {shed} per mille: an open plan sheds less than {WEIGHT_TOTAL}, a closed one sheds none"
    )]
    Shed { service: String, shed: u32 },
    #[error(
        "rules.services[{service}].plans.targets: a weight is 0, or a zone stands twice or out of order"
    )]
    Targets { service: String },
    #[error("rules.services[{service}].plans.targets: a write leaves the region of its home")]
    RemoteWrite { service: String },
    #[error("rules.services.zone_affinity.path_segment: {0} is above 255")]
    PathSegment(u32),
    #[error("rules.zones, rules.links: {0}")]
    Topology(#[from] InvalidTopology),
    #[error("rules.services: {0}")]
    Rules(#[from] InvalidRules),
    #[error("rules.fencing.shards: 0")]
    NoShards,
    #[error("rules.fencing.drift_permille: {0} is above 65535")]
    Drift(u32),
    #[error("rules.fencing: {0}")]
    Terms(#[from] InvalidTerms),
    #[error("rules.fencing: {0}")]
    Fencing(#[from] InvalidFencing),
    #[error("rules.services[{service}].fenced_writes: there is no rules.fencing")]
    Unfenced { service: String },
}

/// Decodes and checks a policy.
pub fn decode(bytes: &[u8]) -> Result<PluginConfig, InvalidPolicy> {
    let message = wire::Policy::decode(bytes).map_err(InvalidPolicy::Malformed)?;
    let policy = match message.mode {
        Some(wire::policy::Mode::Fallback(wire::Fallback {})) => Policy::Fallback,
        Some(wire::policy::Mode::Rules(rules)) => Policy::Serving(Box::new(decode_rules(rules)?)),
        None => return Err(InvalidPolicy::Missing { field: "mode" }),
    };
    Ok(PluginConfig {
        version: message.version,
        generation: message.generation,
        policy,
        control_plane: message.control_plane,
    })
}

fn decode_rules(rules: wire::Rules) -> Result<Rules, InvalidPolicy> {
    let topology = decode_topology(&rules)?;
    let viewer = topology
        .zone_named(&rules.viewer)
        .ok_or(InvalidPolicy::UnknownViewer(rules.viewer))?;
    let services = rules
        .services
        .into_iter()
        .map(|service| decode_service(&topology, service))
        .collect::<Result<Vec<_>, _>>()?;
    let explain = rules.explain.map(|e| Explain {
        header: e.header,
        token: e.token,
    });
    let fencing = rules
        .fencing
        .map(|fencing| decode_fencing(&topology, fencing));
    let fencing = fencing.transpose()?;
    let fenced = |service: &&Service| service.writes != Writes::Free;
    if let Some(service) = services.iter().find(fenced).filter(|_| fencing.is_none()) {
        return Err(InvalidPolicy::Unfenced {
            service: service.name.clone(),
        });
    }
    let rules = Rules::new(topology, viewer, services, explain)?;
    Ok(match fencing {
        Some(fencing) => rules.fenced(fencing),
        None => rules,
    })
}

pub(crate) fn decode_fencing(
    topology: &Topology,
    fencing: wire::Fencing,
) -> Result<Fencing, InvalidPolicy> {
    let cells = (fencing.cells.into_iter()).map(|cell| decode_cell(topology, cell));
    let drift_permille = u16::try_from(fencing.drift_permille)
        .map_err(|_| InvalidPolicy::Drift(fencing.drift_permille))?;
    let mut terms = Terms::new(
        fencing.session_ttl_us,
        fencing.grant_ttl_us,
        fencing.write_drain_us,
        fencing.margin_us,
        drift_permille,
    )?;
    terms.id = TermsId(fencing.terms);
    if fencing.write_drain_routed_us != 0 {
        terms.changed = true;
        terms.write_drain = terms.write_drain.min(fencing.write_drain_routed_us);
    }
    Ok(Fencing::new(
        cells.collect::<Result<_, InvalidPolicy>>()?,
        NonZeroU32::new(fencing.shards).ok_or(InvalidPolicy::NoShards)?,
        match fencing.observe {
            true => Enforcement::Observe,
            false => Enforcement::Enforce,
        },
        terms,
        fencing.forwarding,
        fencing.control_plane,
    )?)
}

fn decode_cell(topology: &Topology, cell: wire::Cell) -> Result<Cell, InvalidPolicy> {
    let forward = match wire::Forward::try_from(cell.forward) {
        Ok(wire::Forward::Region) => Forward::Region,
        Ok(wire::Forward::Any) => Forward::Any,
        // Unknown is never.
        Ok(wire::Forward::Never | wire::Forward::Unspecified) | Err(_) => Forward::Never,
    };
    let owner = |index: u32| zone_at(topology, "rules.fencing.cells.owners", index);
    Ok(Cell {
        name: cell.name,
        first_shard: cell.first_shard,
        owners: cell
            .owners
            .into_iter()
            .map(owner)
            .collect::<Result<_, _>>()?,
        epoch: cell.epoch,
        forward,
    })
}

fn zone_at(topology: &Topology, field: &'static str, index: u32) -> Result<ZoneId, InvalidPolicy> {
    usize::try_from(index)
        .ok()
        .and_then(|at| topology.zones().nth(at))
        .ok_or(InvalidPolicy::ZoneIndex { field, index })
}

pub(crate) fn decode_topology(rules: &wire::Rules) -> Result<Topology, InvalidPolicy> {
    let zones = || rules.zones.iter().map(|z| (&z.name[..], &z.region[..]));
    let name = |index: u32| {
        let zone = usize::try_from(index).ok().and_then(|i| rules.zones.get(i));
        zone.map(|zone| zone.name.as_str())
            .ok_or(InvalidPolicy::ZoneIndex {
                field: "rules.links",
                index,
            })
    };
    let links = rules
        .links
        .iter()
        .map(|link| {
            let between = Link {
                rtt_ms: link.rtt_ms,
                cost: link.cost,
            };
            Ok((name(link.from)?, name(link.to)?, between))
        })
        .collect::<Result<Vec<_>, InvalidPolicy>>()?;
    Ok(Topology::new(zones(), links)?)
}

pub(crate) fn decode_service(
    topology: &Topology,
    service: wire::Service,
) -> Result<Service, InvalidPolicy> {
    let rule = |reject| match reject {
        true => RegionRule::Reject,
        false => RegionRule::Local,
    };
    Ok(Service {
        plans: decode_plans(topology, &service)?,
        routes: service
            .routes
            .into_iter()
            .map(decode_route)
            .collect::<Result<_, _>>()?,
        region_missing: rule(service.reject_missing_region),
        region_unknown: rule(service.reject_unknown_region),
        trace_missing: match service.reject_missing_trace {
            true => TraceRule::Reject,
            false => TraceRule::Generate,
        },
        zone_affinity: service.zone_affinity.map(decode_key_source).transpose()?,
        writes: match service.fenced_writes {
            None => Writes::Free,
            Some(wire::FencedWrites { key }) => Writes::Fenced {
                key: key.map(decode_key_source).transpose()?,
            },
        },
        name: service.name,
    })
}

pub(crate) fn decode_route(route: wire::Route) -> Result<Route, InvalidPolicy> {
    let matches = match route.r#match {
        Some(wire::route::Match::Prefix(prefix)) => RouteMatch::Prefix(prefix),
        Some(wire::route::Match::GrpcService(name)) => RouteMatch::Grpc(name),
        None => {
            return Err(InvalidPolicy::Missing {
                field: "rules.services.routes.match",
            });
        }
    };
    let class = match route.class {
        Some(wire::route::Class::ByMethod(wire::ByMethod {})) => ClassRule::ByMethod,
        Some(wire::route::Class::GrpcReads(reads)) => ClassRule::GrpcReads(reads.methods),
        Some(wire::route::Class::Always(class)) => match wire::Class::try_from(class) {
            Ok(wire::Class::Read) => ClassRule::Always(Class::Read),
            // Unknown is write.
            Ok(wire::Class::Write | wire::Class::Unspecified) | Err(_) => {
                ClassRule::Always(Class::Write)
            }
        },
        None => {
            return Err(InvalidPolicy::Missing {
                field: "rules.services.routes.class",
            });
        }
    };
    Ok(Route {
        host: route.host,
        matches,
        class,
    })
}

fn decode_key_source(source: wire::KeySource) -> Result<KeySource, InvalidPolicy> {
    match source.source {
        Some(wire::key_source::Source::Header(name)) => Ok(KeySource::Header(name)),
        Some(wire::key_source::Source::Cookie(name)) => Ok(KeySource::Cookie(name)),
        Some(wire::key_source::Source::PathSegment(at)) => u8::try_from(at)
            .map(KeySource::PathSegment)
            .map_err(|_| InvalidPolicy::PathSegment(at)),
        None => Err(InvalidPolicy::Missing {
            field: "rules.services.zone_affinity.source",
        }),
    }
}

fn decode_plans(topology: &Topology, service: &wire::Service) -> Result<Plans, InvalidPolicy> {
    let expected = topology.zones().len() * Class::ALL.len();
    if service.plans.len() != expected {
        return Err(InvalidPolicy::PlanCount {
            service: service.name.clone(),
            found: service.plans.len(),
            expected,
        });
    }
    let homes = topology
        .zones()
        .flat_map(|home| Class::ALL.map(|class| (home, class)));
    let mut plans = homes
        .zip(&service.plans)
        .map(|((home, class), plan)| decode_plan(topology, service, home, class, plan))
        .collect::<Result<Vec<_>, _>>()?
        .into_iter();
    // The count was checked, so the iterator never runs dry; closed would be the safe answer.
    Ok(Plans::from_fn(topology, |_, _| {
        plans.next().unwrap_or(Plan::CLOSED)
    }))
}

fn decode_plan(
    topology: &Topology,
    service: &wire::Service,
    home: ZoneId,
    class: Class,
    plan: &wire::Plan,
) -> Result<Plan, InvalidPolicy> {
    let name = || service.name.clone();
    let targets = plan
        .targets
        .iter()
        .map(|target| {
            let zone = zone_at(topology, "rules.services.plans.targets.zone", target.zone)?;
            Ok(Target {
                zone,
                weight: target.weight,
            })
        })
        .collect::<Result<Vec<_>, InvalidPolicy>>()?;
    let in_order = targets.iter().zip(targets.iter().skip(1));
    if targets.iter().any(|t| t.weight == 0) || in_order.into_iter().any(|(a, b)| a.zone >= b.zone)
    {
        return Err(InvalidPolicy::Targets { service: name() });
    }
    let sum: u64 = targets.iter().map(|target| u64::from(target.weight)).sum();
    if !targets.is_empty() && sum != u64::from(WEIGHT_TOTAL) {
        return Err(InvalidPolicy::Weights {
            service: name(),
            sum,
        });
    }
    let remote = |target: &Target| topology.tier(home, target.zone) == policy::Tier::Remote;
    if class == Class::Write && targets.iter().any(remote) {
        return Err(InvalidPolicy::RemoteWrite { service: name() });
    }
    if plan.shed >= WEIGHT_TOTAL || (targets.is_empty() && plan.shed > 0) {
        return Err(InvalidPolicy::Shed {
            service: name(),
            shed: plan.shed,
        });
    }
    let drained = plan.drained;
    Ok(match Plan::of_targets(topology, home, targets, plan.shed) {
        Plan::Closed { .. } => Plan::Closed { drained },
        open => open,
    })
}
