//! A real etcd of one or more members on loopback; it stops when its value is dropped.

use std::ffi::OsString;
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use registry::store::{EtcdCredentials, EtcdOptions, EtcdStore, Store};
use tempfile::TempDir;
use tokio::sync::watch;

use super::certificates::Ca;

/// How often a cluster is restarted because another process took a port between its allocation by
/// the kernel and its use by etcd.
const START_ATTEMPTS: usize = 3;

/// How often, a millisecond apart, a member is checked for having stopped.
const STOP_LOOKS_MAX: u32 = 10_000;

pub(crate) struct Cluster {
    members: Vec<Member>,
    /// Whose certificates members and clients show; none: plain text.
    pub(crate) ca: Option<Ca>,
    // Last, so that it is removed after its users have ended.
    directory: TempDir,
}

struct Member {
    process: Child,
    endpoint: String,
    /// To start it again.
    command: Command,
}

impl Drop for Member {
    fn drop(&mut self) {
        // SIGKILL ends a stopped process too.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Cluster {
    /// Starts a cluster and waits until it answers.
    pub(crate) async fn start(members: usize) -> Self {
        Cluster::start_with(members, || None).await
    }

    /// The same with TLS: members show certificates of the cluster's CA, and ask clients for one.
    pub(crate) async fn start_with_tls(members: usize) -> Self {
        Cluster::start_with(members, || Some(Ca::new())).await
    }

    async fn start_with(members: usize, ca: impl Fn() -> Option<Ca>) -> Self {
        for _ in 0..START_ATTEMPTS {
            let mut cluster = Cluster::spawn(members, ca());
            if cluster.becomes_ready().await {
                return cluster;
            }
            eprintln!("etcd did not start:\n{}", cluster.logs());
        }
        panic!("etcd did not start in {START_ATTEMPTS} attempts");
    }

    fn spawn(count: usize, ca: Option<Ca>) -> Self {
        let binary = binary();
        let directory = tempfile::tempdir().expect("a directory for etcd");
        // All listeners stay open until all ports are known, so that no port is allocated twice.
        let listeners: Vec<TcpListener> = (0..2 * count)
            .map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"))
            .collect();
        let addresses: Vec<String> = listeners
            .iter()
            .map(|listener| listener.local_addr().expect("an address").to_string())
            .collect();
        drop(listeners);
        let (clients, peers) = addresses.split_at(count);
        let scheme = if ca.is_some() { "https" } else { "http" };
        let clients = clients.iter().map(|at| format!("{scheme}://{at}"));
        let peers: Vec<String> = peers.iter().map(|at| format!("http://{at}")).collect();
        let tls = (ca.iter()).flat_map(|ca| ca.arguments_of_a_member(directory.path()));
        let tls: Vec<OsString> = tls.collect();
        let initial: Vec<String> = peers
            .iter()
            .enumerate()
            .map(|(i, peer)| format!("m{i}={peer}"))
            .collect();
        let members = clients
            .zip(&peers)
            .enumerate()
            .map(|(i, (client, peer))| {
                let data = directory.path().join(format!("m{i}"));
                let log = File::create(directory.path().join(format!("m{i}.log"))).expect("a log");
                let mut command = Command::new(&binary);
                command
                    .args(["--name", &format!("m{i}"), "--log-level", "warn"])
                    .arg("--data-dir")
                    .arg(data)
                    .args([
                        "--listen-client-urls",
                        &client,
                        "--advertise-client-urls",
                        &client,
                    ])
                    .args(&tls)
                    .args([
                        "--listen-peer-urls",
                        peer,
                        "--initial-advertise-peer-urls",
                        peer,
                    ])
                    .args(["--initial-cluster", &initial.join(",")])
                    .args(["--initial-cluster-state", "new", "--unsafe-no-fsync"])
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(log);
                Member {
                    process: command.spawn().expect("etcd starts"),
                    endpoint: client,
                    command,
                }
            })
            .collect();
        Cluster {
            members,
            ca,
            directory,
        }
    }

    /// Whether every member answers before one of them exits or the deadline passes.
    async fn becomes_ready(&mut self) -> bool {
        let attempts = super::DEADLINE.as_millis() / 50;
        for i in 0..self.members.len() {
            let options = EtcdOptions {
                endpoints: vec![self.members[i].endpoint.clone()],
                ..self.options()
            };
            let store = EtcdStore::new(options).await.expect("an endpoint");
            let mut answered = false;
            for _ in 0..attempts {
                let exited = self.members[i].process.try_wait().expect("a child");
                answered = store.cluster_id().await.is_ok();
                if answered || exited.is_some() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            if !answered {
                return false;
            }
        }
        true
    }

    /// The client addresses of all members.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        let endpoints = self.members.iter().map(|member| member.endpoint.clone());
        endpoints.collect()
    }

    /// A store that prefers the first member.
    pub(crate) async fn store(&self) -> EtcdStore {
        EtcdStore::new(self.options()).await.expect("endpoints")
    }

    /// With a certificate where members ask for one, and without a user.
    pub(crate) fn options(&self) -> EtcdOptions {
        let tls = self.ca.as_ref().map(|ca| ca.client("tidegate"));
        let credentials = EtcdCredentials { tls, user: None };
        EtcdOptions {
            credentials: watch::channel(Arc::new(credentials)).1,
            ..EtcdOptions::new(self.endpoints())
        }
    }

    /// Starts a member again that was killed.
    pub(crate) fn revive(&mut self, member: usize) {
        let member = &mut self.members[member];
        member.process = member.command.spawn().expect("etcd starts");
    }

    /// Kills a member.
    pub(crate) fn kill(&mut self, member: usize) {
        self.members[member].process.kill().expect("kill");
        self.members[member].process.wait().expect("wait");
    }

    /// Makes a member hang: its sockets stay open, and nothing answers.
    pub(crate) fn pause(&self, member: usize) {
        let pid = self.members[member].process.id().to_string();
        let status = Command::new("kill").args(["-STOP", &pid]).status();
        assert!(status.expect("kill").success());
        // The signal stops one thread after another: on a busy machine a request sent right after
        // it may still be answered.
        let stops = (0..STOP_LOOKS_MAX).any(|_| {
            std::thread::sleep(Duration::from_millis(1));
            has_stopped(&pid)
        });
        assert!(stops, "member {member} does not stop");
    }

    fn logs(&self) -> String {
        (0..self.members.len())
            .filter_map(|i| {
                std::fs::read_to_string(self.directory.path().join(format!("m{i}.log"))).ok()
            })
            .collect()
    }
}

/// Whether no thread of a process runs any more.
fn has_stopped(pid: &str) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
    threads.flatten().all(|thread| {
        // `id (name) state ...`, where the name may contain anything. One without has ended.
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        let state = stat.rsplit_once(") ").map(|(_, rest)| rest);
        state.is_none_or(|state| state.starts_with('T'))
    })
}

/// Without etcd the tests fail instead of passing silently.
#[allow(
    clippy::disallowed_methods,
    reason = "a developer's own etcd for the tests"
)]
fn binary() -> PathBuf {
    let provisioned = || {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        workspace.join("target/tools/bin/etcd")
    };
    let path = std::env::var("TIDEGATE_ETCD").map_or_else(|_| provisioned(), PathBuf::from);
    assert!(
        path.exists(),
        "no etcd at {}: run `cargo xtask setup`",
        path.display()
    );
    path
}
