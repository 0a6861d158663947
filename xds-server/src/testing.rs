//! Meshes for tests, of this crate and beside it.

use crate::config::{Config, Mesh};

/// The YAML of a mesh of these zones, as `zone/region` with spaces between. `rest` is the rest of it: the services, and more.
pub fn mesh_text(zones: &str, rest: &str) -> String {
    let zone = |zone: &str| {
        let (name, region) = zone.split_once('/').expect("zone/region");
        format!("{{name: {name}, region: {region}}}")
    };
    let zones: Vec<String> = zones.split_whitespace().map(zone).collect();
    let zones = zones.join(", ");
    format!(
        "store: {{embedded: {{path: t.redb}}}}\nfilter: {{path: f.wasm}}\nzones: [{zones}]\n{rest}\n"
    )
}

/// The mesh of [`mesh_text`].
///
/// # Panics
///
/// If it is no good configuration.
pub fn mesh(zones: &str, rest: &str) -> Mesh {
    let config = Config::parse("mesh.yaml", &mesh_text(zones, rest));
    config.expect("a good configuration").mesh
}
