//! The control plane's configuration, as the tests and the demo write it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::bootstrap::Flavour;

/// The zones of every mesh here: two in one city, one far away. Zone, then region.
pub const ZONES: [(&str, &str); 3] = [
    ("shanghai-a", "shanghai"),
    ("shanghai-b", "shanghai"),
    ("beijing-c", "beijing"),
];

/// The header and token of a caller that may see decisions.
pub const EXPLAIN: (&str, &str) = ("x-explain-token", "let-me-see");

/// The access log of all Envoys of a mesh, in the mesh's directory.
pub const ACCESS_LOG: &str = "access.log";

/// The file in the control plane's directory with its last good state.
pub const STATE: &str = "tidegate.state";

/// The region of one of [`ZONES`]; empty for another.
pub fn region_of(zone: &str) -> &'static str {
    let found = ZONES.iter().find(|(name, _)| *name == zone);
    found.map_or("", |(_, region)| region)
}

/// The store of the control plane.
#[derive(Clone, Debug)]
pub enum StoreConfig {
    /// A file in the control plane's directory.
    Embedded,
    Etcd {
        endpoints: Vec<String>,
    },
}

/// The content of the configuration file. Loopback only; the kernel chooses every proxy's port.
#[derive(Clone, Debug)]
pub struct Config {
    pub xds: SocketAddr,
    pub admin: SocketAddr,
    /// Further fields of `listen`, as in the file: fields of an object.
    pub listen: Value,
    /// The access rules, as in the file.
    pub access: Option<Value>,
    pub store: StoreConfig,
    /// The file with the last good state.
    pub state: Option<PathBuf>,
    /// The compaction of etcd's history, as in the file.
    pub compaction: Option<Value>,
    /// Further fields of `store.etcd`, as in the file: fields of an object.
    pub etcd: Value,
    /// How the proxies run the filter.
    pub flavour: Flavour,
    /// Raised to make proxies apply the same policy again.
    pub generation: u64,
    /// As in the file.
    pub services: Vec<Value>,
    pub links: Vec<Value>,
    /// As in the file. Without it every disappearance is accepted at once: most meshes of the tests
    /// are small.
    pub guard: Value,
    /// Write authority, as in the file; without it nothing is fenced.
    pub authority: Option<Value>,
    /// The services of an Istio mesh, as in the file.
    pub istio: Option<Value>,
    /// Without access log and explanations: for a benchmark beside a contender that has neither.
    pub bare: bool,
    /// Gateways use virtual hosts on demand.
    pub on_demand: bool,
    /// Times to live, as in the file.
    pub ttl_s: Option<Value>,
    /// Proxyless gRPC clients are served.
    pub grpc: bool,
    /// Further fields of the gateways' listener, as in the file: fields of an object.
    pub gateway: Value,
    /// Further fields of the listeners of both roles, as in the file: fields of an object.
    pub listener: Value,
}

impl Config {
    pub fn new(store: StoreConfig, services: Vec<Value>) -> Config {
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        Config {
            xds: any_port,
            admin: any_port,
            listen: json!({}),
            access: None,
            store,
            state: Some(STATE.into()),
            compaction: None,
            etcd: json!({}),
            flavour: Flavour::Wasm,
            generation: 1,
            services,
            links: vec![],
            guard: json!({ "vanish_percent": 100 }),
            authority: None,
            istio: None,
            bare: false,
            on_demand: false,
            ttl_s: None,
            grpc: false,
            gateway: json!({}),
            listener: json!({}),
        }
    }

    fn listen(&self) -> Value {
        let mut listen = self.listen.clone();
        listen["xds"] = json!(self.xds);
        listen["admin"] = json!(self.admin);
        listen
    }

    /// The file's text: JSON, which is YAML.
    pub fn text(&self, filter: &Path) -> String {
        let store = match &self.store {
            StoreConfig::Embedded => json!({ "embedded": { "path": "tidegate.redb" } }),
            StoreConfig::Etcd { endpoints } => {
                let mut etcd = self.etcd.clone();
                etcd["endpoints"] = json!(endpoints);
                etcd["compaction"] = json!(self.compaction);
                json!({ "etcd": etcd })
            }
        };
        let zones = ZONES.map(|(name, region)| json!({ "name": name, "region": region }));
        let access_log = if self.bare { "" } else { ACCESS_LOG };
        let mut listener = json!({ "address": "127.0.0.1", "port": 0, "access_log": access_log });
        for (field, value) in self.listener.as_object().into_iter().flatten() {
            listener[field] = value.clone();
        }
        let (header, token) = EXPLAIN;
        let explain = json!({ "header": header, "token": token });
        let mut all = json!({
            "listen": self.listen(),
            "store": store,
            "state": self.state.as_ref().map(|path| json!({ "path": path })),
            "filter": { "path": filter, "generation": self.generation },
            "listeners": { "gateway": listener, "sidecar": listener, "grpc": self.grpc },
            "zones": zones,
            "links": self.links,
            "guard": self.guard,
            "explain": (!self.bare).then_some(explain),
            "services": self.services.iter().cloned().map(hasty).collect::<Vec<_>>(),
        });
        if !self.bare {
            all["xds"] = json!({ "load_report_interval_s": 1 });
        }
        for (field, value) in self.gateway.as_object().into_iter().flatten() {
            all["listeners"]["gateway"][field] = value.clone();
        }
        if self.on_demand {
            all["listeners"]["gateway"]["on_demand"] = json!(true);
        }
        if let Some(ttl_s) = &self.ttl_s {
            all["xds"]["ttl_s"] = ttl_s.clone();
        }
        let parts = [
            ("authority", &self.authority),
            ("access", &self.access),
            ("istio", &self.istio),
        ];
        for (name, part) in parts {
            if let Some(part) = part {
                all[name] = part.clone();
            }
        }
        format!("{all:#}\n")
    }
}

/// Zones come back at once, unless the service configures otherwise: few tests are about that.
fn hasty(mut service: Value) -> Value {
    if let Some(fields) = service.as_object_mut() {
        fields.entry("failover").or_insert_with(
            || json!({ "hold_s": 0, "ramp": { "percent": [], "over_s": 0 }, "damping_s": 0 }),
        );
    }
    service
}
