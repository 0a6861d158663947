//! The reports of proxies to the control plane, and its own reports about them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::client::Request;
use e2e::envoy::Options;
use e2e::mesh::{Builder, Mesh};
use e2e::wait::{PATIENCE, eventually};
use e2e::workdir::Workdir;
use envoy_types::pb::envoy::{
    admin::v3::ClientResourceStatus,
    service::status::v3::{
        ClientStatusRequest, ConfigStatus,
        client_status_discovery_service_client::ClientStatusDiscoveryServiceClient,
    },
    r#type::matcher::v3::{NodeMatcher, RegexMatcher, StringMatcher, string_matcher::MatchPattern},
};
use serde_json::{Value, json};

use crate::shared::plain;
use crate::support::{on, operate, run};

/// Gateways with two workers and with one, and an instance in every zone.
async fn reporting(name: &str) -> Result<Mesh> {
    let gateway = Options {
        concurrency: 2,
        ..Options::gateway("shanghai", "shanghai-a")
    };
    Builder::new(Workdir::kept(name)?)
        .service(plain("orders"))
        .envoy(gateway)
        .envoy(Options::gateway("beijing", "beijing-c"))
        .upstreams("orders", 1)
        .start()
        .await
}

/// A filter repeats its report every half minute.
const TOLD_AGAIN: Duration = Duration::from_secs(60);

/// A counter of requests to `orders`, by its labels.
async fn count(mesh: &Mesh, metric: &str, viewer: &str, zone: &str, more: &str) -> Result<f64> {
    let labels = format!(r#"{{service="orders",viewer="{viewer}",zone="{zone}"{more}}}"#);
    mesh.registry().metric(&format!("{metric}{labels}")).await
}

#[test]
fn requests_are_counted_once_by_where_they_came_from_and_went() {
    const ENDED: &str = "tidegate_load_requests_total";
    const SUCCESS: &str = r#",result="success""#;
    async fn scenario(mesh: &Mesh) -> Result<()> {
        let requests = [
            ("shanghai-a", "shanghai-a", Request::get("/orders")),
            (
                "shanghai-a",
                "beijing-c",
                Request::post("/orders").home("beijing-c"),
            ),
            ("beijing-c", "beijing-c", Request::post("/orders")),
        ];
        // Envoy counts from the request for reports about a cluster, which follows the cluster.
        for (viewer, zone, request) in &requests {
            eventually(PATIENCE, "a first count", async || {
                mesh.send(viewer, request.clone()).await?;
                let count = count(mesh, ENDED, viewer, zone, SUCCESS).await?;
                ensure!(count > 0.0, "nothing from {viewer} to {zone}");
                Ok(())
            })
            .await?;
        }
        // All requests so far have been reported once a proxy has reported twice more.
        let reports = async || mesh.registry().metric("tidegate_load_reports_total").await;
        let before = reports().await?;
        eventually(PATIENCE, "more reports", async || {
            ensure!(reports().await? >= before + 6.0, "too few");
            Ok(())
        })
        .await?;
        for (viewer, zone, request) in requests {
            let before = count(mesh, ENDED, viewer, zone, SUCCESS).await?;
            let issued = "tidegate_load_requests_issued_total";
            let issued_before = count(mesh, issued, viewer, zone, "").await?;
            for _ in 0..25 {
                let reply = mesh.send(viewer, request.clone()).await?;
                ensure!(reply.status.is_success(), "{}", reply.text());
            }
            let what = format!("25 requests from {viewer} to {zone}");
            eventually(PATIENCE, &what, async || {
                let more = count(mesh, ENDED, viewer, zone, SUCCESS).await? - before;
                ensure!(more == 25.0, "{more}");
                let more = count(mesh, issued, viewer, zone, "").await? - issued_before;
                ensure!(more == 25.0, "{more} issued");
                Ok(())
            })
            .await?;
        }
        // The connection to the control plane is a cluster, too, but not a service.
        let metrics = mesh.registry().metrics().await?;
        let mut lines = metrics.lines();
        assert!(!lines.any(|line| line.contains(r#"service="tidegate""#)));
        Ok(())
    }
    run(async {
        let mut mesh = reporting("load-reports").await?;
        on(&mesh, scenario).await?;
        let streams = async |mesh: &Mesh| mesh.registry().metric("tidegate_load_streams").await;
        ensure!(streams(&mesh).await? == 2.0);
        let (_, envoy) = mesh.take_envoy("gateway-beijing-c")?;
        drop(envoy);
        eventually(PATIENCE, "the stream to end", async || {
            ensure!(streams(&mesh).await? == 1.0, "still there");
            Ok(())
        })
        .await
    });
}

/// A proxy's policy in `/v1/proxies`.
async fn policy(mesh: &Mesh, node: &str) -> Result<Value> {
    let proxies = mesh.registry().proxies().await?;
    let all = proxies.as_array().context("a list")?;
    let proxy = all.iter().find(|proxy| proxy["node"] == node);
    Ok(proxy.context("not connected")?["policy"].clone())
}

/// Waits until this many threads have applied their configuration; returns the version.
async fn until_applied(mesh: &Mesh, node: &str, threads: u64) -> Result<u64> {
    eventually(PATIENCE, "the filter to have said so", async || {
        let policy = policy(mesh, node).await?;
        ensure!(policy["state"] == "applied", "{policy}");
        let editions = policy["applied"]["editions"].as_array();
        let [edition] = &editions.context("no editions")?[..] else {
            anyhow::bail!("{policy}");
        };
        ensure!(edition["threads"] == threads, "{policy}");
        edition["version"].as_u64().context("a version")
    })
    .await
}

#[test]
fn what_the_filter_has_applied_is_told_and_told_again() {
    run(async {
        let mut mesh = reporting("applied").await?;
        let node = "gateway-shanghai-a";
        // Two workers, and the main thread.
        let first = until_applied(&mesh, node, 3).await?;
        let table = operate(&mesh, &["proxies"])?;
        let line = table.lines().find(|line| line.starts_with(node));
        let line = line.with_context(|| table.clone())?;
        assert!(line.contains(&format!("applied {first:012x} x3")), "{line}");

        mesh.control_plane.configure(|config| {
            config.services[0]["region"] = json!({ "missing": "reject" });
        })?;
        eventually(PATIENCE, "another policy", async || {
            let wanted = policy(&mesh, node).await?["wanted"].as_u64();
            ensure!(wanted.is_some_and(|wanted| wanted != first), "the same");
            Ok(())
        })
        .await?;
        let second = until_applied(&mesh, node, 3).await?;
        assert_ne!(first, second);

        mesh.control_plane.process().kill()?;
        mesh.control_plane.restart().await?;
        let again = eventually(TOLD_AGAIN, "the filter to say it again", async || {
            until_applied(&mesh, node, 3).await
        });
        assert_eq!(again.await?, second);
        let logs = mesh.logs();
        assert!(!logs.contains("panicked"), "{logs}");
        Ok(())
    });
}

#[test]
fn csds_tells_what_each_proxy_holds() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        let address = format!("http://{}", mesh.control_plane.xds());
        let channel = tonic::transport::Endpoint::new(address)?.connect().await?;
        let client =
            ClientStatusDiscoveryServiceClient::new(channel).max_decoding_message_size(32 << 20);
        let ask = async |pattern| {
            let node_id = StringMatcher {
                ignore_case: false,
                match_pattern: Some(pattern),
            };
            let request = ClientStatusRequest {
                node_matchers: vec![NodeMatcher {
                    node_id: Some(node_id),
                    node_metadatas: vec![],
                }],
                ..ClientStatusRequest::default()
            };
            client.clone().fetch_client_status(request).await
        };
        let id = "gateway-shanghai-a".to_owned();
        eventually(PATIENCE, "everything to be in sync", async || {
            let answer = ask(MatchPattern::Exact(id.clone())).await?.into_inner();
            let [proxy] = &answer.config[..] else {
                anyhow::bail!("{} proxies", answer.config.len());
            };
            let kinds: std::collections::BTreeSet<&str> = (proxy.generic_xds_configs.iter())
                .map(|config| config.type_url.as_str())
                .collect();
            ensure!(kinds.len() == 5, "{kinds:?}");
            for config in &proxy.generic_xds_configs {
                let states = (config.config_status(), config.client_status());
                let good = (ConfigStatus::Synced, ClientResourceStatus::Acked);
                ensure!(states == good, "{config:?}");
                ensure!(!config.version_info.is_empty(), "{config:?}");
            }
            Ok(())
        })
        .await?;
        let all = ask(MatchPattern::Prefix("gateway-".into())).await?;
        assert_eq!(all.into_inner().config.len(), 2);
        let refused = ask(MatchPattern::SafeRegex(RegexMatcher::default())).await;
        let status = refused.expect_err("not supported");
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");

        // One answer to each request on a stream.
        let questions = tokio_stream::iter(vec![ClientStatusRequest::default(); 2]);
        let answers = client.clone().stream_client_status(questions).await?;
        let mut answers = answers.into_inner();
        for _ in 0..2 {
            let answer = answers.message().await?.context("an answer")?;
            assert_eq!(answer.config.len(), 2);
        }
        assert!(answers.message().await?.is_none());
        Ok(())
    }
    run(async { on(&reporting("csds").await?, scenario).await });
}
