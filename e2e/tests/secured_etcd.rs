//! An etcd with TLS and users: a real control plane and a real agent, with rights to their own keys
//! alone, whose certificates and passwords are renewed while they run.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use e2e::certificates::{CERTIFICATE, Ca, KEY, TRUSTED};
use e2e::config::{Config, StoreConfig, ZONES};
use e2e::control_plane::ControlPlane;
use e2e::etcd::Etcd;
use e2e::paths;
use e2e::process::Process;
use e2e::wait::{PATIENCE, eventually};
use e2e::workdir::Workdir;
use etcd_client::{Client, ConnectOptions, Permission, PermissionType};
use serde_json::{Value, json};

struct Site {
    control_plane: ControlPlane,
    agent: Process,
    etcd: Etcd,
    ca: Ca,
    workdir: Workdir,
}

impl Site {
    async fn start() -> Result<Site> {
        let workdir = Workdir::kept("secured-etcd")?;
        let path = workdir.path();
        let ca = Ca::new("etcd")?;
        let etcd = Etcd::start_with_tls(path, 1, &ca).await?;
        make_users(&mut etcd.client().await?).await?;
        for client in ["tidegate", "agent"] {
            ca.issue(&path.join(client), client, &[&ca])?;
            fs::write(password(path, client), "first\n")?;
        }

        let store = StoreConfig::Etcd {
            endpoints: etcd.endpoints(),
        };
        let service = json!({ "name": "orders", "routes": [{ "prefix": "/orders" }] });
        let config = Config {
            etcd: access(path, "tidegate"),
            authority: Some(json!({ "zones": [ZONES[0].0] })),
            ..Config::new(store, vec![service])
        };
        let control_plane = ControlPlane::start(path, config).await?;
        let agent = start_agent(path, &etcd)?;
        Ok(Site {
            control_plane,
            agent,
            etcd,
            ca,
            workdir,
        })
    }

    /// Waits until the control plane knows the agent's instance.
    async fn until_registered(&self) -> Result<()> {
        let registered = eventually(PATIENCE, "the instance", async || {
            let instances = self.control_plane.registry().instances().await?;
            ensure!(instances.to_string().contains("orders-1"), "{instances}");
            Ok(())
        });
        self.agent.unless_it_ends(registered).await
    }

    /// Waits until a condition holds, or not.
    async fn until_condition(&self, code: &str, holds: bool) -> Result<()> {
        eventually(PATIENCE, code, async || {
            let conditions = self.control_plane.registry().conditions().await?;
            ensure!(
                conditions.to_string().contains(code) == holds,
                "{conditions}"
            );
            Ok(())
        })
        .await
    }
}

async fn make_users(operator: &mut Client) -> Result<()> {
    operator.user_add("root", "secret", None).await?;
    operator.role_add("root").await?;
    operator.user_grant_role("root", "root").await?;
    // As docs/operations/etcd.md says.
    for (name, prefix) in [
        ("tidegate", "/tidegate/"),
        ("agent", "/tidegate/v1/instances/"),
    ] {
        operator.role_add(name).await?;
        let rights = Permission::new(PermissionType::Readwrite, prefix).with_prefix();
        operator.role_grant_permission(name, rights).await?;
        operator.user_add(name, "first", None).await?;
        operator.user_grant_role(name, name).await?;
    }
    operator.auth_enable().await?;
    Ok(())
}

fn password(directory: &Path, client: &str) -> PathBuf {
    directory.join(format!("{client}.password"))
}

/// The fields of `store.etcd` beside the endpoints.
fn access(directory: &Path, client: &str) -> Value {
    let certificates = directory.join(client);
    json!({
        "tls": {
            "ca": certificates.join(TRUSTED),
            "cert": certificates.join(CERTIFICATE),
            "key": certificates.join(KEY),
        },
        "user": { "name": client, "password_file": password(directory, client) },
    })
}

fn start_agent(directory: &Path, etcd: &Etcd) -> Result<Process> {
    let mut store = access(directory, "agent");
    store["endpoints"] = json!(etcd.endpoints());
    let config = json!({
        "zone": ZONES[0].0,
        "store": { "etcd": store },
        "listen": "127.0.0.1:0",
        "lease_ttl_s": 2,
        "instances": [{
            "service": "orders",
            "instance": "orders-1",
            "address": "127.0.0.1",
            "port": 9,
            // It fails, and the instance is registered as unhealthy.
            "probe": { "tcp": {} },
        }],
    });
    let file = directory.join("agent.yaml");
    fs::write(&file, config.to_string())?;
    let file = file.display().to_string();
    let arguments = ["agent", "--config", &file].map(str::to_owned);
    Process::start(directory, "agent", &paths::tidegate()?, &arguments)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_plane_and_agent_reach_an_etcd_with_tls_and_users() -> Result<()> {
    let site = Site::start().await?;
    let path = site.workdir.path();
    site.until_registered().await?;

    // A certificate that has ended is used by nobody who checks it, and is told.
    site.ca
        .issue_expired(&path.join("tidegate"), "tidegate", &[&site.ca])?;
    site.until_condition("TG2014", true).await?;
    fs::write(path.join("tidegate").join(KEY), "no key")?;
    site.until_condition("TG2013", true).await?;
    site.ca
        .issue(&path.join("tidegate"), "tidegate", &[&site.ca])?;
    for code in ["TG2013", "TG2014"] {
        site.until_condition(code, false).await?;
    }

    // New passwords: first in etcd, then in the files.
    let root = ConnectOptions::new().with_user("root", "secret");
    let mut root = site.etcd.client_as(root).await?;
    for client in ["tidegate", "agent"] {
        root.user_change_password(client, "second").await?;
    }
    site.until_condition("TG2006", true).await?;
    for client in ["tidegate", "agent"] {
        fs::write(password(path, client), "second")?;
    }
    site.until_condition("TG2006", false).await?;
    // The agent writes again, too.
    let instance = format!("/tidegate/v1/instances/orders/{}/orders-1", ZONES[0].0);
    let deleted = root.delete(instance.as_str(), None).await?;
    let revision = deleted.header().context("no header")?.revision();
    let restored = eventually(PATIENCE, "the record", async || {
        let mut found = root.kv_client().get(instance.as_str(), None).await?;
        let record = found.take_kvs().pop().context("no record")?;
        ensure!(record.create_revision() > revision, "{record:?}");
        Ok(())
    });
    site.agent.unless_it_ends(restored).await?;

    // The agent's role has no rights beyond instances.
    let agent = ConnectOptions::new().with_user("agent", "second");
    let mut agent = site.etcd.client_as(agent).await?;
    let denied = agent.put("/tidegate/v1/authority/main", "{}", None).await;
    let denied = denied.err().context("the agent may move cells")?;
    ensure!(denied.to_string().contains("permission denied"), "{denied}");
    Ok(())
}
