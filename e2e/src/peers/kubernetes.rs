//! A real Kubernetes API server with an etcd of its own, and the real controllers. There are no
//! nodes: nothing runs pods.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::KeyPair;
use serde_json::{Value, json};

use super::objects::Objects;
use super::{START_TIME_MAX, with_addresses};
use crate::certificates::{CERTIFICATE, Ca, KEY, TRUSTED};
use crate::etcd::Etcd;
use crate::paths;
use crate::process::Process;
use crate::wait::eventually;

/// The user who may do everything.
const ADMIN: &str = "admin";
/// Its group.
const ADMINS: &str = "system:masters";

/// The key that signs tokens of service accounts, and the one that verifies them.
const ACCOUNTS_KEY: &str = "accounts.key";
const ACCOUNTS_PUBLIC_KEY: &str = "accounts.pub";
const TOKENS: &str = "tokens.csv";

const AUDIT_POLICY: &str = "audit.yaml";
const AUDIT_LOG: &str = "audit.log";

/// Those that act without a node: the garbage of deleted owners and namespaces, pods of
/// deployments, and the addresses of services.
const CONTROLLERS: [&str; 8] = [
    "daemonset-controller",
    "deployment-controller",
    "endpointslice-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "replicaset-controller",
    "serviceaccount-controller",
    "statefulset-controller",
];

/// A request to the API server, as in its audit log.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    pub verb: String,
    /// `group/resource`.
    pub resource: String,
    pub code: u64,
}

impl Call {
    /// None for a request that is about no resource.
    fn of(event: &Value) -> Option<Call> {
        let of = &event["objectRef"];
        let (group, resource) = (of["apiGroup"].as_str()?, of["resource"].as_str()?);
        Some(Call {
            verb: event["verb"].as_str()?.to_owned(),
            resource: format!("{group}/{resource}"),
            code: event["responseStatus"]["code"].as_u64()?,
        })
    }

    /// The verbs that a role needs for it. An apply that creates needs two.
    pub fn needs(&self) -> impl Iterator<Item = &str> {
        let creates = self.verb == "patch" && self.code == 201;
        [self.verb.as_str()]
            .into_iter()
            .chain(creates.then_some("create"))
    }
}

/// A running cluster without nodes.
pub struct Kubernetes {
    // In the order in which they end: a server without etcd would wait for it.
    controllers: Option<Process>,
    server: Process,
    etcd: Etcd,
    /// With certificates, tokens and the kubeconfig files.
    directory: PathBuf,
    parent: PathBuf,
    arguments: Vec<String>,
}

impl Kubernetes {
    /// Starts etcd and the API server, and waits until the server is ready. `users` may do only
    /// what the objects of RBAC permit.
    pub async fn start(parent: &Path, users: &[&str]) -> Result<Kubernetes> {
        let directory = parent.join("kubernetes");
        let ca = Ca::new("kubernetes")?;
        ca.issue(&directory, "127.0.0.1", &[&ca])?;
        let key = KeyPair::generate()?;
        fs::write(directory.join(ACCOUNTS_KEY), key.serialize_pem())?;
        fs::write(directory.join(ACCOUNTS_PUBLIC_KEY), key.public_key_pem())?;
        fs::write(directory.join(TOKENS), tokens(users))?;
        fs::write(directory.join(AUDIT_POLICY), audit_policy(users))?;
        let etcd = Etcd::start(parent, 1).await?;
        let etcd_url = etcd.endpoints().join(",");
        let started = with_addresses(async |[address]| {
            for user in [ADMIN].iter().chain(users) {
                write_kubeconfig(&directory, user, address)?;
            }
            let arguments = server_arguments(&directory, address, &etcd_url);
            let server = start_server(parent, &arguments)?;
            let objects = Objects::of(&kubeconfig(&directory, ADMIN)).await?;
            ready(&server, &objects).await?;
            Ok((server, arguments))
        });
        let (server, arguments) = started.await.context("the API server does not start")?;
        Ok(Kubernetes {
            controllers: None,
            server,
            etcd,
            directory,
            parent: parent.to_owned(),
            arguments,
        })
    }

    /// Starts the controllers, which act as soon as they have read everything.
    pub fn start_controllers(&mut self) -> Result<()> {
        let arguments = [
            format!("--kubeconfig={}", self.kubeconfig(ADMIN).display()),
            format!(
                "--service-account-private-key-file={}",
                self.directory.join(ACCOUNTS_KEY).display()
            ),
            format!("--controllers={}", CONTROLLERS.join(",")),
            "--leader-elect=false".to_owned(),
            // It serves nothing itself.
            "--secure-port=0".to_owned(),
        ];
        let program = paths::kubernetes("kube-controller-manager")?;
        let process = Process::start(
            &self.parent,
            "kube-controller-manager",
            &program,
            &arguments,
        )?;
        self.controllers = Some(process);
        Ok(())
    }

    /// The admin's client.
    pub async fn objects(&self) -> Result<Objects> {
        self.objects_of(ADMIN).await
    }

    /// The client of one of the users.
    pub async fn objects_of(&self, user: &str) -> Result<Objects> {
        Objects::of(&self.kubeconfig(user)).await
    }

    /// The file with which a program is the admin.
    pub fn admin(&self) -> PathBuf {
        self.kubeconfig(ADMIN)
    }

    /// The file with which a program is one of the users.
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        kubeconfig(&self.directory, user)
    }

    /// The API server, to kill, pause and resume it.
    pub fn process(&self) -> &Process {
        &self.server
    }

    pub fn etcd(&self) -> &Etcd {
        &self.etcd
    }

    /// What a user has asked of the API server so far.
    pub fn calls(&self, user: &str) -> Result<Vec<Call>> {
        let log = fs::read_to_string(self.directory.join(AUDIT_LOG))?;
        let mut calls = vec![];
        for line in log.lines() {
            let event: Value = serde_json::from_str(line)?;
            if event["user"]["username"] == user {
                calls.extend(Call::of(&event));
            }
        }
        Ok(calls)
    }

    /// Starts the API server again, in place of the one that runs.
    pub async fn restart(&mut self) -> Result<()> {
        // One that has ended already is as good.
        let _ = self.server.kill();
        self.server = start_server(&self.parent, &self.arguments)?;
        ready(&self.server, &self.objects().await?).await
    }
}

fn server_arguments(directory: &Path, address: SocketAddr, etcd_url: &str) -> Vec<String> {
    let file = |name: &str| directory.join(name).display().to_string();
    vec![
        format!("--etcd-servers={etcd_url}"),
        format!("--bind-address={}", address.ip()),
        format!("--secure-port={}", address.port()),
        // Otherwise it looks for a default route, which a namespace may lack. Nobody asks there.
        "--advertise-address=192.0.2.1".to_owned(),
        // With any other it refuses to be on loopback.
        "--endpoint-reconciler-type=none".to_owned(),
        format!("--tls-cert-file={}", file(CERTIFICATE)),
        format!("--tls-private-key-file={}", file(KEY)),
        format!("--service-account-key-file={}", file(ACCOUNTS_PUBLIC_KEY)),
        format!("--service-account-signing-key-file={}", file(ACCOUNTS_KEY)),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
        format!("--token-auth-file={}", file(TOKENS)),
        "--authorization-mode=RBAC".to_owned(),
        format!("--audit-policy-file={}", file(AUDIT_POLICY)),
        format!("--audit-log-path={}", file(AUDIT_LOG)),
        // Pods are refused with it where no controller makes service accounts.
        "--disable-admission-plugins=ServiceAccount".to_owned(),
    ]
}

fn start_server(parent: &Path, arguments: &[String]) -> Result<Process> {
    let program = paths::kubernetes("kube-apiserver")?;
    Process::start(parent, "kube-apiserver", &program, arguments)
}

async fn ready(server: &Process, objects: &Objects) -> Result<()> {
    let ready = eventually(START_TIME_MAX, "the API server to be ready", async || {
        let request = hyper::Request::get("/readyz").body(vec![])?;
        objects.client().request_text(request).await?;
        Ok(())
    });
    server.unless_it_ends(ready).await
}

fn token(user: &str) -> String {
    format!("token-of-{user}")
}

/// Lines of token, name, id and groups.
fn tokens(users: &[&str]) -> String {
    let admin = format!("{},{ADMIN},{ADMIN},{ADMINS}\n", token(ADMIN));
    let users = users
        .iter()
        .map(|user| format!("{},{user},{user}\n", token(user)));
    [admin].into_iter().chain(users).collect()
}

/// Every request of these users, without its body, and nothing else.
fn audit_policy(users: &[&str]) -> String {
    let mut rules = vec![json!({ "level": "None" })];
    if !users.is_empty() {
        rules.insert(0, json!({ "level": "Metadata", "users": users }));
    }
    let policy = json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": rules,
    });
    policy.to_string()
}

fn kubeconfig(directory: &Path, user: &str) -> PathBuf {
    directory.join(format!("{user}.kubeconfig"))
}

fn write_kubeconfig(directory: &Path, user: &str, address: SocketAddr) -> Result<()> {
    let content = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "e2e", "cluster": {
            "server": format!("https://{address}"),
            "certificate-authority": directory.join(TRUSTED),
        } }],
        "users": [{ "name": user, "user": { "token": token(user) } }],
        "contexts": [{ "name": user, "context": { "cluster": "e2e", "user": user } }],
        "current-context": user,
    });
    let path = kubeconfig(directory, user);
    fs::write(&path, format!("{content:#}")).with_context(|| path.display().to_string())
}
