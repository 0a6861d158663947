//! The cases of guests, for each flavour of the filter.

mod site;

use anyhow::{Result, ensure};
use e2e::bootstrap::{Bootstrap, Flavour};
use e2e::cells::Cells;
use e2e::certificates::{self, Ca};
use e2e::client::Request;
use e2e::config::Config;
use e2e::registry::InstanceName;
use e2e::upstream::Conduct;
use e2e::wait::{PATIENCE, eventually};
use e2e::workdir::Workdir;
use serde_json::{Value, json};

pub(crate) use site::{A, B, Host, Site};

pub(crate) async fn a_guest_that_fences_admits_writes_where_its_zone_owns_them(
    flavour: Flavour,
) -> Result<()> {
    let host = Host::start(flavour, "guest-fence", "fence", |_| {}).await?;
    host.until_taken().await?;
    let spoofed = Request::post("/orders")
        .header("x-tidegate-epoch", "99")
        .header("x-tidegate-to", "elsewhere");
    let seen = host.seen(&spoofed).await?;
    assert_eq!(seen("x-tidegate-epoch").as_deref(), Some("1"));
    assert_eq!(seen("x-tidegate-cell").as_deref(), Some("main"));
    assert_eq!(seen("x-tidegate-class").as_deref(), Some("write"));
    assert_eq!(seen("x-tidegate-to"), None);
    // Reads, and writes of what is not fenced.
    let read = host
        .seen(&Request::get("/orders").header("x-tidegate-epoch", "99"))
        .await?;
    assert_eq!(
        (read("x-tidegate-epoch"), read("x-tidegate-class")),
        (None, None)
    );
    let draft = host.seen(&Request::post("/orders/drafts")).await?;
    assert_eq!(draft("x-tidegate-class").as_deref(), Some("write"));
    assert_eq!(draft("x-tidegate-epoch"), None);

    let cells = Cells::new(host.site.control_plane.admin());
    cells.override_to("main", B, "a test").await?;
    let refused = host.until_refused("not_owner").await?;
    assert_eq!(refused.status, 421);
    assert_eq!(refused.header("x-tidegate-owner"), Some(B));
    host.passes(&Request::get("/orders")).await?;
    // The zone that was forced out has to have a session again.
    let back = async || cells.move_to("main", A, "a test").await;
    eventually(PATIENCE, "the cell to move back", back).await?;
    host.until_taken().await?;
    let seen = host.seen(&Request::post("/orders")).await?;
    assert_eq!(seen("x-tidegate-epoch").as_deref(), Some("3"));
    Ok(())
}

pub(crate) async fn without_a_control_plane_a_guest_fences_and_comes_back(
    flavour: Flavour,
) -> Result<()> {
    let mut host = Host::start(flavour, "guest-away", "fence", |_| {}).await?;
    host.until_taken().await?;
    host.site.control_plane.process().kill()?;
    let refused = host.until_refused("fenced").await?;
    assert_eq!(refused.status, 503);
    assert!(refused.header("retry-after").is_some());
    host.passes(&Request::get("/orders")).await?;
    host.passes(&Request::post("/orders/drafts")).await?;
    host.site.control_plane.restart().await?;
    host.until_taken().await
}

pub(crate) async fn a_guest_without_a_policy_decides_by_its_lists(flavour: Flavour) -> Result<()> {
    let host = Host::start(flavour, "guest-lists", "fence", |guest| {
        guest["control_plane"] = json!("orders");
        guest["unfenced"] = json!([{ "prefix": "/orders/carts" }]);
        guest["classes"] = json!([{ "prefix": "/orders/search", "class": "read" },
                                  { "prefix": "/orders/buy", "class": "write" }]);
    })
    .await?;
    for passes in [
        Request::get("/orders"),
        Request::post("/orders/search"),
        Request::post("/orders/carts/7"),
    ] {
        host.passes(&passes).await?;
    }
    for refused in [Request::post("/orders"), Request::get("/orders/buy")] {
        let reply = host.send(&refused).await?;
        assert_eq!(reply.status, 503, "{}", reply.text());
        assert_eq!(reply.refusal()?, "fenced");
    }
    Ok(())
}

/// A service is fenced after the lists that let its writes pass, also those of a guest that is away.
pub(crate) async fn what_a_guest_lists_is_not_fenced_until_the_list_is_gone(
    flavour: Flavour,
) -> Result<()> {
    let mut host = Host::start(flavour, "guest-lists-first", "fence", |guest| {
        guest["unfenced"] = json!([{ "prefix": "/orders/drafts" }]);
    })
    .await?;
    host.until_taken().await?;
    let fence =
        |fenced: bool| move |config: &mut Config| config.services[1]["fenced"] = json!(fenced);
    host.site.control_plane.configure(fence(true))?;
    let told = host.until_condition("TG5001").await?;
    let draft = "*/orders/drafts";
    assert!(told.contains("gateway-1") && told.contains(draft), "{told}");
    // The last good configuration stays.
    let seen = host.seen(&Request::post("/orders/drafts")).await?;
    assert_eq!(seen("x-tidegate-epoch"), None);
    host.site.control_plane.configure(fence(false))?;
    host.until_no_condition("TG5001").await?;

    // A guest that is away counts, on a replica that never saw it, too.
    host.envoy.process().kill()?;
    host.site.control_plane.process().kill()?;
    host.site.control_plane.restart().await?;
    host.site.control_plane.configure(fence(true))?;
    host.until_condition("TG5001").await?;
    host.site.control_plane.configure(fence(false))?;
    host.until_no_condition("TG5001").await?;
    let registry = host.site.control_plane.registry();
    let stranger = registry.forget_guest(A, "gateway-2").await?;
    ensure!(stranger.status == 404, "{}", stranger.text());
    assert!(stranger.text().contains("gateway-1"), "{}", stranger.text());
    let forgotten = registry.forget_guest(A, "gateway-1").await?;
    ensure!(forgotten.status.is_success(), "{}", forgotten.text());
    let before = host.digest().await?;
    host.site.control_plane.configure(fence(true))?;
    eventually(PATIENCE, "the fence", async || {
        ensure!(host.digest().await? != before, "{before}");
        Ok(())
    })
    .await
}

pub(crate) async fn a_bad_configuration_is_the_fallback_and_is_told(
    flavour: Flavour,
) -> Result<()> {
    let host = Host::start(flavour, "guest-bad", "fence", |guest| {
        guest["mode"] = json!("watch")
    })
    .await?;
    host.passes(&Request::get("/orders")).await?;
    let reply = host.send(&Request::post("/orders")).await?;
    assert_eq!(reply.status, 503);
    assert_eq!(reply.refusal()?, "fenced");
    let log = host.envoy.process().tail();
    assert!(log.contains("unknown variant `watch`"), "{log}");
    let told = host.until_condition("TG4007").await?;
    assert!(told.contains("unknown variant `watch`"), "{told}");
    Ok(())
}

pub(crate) async fn a_guest_ends_a_write_that_the_hosts_route_would_let_live(
    flavour: Flavour,
) -> Result<()> {
    const ROUTE: &str = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config/route_config/virtual_hosts/0/routes/0/route/max_stream_duration";
    let site = Site::start(flavour, "guest-drain", |_| Ok(())).await?;
    let host = site
        .host("fence", |bootstrap| {
            let mut guest = bootstrap.guest_configuration()?;
            guest["drain_ms"].take();
            let bootstrap = bootstrap.guest(&guest)?;
            bootstrap.with(ROUTE, json!({ "max_stream_duration": "600s" }))
        })
        .await?;
    host.until_taken().await?;
    host.site.instances[0].conduct(Conduct::Hangs);
    let reply = host.send(&Request::post("/orders")).await?;
    assert_eq!(reply.status, 408, "{}", reply.text());
    assert_eq!(reply.refusal()?, "write_timeout");
    // Nothing is in flight any more, so the cell may go.
    let cells = Cells::new(host.site.control_plane.admin());
    cells.override_to("main", B, "a test").await?;
    host.until_refused("not_owner").await.map(drop)
}

pub(crate) async fn a_guest_whose_routes_outlive_the_fence_admits_nothing(
    flavour: Flavour,
) -> Result<()> {
    let host = Host::start(flavour, "guest-outlives", "fence", |guest| {
        guest["drain_ms"] = json!(1_501);
    })
    .await?;
    let draft = Request::post("/orders/drafts");
    host.eventually("a policy", draft, |reply| reply.echo().map(drop))
        .await?;
    host.until_refused("fenced").await?;
    let told = host.until_condition("TG4006").await?;
    assert!(told.starts_with("drain_ms is 1501"), "{told}");
    Ok(())
}

pub(crate) async fn operators_see_guests_with_the_policy_that_they_have_applied(
    flavour: Flavour,
) -> Result<()> {
    let host = Host::start(flavour, "guest-listed", "fence", |_| {}).await?;
    let guest = host.listed().await?;
    assert_eq!(guest["node"], "gateway-1");
    assert_eq!(
        (&guest["zone"], &guest["variant"]),
        (&json!(A), &json!("policy"))
    );
    assert_eq!(guest["guest"]["mode"], "fence");
    assert_eq!(guest["guest"]["no_grants"], Value::Null);
    Ok(())
}

pub(crate) async fn the_net_holds_the_fence_where_the_guest_is_not_run(
    flavour: Flavour,
) -> Result<()> {
    let site = Site::start(flavour, "guest-net", |_| Ok(())).await?;
    let host = site.host("fence", Bootstrap::without_guest).await?;
    host.passes(&Request::get("/orders")).await?;
    for write in [
        Request::post("/orders"),
        Request::post("/orders").header("x-tidegate-epoch", "1"),
        Request::post("/orders").header("x-tidegate-class", "read"),
    ] {
        let reply = host.send(&write).await?;
        assert_eq!(reply.status, 503);
        assert_eq!(reply.refusal()?, "fenced");
    }
    Ok(())
}

/// The net is an RBAC filter, and a host has others.
pub(crate) async fn a_rejection_by_the_hosts_own_rbac_filter_stays_one(
    flavour: Flavour,
) -> Result<()> {
    const TYPE: &str = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC";
    let but_secrets =
        json!({ "not_rule": { "url_path": { "path": { "prefix": "/orders/secret" } } } });
    let policies =
        json!({ "all": { "principals": [{ "any": true }], "permissions": [but_secrets] } });
    let site = Site::start(flavour, "guest-own-rbac", |_| Ok(())).await?;
    let host = site
        .host("fence", |bootstrap| {
            bootstrap.filter_first(json!({
                "name": "of-the-host",
                "typed_config": {
                    "@type": TYPE,
                    "rules": { "action": "ALLOW", "policies": policies },
                },
            }))
        })
        .await?;
    host.passes(&Request::get("/orders")).await?;
    let reply = host.send(&Request::get("/orders/secret")).await?;
    assert_eq!(reply.status, 403, "{}", reply.text());
    Ok(())
}

/// The certificate of a guest.
enum Certificate {
    Of(&'static str),
    /// It has ended.
    Expired(&'static str),
    Missing,
}

/// A foreign Envoy with a certificate of the mesh, at a control plane with a CA of its own. Guests
/// with the identity `front` stand in shanghai-a.
async fn with_certificate(flavour: Flavour, name: &str, certificate: Certificate) -> Result<Host> {
    const CERTIFICATES: &str = "/static_resources/clusters/0/transport_socket/typed_config/common_tls_context/tls_certificate_sds_secret_configs";
    let (ca, mesh) = (Ca::new("tidegate")?, Ca::new("mesh")?);
    let site = Site::start(flavour, name, |config| {
        let directory = Workdir::kept(&format!("{name}-{}-server", flavour.as_str()))?
            .path()
            .to_owned();
        ca.issue(&directory, "tidegate", &[&ca])?;
        let guests = directory.join("guests");
        mesh.issue(&guests, "unused", &[&mesh])?;
        config.listen = certificates::listen(&directory, &["admin"]);
        config.listen["tls"]["guest_ca"] = json!(guests.join(certificates::TRUSTED));
        config.access = Some(json!({ "proxies": [
            { "match": "spiffe://shop/front", "zones": [A], "roles": ["guest"] },
        ] }));
        Ok(())
    })
    .await?;
    let own = site.workdir.path().join("own");
    match certificate {
        Certificate::Of(identity) => mesh.issue(&own, identity, &[&ca])?,
        Certificate::Expired(identity) => mesh.issue_expired(&own, identity, &[&ca])?,
        Certificate::Missing => mesh.issue(&own, "unused", &[&ca])?,
    }
    let secrets = site.workdir.path().join("secrets");
    std::fs::create_dir_all(&secrets)?;
    site.host("fence", |bootstrap| {
        let bootstrap = bootstrap.tls(&secrets, &own)?;
        match certificate {
            Certificate::Missing => bootstrap.with(CERTIFICATES, json!([])),
            Certificate::Of(_) | Certificate::Expired(_) => Ok(bootstrap),
        }
    })
    .await
}

pub(crate) async fn a_guest_gets_grants_by_the_identity_of_its_zone(
    flavour: Flavour,
) -> Result<()> {
    let front = Certificate::Of("spiffe://shop/front");
    let host = with_certificate(flavour, "guest-identity", front).await?;
    host.until_taken().await
}

pub(crate) async fn a_guest_with_another_identity_gets_a_policy_and_no_grants(
    flavour: Flavour,
) -> Result<()> {
    let back = Certificate::Of("spiffe://shop/back");
    let host = with_certificate(flavour, "guest-stranger", back).await?;
    // With a policy, writes of a service that is not fenced pass.
    let draft = Request::post("/orders/drafts");
    host.eventually("a policy", draft, |reply| reply.echo().map(drop))
        .await?;
    let refused = host.until_refused("fenced").await?;
    assert_eq!(refused.status, 503);
    let metrics = host.site.control_plane.registry().metrics().await?;
    let told = host.until_condition("TG4005").await?;
    assert!(told.contains("spiffe://shop/back"), "{told}");
    let counted = "tidegate_xds_streams_refused_total{reason=\"not_permitted\"}";
    assert!(metrics.contains(counted), "{metrics}");
    Ok(())
}

pub(crate) async fn without_a_valid_certificate_a_guest_gets_nothing(
    flavour: Flavour,
) -> Result<()> {
    for (name, certificate) in [
        ("expired", Certificate::Expired("spiffe://shop/front")),
        ("bare", Certificate::Missing),
    ] {
        let name = format!("guest-{name}");
        let host = with_certificate(flavour, &name, certificate).await?;
        eventually(PATIENCE, "a connection to end", async || {
            let stat = "cluster.tidegate.upstream_cx_total";
            let opened = host.envoy.admin().stat(stat).await?;
            ensure!(opened >= 3, "{opened}");
            Ok(())
        })
        .await?;
        let proxies = host.site.control_plane.registry().proxies().await?;
        ensure!(proxies == json!([]), "{name}: {proxies}");
        host.passes(&Request::get("/orders")).await?;
        for fenced in ["/orders", "/orders/drafts"] {
            let reply = host.send(&Request::post(fenced)).await?;
            ensure!(reply.refusal()? == "fenced", "{name}: {}", reply.text());
        }
    }
    Ok(())
}

/// So many services that their policy has many pieces. `bench propagation` has 20,000 of them.
pub(crate) async fn a_guest_follows_a_policy_of_thousands_of_services(
    flavour: Flavour,
) -> Result<()> {
    const SERVICES: usize = 3_000;
    let site = Site::start(flavour, "guest-thousands", |config| {
        let more = (0..SERVICES).map(|at| {
            json!({ "name": format!("s{at}"), "routes": [{ "prefix": format!("/orders/s{at}") }], "fenced": false })
        });
        config.services.extend(more);
        Ok(())
    })
    .await?;
    let mut host = site.host("fence", Ok).await?;
    host.until_taken().await?;
    let last = format!("/orders/s{}/1", SERVICES - 1);
    host.passes(&Request::post(&last)).await?;
    // The last service becomes fenced: one piece of them changes.
    host.site.control_plane.configure(|config| {
        if let Some(service) = config.services.last_mut() {
            service["fenced"] = json!(true);
        }
    })?;
    host.eventually("the new fence", Request::post(&last), |reply| {
        let epoch = reply.echo()?.headers.get("x-tidegate-epoch").cloned();
        ensure!(epoch.as_deref() == Some("1"), "{epoch:?}");
        Ok(())
    })
    .await?;
    host.passes(&Request::post("/orders/s0/1")).await?;
    host.until_taken().await
}

pub(crate) async fn a_guest_that_routes_names_the_hosts_clusters(flavour: Flavour) -> Result<()> {
    let host = Host::start(flavour, "guest-route", "route", |_| {}).await?;
    host.until_taken().await?;
    let of_b = host.seen(&Request::get("/orders").home(B)).await?;
    assert_eq!(of_b("x-tidegate-to").as_deref(), Some("orders-shanghai-b"));
    assert_eq!(of_b("x-tidegate-home").as_deref(), Some(B));
    assert_eq!(of_b("x-tidegate-tier").as_deref(), Some("zone"));
    // The zone loses its instance: its reads go to the rest of the region.
    let gone = InstanceName::new("orders", B, &format!("orders-{B}"));
    host.site.control_plane.registry().remove(&gone).await?;
    let home_b = Request::get("/orders").home(B);
    host.eventually("reads of shanghai-b to go to shanghai-a", home_b, |reply| {
        let echo = reply.echo()?;
        let to = echo.headers.get("x-tidegate-to").map(String::as_str);
        ensure!(to == Some("orders-shanghai-a"), "{to:?}");
        let tier = echo.headers.get("x-tidegate-tier").map(String::as_str);
        ensure!(tier == Some("region"), "{tier:?}");
        Ok(())
    })
    .await?;
    assert!(
        host.site
            .instances
            .iter()
            .all(|server| server.in_flight() == 0)
    );
    Ok(())
}

/// Makes a test of each case.
macro_rules! all {
    ($flavour:expr) => {
        cases::all!($flavour; a_guest_that_fences_admits_writes_where_its_zone_owns_them
            without_a_control_plane_a_guest_fences_and_comes_back
            a_guest_without_a_policy_decides_by_its_lists
            what_a_guest_lists_is_not_fenced_until_the_list_is_gone
            a_bad_configuration_is_the_fallback_and_is_told
            a_guest_ends_a_write_that_the_hosts_route_would_let_live
            a_guest_whose_routes_outlive_the_fence_admits_nothing
            operators_see_guests_with_the_policy_that_they_have_applied
            the_net_holds_the_fence_where_the_guest_is_not_run
            a_rejection_by_the_hosts_own_rbac_filter_stays_one
            a_guest_gets_grants_by_the_identity_of_its_zone
            a_guest_with_another_identity_gets_a_policy_and_no_grants
            without_a_valid_certificate_a_guest_gets_nothing
            a_guest_follows_a_policy_of_thousands_of_services
            a_guest_that_routes_names_the_hosts_clusters);
    };
    ($flavour:expr; $($case:ident)*) => {
        $(#[tokio::test]
        async fn $case() -> anyhow::Result<()> {
            cases::$case($flavour).await
        })*
    };
}
pub(crate) use all;
