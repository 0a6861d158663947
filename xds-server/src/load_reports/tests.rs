use envoy_types::pb::envoy::config::{
    core::v3::Locality,
    endpoint::v3::{ClusterStats, UpstreamLocalityStats, cluster_stats::DroppedRequests},
};
use prometheus_client::registry::Registry;

use super::*;
use crate::{
    snapshot::{Role, ViewKey},
    testing::mesh,
    world::World,
};

pub(super) fn snapshot(services: &[&str]) -> Arc<Snapshot> {
    let services: Vec<String> = (services.iter())
        .map(|name| format!("  - {{name: {name}, routes: [{{prefix: /{name}}}]}}"))
        .collect();
    let services = format!("services:\n{}", services.join("\n"));
    let mesh = mesh("sh-a/shanghai sh-b/shanghai", &services);
    World::new(Arc::new(mesh)).snapshot(0).unwrap()
}

fn read(snapshot: &Snapshot, stats: &[ClusterStats]) -> Report {
    let key = ViewKey {
        zone: Arc::from("sh-a"),
        role: Role::Gateway,
    };
    Report::read(stats, snapshot.view(&key).unwrap(), snapshot)
}

/// `counts`: succeeded, failed, issued, in progress.
fn locality(zone: &str, counts: [u64; 4]) -> UpstreamLocalityStats {
    let [succeeded, failed, issued, in_progress] = counts;
    UpstreamLocalityStats {
        locality: Some(Locality {
            zone: zone.to_owned(),
            ..Locality::default()
        }),
        total_successful_requests: succeeded,
        total_error_requests: failed,
        total_issued_requests: issued,
        total_requests_in_progress: in_progress,
        ..UpstreamLocalityStats::default()
    }
}

fn cluster(name: &str, localities: Vec<UpstreamLocalityStats>) -> ClusterStats {
    ClusterStats {
        cluster_name: name.to_owned(),
        upstream_locality_stats: localities,
        ..ClusterStats::default()
    }
}

/// The lines of the metrics page with this prefix, in order.
fn shown(loads: &Loads, beginning: &str) -> Vec<String> {
    let mut registry = Registry::with_prefix("tidegate");
    registry.register_collector(Box::new(loads.clone()));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let lines = text.lines().filter(|line| line.starts_with(beginning));
    lines.map(ToOwned::to_owned).collect()
}

#[test]
fn requests_are_added_up_by_service_viewing_zone_and_serving_zone() {
    let (snapshot, loads) = (snapshot(&["orders"]), Loads::default());
    let near = loads.enter("sh-a");
    let far = loads.enter("sh-b");
    let stats = [cluster(
        "orders/sh-a",
        vec![locality("sh-a", [10, 2, 13, 1])],
    )];
    near.take(read(&snapshot, &stats), &snapshot);
    near.take(read(&snapshot, &stats), &snapshot);
    far.take(read(&snapshot, &stats), &snapshot);
    assert_eq!(
        shown(&loads, "tidegate_load_requests_total"),
        [
            r#"tidegate_load_requests_total{service="orders",viewer="sh-a",zone="sh-a",result="success"} 20"#,
            r#"tidegate_load_requests_total{service="orders",viewer="sh-a",zone="sh-a",result="error"} 4"#,
            r#"tidegate_load_requests_total{service="orders",viewer="sh-b",zone="sh-a",result="success"} 10"#,
            r#"tidegate_load_requests_total{service="orders",viewer="sh-b",zone="sh-a",result="error"} 2"#,
        ]
    );
    assert_eq!(
        shown(&loads, "tidegate_load_requests_issued_total"),
        [
            r#"tidegate_load_requests_issued_total{service="orders",viewer="sh-a",zone="sh-a"} 26"#,
            r#"tidegate_load_requests_issued_total{service="orders",viewer="sh-b",zone="sh-a"} 13"#,
        ]
    );
    assert_eq!(
        shown(&loads, "tidegate_load_reports_total"),
        ["tidegate_load_reports_total 3"]
    );
}

#[test]
fn what_is_in_progress_is_a_streams_last_word_and_ends_with_it() {
    let (snapshot, loads) = (snapshot(&["orders"]), Loads::default());
    let gauge = || {
        let lines = shown(&loads, "tidegate_load_requests_in_progress");
        let [line] = &lines[..] else {
            panic!("{lines:?}")
        };
        let (_, number) = line.rsplit_once(' ').unwrap();
        number.parse::<u64>().unwrap()
    };
    let with = |in_progress| {
        let counts = [0, 0, 0, in_progress];
        let stats = [cluster("orders/sh-b", vec![locality("sh-b", counts)])];
        read(&snapshot, &stats)
    };
    let (first, second) = (loads.enter("sh-a"), loads.enter("sh-a"));
    first.take(with(7), &snapshot);
    second.take(with(4), &snapshot);
    assert_eq!(gauge(), 11);
    first.take(with(5), &snapshot);
    assert_eq!(gauge(), 9);
    // A report lists everything that is in progress.
    second.take(read(&snapshot, &[]), &snapshot);
    assert_eq!(gauge(), 5);
    drop(first);
    assert_eq!(gauge(), 0);
}

#[test]
fn nothing_is_counted_under_the_aggregate_as_well() {
    let snapshot = snapshot(&["orders"]);
    let to_b = || vec![locality("sh-b", [5, 0, 5, 0])];
    let report = read(
        &snapshot,
        &[
            cluster("orders/sh-b", to_b()),
            cluster("orders/sh-b/reads", to_b()),
            cluster("orders/sh-a/writes", to_b()),
        ],
    );
    let key = ("orders".to_owned(), "sh-b".to_owned());
    assert_eq!(report.flows[&key].succeeded, 5);
    assert_eq!((report.flows.len(), report.foreign), (1, 0));
}

#[test]
fn a_locality_of_two_priorities_counts_twice() {
    let snapshot = snapshot(&["orders"]);
    let twice = vec![
        locality("sh-b", [5, 1, 6, 0]),
        locality("sh-b", [2, 0, 2, 1]),
    ];
    let report = read(&snapshot, &[cluster("orders/sh-b", twice)]);
    let key = ("orders".to_owned(), "sh-b".to_owned());
    let expected = Counts {
        succeeded: 7,
        failed: 1,
        issued: 8,
        in_progress: 1,
    };
    assert_eq!(report.flows[&key], expected);
}

#[test]
fn what_is_not_of_the_mesh_makes_no_label() {
    let (snapshot, loads) = (snapshot(&["orders"]), Loads::default());
    let stats = [
        // The bootstrap's cluster, which is not even counted.
        cluster("tidegate", vec![locality("", [1, 0, 1, 0])]),
        cluster("evil{}\"/sh-a", vec![locality("sh-a", [1, 0, 1, 0])]),
        cluster("orders/nowhere", vec![locality("sh-a", [1, 0, 1, 0])]),
        cluster("orders/sh-a/others", vec![locality("sh-a", [1, 0, 1, 0])]),
        cluster("orders/sh-a", vec![locality("no-zone", [1, 0, 1, 0])]),
        cluster("orders/sh-a", vec![UpstreamLocalityStats::default()]),
    ];
    let reporter = loads.enter("sh-a");
    reporter.take(read(&snapshot, &stats), &snapshot);
    assert_eq!(
        shown(&loads, "tidegate_load_reports_foreign_total"),
        ["tidegate_load_reports_foreign_total 5"]
    );
    assert_eq!(
        shown(&loads, "tidegate_load_requests"),
        Vec::<String>::new()
    );
}

#[test]
fn drops_are_told_apart_without_the_names_of_others() {
    let (snapshot, loads) = (snapshot(&["orders"]), Loads::default());
    let dropped = |total, by_category: &[u64]| ClusterStats {
        total_dropped_requests: total,
        dropped_requests: (by_category.iter().enumerate())
            .map(|(i, count)| DroppedRequests {
                category: format!("any name {i}"),
                dropped_count: *count,
            })
            .collect(),
        ..cluster("orders/sh-b/reads", vec![])
    };
    let reporter = loads.enter("sh-a");
    // gRPC's total includes the categories, Envoy's does not.
    for stats in [dropped(10, &[3, 4]), dropped(2, &[5])] {
        reporter.take(read(&snapshot, &[stats]), &snapshot);
    }
    assert_eq!(
        shown(&loads, "tidegate_load_requests_dropped_total"),
        [
            r#"tidegate_load_requests_dropped_total{service="orders",viewer="sh-a",place="sh-b",category="circuit"} 5"#,
            r#"tidegate_load_requests_dropped_total{service="orders",viewer="sh-a",place="sh-b",category="overload"} 12"#,
        ]
    );
}

#[test]
fn no_number_makes_a_sum_wrap() {
    let (snapshot, loads) = (snapshot(&["orders"]), Loads::default());
    let reporter = loads.enter("sh-a");
    let huge = || locality("sh-a", [u64::MAX; 4]);
    let stats = [ClusterStats {
        total_dropped_requests: u64::MAX,
        dropped_requests: vec![
            DroppedRequests {
                category: String::new(),
                dropped_count: u64::MAX,
            };
            2
        ],
        ..cluster("orders/sh-a", vec![huge(), huge()])
    }];
    reporter.take(read(&snapshot, &stats), &snapshot);
    let [line] = &shown(&loads, "tidegate_load_requests_issued")[..] else {
        panic!("one line");
    };
    assert!(line.ends_with(" 4294967296"), "{line}");
}

#[test]
fn what_has_left_the_mesh_is_forgotten() {
    let names: Vec<String> = (0..=ROWS_MIN).map(|i| format!("s{i}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (before, after) = (snapshot(&names), snapshot(&["orders", "s1"]));
    let loads = Loads::default();
    let reporter = loads.enter("sh-a");
    let stats = |name: &str| {
        cluster(
            &format!("{name}/sh-a"),
            vec![locality("sh-a", [1, 0, 1, 0])],
        )
    };
    let all: Vec<_> = names.iter().map(|name| stats(name)).collect();
    reporter.take(read(&before, &all), &before);
    assert_eq!(loads.lock().flows.len(), names.len());
    // The next clean-up is due at twice the number.
    loads.lock().rows_max = 0;
    reporter.take(read(&after, &[stats("orders")]), &after);
    let services: Vec<_> = (loads.lock().flows.keys())
        .map(|label| label.service.clone())
        .collect();
    assert_eq!(services, ["orders", "s1"]);
}
