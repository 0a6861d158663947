//! The routing of requests, as clients of real Envoys see it.

use std::collections::{BTreeMap, BTreeSet};

use crate::shared::mesh;
use crate::support::{Registered, assert_refused, explained, on, reason, run};
use anyhow::{Context, Result, ensure};
use e2e::client::{Client, Reply, Request, Version};
use e2e::config::{ZONES, region_of};
use e2e::load::{Load, deviations};
use e2e::mesh::Mesh;
use e2e::wait::{PATIENCE, eventually};

/// A correct share differs by more once in about two million runs.
const DEVIATIONS_MAX: f64 = 5.0;

#[test]
fn of_10_000_requests_four_fifths_stay_in_the_home_zone() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        let gateway = mesh.address("shanghai-a")?;
        for (what, request) in [
            ("plain reads", Request::get("/orders")),
            ("writes", Request::post("/orders")),
        ] {
            let tally = Load::of(gateway, request, 10_000).run().await;
            tally.check_no_failure()?;
            let home = tally.zone("shanghai-a");
            assert_eq!(tally.sent, 10_000);
            assert_eq!(home + tally.zone("shanghai-b"), 10_000, "{:?}", tally.zones);
            let off = deviations(home, 10_000, 0.8);
            ensure!(
                off < DEVIATIONS_MAX,
                "{what}: {home} at home, {off:.1} deviations off"
            );
        }
        Ok(())
    }
    run(async { on(mesh().await?, scenario).await });
}

#[test]
fn computed_weights_follow_distance_and_load() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        let etcd = mesh.etcd.as_ref().context("etcd")?;
        let start = |zone, instance| Registered::start(etcd, "computed", zone, instance);
        let mut near = start("shanghai-a", "computed-a").await?;
        let _far = start("shanghai-b", "computed-b").await?;
        // A link of 1 ms halves the sibling's score: two thirds stay. Half overloaded, the home has
        // the same score.
        for (load, share) in [(0.5, 2.0 / 3.0), (1.3, 0.5), (0.0, 2.0 / 3.0)] {
            near.report(load).await?;
            let per_mille = (share * 1000.0_f64).round() as u64;
            eventually(PATIENCE, "the weights to follow", async || {
                let view = mesh.registry().view("shanghai-a").await?;
                let plans = view["services"]["computed"].as_array().context("plans")?;
                let plan = plans.iter().find(|plan| plan["home"] == "shanghai-a");
                let weight = &plan.context("a plan")?["weights"]["shanghai-a"];
                ensure!(*weight == per_mille, "{weight} instead of {per_mille}");
                Ok(())
            })
            .await?;
            let gateway = mesh.address("beijing-c")?;
            let request = Request::post("/computed").home("shanghai-a");
            // The view is a little ahead of the proxies.
            let off = eventually(PATIENCE, "the share in traffic", async || {
                let tally = Load::of(gateway, request.clone(), 1_000).run().await;
                tally.check_no_failure()?;
                let off = deviations(tally.zone("shanghai-a"), 1_000, share);
                ensure!(off < DEVIATIONS_MAX, "{off:.1} deviations off {share}");
                Ok(())
            });
            off.await?;
        }
        Ok(())
    }
    run(async { on(mesh().await?, scenario).await });
}

#[test]
fn a_sidecar_routes_as_a_gateway_does() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        let client = Client::new(Version::Http1);
        let sidecar = mesh.ingress("sidecar")?;
        for _ in 0..10 {
            let request = Request::post("/orders").home("beijing-c");
            let reply = client.send(sidecar, &request).await?;
            assert_eq!(reply.echo()?.zone, "beijing-c");
            let reply = client.send(sidecar, &Request::get("/orders")).await?;
            assert_eq!(region_of(&reply.echo()?.zone), "shanghai");
        }
        let reply = client.send(sidecar, &Request::get("/strict")).await?;
        assert_refused(&reply, 400, "region_missing");
        Ok(())
    }
    run(async { on(mesh().await?, scenario).await });
}

#[test]
fn a_request_goes_to_the_home_that_it_names() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        for (gateway, _) in ZONES {
            for (home, region) in ZONES {
                for (request, class) in [
                    (Request::get("/orders/7"), "read"),
                    (Request::post("/orders/7"), "write"),
                ] {
                    let reply = mesh.send(gateway, request.home(home)).await?;
                    let echo = reply.echo()?;
                    assert_eq!(region_of(&echo.zone), region, "{home} by {gateway}");
                    for (name, value) in [
                        ("x-tidegate-home", home),
                        ("x-tidegate-class", class),
                        ("x-tidegate-tier", "zone"),
                    ] {
                        let seen = echo.headers.get(name).map(String::as_str);
                        assert_eq!(seen, Some(value), "{name}, {home} by {gateway}");
                    }
                    assert!(!echo.headers["x-trace-id"].is_empty());
                }
            }
        }
        // A region is represented by one of its zones.
        let reply = mesh.send("beijing-c", Request::get("/orders").home("shanghai"));
        assert_eq!(region_of(&reply.await?.echo()?.zone), "shanghai");
        Ok(())
    }
    run(async { on(mesh().await?, scenario).await });
}

#[test]
fn the_service_says_what_becomes_of_a_missing_or_unknown_region() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        let twice = |request: Request| request.home("shanghai-a").home("beijing-c");
        for method in [Request::get, Request::post] {
            // Local by default: beijing-c is the only zone of its region, so the zone shows it.
            for request in [
                method("/orders"),
                method("/orders").home(""),
                method("/orders").home("atlantis"),
                method("/orders").home("SHANGHAI-A"),
                method("/orders").home("shanghai-a,beijing-c"),
                twice(method("/orders")),
            ] {
                let reply = mesh.send("beijing-c", request.clone()).await?;
                assert_eq!(reply.echo()?.zone, "beijing-c", "{request:?}");
            }
            for request in [method("/strict"), method("/strict").home("")] {
                let reply = mesh.send("beijing-c", request).await?;
                assert_refused(&reply, 400, "region_missing");
            }
            for request in [method("/strict").home("atlantis"), twice(method("/strict"))] {
                let reply = mesh.send("beijing-c", request).await?;
                assert_refused(&reply, 400, "region_unknown");
            }
            let reply = mesh.send("shanghai-a", method("/strict").home("beijing-c"));
            assert_eq!(reply.await?.echo()?.zone, "beijing-c");
        }
        Ok(())
    }
    run(async { on(mesh().await?, scenario).await });
}

#[test]
fn a_trace_id_is_kept_made_or_demanded() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        let mut made = BTreeSet::new();
        for method in [Request::get, Request::post] {
            let reply = mesh.send("shanghai-a", method("/orders").header("x-trace-id", "mine"));
            assert_eq!(reply.await?.echo()?.headers["x-trace-id"], "mine");
            for _ in 0..2 {
                let echo = mesh.send("shanghai-a", method("/orders")).await?.echo()?;
                made.insert(echo.headers["x-trace-id"].clone());
            }
            let reply = mesh.send("shanghai-a", method("/traced")).await?;
            assert_refused(&reply, 400, "trace_missing");
            let reply = mesh.send("shanghai-a", method("/traced").header("x-trace-id", "mine"));
            assert_eq!(reply.await?.echo()?.headers["x-trace-id"], "mine");
        }
        assert_eq!(made.len(), 4, "the same trace id for two requests");
        Ok(())
    }
    run(async { on(mesh().await?, scenario).await });
}

#[test]
fn a_route_says_what_is_a_read() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        let reply = mesh.send("shanghai-a", Request::post("/graphql")).await?;
        assert_eq!(reply.echo()?.headers["x-tidegate-class"], "read");
        let reply = mesh.send("shanghai-a", Request::post("/graphqlx")).await?;
        assert_eq!(reply.status, 404, "{}", reply.text());
        Ok(())
    }
    run(async { on(mesh().await?, scenario).await });
}

#[test]
fn http_2_is_routed_like_http_1() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        for _ in 0..20 {
            for request in [Request::get("/orders"), Request::post("/orders")] {
                let reply = mesh
                    .send_http2("shanghai-a", request.home("beijing-c"))
                    .await?;
                assert_eq!(reply.echo()?.zone, "beijing-c");
            }
        }
        let reply = mesh
            .send_http2("beijing-c", Request::get("/strict"))
            .await?;
        assert_refused(&reply, 400, "region_missing");
        Ok(())
    }
    run(async { on(mesh().await?, scenario).await });
}

#[test]
fn requests_go_from_tier_to_tier_and_writes_never_leave_the_region() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        let etcd = mesh.etcd.as_ref().context("etcd")?;
        let mut zones = BTreeMap::new();
        for (zone, _) in ZONES {
            let instance = Registered::start(etcd, "tiers", zone, &format!("tiers-{zone}")).await?;
            zones.insert(zone, instance);
        }
        let expect = async |home: &str, class: &str, zone: Option<&str>, why: &str| {
            for (gateway, _) in ZONES {
                let request = match class {
                    "read" => Request::get("/tiers"),
                    _ => Request::post("/tiers"),
                };
                let what = format!("a {class} of {home} to go to {zone:?} for {why} by {gateway}");
                let request = explained(request.home(home));
                let right = |reply: &Reply| {
                    let seen = reason(reply)?;
                    ensure!(seen == why, "{seen}: {}", reply.text());
                    match zone {
                        Some(zone) => ensure!(reply.echo()?.zone == zone, "{}", reply.text()),
                        None => {
                            ensure!(reply.refusal()? == why && reply.status == 503);
                            ensure!(reply.header("retry-after").is_some());
                        }
                    }
                    Ok(())
                };
                mesh.eventually(gateway, &what, request, right).await?;
            }
            Ok::<(), anyhow::Error>(())
        };
        for class in ["read", "write"] {
            expect("shanghai-a", class, Some("shanghai-a"), "home_zone").await?;
            expect("beijing-c", class, Some("beijing-c"), "home_zone").await?;
        }

        zones.get_mut("shanghai-a").context("a")?.remove().await?;
        for class in ["read", "write"] {
            expect("shanghai-a", class, Some("shanghai-b"), "home_region").await?;
        }

        zones.get_mut("shanghai-b").context("b")?.remove().await?;
        expect("shanghai-a", "read", Some("beijing-c"), "remote_read").await?;
        expect("shanghai-a", "write", None, "no_capacity").await?;
        expect("shanghai-b", "write", None, "no_capacity").await?;
        expect("beijing-c", "write", Some("beijing-c"), "home_zone").await?;

        zones.get_mut("beijing-c").context("c")?.remove().await?;
        for class in ["read", "write"] {
            expect("shanghai-a", class, None, "no_capacity").await?;
            expect("beijing-c", class, None, "no_capacity").await?;
        }
        Ok(())
    }
    run(async { on(mesh().await?, scenario).await });
}

#[test]
fn a_key_stays_with_its_zone() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        let mut users = BTreeMap::new();
        for user in 0..200 {
            let user = format!("user-{user}");
            // With any gateway and class: one home, one key, one zone.
            for (gateway, request) in [
                ("shanghai-a", Request::get("/carts")),
                ("shanghai-a", Request::post("/carts")),
                ("shanghai-b", Request::get("/carts")),
                ("beijing-c", Request::post("/carts")),
            ] {
                let request = request.home("shanghai-a").header("x-user-id", &user);
                let zone = mesh.send(gateway, request).await?.echo()?.zone;
                let first = users.entry(user.clone()).or_insert_with(|| zone.clone());
                assert_eq!(*first, zone, "{user} by {gateway}");
            }
        }
        let home = users.values().filter(|zone| *zone == "shanghai-a").count() as u64;
        let off = deviations(home, 200, 0.5);
        ensure!(
            off < DEVIATIONS_MAX,
            "{home} of 200 users in one of two equal zones"
        );
        Ok(())
    }
    run(async { on(mesh().await?, scenario).await });
}
