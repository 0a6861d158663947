//! A real etcd of one or three members.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};

use crate::certificates::{CERTIFICATE, Ca, KEY, TRUSTED};
use crate::paths;
use crate::process::Process;
use crate::wait::{PATIENCE, eventually};

/// How often a cluster is restarted because another process took a port between its allocation by
/// the kernel and its use by etcd.
const START_ATTEMPTS: usize = 3;

/// A running cluster.
pub struct Etcd {
    members: Vec<Member>,
}

/// One member of it.
pub struct Member {
    directory: PathBuf,
    name: String,
    client: SocketAddr,
    /// The directory of its certificate, which clients may show too; none: plain text.
    certificates: Option<PathBuf>,
    arguments: Vec<String>,
    process: Process,
}

impl Etcd {
    /// Starts `count` members below `directory` and waits until each of them answers.
    pub async fn start(directory: &Path, count: usize) -> Result<Etcd> {
        Etcd::start_with(directory, count, None).await
    }

    /// The same with TLS: members show a certificate of the CA, and ask clients for one.
    pub async fn start_with_tls(directory: &Path, count: usize, ca: &Ca) -> Result<Etcd> {
        let certificates = directory.join("etcd-certificates");
        ca.issue(&certificates, "127.0.0.1", &[ca])?;
        Etcd::start_with(directory, count, Some(&certificates)).await
    }

    async fn start_with(
        directory: &Path,
        count: usize,
        certificates: Option<&Path>,
    ) -> Result<Etcd> {
        let mut last = None;
        for attempt in 0..START_ATTEMPTS {
            let started = Etcd::try_start(directory, count, certificates, attempt).await;
            match started {
                Ok(etcd) => return Ok(etcd),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("no attempt")?).context("etcd does not start")
    }

    async fn try_start(
        directory: &Path,
        count: usize,
        certificates: Option<&Path>,
        attempt: usize,
    ) -> Result<Etcd> {
        // All stay open until all ports are known, so that no port is allocated twice.
        let listeners: Vec<TcpListener> = (0..2 * count)
            .map(|_| TcpListener::bind("127.0.0.1:0"))
            .collect::<Result<_, _>>()?;
        let addresses: Vec<SocketAddr> = listeners
            .iter()
            .map(TcpListener::local_addr)
            .collect::<Result<_, _>>()?;
        drop(listeners);
        let (clients, peers) = addresses.split_at(count);
        let name = |index| format!("etcd-{attempt}-{index}");
        let cluster: Vec<String> = peers
            .iter()
            .enumerate()
            .map(|(index, peer)| format!("{}=http://{peer}", name(index)))
            .collect();
        let members = (0..count)
            .map(|index| {
                let addresses = (clients[index], peers[index]);
                let cluster = cluster.join(",");
                Member::start(directory, &name(index), addresses, certificates, &cluster)
            })
            .collect::<Result<_>>()?;
        let etcd = Etcd { members };
        for member in &etcd.members {
            member.answers().await?;
        }
        Ok(etcd)
    }

    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Kills all members.
    pub fn kill(&self) -> Result<()> {
        self.members
            .iter()
            .try_for_each(|member| member.process.kill())
    }

    /// From the next start on, an empty cluster has another id, which is derived from this token.
    pub fn set_token(&mut self, token: &str) {
        for member in &mut self.members {
            member.arguments.push("--initial-cluster-token".to_owned());
            member.arguments.push(token.to_owned());
        }
    }

    /// From the next start on, a member accepts no more than this, and raises the alarm NOSPACE.
    pub fn set_quota(&mut self, bytes: u64) {
        for member in &mut self.members {
            member
                .arguments
                .push(format!("--quota-backend-bytes={bytes}"));
        }
    }

    /// Restarts all members with their data, in place of the running ones.
    pub async fn restart(&mut self) -> Result<()> {
        // Starts all of them first: none answers before there is a quorum.
        for member in &mut self.members {
            member.restart()?;
        }
        for member in &self.members {
            member.answers().await?;
        }
        Ok(())
    }

    /// The URL of every member.
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(Member::endpoint).collect()
    }

    /// A client of the first member, to write like an operator or another registry.
    pub async fn client(&self) -> Result<Client> {
        self.client_as(ConnectOptions::new()).await
    }

    /// The same with options of its own, such as a user.
    pub async fn client_as(&self, options: ConnectOptions) -> Result<Client> {
        let first = self.members.first().context("no members")?;
        first.connect(options).await
    }
}

impl Member {
    fn start(
        directory: &Path,
        name: &str,
        (client, peer): (SocketAddr, SocketAddr),
        certificates: Option<&Path>,
        cluster: &str,
    ) -> Result<Member> {
        let data = directory.join(name).display().to_string();
        let (client_url, peer_url) = (url(client, certificates), url(peer, None));
        let mut arguments: Vec<String> = [
            "--name",
            name,
            "--data-dir",
            &data,
            "--listen-client-urls",
            &client_url,
            "--advertise-client-urls",
            &client_url,
            "--listen-peer-urls",
            &peer_url,
            "--initial-advertise-peer-urls",
            &peer_url,
            "--initial-cluster",
            cluster,
            "--log-level",
            "warn",
            // The machine does not lose power during a test, and its disk may be slow.
            "--unsafe-no-fsync",
        ]
        .map(str::to_owned)
        .into();
        if let Some(certificates) = certificates {
            arguments.push("--client-cert-auth".to_owned());
            for (argument, file) in [
                ("--cert-file", CERTIFICATE),
                ("--key-file", KEY),
                ("--trusted-ca-file", TRUSTED),
            ] {
                arguments.push(argument.to_owned());
                arguments.push(certificates.join(file).display().to_string());
            }
        }
        let process = Process::start(directory, name, &paths::etcd()?, &arguments)?;
        Ok(Member {
            directory: directory.to_owned(),
            name: name.to_owned(),
            client,
            certificates: certificates.map(Path::to_owned),
            arguments,
            process,
        })
    }

    /// Its data directory.
    pub fn data(&self) -> PathBuf {
        self.directory.join(&self.name)
    }

    pub fn address(&self) -> SocketAddr {
        self.client
    }

    pub fn endpoint(&self) -> String {
        url(self.client, self.certificates.as_deref())
    }

    async fn connect(&self, options: ConnectOptions) -> Result<Client> {
        let options = match &self.certificates {
            Some(directory) => {
                let read = |file| std::fs::read(directory.join(file));
                let own = Identity::from_pem(read(CERTIFICATE)?, read(KEY)?);
                let ca = Certificate::from_pem(read(TRUSTED)?);
                options.with_tls(TlsOptions::new().ca_certificate(ca).identity(own))
            }
            None => options,
        };
        Ok(Client::connect([self.endpoint()], Some(options)).await?)
    }

    /// The process, to kill, pause and resume it.
    pub fn process(&self) -> &Process {
        &self.process
    }

    fn restart(&mut self) -> Result<()> {
        // A member that has ended already is fine.
        let _ = self.process.kill();
        self.process = Process::start(
            &self.directory,
            &self.name,
            &paths::etcd()?,
            &self.arguments,
        )?;
        Ok(())
    }

    async fn answers(&self) -> Result<()> {
        let answers = eventually(PATIENCE, "etcd to answer", async || {
            let mut client = self.connect(ConnectOptions::new()).await?;
            client.status().await?;
            // A linearizable read, which needs a leader.
            client.get("health", None).await?;
            Ok(())
        });
        self.process.unless_it_ends(answers).await
    }
}

fn url(address: SocketAddr, certificates: Option<&Path>) -> String {
    let scheme = if certificates.is_some() {
        "https"
    } else {
        "http"
    };
    format!("{scheme}://{address}")
}
