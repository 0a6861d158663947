//! The memory of a large mesh is returned after its removal. A separate process, so that no other
//! test allocates.

use std::sync::Arc;

use registry::store::Revision;
use xds_server::{
    config::Mesh,
    memory, testing,
    world::{Change, Origin, World},
};

/// A mesh with this many services of a thousand routes each, and a small one.
fn mesh(services: usize) -> Arc<Mesh> {
    let large = (0..services).map(|service| {
        let routes: Vec<String> = (0..1_000)
            .map(|n| format!("{{host: h{service}, prefix: /r{n}}}"))
            .collect();
        format!(
            "{{name: large-{service}, routes: [{}]}}, ",
            routes.join(", ")
        )
    });
    let services = format!(
        "services: [{}{{name: small, routes: [{{host: h, prefix: /}}]}}]",
        large.collect::<String>()
    );
    Arc::new(testing::mesh("sh-a/shanghai sh-b/shanghai", &services))
}

/// The resident memory of the process, in MiB.
fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.expect("a number") / 1_024
}

#[test]
fn a_large_mesh_that_is_gone_gives_its_memory_back() {
    // `TIDEGATE_TEST_SERVICES=100` has a hundred thousand routes.
    let services = option_env!("TIDEGATE_TEST_SERVICES").map_or(10, |n| n.parse().unwrap());
    let mut world = World::new(mesh(0));
    let listed = Change::Listed {
        entries: Vec::new(),
        revision: Revision(1),
        origin: Origin::Store,
    };
    world.apply(listed, 0);
    drop(world.snapshot(0));
    let before = resident_mib();
    world.apply(Change::Mesh(mesh(services)), 0);
    // Snapshots that proxies still hold for a moment, and permanent data, lie side by side in
    // memory.
    let shown = world.snapshot(0);
    let large = resident_mib();
    world.apply(Change::Mesh(mesh(0)), 0);
    let small = world.snapshot(0);
    drop(shown);
    let kept = resident_mib();
    memory::trim();
    let after = resident_mib();
    drop(small);
    println!("MiB: {before} before, {large} with it, {kept} without it, {after} given back");
    assert!(
        large > before + 40,
        "{large} MiB are too few to show anything"
    );
    assert!(
        after < before + (large - before) / 3,
        "{after} MiB of {large} are kept"
    );
}
