//! From the domain to the wire.

use alloc::{string::ToString, vec::Vec};

use policy::{
    Cell, Class, ClassRule, Enforcement, Explain, Fencing, Forward, KeySource, Link, Plan, Policy,
    RegionRule, RouteMatch, Rules, Service, Tier, Topology, TraceRule, Writes, ZoneId,
};
use prost::Message;

use crate::wire;

/// The width of a policy's version: a metric, which is a double, holds it exactly.
pub const VERSION_BITS: u32 = 48;

/// The bytes of `policy`, with its version, and the version. `control_plane` is as in [`Edition`](crate::Edition).
pub fn encode(policy: &Policy, generation: u64, control_plane: &str) -> (Vec<u8>, u64) {
    let mode = match policy {
        Policy::Fallback => wire::policy::Mode::Fallback(wire::Fallback {}),
        Policy::Serving(rules) => wire::policy::Mode::Rules(encode_rules(rules)),
    };
    let mut message = wire::Policy {
        version: 0,
        generation,
        mode: Some(mode),
        control_plane: control_plane.to_string(),
    };
    let digest = policy::shard::key_digest(&message.encode_to_vec());
    message.version = digest >> (u64::BITS - VERSION_BITS);
    (message.encode_to_vec(), message.version)
}

fn encode_rules(rules: &Rules) -> wire::Rules {
    let topology = rules.topology();
    wire::Rules {
        viewer: topology.zone_name(rules.viewer()).to_string(),
        zones: topology
            .zones()
            .map(|zone| wire::Zone {
                name: topology.zone_name(zone).to_string(),
                region: topology.region_name(topology.region_of(zone)).to_string(),
            })
            .collect(),
        links: encode_links(topology),
        services: rules
            .services()
            .iter()
            .map(|service| encode_service(topology, service))
            .collect(),
        fencing: rules.fencing().map(encode_fencing),
        explain: rules
            .explain()
            .map(|Explain { header, token }| wire::Explain {
                header: header.clone(),
                token: token.clone(),
            }),
    }
}

fn index(zone: ZoneId) -> u32 {
    zone.index() as u32
}

fn encode_links(topology: &Topology) -> Vec<wire::Link> {
    let pairs = topology
        .zones()
        .flat_map(|from| topology.zones().map(move |to| (from, to)));
    pairs
        .filter(|(from, to)| from < to)
        .map(|(from, to)| (from, to, topology.link(from, to)))
        .filter(|(from, to, link)| {
            *link
                != match topology.tier(*from, *to) {
                    Tier::Zone => Link::LOCAL,
                    Tier::Region => Link::REGION,
                    Tier::Remote => Link::REMOTE,
                }
        })
        .map(|(from, to, link)| wire::Link {
            from: index(from),
            to: index(to),
            rtt_ms: link.rtt_ms,
            cost: link.cost,
        })
        .collect()
}

fn encode_service(topology: &Topology, service: &Service) -> wire::Service {
    let plans = topology
        .zones()
        .flat_map(|home| Class::ALL.map(|class| service.plans.get(home, class)));
    wire::Service {
        name: service.name.clone(),
        routes: service.routes.iter().map(encode_route).collect(),
        reject_missing_region: service.region_missing == RegionRule::Reject,
        reject_unknown_region: service.region_unknown == RegionRule::Reject,
        reject_missing_trace: service.trace_missing == TraceRule::Reject,
        zone_affinity: service.zone_affinity.as_ref().map(encode_key_source),
        plans: plans.map(encode_plan).collect(),
        fenced_writes: match &service.writes {
            Writes::Free => None,
            Writes::Fenced { key } => Some(wire::FencedWrites {
                key: key.as_ref().map(encode_key_source),
            }),
        },
    }
}

fn encode_fencing(fencing: &Fencing) -> wire::Fencing {
    let cell = |cell: &Cell| wire::Cell {
        name: cell.name.clone(),
        first_shard: cell.first_shard,
        owners: cell.owners.iter().copied().map(index).collect(),
        epoch: cell.epoch,
        forward: match cell.forward {
            Forward::Never => wire::Forward::Never,
            Forward::Region => wire::Forward::Region,
            Forward::Any => wire::Forward::Any,
        }
        .into(),
    };
    wire::Fencing {
        cells: fencing.cells().iter().map(cell).collect(),
        shards: fencing.shards().get(),
        observe: fencing.enforcement == Enforcement::Observe,
        session_ttl_us: fencing.terms.session_ttl,
        grant_ttl_us: fencing.terms.grant_ttl,
        write_drain_us: fencing.terms.write_drain,
        margin_us: fencing.terms.margin,
        drift_permille: fencing.terms.drift_permille.into(),
        token: fencing.token.clone().unwrap_or_default(),
        control_plane: fencing.control_plane.clone(),
    }
}

fn encode_route(route: &policy::Route) -> wire::Route {
    let class = match &route.class {
        ClassRule::ByMethod => wire::route::Class::ByMethod(wire::ByMethod {}),
        ClassRule::Always(Class::Read) => wire::route::Class::Always(wire::Class::Read.into()),
        ClassRule::Always(Class::Write) => wire::route::Class::Always(wire::Class::Write.into()),
        ClassRule::GrpcReads(methods) => wire::route::Class::GrpcReads(wire::GrpcReads {
            methods: methods.clone(),
        }),
    };
    let matches = match &route.matches {
        RouteMatch::Prefix(prefix) => wire::route::Match::Prefix(prefix.clone()),
        RouteMatch::Grpc(name) => wire::route::Match::GrpcService(name.clone()),
    };
    wire::Route {
        host: route.host.clone(),
        r#match: Some(matches),
        class: Some(class),
    }
}

fn encode_key_source(source: &KeySource) -> wire::KeySource {
    let source = match source {
        KeySource::Header(name) => wire::key_source::Source::Header(name.clone()),
        KeySource::Cookie(name) => wire::key_source::Source::Cookie(name.clone()),
        KeySource::PathSegment(at) => wire::key_source::Source::PathSegment(u32::from(*at)),
    };
    wire::KeySource {
        source: Some(source),
    }
}

fn encode_plan(plan: &Plan) -> wire::Plan {
    let targets = plan.targets().iter().map(|target| wire::Target {
        zone: index(target.zone),
        weight: target.weight,
    });
    wire::Plan {
        targets: targets.collect(),
        shed: plan.shed(),
    }
}
