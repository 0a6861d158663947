//! Meshes for tests, inside and outside of this crate.

use crate::config::{Config, Mesh};

/// The YAML of a mesh with these zones, each as `zone/region`, separated by spaces. `rest` is the
/// remainder: the services, and more.
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
/// If the configuration is not valid.
pub fn mesh(zones: &str, rest: &str) -> Mesh {
    let config = Config::parse("mesh.yaml", &mesh_text(zones, rest));
    config.expect("a good configuration").mesh
}
