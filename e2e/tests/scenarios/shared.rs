//! The mesh that most scenarios share.

use anyhow::Result;
use e2e::client::{Reply, Request};
use e2e::config::ZONES;
use e2e::envoy::{Options, Role};
use e2e::mesh::{Builder, Mesh, Store};
use e2e::workdir::Workdir;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

/// One mesh; each test that changes something has its own service.
pub(crate) async fn mesh() -> Result<&'static Mesh> {
    static MESH: OnceCell<Mesh> = OnceCell::const_new();
    MESH.get_or_try_init(start).await
}

async fn start() -> Result<Mesh> {
    let mesh = Builder::new(Workdir::kept("routing")?)
        .store(Store::Etcd(1))
        .service(json!({
            "name": "orders",
            "routes": [{ "prefix": "/orders" }, { "prefix": "/graphql", "class": "read" }],
            "weights": { "zone": 80, "region": 20 },
        }))
        .service(json!({
            "name": "strict",
            "routes": [{ "prefix": "/strict" }],
            "region": { "missing": "reject", "unknown": "reject" },
        }))
        .service(json!({
            "name": "traced",
            "routes": [{ "prefix": "/traced" }],
            "trace": { "missing": "reject" },
        }))
        .service(json!({
            "name": "carts",
            "routes": [{ "prefix": "/carts" }],
            "weights": { "zone": 50, "region": 50 },
            "zone_affinity": { "header": "x-user-id" },
        }))
        .service(json!({
            "name": "rpc",
            "routes": [{ "grpc": "shop.v1.Orders", "reads": ["GetOrder"] }],
        }))
        .service(json!({
            "name": "rpc-strict",
            "routes": [{ "host": "strict.example", "grpc": "shop.v1.Orders", "reads": ["GetOrder"] }],
            "region": { "missing": "reject", "unknown": "reject" },
        }))
        .service(json!({
            "name": "rpc-far",
            "routes": [{ "host": "far.example", "grpc": "shop.v1.Orders", "reads": ["GetOrder"] }],
        }))
        .service(json!({
            "name": "computed",
            "routes": [{ "prefix": "/computed" }],
            "weights": "computed",
        }))
        .link(json!({ "between": ["shanghai-a", "shanghai-b"], "rtt_ms": 1.0 }))
        .service(json!({
            "name": "tides",
            "routes": [{ "prefix": "/tides" }],
            "weights": { "zone": 80, "region": 20 },
        }))
        .service(plain("tiers"))
        .service(plain("shops"))
        .service(plain("fleet"))
        .service(plain("crashes"))
        .service(plain("damaged"))
        .service(plain("leased"))
        .service(plain("drains"))
        .service(json!({
            "name": "manual",
            "routes": [{ "prefix": "/manual" }],
            "thresholds": { "down_below_percent": 60, "up_from_percent": 60 },
            "failover": { "hold_s": 0, "failback": "manual" },
        }))
        .upstreams("orders", 2)
        .upstreams("strict", 1)
        .upstreams("traced", 1)
        .upstreams("carts", 1)
        .upstreams("rpc", 1)
        .upstreams("rpc-strict", 1)
        .gateways()
        .envoy(Options {
            id: "sidecar".to_owned(),
            role: Role::Sidecar,
            concurrency: 2,
            ..Options::gateway("shanghai", "shanghai-a")
        })
        .start()
        .await?;
    for (zone, _) in ZONES {
        for path in ["/orders", "/strict", "/traced", "/carts"] {
            let request = Request::get(path).home(zone).header("x-trace-id", "t");
            let there = |reply: &Reply| reply.echo().map(drop);
            mesh.eventually(zone, "the service to be there", request, there)
                .await?;
        }
    }
    Ok(mesh)
}

/// A service with default options: all requests stay in the home zone while it can serve.
pub(crate) fn plain(name: &str) -> Value {
    json!({ "name": name, "routes": [{ "prefix": format!("/{name}") }] })
}
