//! The faults of proxies, as conditions and counts: rejected resources, policies that filters have
//! not applied.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval};
use xds::clients::Health;

use super::{Snapshots, proxies::Proxies};
use crate::{
    applied::{Applied, PolicyState},
    conditions::{Code, Found, Lasting},
    metrics::{Metrics, ResultLabel},
    snapshot::ViewKey,
};

/// Between two checks: each covers all streams.
const INTERVAL: Duration = Duration::from_secs(2);
/// A policy is applied within milliseconds; reports arrive every half minute.
const BEHIND_MAX: Duration = Duration::from_secs(60);
/// How many proxies a detail names.
const NODES_NAMED: usize = 3;

const CODES: &[Code] = &[
    Code::ResourceRefused,
    Code::PolicyRefused,
    Code::PolicyBehind,
    Code::ProxyOrphaned,
];

/// A proxy, and the version of the policy that it should have.
pub type Expected = (Health<ViewKey>, Option<u64>);

/// Checks periodically, until nothing can change any more. `guests` gives the proxies that have no
/// resources.
pub async fn watch(
    proxies: Proxies,
    guests: impl Fn() -> Vec<Expected>,
    applied: Applied,
    snapshots: Snapshots,
    metrics: Metrics,
) {
    let mut lasting = Lasting::new(metrics.conditions.clone(), CODES);
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while snapshots.has_changed().is_ok() {
        ticks.tick().await;
        let snapshot = snapshots.borrow().clone();
        let now = Instant::now();
        let (guests, versions): (Vec<_>, Vec<_>) = guests().into_iter().unzip();
        let keys = guests.iter().map(|guest| guest.key.clone());
        let versions: BTreeMap<ViewKey, Option<u64>> = keys.zip(versions).collect();
        let wanted = |view: &ViewKey| match versions.get(view) {
            Some(version) => *version,
            None => Some(snapshot.as_ref()?.view(view)?.policy_version()),
        };
        let all = proxies.clients().health().chain(guests);
        let mut found = find(all, &applied, wanted, &metrics, now);
        found.extend(find_strangers(&proxies, now));
        lasting.look(found, now);
    }
}

/// The proxies that reject one resource.
#[derive(Default)]
struct Refusing {
    count: usize,
    nodes: Vec<String>,
    message: String,
}

/// The proxies that are rejected.
fn find_strangers(proxies: &Proxies, now: Instant) -> impl Iterator<Item = Found> {
    let strangers = proxies.strangers(now).into_iter();
    strangers.map(|(node, zone)| {
        let detail = format!("it names zone {zone}, and is rejected");
        Found::new(Code::ProxyOrphaned, node, detail)
    })
}

fn find(
    proxies: impl Iterator<Item = Health<ViewKey>>,
    applied: &Applied,
    wanted: impl Fn(&ViewKey) -> Option<u64>,
    metrics: &Metrics,
    now: Instant,
) -> Vec<Found> {
    let mut found = Vec::new();
    let mut refusing = BTreeMap::<String, Refusing>::new();
    let mut states = BTreeMap::<PolicyState, i64>::new();
    let mut refusers = 0;
    for health in proxies {
        let node = health.node;
        if health.orphaned {
            let zone = &health.key.zone;
            let detail = format!("it names zone {zone}");
            found.push(Found::new(Code::ProxyOrphaned, &node, detail));
        }
        refusers += i64::from(!health.refusals.is_empty());
        for (resource, message) in health.refusals {
            let entry = refusing.entry(resource).or_default();
            entry.count += 1;
            if entry.nodes.len() < NODES_NAMED {
                entry.nodes.push(node.clone());
                entry.message = message;
            }
        }
        let wanted = wanted(&health.key);
        let (state, status) = applied.standing(&node, wanted, now);
        *states.entry(state).or_default() += 1;
        match state {
            PolicyState::Refused => {
                let refused = status.and_then(|status| status.refused);
                let message = refused.map(|refused| refused.message).unwrap_or_default();
                found.push(Found::new(Code::PolicyRefused, node, message));
            }
            PolicyState::Behind => {
                let wanted = wanted.unwrap_or_default();
                let detail = format!("it should have {wanted:012x}");
                let behind = Found::new(Code::PolicyBehind, node, detail);
                found.push(behind.after(BEHIND_MAX));
            }
            PolicyState::Applied | PolicyState::Unknown => {}
        }
    }
    for state in PolicyState::ALL {
        let result = state.as_str();
        let gauge = metrics
            .proxy_policies
            .get_or_create(&ResultLabel { result });
        gauge.set(states.get(&state).copied().unwrap_or(0));
    }
    metrics.proxies_refusing.set(refusers);
    for (
        resource,
        Refusing {
            count,
            nodes,
            message,
        },
    ) in refusing
    {
        let nodes = nodes.join(", ");
        let detail = format!("{count} proxies ({nodes}): {message}");
        found.push(Found::new(Code::ResourceRefused, resource, detail));
    }
    found
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use protos::status::{Applied as Edition, AppliedReport, Refused};

    use super::*;
    use crate::{conditions::Conditions, snapshot::Role};

    fn healthy(node: &str) -> Health<ViewKey> {
        Health {
            node: node.to_owned(),
            key: ViewKey {
                zone: Arc::from("sh-a"),
                role: Role::Gateway,
            },
            orphaned: false,
            refusals: vec![],
        }
    }

    /// Checks the conditions, as `code subject: detail`, for these proxies. Each of them should
    /// have policy 2.
    struct Looking {
        lasting: Lasting,
        conditions: Conditions,
        metrics: Metrics,
        applied: Applied,
    }

    impl Looking {
        fn new() -> Looking {
            let metrics = Metrics::default();
            let conditions = metrics.conditions.clone();
            Looking {
                lasting: Lasting::new(conditions.clone(), CODES),
                conditions,
                metrics,
                applied: Applied::default(),
            }
        }

        fn at(&mut self, proxies: Vec<Health<ViewKey>>, now: Instant) -> Vec<String> {
            let proxies = proxies.into_iter();
            let found = find(proxies, &self.applied, |_| Some(2), &self.metrics, now);
            self.lasting.look(found, now);
            let held = self.conditions.list().into_iter();
            held.map(|c| format!("{} {}: {}", c.code, c.subject, c.detail))
                .collect()
        }

        fn counted(&self, state: PolicyState) -> i64 {
            let result = state.as_str();
            let gauge = self
                .metrics
                .proxy_policies
                .get_or_create(&ResultLabel { result });
            gauge.get()
        }
    }

    #[tokio::test]
    async fn a_refused_resource_is_one_condition_with_those_that_refuse_it() {
        let (mut looking, now) = (Looking::new(), Instant::now());
        let refusing = |node: &str| Health {
            refusals: vec![("lds gateway".to_owned(), "no such filter".to_owned())],
            ..healthy(node)
        };
        let all = vec![refusing("gw-1"), healthy("gw-2"), refusing("gw-3")];
        let held = looking.at(all, now);
        assert_eq!(
            held,
            ["TG4001 lds gateway: 2 proxies (gw-1, gw-3): no such filter"]
        );
        assert_eq!(looking.metrics.proxies_refusing.get(), 2);
        assert_eq!(looking.at(vec![healthy("gw-2")], now), [""; 0]);
        assert_eq!(looking.metrics.proxies_refusing.get(), 0);
    }

    #[tokio::test]
    async fn a_proxy_of_an_unknown_zone_is_a_condition_until_it_is_known_or_gone() {
        let (mut looking, now) = (Looking::new(), Instant::now());
        let orphan = Health {
            orphaned: true,
            ..healthy("gw-1")
        };
        let held = looking.at(vec![orphan], now);
        assert_eq!(held, ["TG4004 gw-1: it names zone sh-a"]);
        assert_eq!(looking.at(vec![], now), [""; 0]);
    }

    #[tokio::test]
    async fn a_policy_that_is_refused_or_late_is_a_condition_until_it_is_applied() {
        let (mut looking, start) = (Looking::new(), Instant::now());
        let report = |version, refused: Option<&str>| AppliedReport {
            node: "gw-1".to_owned(),
            applied: vec![Edition {
                version,
                generation: 1,
                threads: 2,
            }],
            refused: refused.map(|message| Refused {
                version: 2,
                generation: 1,
                message: message.to_owned(),
            }),
        };
        let all = || vec![healthy("gw-1")];
        assert_eq!(looking.at(all(), start), [""; 0], "it has sent no report");
        assert_eq!(looking.counted(PolicyState::Unknown), 1);
        looking.applied.note(report(1, None), start).unwrap();
        assert_eq!(looking.at(all(), start), [""; 0]);
        let late = start + BEHIND_MAX;
        let held = looking.at(all(), late);
        assert_eq!(held, ["TG4003 gw-1: it should have 000000000002"]);
        looking
            .applied
            .note(report(1, Some("no mode")), late)
            .unwrap();
        assert_eq!(looking.at(all(), late), ["TG4002 gw-1: no mode"]);
        assert_eq!(looking.counted(PolicyState::Refused), 1);
        looking.applied.note(report(2, None), late).unwrap();
        assert_eq!(looking.at(all(), late), [""; 0]);
        assert_eq!(looking.counted(PolicyState::Applied), 1);
    }

    #[tokio::test]
    async fn a_proxy_that_is_rejected_for_its_zone_is_a_condition_for_as_long_as_it_tries() {
        let now = Instant::now();
        let conditions = Conditions::new();
        let mut lasting = Lasting::new(conditions.clone(), CODES);
        let mut held = |proxies: &Proxies, now| {
            lasting.look(find_strangers(proxies, now).collect(), now);
            let held = conditions.list().into_iter();
            held.map(|c| format!("{} {}: {}", c.code, c.subject, c.detail))
                .collect::<Vec<_>>()
        };
        let proxies = Proxies::default();
        assert_eq!(held(&proxies, now), [""; 0]);
        proxies.reject("gw-1", "atlantis", now);
        assert_eq!(
            held(&proxies, now + Duration::from_secs(60)),
            ["TG4004 gw-1: it names zone atlantis, and is rejected"]
        );
        assert_eq!(held(&proxies, now + Duration::from_secs(90)), [""; 0]);
        // Clients can invent any number of node ids.
        for number in 0..1_000 {
            let at = now + Duration::from_millis(number);
            proxies.reject(&number.to_string(), "atlantis", at);
        }
        let left = proxies.strangers(now + Duration::from_secs(1));
        assert!(left.len() < 100 && left.iter().any(|(node, _)| node == "999"));
    }
}
