//! Arbitrary topologies, rules and requests: small worlds from small vocabularies, so that names
//! often match. The tests of the wire form and of the translation use them too.

use std::num::NonZeroU32;

use policy::{
    Cell, Class, ClassRule, Demand, Enforcement, Explain, Fencing, Forward, KeySource, Link, Plan,
    Plans, RegionRule, Route, RouteMatch, Rules, Service, Topology, TraceRule, Weighting, Writes,
    ZoneId, ZoneLoad, ZoneState,
    fence::{Terms, TermsId},
};
use proptest::{collection::vec, option, prelude::*, sample::select};

/// A stand-in for a valid signature.
pub(crate) const TOKEN: &str = "open-sesame-open-sesame";

const HOSTS: [&str; 5] = [
    "*",
    "shop.example",
    "*.example",
    "*.shop.example",
    "a.shop.example",
];

/// 1 to 5 zones, `z0` to `z4`, in up to 3 regions, with some links configured.
pub(crate) fn topology() -> impl Strategy<Value = Topology> {
    let link = (0..5_usize, 0..5_usize, 0.0..200.0, 0.1..8.0);
    (vec(0..3_usize, 1..=5), vec(link, 0..4)).prop_map(|(regions, links)| {
        let zones: Vec<(String, String)> = regions
            .iter()
            .enumerate()
            .map(|(zone, region)| (format!("z{zone}"), format!("r{region}")))
            .collect();
        let name = |at: usize| zones[at % zones.len()].0.as_str();
        let links = links
            .iter()
            .map(|(from, to, rtt_ms, cost)| {
                let (rtt_ms, cost) = (*rtt_ms, *cost);
                (name(*from), name(*to), Link { rtt_ms, cost })
            })
            .filter(|(from, to, _)| from != to);
        let zones = zones.iter().map(|(zone, region)| (&zone[..], &region[..]));
        Topology::new(zones, links).expect("a valid topology")
    })
}

pub(crate) fn weighting() -> impl Strategy<Value = Weighting> {
    prop_oneof![
        Just(Weighting::Computed),
        (0..=100_u32, 0..=100_u32).prop_map(|(zone, region)| Weighting::Operator { zone, region }),
    ]
}

/// The loads of five zones, NaN included; all fully in, with unlimited capacity.
pub(crate) fn loads() -> impl Strategy<Value = Vec<ZoneLoad>> {
    let state = select(vec![ZoneState::Up, ZoneState::Down, ZoneState::Empty]);
    let load1_per_core = prop_oneof![
        8 => 0.0..3.0_f64,
        1 => select(vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, -1.0]),
    ];
    let load = (state, load1_per_core).prop_map(|(state, load1_per_core)| ZoneLoad {
        state,
        load1_per_core,
        ..ZoneLoad::default()
    });
    vec(load, 5)
}

/// The loads of five zones, some on a ramp, some with limited capacity.
pub(crate) fn bounded_loads() -> impl Strategy<Value = Vec<ZoneLoad>> {
    let share = prop_oneof![2 => Just(1_000_u16), 1 => 1..1_000_u16];
    let capacity = prop_oneof![1 => Just(f64::INFINITY), 2 => 0.0..500.0_f64];
    let bounds = vec((share, capacity), 5);
    (loads(), bounds).prop_map(|(loads, bounds)| {
        let bounded = loads.into_iter().zip(bounds);
        let bounded = bounded.map(|(load, (share, capacity))| ZoneLoad {
            share,
            capacity,
            ..load
        });
        bounded.collect()
    })
}

/// The demands of five zones.
pub(crate) fn demands() -> impl Strategy<Value = Vec<Demand>> {
    let rps = || prop_oneof![1 => Just(0.0), 3 => 0.0..400.0_f64];
    let demand = (rps(), rps()).prop_map(|(reads, writes)| Demand { reads, writes });
    vec(demand, 5)
}

fn class_rule(matches: &RouteMatch) -> BoxedStrategy<ClassRule> {
    let always = select(vec![Class::Read, Class::Write]).prop_map(ClassRule::Always);
    let reads = vec(select(vec!["Get", "List"]).prop_map(String::from), 0..3);
    match matches {
        RouteMatch::Prefix(_) => prop_oneof![Just(ClassRule::ByMethod), always].boxed(),
        RouteMatch::Grpc(_) => prop_oneof![
            Just(ClassRule::ByMethod),
            always,
            reads.prop_map(ClassRule::GrpcReads)
        ]
        .boxed(),
    }
}

fn routes() -> impl Strategy<Value = Vec<Route>> {
    let matches = || {
        ["/", "/orders", "/orders/export"]
            .map(|prefix| RouteMatch::Prefix(prefix.into()))
            .into_iter()
            .chain(["shop.v1.Orders", "shop.v1.Users"].map(|name| RouteMatch::Grpc(name.into())))
    };
    let all: Vec<(&str, RouteMatch)> = HOSTS
        .into_iter()
        .flat_map(|host| matches().map(move |matches| (host, matches)))
        .collect();
    // No two routes are the same: a subsequence takes each once.
    proptest::sample::subsequence(all, 3..=10)
        .prop_shuffle()
        .prop_flat_map(|taken| {
            let routes = taken.into_iter().map(|(host, matches)| {
                class_rule(&matches).prop_map(move |class| Route {
                    host: host.into(),
                    matches: matches.clone(),
                    class,
                })
            });
            routes.collect::<Vec<_>>()
        })
}

fn key_source() -> impl Strategy<Value = KeySource> {
    prop_oneof![
        Just(KeySource::Header("x-user".into())),
        Just(KeySource::Cookie("user".into())),
        (0..4_u8).prop_map(KeySource::PathSegment),
    ]
}

fn service() -> impl Strategy<Value = Service> {
    let region = || select(vec![RegionRule::Local, RegionRule::Reject]);
    (
        region(),
        region(),
        select(vec![TraceRule::Generate, TraceRule::Reject]),
        option::weighted(0.3, key_source()),
        option::weighted(0.5, option::of(key_source())),
    )
        .prop_map(
            |(region_missing, region_unknown, trace_missing, zone_affinity, fenced)| Service {
                name: String::new(),
                routes: Vec::new(),
                region_missing,
                region_unknown,
                trace_missing,
                zone_affinity,
                writes: fenced.map_or(Writes::Free, |key| Writes::Fenced { key }),
                plans: Plans::default(),
            },
        )
}

/// Owners by their position among the zones, the epoch, and how far writes may be forwarded.
type CellSeed = (Vec<usize>, u64, Forward);

/// Cells, the enforcement, whether writes are forwarded, and the lifetime of writes if the terms
/// were changed.
type FencingSeed = (Vec<CellSeed>, Enforcement, bool, Option<u64>);

/// The seed of [`fencing`]: up to three cells.
fn fencing_seed() -> impl Strategy<Value = FencingSeed> {
    let forward = select(vec![Forward::Never, Forward::Region, Forward::Any]);
    let enforcement = select(vec![Enforcement::Enforce, Enforcement::Observe]);
    let cell = (vec(0..5_usize, 0..3), 6..9_u64, forward);
    let drain = option::of(select(vec![750_000, 1_500_000]));
    (vec(cell, 1..=3), enforcement, any::<bool>(), drain)
}

/// A fence of these cells, each with ten shards.
fn fencing(topology: &Topology, (cells, enforcement, forwarding, drain): FencingSeed) -> Fencing {
    let shards = NonZeroU32::new(10 * cells.len() as u32).expect("a cell");
    let cells = cells.into_iter().enumerate();
    let cells = cells.map(|(at, (owners, epoch, forward))| Cell {
        name: format!("c{at}"),
        first_shard: 10 * at as u32,
        owners: owners.into_iter().map(|at| zone(topology, at)).collect(),
        epoch,
        forward,
    });
    let mut terms = Terms::new(3_000_000, 1_500_000, 1_500_000, 50_000, 10).expect("terms");
    if let Some(drain) = drain {
        (terms.id, terms.changed, terms.write_drain) = (TermsId(drain), true, drain);
    }
    let control_plane = "tidegate".to_owned();
    Fencing::new(
        cells.collect(),
        shards,
        enforcement,
        terms,
        forwarding,
        control_plane,
    )
    .expect("a valid fence")
}

/// Rules as a control plane builds them: with computed plans.
pub(crate) fn rules() -> impl Strategy<Value = Rules> {
    let explain = Explain {
        header: "x-ask".into(),
        token: "sesame".into(),
    };
    (
        topology(),
        0..5_usize,
        vec((service(), weighting(), loads()), 3),
        routes(),
        option::of(Just(explain)),
        option::of(fencing_seed()),
    )
        .prop_map(|(topology, viewer, services, routes, explain, fence)| {
            let mut services: Vec<Service> = services
                .into_iter()
                .enumerate()
                .map(|(index, (service, weighting, loads))| Service {
                    name: format!("s{index}"),
                    plans: Plans::compute(&topology, weighting, &loads, &[]),
                    // Without a fence no service is fenced.
                    writes: match fence {
                        Some(_) => service.writes,
                        None => Writes::Free,
                    },
                    ..service
                })
                .collect();
            // Distributed in turn, so that services share hosts.
            let count = services.len();
            for (index, route) in routes.into_iter().enumerate() {
                services[index % count].routes.push(route);
            }
            let viewer = zone(&topology, viewer);
            let fence = fence.map(|seed| fencing(&topology, seed));
            let rules = Rules::new(topology, viewer, services, explain).expect("valid rules");
            match fence {
                Some(fence) => rules.fenced(fence),
                None => rules,
            }
        })
}

/// The zone at `index`, modulo the number of zones.
pub(crate) fn zone(topology: &Topology, index: usize) -> ZoneId {
    let mut zones = topology.zones().cycle();
    zones.nth(index).expect("a topology has zones")
}

/// Headers of a request that may match [`rules`], sometimes malformed.
pub(crate) fn request() -> impl Strategy<Value = Vec<(&'static str, String)>> {
    let one_of = |values: &[&'static str]| select(values.to_vec()).prop_map(String::from);
    let maybe = |name, value: BoxedStrategy<String>| {
        option::of(value).prop_map(move |value| Some((name, value?)))
    };
    let method = one_of(&["GET", "HEAD", "POST", "DELETE", "get", "PROPFIND", ""]);
    let authority = one_of(&[
        "shop.example",
        "A.Shop.Example:8080",
        "b.shop.example",
        "x.example:https",
        "other",
        "[::1]:80",
    ]);
    let path = one_of(&[
        "/",
        "/orders",
        "/orders/7?x=1",
        "/ordersX",
        "/orders/export",
        "/shop.v1.Orders/Get",
        "/shop.v1.Users/Put",
        "*",
    ]);
    let region = || one_of(&["z0", "z1", "z2", "r0", "r1", "mars", ""]);
    (
        maybe(":method", method.boxed()),
        maybe(":authority", authority.boxed()),
        maybe(":path", path.boxed()),
        maybe(
            "content-type",
            one_of(&["application/grpc", "application/json"]).boxed(),
        ),
        maybe("x-region-id", region().boxed()),
        option::weighted(0.1, region()).prop_map(|v| Some(("x-region-id", v?))),
        maybe("x-trace-id", one_of(&["t-1"]).boxed()),
        maybe("x-user", "[a-z]{1,4}".boxed()),
        maybe(
            "cookie",
            "[a-z]{1,4}"
                .prop_map(|user| format!("a=b; user={user}"))
                .boxed(),
        ),
        maybe("x-ask", one_of(&["sesame", "guess"]).boxed()),
        between_zones(),
    )
        .prop_map(|(a, b, c, d, e, f, g, h, i, j, [k, l])| {
            [a, b, c, d, e, f, g, h, i, j, k, l]
                .into_iter()
                .flatten()
                .collect()
        })
}

/// The headers of a write that another zone forwards; sometimes forged by a client.
fn between_zones() -> impl Strategy<Value = [Option<(&'static str, String)>; 2]> {
    let token = option::weighted(0.4, select(vec![TOKEN, TOKEN, "guess"]));
    let epoch = option::weighted(0.6, select(vec!["6", "7", "8", "-1", ""]));
    (token, epoch).prop_map(|(token, epoch)| {
        let header = |name, value: Option<&str>| Some((name, value?.to_owned()));
        [
            header("tidegate-hop", token),
            header("tidegate-epoch", epoch),
        ]
    })
}

/// The grant of a proxy for the cell of a request: for an epoch in [`rules`], or none.
pub(crate) fn granted() -> impl Strategy<Value = Option<u64>> {
    option::of(6..9_u64)
}

/// The plan of `home` and `class` in words, for messages.
pub(crate) fn plan_text(topology: &Topology, plan: &Plan) -> String {
    let Plan::Open {
        tier,
        targets,
        shed,
    } = plan
    else {
        return "closed".into();
    };
    let shed = match shed {
        0 => String::new(),
        shed => format!(", shed {shed}"),
    };
    let shares = targets
        .iter()
        .map(|target| format!(" {} {}", topology.zone_name(target.zone), target.weight));
    format!("{tier}:{}{shed}", shares.collect::<String>())
}
