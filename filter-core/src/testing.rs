//! Shared by several tests.

use std::num::NonZeroU32;

use policy::{
    Cell, Class, ClassRule, Enforcement, Explain, Fencing, Forward, KeySource, Plan, Plans, Policy,
    RegionRule, Route, RouteMatch, Rules, Service, Topology, TraceRule, Weighting, Writes,
    ZoneLoad, ZoneState,
    fence::{Terms, TermsId},
    hop::{HopKeys, Keys},
};

/// Seen from `shanghai-a`: the service `orders`, all up; and the service `strict`, which demands
/// everything, is pinned by a header, and is down in the whole region of `beijing-a`.
pub(crate) fn serving() -> Policy {
    Policy::Serving(Box::new(rules(Writes::Free)))
}

/// The keys of hops between zones.
pub(crate) fn hop_keys() -> HopKeys {
    HopKeys::Held {
        keys: Keys::new(vec!["0123456789abcdef".into()]).unwrap(),
        bucket: 7,
    }
}

/// The same, but `orders` is fenced: by the cell `main` of `owner`, in epoch 5.
pub(crate) fn fenced_by(owner: &str, forward: Forward, enforcement: Enforcement) -> Policy {
    let rules = rules(Writes::Fenced { key: None });
    let main = Cell {
        name: "main".into(),
        first_shard: 0,
        owners: vec![rules.topology().zone_named(owner).unwrap()],
        epoch: 5,
        forward,
    };
    let fencing = Fencing::new(
        vec![main],
        NonZeroU32::new(1024).unwrap(),
        enforcement,
        Terms::new(5_000_000, 3_000_000, 2_000_000, 500_000, 10).unwrap(),
        true,
        "tidegate".into(),
    );
    Policy::Serving(Box::new(rules.fenced(fencing.unwrap())))
}

/// The same as [`fenced`], of terms that took the place of others.
pub(crate) fn fenced_under(id: u64) -> Policy {
    let Policy::Serving(mut rules) = fenced() else {
        unreachable!("a fence has rules");
    };
    let mut fencing = rules.fencing().unwrap().clone();
    (fencing.terms.id, fencing.terms.changed) = (TermsId(id), true);
    *rules = rules.fenced(fencing);
    Policy::Serving(rules)
}

/// The viewing zone owns the cell.
pub(crate) fn fenced() -> Policy {
    fenced_by("shanghai-a", Forward::Region, Enforcement::Enforce)
}

fn rules(writes: Writes) -> Rules {
    let zones = [
        ("shanghai-a", "shanghai"),
        ("shanghai-b", "shanghai"),
        ("beijing-a", "beijing"),
    ];
    let topology = Topology::new(zones, []).unwrap();
    let viewer = topology.zone_named("shanghai-a").unwrap();
    let plans = |states: [ZoneState; 3]| {
        let loads = states.map(|state| ZoneLoad {
            state,
            ..ZoneLoad::default()
        });
        let weighting = Weighting::Operator {
            zone: 80,
            region: 20,
        };
        Plans::from_fn(&topology, |home, class: Class| {
            Plan::compute(&topology, weighting, home, class, &loads)
        })
    };
    let route = |matches, class| Route {
        host: "*".into(),
        matches,
        class,
    };
    let orders = Service {
        name: "orders".into(),
        routes: vec![
            route(RouteMatch::Prefix("/orders".into()), ClassRule::ByMethod),
            route(
                RouteMatch::Grpc("shop.Orders".into()),
                ClassRule::GrpcReads(vec!["Get".into()]),
            ),
        ],
        region_missing: RegionRule::Local,
        region_unknown: RegionRule::Local,
        trace_missing: TraceRule::Generate,
        zone_affinity: None,
        writes,
        plans: plans([ZoneState::Up; 3]),
    };
    let strict = Service {
        name: "strict".into(),
        routes: vec![
            route(RouteMatch::Prefix("/strict".into()), ClassRule::ByMethod),
            route(
                RouteMatch::Grpc("shop.Strict".into()),
                ClassRule::GrpcReads(vec![]),
            ),
        ],
        region_missing: RegionRule::Reject,
        region_unknown: RegionRule::Reject,
        trace_missing: TraceRule::Reject,
        zone_affinity: Some(KeySource::Header("x-user".into())),
        writes: Writes::Free,
        plans: plans([ZoneState::Up, ZoneState::Up, ZoneState::Empty]),
    };
    let explain = Explain {
        header: "x-debug".into(),
        token: "s3cret".into(),
    };
    Rules::new(topology, viewer, vec![orders, strict], Some(explain)).unwrap()
}
