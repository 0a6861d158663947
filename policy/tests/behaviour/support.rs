//! The mesh of the tables, and requests to it.

use policy::{
    Class, ClassRule, Decision, Facts, Headers, Link, Outcome, Plans, Policy, Presented,
    RegionRule, Route, RouteMatch, Rules, Service, Topology, TraceRule, Weighting, Writes, ZoneId,
    ZoneLoad, ZoneState, decide,
};

/// Two data centres in Shanghai, two in Beijing; `sh-a` is 1 ms from `sh-b`, 29 ms from `bj-c` and
/// 59 ms from `bj-d`.
pub(crate) fn topology() -> Topology {
    let link = |rtt_ms| Link { rtt_ms, cost: 1.0 };
    Topology::new(
        [
            ("sh-a", "shanghai"),
            ("sh-b", "shanghai"),
            ("bj-c", "beijing"),
            ("bj-d", "beijing"),
        ],
        [
            ("sh-a", "sh-b", link(1.0)),
            ("sh-a", "bj-c", link(29.0)),
            ("sh-a", "bj-d", link(59.0)),
        ],
    )
    .expect("a valid topology")
}

pub(crate) fn zone(topology: &Topology, name: &str) -> ZoneId {
    topology.zone_named(name).expect(name)
}

/// The loads of `states`, one letter a zone: `U`p, `D`own, `E`mpty.
pub(crate) fn states(states: &str) -> Vec<ZoneLoad> {
    let state = |letter| match letter {
        'U' => ZoneState::Up,
        'D' => ZoneState::Down,
        _ => ZoneState::Empty,
    };
    states
        .chars()
        .map(|letter| ZoneLoad {
            state: state(letter),
            ..ZoneLoad::default()
        })
        .collect()
}

pub(crate) fn prefix(host: &str, prefix: &str) -> Route {
    Route {
        host: host.into(),
        matches: RouteMatch::Prefix(prefix.into()),
        class: ClassRule::ByMethod,
    }
}

/// A gRPC route whose reads are `Get` and `List`.
pub(crate) fn grpc(host: &str, name: &str) -> Route {
    Route {
        host: host.into(),
        matches: RouteMatch::Grpc(name.into()),
        class: ClassRule::GrpcReads(vec!["Get".into(), "List".into()]),
    }
}

pub(crate) fn always(class: Class, route: Route) -> Route {
    Route {
        class: ClassRule::Always(class),
        ..route
    }
}

/// A service of these routes, up everywhere, without requirements for requests.
pub(crate) fn service(name: &str, routes: Vec<Route>) -> Service {
    Service {
        name: name.into(),
        routes,
        region_missing: RegionRule::Local,
        region_unknown: RegionRule::Local,
        trace_missing: TraceRule::Generate,
        zone_affinity: None,
        writes: Writes::Free,
        plans: plans("UUUU"),
    }
}

/// The plans of an 80/20 service whose zones are in these [`states`].
pub(crate) fn plans(letters: &str) -> Plans {
    let weighting = Weighting::Operator {
        zone: 80,
        region: 20,
    };
    Plans::compute(&topology(), weighting, &states(letters), &[])
}

/// The policy of `sh-a`.
pub(crate) fn policy(services: Vec<Service>) -> Policy {
    let topology = topology();
    let viewer = zone(&topology, "sh-a");
    Policy::Serving(Box::new(
        Rules::new(topology, viewer, services, None).expect("valid rules"),
    ))
}

pub(crate) struct Request<S>(pub(crate) Vec<(&'static str, S)>);

impl<S: AsRef<str>> Headers for Request<S> {
    fn get(&self, name: &str) -> Presented<'_> {
        let mut found = self.0.iter().filter(|(header, _)| *header == name);
        match (found.next(), found.next()) {
            (None, _) => Presented::Absent,
            (Some((_, value)), None) => Presented::Once(value.as_ref().as_bytes()),
            (Some(_), Some(_)) => Presented::Repeated,
        }
    }
}

/// `METHOD path`, with more headers.
pub(crate) fn request(
    line: &'static str,
    more: &[(&'static str, &'static str)],
) -> Request<&'static str> {
    let (method, path) = line.split_once(' ').expect("METHOD path");
    let mut headers = vec![
        (":method", method),
        (":path", path),
        (":authority", "shop.example"),
    ];
    // A header in `more` replaces one of the same name; to repeat a header, list it twice in
    // `more`.
    headers.retain(|(name, _)| more.iter().all(|(other, _)| other != name));
    headers.extend(more);
    Request(headers)
}

/// The decision as text: the outcome and its stamps, or the rejection, then the reason.
pub(crate) fn verdict<S: AsRef<str>>(policy: &Policy, request: &Request<S>) -> String {
    verdict_of(&decide(policy, &Facts::gather(policy, request)))
}

/// A decision in words.
pub(crate) fn verdict_of(decision: &Decision<'_>) -> String {
    let outcome = match decision.outcome {
        Outcome::Pass => "pass".to_owned(),
        Outcome::Refuse(refusal) => format!("{} grpc {}", refusal.status, refusal.grpc_status),
        Outcome::Route(routed) => {
            let stamps = routed.stamps().map(|(name, value)| {
                let name = name.trim_start_matches("x-tidegate-");
                format!("{name}={value} ")
            });
            stamps.collect::<String>().trim_end().to_owned()
        }
    };
    format!("{outcome}: {}", decision.reason.as_str())
}
