//! The configuration of the simulated mesh.

use std::sync::Arc;

use xds_server::config::{Config, Mesh};

pub(crate) const ZONES: [&str; 3] = ["sh-a", "sh-b", "bj-c"];
/// Two of the first zone, one of the second; the third is a standby.
pub(crate) const CELLS: [&str; 3] = ["one", "two", "three"];
/// Two replicas in the first zone, so that one can take over from the other.
pub(crate) const NODES: [&str; 4] = ["sh-a", "sh-a", "sh-b", "bj-c"];

/// The first terms, and their changes: a session's time to live, the drain of writes, and the
/// number of shards of the first cell.
pub(crate) const TERMS: [(u64, u64, u64); 3] =
    [(3_000, 1_000, 400), (6_000, 2_500, 400), (3_000, 500, 100)];

pub(crate) fn mesh((session_ttl_ms, drain_ms, shards): (u64, u64, u64)) -> Arc<Mesh> {
    let rest = 624 - shards;
    let text = format!(
        r#"
store: {{embedded: {{path: unused}}}}
filter: {{path: unused}}
zones:
  - {{name: sh-a, region: shanghai}}
  - {{name: sh-b, region: shanghai}}
  - {{name: bj-c, region: beijing}}
authority:
  session_ttl_ms: {session_ttl_ms}
  grant_ttl_ms: 1500
  write_drain_ms: {drain_ms}
  drift_permille: 50
  cells:
    - {{name: one, owners: [sh-a], cool_down_s: 1, shards: {shards}}}
    - {{name: two, owners: [sh-a], cool_down_s: 1, shards: 400}}
    - {{name: three, owners: [sh-b], cool_down_s: 1, shards: {rest}}}
services:
  - {{name: orders, routes: [{{prefix: /orders}}], cell_key: {{header: x-user-id}}}}
"#
    );
    Arc::new(Config::parse("sim.yaml", &text).unwrap().mesh)
}
