//! A real etcd of one or more members on loopback; it stops when its value is dropped.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use registry::store::{EtcdOptions, EtcdStore, Store};
use tempfile::TempDir;

/// How often a cluster is restarted because another process took a port between its allocation by
/// the kernel and its use by etcd.
const START_ATTEMPTS: usize = 3;

/// How often, a millisecond apart, a member is checked for having stopped.
const STOP_LOOKS_MAX: u32 = 10_000;

pub(crate) struct Cluster {
    members: Vec<Member>,
    // Last, so that it is removed after its users have ended.
    directory: TempDir,
}

struct Member {
    process: Child,
    endpoint: String,
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
        for _ in 0..START_ATTEMPTS {
            let mut cluster = Cluster::spawn(members);
            if cluster.becomes_ready().await {
                return cluster;
            }
            eprintln!("etcd did not start:\n{}", cluster.logs());
        }
        panic!("etcd did not start in {START_ATTEMPTS} attempts");
    }

    fn spawn(count: usize) -> Self {
        let binary = binary();
        let directory = tempfile::tempdir().expect("a directory for etcd");
        // All listeners stay open until all ports are known, so that no port is allocated twice.
        let listeners: Vec<TcpListener> = (0..2 * count)
            .map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"))
            .collect();
        let urls: Vec<String> = listeners
            .iter()
            .map(|listener| format!("http://{}", listener.local_addr().expect("an address")))
            .collect();
        drop(listeners);
        let (clients, peers) = urls.split_at(count);
        let initial: Vec<String> = peers
            .iter()
            .enumerate()
            .map(|(i, peer)| format!("m{i}={peer}"))
            .collect();
        let members = clients
            .iter()
            .zip(peers)
            .enumerate()
            .map(|(i, (client, peer))| {
                let data = directory.path().join(format!("m{i}"));
                let log = File::create(directory.path().join(format!("m{i}.log"))).expect("a log");
                let process = Command::new(&binary)
                    .args(["--name", &format!("m{i}"), "--log-level", "warn"])
                    .arg("--data-dir")
                    .arg(data)
                    .args([
                        "--listen-client-urls",
                        client,
                        "--advertise-client-urls",
                        client,
                    ])
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
                    .stderr(log)
                    .spawn()
                    .expect("etcd starts");
                let endpoint = client.clone();
                Member { process, endpoint }
            })
            .collect();
        Cluster { members, directory }
    }

    /// Whether every member answers before one of them exits or the deadline passes.
    async fn becomes_ready(&mut self) -> bool {
        let attempts = super::DEADLINE.as_millis() / 50;
        for i in 0..self.members.len() {
            let options = EtcdOptions::new(vec![self.members[i].endpoint.clone()]);
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
        let options = EtcdOptions::new(self.endpoints());
        EtcdStore::new(options).await.expect("endpoints")
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
