//! The control plane behind TLS: a proxy gets the resources that its certificate allows,
//! certificates are renewed while streams continue, and operators present theirs.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use e2e::bootstrap::Bootstrap;
use e2e::certificates::{self, Ca};
use e2e::client::{Client, Request, Version};
use e2e::config::{Config, StoreConfig};
use e2e::control_plane::ControlPlane;
use e2e::envoy::Envoy;
use e2e::paths;
use e2e::process::Process;
use e2e::registry::{Instance, InstanceName};
use e2e::wait::{PATIENCE, eventually};
use e2e::workdir::Workdir;
use rcgen::KeyPair;
use serde_json::{Value, json};

fn gateway_of(zone: &str) -> String {
    format!("spiffe://mesh/zone/{zone}/role/gateway")
}

struct Scene {
    workdir: Workdir,
    control_plane: ControlPlane,
}

impl Scene {
    /// A control plane with a certificate of `ca`. `plaintext` lists the ports without TLS.
    async fn start(name: &str, ca: &Ca, plaintext: &[&str], access: Value) -> Result<Scene> {
        let workdir = Workdir::kept(name)?;
        let certificates = workdir.path().join("server");
        ca.issue(&certificates, "tidegate", &[ca])?;
        let service = json!({ "name": "orders", "routes": [{ "prefix": "/orders" }] });
        let mut config = Config::new(StoreConfig::Embedded, vec![service]);
        config.listen = certificates::listen(&certificates, plaintext);
        config.access = Some(access);
        let control_plane = ControlPlane::launch(workdir.path(), config).await?;
        Ok(Scene {
            workdir,
            control_plane,
        })
    }

    fn server(&self) -> PathBuf {
        self.workdir.path().join("server")
    }

    /// An Envoy of `zone` with the certificates in `certificates`.
    async fn envoy(&self, id: &str, zone: &str, certificates: &Path) -> Result<Envoy> {
        let directory = self.workdir.path().join(id);
        fs::create_dir_all(&directory)?;
        let bootstrap = Bootstrap::read("gateway.yaml")?
            .node(id, "shanghai", zone)?
            .cluster_at("tidegate", self.control_plane.xds())?
            .tls(&directory, certificates)?;
        Envoy::start_with(&directory, id, &bootstrap, 1).await
    }

    fn certificates(&self, name: &str) -> PathBuf {
        self.workdir.path().join("certificates").join(name)
    }

    /// The control plane's own metrics, if its admin port is plaintext.
    async fn metric(&self, line: &str) -> Result<u64> {
        let request = Request::get("/metrics");
        let client = Client::new(Version::Http1);
        let reply = client.send(self.control_plane.admin(), &request).await?;
        let text = reply.text();
        let value = text
            .lines()
            .find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
        value.map_or(Ok(0), |value| Ok(value.trim().parse()?))
    }

    async fn until_metric(&self, line: &str, least: u64) -> Result<()> {
        let looked = eventually(PATIENCE, line, async || {
            let value = self.metric(line).await?;
            ensure!(value >= least, "{line} {value}");
            Ok(())
        });
        looked
            .await
            .with_context(|| self.control_plane.process().tail())
    }
}

/// The stream exists, and was never interrupted. (Connections are not counted: the filter and load
/// reports have their own.)
async fn until_connected(envoy: &Envoy) -> Result<()> {
    let connected = eventually(PATIENCE, "a stream", async || {
        let stats = envoy.admin().stats("^control_plane").await?;
        let connected = stats.get("control_plane.connected_state").copied();
        ensure!(connected == Some(1), "{stats:?}");
        Ok(())
    });
    connected.await.with_context(|| envoy.process().tail())?;
    let cut_off = envoy.admin().stat(CUT_OFF).await?;
    ensure!(cut_off == 0, "{cut_off} streams were cut off");
    Ok(())
}

const CUT_OFF: &str = "cluster.tidegate.upstream_cx_destroy_with_active_rq";

/// Waits until the Envoy has this address in a cluster.
async fn until_endpoint(envoy: &Envoy, address: SocketAddr) -> Result<()> {
    let held = eventually(PATIENCE, "the endpoint", async || {
        let clusters = envoy.admin().clusters().await?.to_string();
        let port = format!("\"port_value\":{}", address.port());
        ensure!(clusters.contains(&port), "{clusters}");
        Ok(())
    });
    held.await.with_context(|| envoy.process().tail())
}

#[tokio::test]
async fn a_proxy_gets_the_view_of_its_certificate_and_no_other() -> Result<()> {
    let (ca, stranger) = (Ca::new("one")?, Ca::new("another")?);
    let access = json!({ "proxies": [{ "match": "spiffe://mesh/zone/{zone}/role/{role}" }] });
    let scene = Scene::start("mtls-access", &ca, &["admin"], access).await?;
    let own = scene.certificates("own");
    ca.issue(&own, &gateway_of("shanghai-a"), &[&ca])?;
    let foreign = scene.certificates("foreign");
    stranger.issue(&foreign, &gateway_of("shanghai-a"), &[&ca])?;

    let permitted = scene.envoy("permitted", "shanghai-a", &own).await?;
    permitted.ingress().await?;

    let refused = scene.envoy("refused", "shanghai-b", &own).await?;
    scene
        .until_metric(
            "tidegate_xds_streams_refused_total{reason=\"not_permitted\"}",
            1,
        )
        .await?;
    // The view of the proxy's operator.
    let told = eventually(PATIENCE, "the refusal", async || {
        let log = fs::read_to_string(refused.process().log())?;
        // PERMISSION_DENIED, and the reason.
        for part in [
            "closed: 7, ",
            "certificate of \"spiffe://mesh/zone/shanghai-a/role/gateway\"",
            "zone \"shanghai-b\", role gateway",
        ] {
            ensure!(log.contains(part), "{part} is not in {log}");
        }
        Ok(())
    });
    told.await?;

    let unknown = scene.envoy("unknown", "shanghai-a", &foreign).await?;
    let port = "tidegate_connections_refused_total{port=\"xds\",reason=\"handshake\"}";
    scene.until_metric(port, 1).await?;
    // A client without a certificate, and a plaintext client.
    let directory = scene.workdir.path().join("plain");
    fs::create_dir_all(&directory)?;
    let bootstrap = Bootstrap::read("gateway.yaml")?
        .node("plain", "shanghai", "shanghai-a")?
        .cluster_at("tidegate", scene.control_plane.xds())?;
    let before = scene.metric(port).await?;
    let plain = Envoy::start_with(&directory, "plain", &bootstrap, 1).await?;
    scene.until_metric(port, before + 1).await?;

    for envoy in [&refused, &unknown, &plain] {
        let stats = envoy.admin().stats("update_success$").await?;
        let updates: u64 = stats
            .iter()
            .filter(|(name, _)| name.contains("lds") || name.contains("cluster_manager.cds"))
            .map(|(_, value)| value)
            .sum();
        ensure!(updates == 0, "{stats:?}");
        ensure!(envoy.admin().listener("ingress").await.is_err());
    }
    Ok(())
}

#[tokio::test]
async fn certificates_are_renewed_while_streams_go_on() -> Result<()> {
    let (old, new) = (Ca::new("one")?, Ca::new("another")?);
    let access = json!({ "proxies": [{ "match": "spiffe://mesh/zone/{zone}/role/{role}" }] });
    let scene = Scene::start("mtls-renewed", &old, &["admin"], access).await?;
    let first = scene.certificates("first");
    old.issue(&first, &gateway_of("shanghai-a"), &[&old])?;
    let envoy = scene.envoy("first", "shanghai-a", &first).await?;
    envoy.ingress().await?;
    until_connected(&envoy).await?;

    let registry = scene.control_plane.registry();
    let put = async |port: u16| {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let name = InstanceName::new("orders", "shanghai-a", "orders-1");
        let reply = registry.put(&name, &Instance::at(address), None).await?;
        ensure!(reply.status.is_success(), "{}", reply.text());
        until_endpoint(&envoy, address).await
    };
    put(9_001).await?;

    // A certificate that does not match the key changes nothing.
    let key = scene.server().join("tls.key");
    fs::write(&key, KeyPair::generate()?.serialize_pem())?;
    let broken = "tidegate_tls_reloads_total{result=\"error\"}";
    scene.until_metric(broken, 1).await?;
    ensure!(scene.metric("tidegate_tls_current").await? == 0);
    let second = scene.certificates("second");
    old.issue(&second, &gateway_of("shanghai-a"), &[&old])?;
    let again = scene.envoy("second", "shanghai-a", &second).await?;
    again.ingress().await?;

    new.issue(&scene.server(), "tidegate", &[&new])?;
    scene
        .until_metric("tidegate_tls_reloads_total{result=\"ok\"}", 1)
        .await?;
    ensure!(scene.metric("tidegate_tls_current").await? == 1);
    // The open stream continues.
    put(9_002).await?;
    until_connected(&envoy).await?;
    let third = scene.certificates("third");
    new.issue(&third, &gateway_of("shanghai-b"), &[&new])?;
    let newcomer = scene.envoy("third", "shanghai-b", &third).await?;
    newcomer.ingress().await?;

    // A proxy's own certificate is renewed as well: after a restart of the control plane it
    // presents the new one.
    new.issue(&first, &gateway_of("shanghai-a"), &[&new])?;
    let mut scene = scene;
    scene.control_plane.stop().await?;
    scene.control_plane.restart().await?;
    let back = eventually(PATIENCE, "the stream", async || {
        let stats = envoy.admin().stats("^control_plane.connected").await?;
        let proxies = scene.control_plane.registry().proxies().await?;
        ensure!(
            proxies.to_string().contains("\"first\""),
            "{stats:?} {proxies}"
        );
        Ok(())
    });
    back.await.with_context(|| envoy.process().tail())?;
    // The counter that was checked above does count interrupted streams.
    ensure!(envoy.admin().stat(CUT_OFF).await? > 0);
    Ok(())
}

/// Runs an operator's command against an admin port with TLS.
fn operate(scene: &Scene, certificates: Option<&Path>, arguments: &[&str]) -> Result<Output> {
    let admin = format!("https://localhost:{}", scene.control_plane.admin().port());
    let mut command = Command::new(paths::tidegate()?);
    command.args(arguments).args(["--admin", &admin]);
    command.arg("--ca").arg(scene.server().join("ca.crt"));
    if let Some(directory) = certificates {
        command.arg("--cert").arg(directory.join("tls.crt"));
        command.arg("--key").arg(directory.join("tls.key"));
    }
    Ok(command.output()?)
}

#[tokio::test]
async fn operators_show_their_certificates_and_others_only_look() -> Result<()> {
    let ca = Ca::new("one")?;
    let access = json!({
        "registrars": [{ "match": "agent.{zone}" }],
        "operators": [{ "match": "spiffe://mesh/operator/*" }],
    });
    let scene = Scene::start("mtls-operators", &ca, &[], access).await?;
    // The operators' commands verify the name of the server, like every client should.
    ca.issue(&scene.server(), "localhost", &[&ca])?;
    let certificates: BTreeMap<&str, PathBuf> = [
        ("operator", "spiffe://mesh/operator/ann"),
        ("agent", "agent.shanghai-a"),
    ]
    .into_iter()
    .map(|(who, name)| {
        let directory = scene.certificates(who);
        ca.issue(&directory, name, &[&ca])
            .map(|()| (who, directory))
    })
    .collect::<Result<_>>()?;
    let said = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();

    let operator = certificates.get("operator").map(PathBuf::as_path);
    let agent = certificates.get("agent").map(PathBuf::as_path);
    let lists = eventually(PATIENCE, "a list", async || {
        let output = operate(&scene, operator, &["zones"])?;
        ensure!(output.status.success(), "{}", said(&output));
        Ok(())
    });
    lists
        .await
        .with_context(|| scene.control_plane.process().tail())?;
    let drained = operate(&scene, operator, &["drain", "shanghai-a"])?;
    ensure!(drained.status.success(), "{}", said(&drained));

    // An agent registers, in its zone.
    let directory = certificates.get("agent").context("an agent")?;
    let admin = format!("https://localhost:{}", scene.control_plane.admin().port());
    let ca_file = scene.server().join("ca.crt");
    let text = json!({
        "zone": "shanghai-a",
        "registry": {
            "http": [admin],
            "tls": {
                "ca": ca_file,
                "cert": directory.join("tls.crt"),
                "key": directory.join("tls.key"),
            },
        },
        "listen": "127.0.0.1:0",
        "instances": [{
            "service": "orders",
            "instance": "orders-1",
            "address": "127.0.0.1",
            // There is something that listens.
            "port": scene.control_plane.admin().port(),
            "probe": { "tcp": {} },
        }],
    });
    let file = scene.workdir.path().join("agent.yaml");
    fs::write(&file, text.to_string())?;
    let arguments = ["agent", "--config", &file.display().to_string()].map(str::to_owned);
    let process = Process::start(
        scene.workdir.path(),
        "agent",
        &paths::tidegate()?,
        &arguments,
    )?;
    let registered = eventually(PATIENCE, "the agent's instance", async || {
        let output = operate(&scene, operator, &["zones"])?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(text.contains(" 1/1"), "{text}");
        Ok(())
    });
    registered.await.with_context(|| process.tail())?;
    // Otherwise it has read-only access.
    ensure!(operate(&scene, agent, &["zones"])?.status.success());
    let refused = operate(&scene, agent, &["release", "shanghai-a"])?;
    ensure!(
        said(&refused)
            .contains("\"agent.shanghai-a\" may only read: no rule of `access.operators`"),
        "{}",
        said(&refused)
    );
    // Without a certificate only the probes are available.
    let nobody = operate(&scene, None, &["zones"])?;
    ensure!(
        said(&nobody).contains("show a client certificate"),
        "{}",
        said(&nobody)
    );
    let no_ca = Command::new(paths::tidegate()?)
        .args(["zones", "--admin", "https://localhost:1"])
        .output()?;
    ensure!(
        said(&no_ca).contains("--ca: name the file"),
        "{}",
        said(&no_ca)
    );
    Ok(())
}
