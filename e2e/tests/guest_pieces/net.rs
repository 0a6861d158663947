//! The net: whatever has happened to the guest, reads pass and writes do not.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::bootstrap::Bootstrap;
use e2e::client::{Client, Request, Version};
use e2e::envoy::Envoy;
use e2e::registry::InstanceName;
use e2e::upstream::Server;
use e2e::wait::{PATIENCE, eventually};
use e2e::workdir::Workdir;
use hyper::Method;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{CONFIG, clusters, filters, foreign, manager, on_this_machine, printed, with_pieces};

/// What has happened to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guest {
    /// It runs, and has no policy.
    Runs,
    Absent,
    /// A route of the host disables it.
    Bypassed,
    /// Its module cannot be fetched, and the host lets requests pass.
    NotFetched,
    /// It traps from time to time, and the host reloads it.
    Reloaded,
    /// It traps, and the host then lets requests pass.
    Open,
}

/// An Envoy with the printed pieces, and an instance behind it.
pub(crate) struct Host {
    pub(crate) envoy: Envoy,
    ingress: SocketAddr,
    orders: Server,
    _workdir: Workdir,
}

impl Host {
    pub(crate) async fn start(name: &str, arguments: &str) -> Result<Host> {
        Host::start_with(name, arguments, Guest::Runs).await
    }

    async fn start_with(name: &str, arguments: &str, guest: Guest) -> Result<Host> {
        let workdir = Workdir::kept(name)?;
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        let instance = InstanceName::new("orders", "shanghai-a", "orders-1");
        let orders = Server::start(instance, any_port).await?;
        let mut document = foreign(orders.address());
        with_pieces(&mut document, &printed(arguments)?[0])?;
        // Nothing listens there: a guest gets no policy.
        let cluster = clusters(&mut document)?
            .iter_mut()
            .find(|cluster| cluster["name"] == "tidegate");
        cluster.context("no cluster")?["load_assignment"]["endpoints"] = json!([]);
        guest.happens(&mut document, &workdir)?;
        let bootstrap = Bootstrap::of(document);
        let envoy = Envoy::start_with(workdir.path(), "foreign", &bootstrap, 1).await?;
        let ingress = envoy.ingress().await?;
        Ok(Host {
            envoy,
            ingress,
            orders,
            _workdir: workdir,
        })
    }

    /// Whether a request arrives at the instance; otherwise it must be the fence's rejection.
    async fn passes(&self, client: &Client, request: &Request) -> Result<bool> {
        let before = self.orders.served();
        let reply = client.send(self.ingress, request).await?;
        if self.orders.served() > before {
            return Ok(true);
        }
        // gRPC has a status of its own: unavailable.
        if let Some(status) = reply.header("grpc-status") {
            ensure!(status == "14", "grpc-status {status}");
            return Ok(false);
        }
        ensure!(reply.status == 503, "{} {}", reply.status, reply.text());
        let reason = reply.refusal()?;
        ensure!(reason == "fenced", "{reason}");
        ensure!(reply.header("retry-after").is_some(), "no retry-after");
        Ok(false)
    }

    /// Sends a request that makes the stand-in of the guest trap.
    async fn trap(&self) -> Result<()> {
        let request = Request::get("/orders").header("x-trap", "1");
        let client = Client::new(Version::Http1);
        let status = client.send(self.ingress, &request).await?.status;
        ensure!(status.is_server_error(), "it did not trap: {status}");
        Ok(())
    }
}

impl Guest {
    fn happens(self, document: &mut Value, workdir: &Workdir) -> Result<()> {
        match self {
            Guest::Runs => on_this_machine(document),
            Guest::Absent => {
                filters(document)?.retain(|filter| filter["name"] != "tidegate");
                Ok(())
            }
            Guest::Bypassed => {
                on_this_machine(document)?;
                let hosts = &mut manager(document)?["route_config"]["virtual_hosts"];
                hosts[0]["typed_per_filter_config"] = json!({ "tidegate": {
                    "@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig",
                    "disabled": true,
                } });
                Ok(())
            }
            Guest::NotFetched => {
                // That cluster has no endpoint.
                let uri = json!({ "uri": "http://tidegate/filter.wasm", "cluster": "tidegate", "timeout": "1s" });
                let code = json!({ "remote": { "http_uri": uri, "sha256": "00".repeat(32) } });
                of_guest(document, "FAIL_OPEN", code)
            }
            Guest::Reloaded => of_guest(document, "FAIL_RELOAD", trapping(workdir)?),
            Guest::Open => of_guest(document, "FAIL_OPEN", trapping(workdir)?),
        }
    }
}

/// Where the stand-in of the guest is.
fn trapping(workdir: &Workdir) -> Result<Value> {
    let file = workdir.path().join("trapping.wasm");
    std::fs::write(&file, wat::parse_str(include_str!("trapping.wat"))?)?;
    Ok(json!({ "local": { "filename": file } }))
}

fn of_guest(document: &mut Value, failure_policy: &str, code: Value) -> Result<()> {
    let guest = filters(document)?
        .iter_mut()
        .find(|filter| filter["name"] == "tidegate");
    let config = &mut guest.context("no guest")?["typed_config"]["config"];
    config["failure_policy"] = json!(failure_policy);
    if failure_policy != "FAIL_RELOAD" {
        config
            .as_object_mut()
            .context("no configuration")?
            .remove("reload_config");
    }
    config["vm_config"]["code"] = code;
    Ok(())
}

/// Requests without a policy, and whether they pass.
fn requests() -> Vec<(Request, bool)> {
    let at = |request: Request, host: &str| request.header("host", host);
    let shop = |request: Request| at(request, "shop.example");
    let post = |path: &str| shop(Request::post(path));
    let get = |path: &str| shop(Request::get(path));
    let grpc = |path: &str| post(path).header("content-type", "application/grpc+proto");
    vec![
        (get("/orders"), true),
        (get("/elsewhere"), true),
        (shop(Request::new(Method::OPTIONS, "/orders")), true),
        (post("/orders"), false),
        (post("/elsewhere"), false),
        (shop(Request::new(Method::DELETE, "/orders/7")), false),
        // An upgrade is a write.
        (
            get("/orders")
                .header("upgrade", "websocket")
                .header("connection", "upgrade"),
            false,
        ),
        // Marks of clients are removed.
        (post("/orders").header("x-tidegate-epoch", "1"), false),
        (post("/orders").header("X-Tidegate-Class", "write"), false),
        (post("/orders").header("x-tidegate-to", "orders"), false),
        // A read by another method, and its neighbours.
        (post("/orders/search"), true),
        (post("/orders/search?q=1"), true),
        (post("/orders/search/more"), true),
        (post("/orders/searches"), false),
        (post("/orders//search"), true),
        (post("/orders/search/../7"), false),
        // Its host, in any case, with any port, with a dot.
        (
            at(Request::post("/orders/search"), "SHOP.example:8080"),
            true,
        ),
        (at(Request::post("/orders/search"), "shop.example."), true),
        (
            at(Request::post("/orders/search"), "shop.example.org"),
            false,
        ),
        (at(Request::post("/orders/search"), "shopxexample"), false),
        // gRPC.
        (grpc("/shop.v1.Orders/GetOrder"), true),
        (grpc("/shop.v1.Orders/PlaceOrder"), false),
        (grpc("/shop.v1.Orders/GetOrders"), false),
        (post("/shop.v1.Orders/GetOrder"), false),
        // A route of `class: write`.
        (get("/buy"), false),
        (get("/buy/now"), false),
        (get("/buyer"), true),
    ]
}

fn arguments() -> String {
    format!("--kind envoy --config {CONFIG} --class write=shop.example/buy")
}

async fn judge(guest: Guest, host: &Host) -> Result<()> {
    let client = Client::new(Version::Http1);
    for (request, expected) in requests() {
        let passes = host.passes(&client, &request).await;
        let passes = passes
            .with_context(|| format!("{guest:?}: {request:?}\n{}", host.envoy.process().tail()))?;
        ensure!(
            passes == expected,
            "{guest:?}: passes: {passes}, {request:?}"
        );
    }
    Ok(())
}

/// What the guest takes without a policy, the net takes without the guest.
#[tokio::test]
async fn whatever_happens_to_the_guest_the_same_requests_pass() -> Result<()> {
    for guest in [
        Guest::Runs,
        Guest::Absent,
        Guest::Bypassed,
        Guest::NotFetched,
    ] {
        let name = format!("guest-net-{guest:?}").to_lowercase();
        let host = Host::start_with(&name, &arguments(), guest).await?;
        judge(guest, &host).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_trap_costs_one_request_and_no_write_passes() -> Result<()> {
    for guest in [Guest::Reloaded, Guest::Open] {
        let name = format!("guest-trap-{guest:?}").to_lowercase();
        let host = Host::start_with(&name, &arguments(), guest).await?;
        judge(guest, &host).await?;
        // A module is reloaded at once if it has run for a while.
        sleep(Duration::from_secs(1)).await;
        host.trap().await?;
        judge(guest, &host).await?;
    }
    Ok(())
}

/// A module that traps again and again stays away for a short while each time.
#[tokio::test]
async fn after_many_traps_reads_pass_again() -> Result<()> {
    let host = Host::start_with("guest-traps", &arguments(), Guest::Reloaded).await?;
    for _ in 0..5 {
        host.trap().await?;
        let client = Client::new(Version::Http1);
        let read = Request::get("/orders");
        let reads = eventually(PATIENCE, "reads to pass", async || {
            ensure!(client.send(host.ingress, &read).await?.status.is_success());
            Ok(())
        });
        reads.await?;
        ensure!(!host.passes(&client, &Request::post("/orders")).await?);
    }
    Ok(())
}
