//! Forged headers, and requests that no client should send.

use anyhow::{Context, Result, ensure};
use e2e::client::{Client, Reply, Request, Version};
use e2e::config::region_of;
use e2e::mesh::{Builder, Mesh};
use e2e::registry::{Instance, InstanceName};
use e2e::workdir::Workdir;

use crate::shared::{mesh, plain};
use crate::support::{Registered, assert_refused, explained, on, run};

#[test]
fn what_a_client_says_about_the_decision_is_ignored() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        let spoofed = |request: Request| {
            request
                .header("x-tidegate-to", "orders/beijing-c")
                .header("x-tidegate-home", "beijing-c")
                .header("x-tidegate-class", "read")
                .header("x-tidegate-tier", "remote")
                .header("x-tidegate-explain", "spoofed")
                .header("x-tidegate-decision", "spoofed")
                .header("x-tidegate-hop", "1")
                .header("x-tidegate-anything", "spoofed")
                .header("tidegate-hop", "spoofed")
                .header("tidegate-epoch", "spoofed")
                .header("X-Tidegate-Class", "read")
                .header("x-envoy-upstream-alt-route", "orders/beijing-c")
        };
        for (request, class) in [
            // A plain read does not even run the filter.
            (Request::get("/orders"), "read"),
            (Request::get("/orders").home("shanghai-a"), "read"),
            (Request::get("/orders").home("shanghai-b"), "read"),
            (Request::get("/orders").home("atlantis"), "read"),
            (explained(Request::get("/orders")), "read"),
            (Request::post("/orders"), "write"),
            (Request::post("/orders").home("shanghai-b"), "write"),
            (explained(Request::post("/orders")), "write"),
        ] {
            // A forged header that is trusted shows every time.
            let reply = mesh.send("shanghai-a", spoofed(request.clone())).await?;
            let echo = reply.echo()?;
            assert_eq!(region_of(&echo.zone), "shanghai", "{request:?}");
            assert_eq!(echo.headers["x-tidegate-class"], class, "{request:?}");
            assert_eq!(echo.headers["x-tidegate-tier"], "zone", "{request:?}");
            assert!(
                ["shanghai-a", "shanghai-b"].contains(&&*echo.headers["x-tidegate-home"]),
                "{request:?}"
            );
            for name in ["x-tidegate-hop", "x-tidegate-anything", "x-tidegate-to"] {
                assert_eq!(echo.headers.get(name), None, "{name}, {request:?}");
            }
            let lies = echo
                .headers
                .iter()
                .filter(|(_, value)| value.contains("spoofed"));
            assert_eq!(lies.count(), 0, "{:?}", echo.headers);
            if let Some(reason) = reply.header("x-tidegate-decision") {
                assert_eq!(reason, "home_zone", "{request:?}");
            }
        }
        Ok(())
    }
    run(async { on(mesh().await?, scenario).await });
}

#[test]
fn no_name_with_underscores_passes_for_an_internal_one() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        let sidecar = mesh.ingress("sidecar")?;
        let client = Client::new(Version::Http1);
        for name in [
            "x_tidegate-epoch",
            "x-tidegate_home",
            "X_TIDEGATE_CLASS",
            "tidegate_hop",
            "tidegate_epoch",
        ] {
            for request in [Request::get("/orders"), Request::post("/orders")] {
                let request = request.header(name, "spoofed");
                let reply = mesh.send("shanghai-a", request.clone()).await?;
                assert_eq!(reply.status, 400, "{name}: a gateway refuses the request");
                let echo = client.send(sidecar, &request).await?.echo()?;
                let lies = echo
                    .headers
                    .values()
                    .filter(|value| value.contains("spoofed"));
                assert_eq!(lies.count(), 0, "{name}, {:?}", echo.headers);
            }
        }
        let own = Request::post("/orders").header("x_own", "kept");
        let echo = client.send(sidecar, &own).await?.echo()?;
        assert_eq!(echo.headers["x_own"], "kept");
        Ok(())
    }
    run(async { on(mesh().await?, scenario).await });
}

#[test]
fn a_request_that_goes_round_in_circles_is_ended_with_the_reason() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        let name = InstanceName::new("loops", "shanghai-a", "itself");
        let itself = Instance::at(mesh.address("shanghai-a")?);
        let put = mesh.registry().put(&name, &itself, None).await?;
        ensure!(put.status.is_success(), "{}", put.text());
        for request in [Request::get("/loops"), Request::post("/loops")] {
            let ended = mesh.eventually("shanghai-a", "the loop to end", request, |reply| {
                let reason = reply.refusal()?;
                ensure!(reason == "loop", "{reason}");
                Ok(())
            });
            assert_refused(&ended.await?, 508, "loop");
        }
        Ok(())
    }
    run(async {
        let builder = Builder::new(Workdir::kept("loops")?).service(plain("loops"));
        let mesh = builder.gateways().start().await?;
        on(&mesh, scenario).await
    });
}

#[test]
fn no_lie_takes_a_write_out_of_its_region() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        // Only a remote zone has an instance.
        let etcd = mesh.etcd.as_ref().context("etcd")?;
        let shop = Registered::start(etcd, "shops", "beijing-c", "shops-1").await?;
        let read = Request::get("/shops").home("shanghai-a");
        let remote = |reply: &Reply| {
            ensure!(reply.echo()?.zone == "beijing-c");
            Ok(())
        };
        for gateway in ["shanghai-a", "beijing-c"] {
            mesh.eventually(gateway, "a remote read", read.clone(), remote)
                .await?;
            let served = shop.server.served();
            let write = || Request::post("/shops").home("shanghai-a");
            for lie in [
                write(),
                write().header("x-tidegate-class", "read"),
                write().header("x-tidegate-to", "shops/beijing-c"),
                write()
                    .header("x-tidegate-class", "read")
                    .header("x-tidegate-home", "shanghai-a"),
                write().header("x-envoy-upstream-alt-route", "shops/beijing-c"),
                write().header("x-http-method-override", "GET"),
                write().header("x-tidegate-tier", "zone"),
            ] {
                let reply = mesh.send(gateway, lie.clone()).await?;
                assert_eq!(reply.refusal()?, "no_capacity", "{lie:?}");
            }
            assert_eq!(shop.server.served(), served, "a write got through");
        }
        Ok(())
    }
    run(async { on(mesh().await?, scenario).await });
}

#[test]
fn no_escaped_slash_hides_a_path() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        for path in ["/orders/x%2f..%2fcancel", "/orders/%5c..", "/orders%2F"] {
            let reply = mesh.send("shanghai-a", Request::post(path)).await?;
            assert_eq!(reply.status, 400, "{path}");
        }
        Ok(())
    }
    run(async { on(mesh().await?, scenario).await });
}

#[test]
fn no_request_makes_the_filter_trap() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        let big = vec![b'x'; 50_000];
        let mut nasty = vec![
            Request::post("/orders").header("x-region-id", b"\xff\xfe"),
            Request::post("/orders").header("x-region-id", &big),
            Request::post("/orders").header("x-anything", b"\x80".repeat(100)),
            Request::post("/orders").header("x-trace-id", b"\xc3\x28"),
            Request::post("/orders").header("cookie", b";;=\xff; =;"),
            Request::post("/carts").header("x-user-id", b"\xf0\x28\x8c\xbc"),
            Request::post("/carts").header("x-user-id", &big),
            Request::post("/orders").header("content-type", b"application/grpc\xff"),
            Request::post("/orders?=%ff%00&x=%0a").home("beijing-c"),
            Request::post(&format!("/orders/{}", "%ff".repeat(10_000))),
        ];
        let many = (0..80).fold(Request::post("/orders"), |request, i| {
            request.header(&format!("x-tidegate-{i}"), b"\xff")
        });
        nasty.push(many);
        let repeated = (0..80).fold(Request::post("/orders"), |request, _| {
            request.header("x-region-id", "beijing-c")
        });
        nasty.push(repeated);
        for request in nasty {
            let reply = mesh.send("beijing-c", request.clone()).await?;
            // A trap is a 503 without a reason.
            assert_ne!(reply.status, 503, "{:?}", request.headers.keys().next());
        }
        let filter = mesh.gateway("beijing-c")?.admin().stats("^wasm\\.").await?;
        let failures = filter
            .iter()
            .filter(|(name, count)| name.contains("fail") && **count > 0);
        assert_eq!(failures.count(), 0, "{filter:?}");
        Ok(())
    }
    run(async { on(mesh().await?, scenario).await });
}
