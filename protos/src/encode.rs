//! From the domain to the wire.

use alloc::{string::ToString, sync::Arc, vec::Vec};

use policy::{
    Cell, Class, ClassRule, Enforcement, Explain, Fencing, Forward, KeySource, Link, Plan, Policy,
    RegionRule, RouteMatch, Rules, Service, Tier, Topology, TraceRule, Writes, ZoneId,
    shard::digest_of_parts, shared::Chunk,
};
use prost::{
    Message,
    bytes::Bytes,
    encoding::{WireType, encode_key, encode_varint, message},
};

use crate::wire;

/// The width of a policy's version: a metric, which is a double, holds it exactly.
pub const VERSION_BITS: u32 = 48;

/// The bytes of `policy`, with its version, and the version. `control_plane` is as in
/// [`PluginConfig`](crate::PluginConfig).
pub fn encode(policy: &Policy, generation: u64, control_plane: &str) -> (Vec<u8>, u64) {
    let encoded = Encoder::default().encode(policy, generation, control_plane);
    (encoded.pieces.concat(), encoded.version)
}

/// The bytes of a policy in pieces, which those of other zones and of the policies before share.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// They stand one after the other; together they are the result of [`encode`].
    pub pieces: Vec<Bytes>,
    pub version: u64,
}

/// Encodes policies one after the other. The parts that a policy shares with the one before, as
/// [`Rules::replan`] and [`Rules::seen_from`] leave it, are not encoded again.
#[derive(Default)]
pub struct Encoder {
    /// The services as they stand together, and their part of the bytes.
    known: Vec<(Chunk<Service>, Bytes)>,
}

impl Encoder {
    /// The bytes of `policy`, with its version. `control_plane` is as in
    /// [`PluginConfig`](crate::PluginConfig).
    pub fn encode(&mut self, policy: &Policy, generation: u64, control_plane: &str) -> Encoded {
        let (tag, mode) = match policy {
            Policy::Fallback => (field::FALLBACK, Vec::new()),
            Policy::Serving(rules) => (field::RULES, self.encode_rules(rules)),
        };
        let mode_len: usize = mode.iter().map(Bytes::len).sum();
        let head = |version| {
            let message = wire::Policy {
                version,
                generation,
                ..wire::Policy::default()
            };
            let mut head = message.encode_to_vec();
            encode_key(tag, WireType::LengthDelimited, &mut head);
            encode_varint(mode_len as u64, &mut head);
            head
        };
        let tail = wire::Policy {
            control_plane: control_plane.to_string(),
            ..wire::Policy::default()
        };
        let tail = Bytes::from(tail.encode_to_vec());
        // A version of 0 does not stand in the bytes.
        let unversioned = head(0);
        let digested = [&unversioned[..]].into_iter();
        let digested = digested.chain(mode.iter().chain([&tail]).map(Bytes::as_ref));
        let version = digest_of_parts(digested) >> (u64::BITS - VERSION_BITS);
        let head = Bytes::from(head(version));
        Encoded {
            pieces: [head].into_iter().chain(mode).chain([tail]).collect(),
            version,
        }
    }

    fn encode_rules(&mut self, rules: &Rules) -> Vec<Bytes> {
        let chunks = rules.services().chunks();
        self.known.truncate(chunks.len());
        for (at, chunk) in chunks.iter().enumerate() {
            match self.known.get_mut(at) {
                // The same services are of the same rules, and so have the same topology.
                Some((known, _)) if Arc::ptr_eq(known, chunk) => {}
                Some(slot) => *slot = encode_chunk(rules, chunk),
                None => self.known.push(encode_chunk(rules, chunk)),
            }
        }
        let services = self.known.iter().map(|(_, bytes)| bytes.clone());
        [Bytes::from(encode_head(rules))]
            .into_iter()
            .chain(services)
            .chain([Bytes::from(encode_tail(rules))])
            .collect()
    }
}

fn encode_chunk(rules: &Rules, chunk: &Chunk<Service>) -> (Chunk<Service>, Bytes) {
    let mut bytes = Vec::new();
    for service in chunk.iter() {
        let service = encode_service(rules.topology(), service);
        message::encode(field::SERVICES, &service, &mut bytes);
    }
    (Arc::clone(chunk), Bytes::from(bytes))
}

/// The numbers of the fields in `tidegate/v1/policy.proto` that are put together here.
mod field {
    pub(super) const FALLBACK: u32 = 3;
    pub(super) const RULES: u32 = 4;
    /// Of `Rules`.
    pub(super) const SERVICES: u32 = 4;
}

/// The fields before the services.
fn encode_head(rules: &Rules) -> Vec<u8> {
    let topology = rules.topology();
    let head = wire::Rules {
        viewer: topology.zone_name(rules.viewer()).to_string(),
        zones: topology
            .zones()
            .map(|zone| wire::Zone {
                name: topology.zone_name(zone).to_string(),
                region: topology.region_name(topology.region_of(zone)).to_string(),
            })
            .collect(),
        links: encode_links(topology),
        ..wire::Rules::default()
    };
    head.encode_to_vec()
}

/// The fields after them.
fn encode_tail(rules: &Rules) -> Vec<u8> {
    let explain = rules.explain();
    let tail = wire::Rules {
        explain: explain.map(|Explain { header, token }| wire::Explain {
            header: header.clone(),
            token: token.clone(),
        }),
        fencing: rules.fencing().map(encode_fencing),
        ..wire::Rules::default()
    };
    tail.encode_to_vec()
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
        write_drain_us: fencing.terms.write_drain_waited,
        margin_us: fencing.terms.margin,
        drift_permille: fencing.terms.drift_permille.into(),
        forwarding: fencing.forwarding,
        control_plane: fencing.control_plane.clone(),
        terms: fencing.terms.id.0,
        write_drain_routed_us: match fencing.terms.changed {
            true => fencing.terms.write_drain,
            false => 0,
        },
    }
}

pub(crate) fn encode_route(route: &policy::Route) -> wire::Route {
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
        drained: matches!(plan, Plan::Closed { drained: true }),
    }
}
