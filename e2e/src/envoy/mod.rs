//! A real Envoy.

mod admin;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::bootstrap::Bootstrap;
use crate::paths;
use crate::process::Process;
use crate::wait::{PATIENCE, eventually};

pub use admin::Admin;

/// The protocol between an Envoy and the control plane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    #[default]
    Delta,
    /// State of the world.
    Sotw,
}

/// The role of an Envoy; each has its own bootstrap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    #[default]
    Gateway,
    Sidecar,
}

impl Role {
    pub const fn as_str(self) -> &'static str {
        match self {
            Role::Gateway => "gateway",
            Role::Sidecar => "sidecar",
        }
    }
}

/// The Envoy to start.
#[derive(Clone, Debug)]
pub struct Options {
    /// Unique in its mesh; its files have this prefix.
    pub id: String,
    pub zone: String,
    pub region: String,
    pub role: Role,
    pub protocol: Protocol,
    /// Worker threads.
    pub concurrency: u32,
}

impl Options {
    /// A gateway with one worker.
    pub fn gateway(region: &str, zone: &str) -> Options {
        Options {
            id: format!("gateway-{zone}"),
            zone: zone.to_owned(),
            region: region.to_owned(),
            role: Role::Gateway,
            protocol: Protocol::Delta,
            concurrency: 1,
        }
    }
}

/// A running Envoy.
pub struct Envoy {
    process: Process,
    admin: Admin,
}

impl Envoy {
    /// Starts a proxy of the mesh and waits until its admin interface answers. It may have no
    /// listener yet.
    pub async fn start(
        directory: &Path,
        options: &Options,
        control_plane: SocketAddr,
    ) -> Result<Envoy> {
        let mut bootstrap = Bootstrap::read(&format!("{}.yaml", options.role.as_str()))?
            .node(&options.id, &options.region, &options.zone)?
            .cluster_at("tidegate", control_plane)?;
        if options.protocol == Protocol::Sotw {
            bootstrap = bootstrap.state_of_the_world()?;
        }
        Envoy::start_with(directory, &options.id, &bootstrap, options.concurrency).await
    }

    /// As [`start`](Envoy::start), with a connection to `output` for its standard output.
    pub async fn start_with_socket(
        directory: &Path,
        options: &Options,
        control_plane: SocketAddr,
        output: SocketAddr,
    ) -> Result<Envoy> {
        let bootstrap = Bootstrap::read(&format!("{}.yaml", options.role.as_str()))?
            .node(&options.id, &options.region, &options.zone)?
            .cluster_at("tidegate", control_plane)?;
        let (id, workers) = (&options.id, options.concurrency);
        Envoy::launch(directory, id, &bootstrap, workers, Some(output)).await
    }

    /// Starts an Envoy with any bootstrap whose admin port is 0.
    pub async fn start_with(
        directory: &Path,
        id: &str,
        bootstrap: &Bootstrap,
        concurrency: u32,
    ) -> Result<Envoy> {
        Envoy::launch(directory, id, bootstrap, concurrency, None).await
    }

    async fn launch(
        directory: &Path,
        id: &str,
        bootstrap: &Bootstrap,
        concurrency: u32,
        output: Option<SocketAddr>,
    ) -> Result<Envoy> {
        let config = directory.join(format!("{id}.json"));
        let admin_file = directory.join(format!("{id}.admin"));
        bootstrap.write(&config)?;
        // From an earlier start under this id.
        let _ = fs::remove_file(&admin_file);
        let concurrency = concurrency.to_string();
        let arguments = [
            "-c",
            text(&config)?,
            "--admin-address-path",
            text(&admin_file)?,
            "--concurrency",
            &concurrency,
            // Several Envoys of one machine would otherwise treat each other as predecessors.
            "--disable-hot-restart",
            // For the access log; 10 s by default.
            "--file-flush-interval-msec",
            "200",
            "--log-level",
            "warning",
            "--component-log-level",
            "wasm:info,config:info,dynamic_modules:info",
        ]
        .map(str::to_owned);
        let process = match output {
            None => Process::start(directory, id, &paths::envoy()?, &arguments)?,
            Some(output) => {
                let connect = "exec \"$@\" > /dev/tcp/${0%:*}/${0##*:}".to_owned();
                let (output, envoy) = (output.to_string(), paths::envoy()?);
                let before = ["-c".to_owned(), connect, output, text(&envoy)?.to_owned()];
                let arguments: Vec<String> = before.into_iter().chain(arguments).collect();
                Process::start(directory, id, Path::new("bash"), &arguments)?
            }
        };
        let answers = eventually(PATIENCE, "Envoy's admin interface", async || {
            let address = fs::read_to_string(&admin_file).context("no address file")?;
            let admin = Admin::new(address.parse().context(address)?);
            admin.get("/server_info").await?;
            Ok(admin)
        });
        let admin = process.unless_it_ends(answers).await?;
        Ok(Envoy { process, admin })
    }

    /// One that another program has started, as soon as its admin interface answers there.
    pub(crate) async fn of(process: Process, admin: SocketAddr, within: Duration) -> Result<Envoy> {
        let admin = Admin::new(admin);
        let answers = eventually(within, "Envoy's admin interface", async || {
            admin.get("/server_info").await
        });
        process.unless_it_ends(answers).await?;
        Ok(Envoy { process, admin })
    }

    pub fn process(&self) -> &Process {
        &self.process
    }

    pub fn admin(&self) -> &Admin {
        &self.admin
    }

    /// The address of the listener `ingress`, as soon as it accepts connections.
    pub async fn ingress(&self) -> Result<SocketAddr> {
        let listens = eventually(PATIENCE, "Envoy's listener `ingress`", async || {
            // The list contains a listener before the workers have it.
            let state = self.admin.state().await?;
            ensure!(state == "LIVE", "Envoy is {state}");
            self.admin.listener("ingress").await
        });
        self.process.unless_it_ends(listens).await
    }
}

/// Runs Envoy's own check of a bootstrap; the error is Envoy's output.
pub async fn validate(directory: &Path, id: &str, bootstrap: &Bootstrap) -> Result<()> {
    let config = directory.join(format!("{id}.json"));
    bootstrap.write(&config)?;
    let arguments = ["--mode", "validate", "-c", text(&config)?].map(str::to_owned);
    let process = Process::start(directory, id, &paths::envoy()?, &arguments)?;
    let status = eventually(PATIENCE, "Envoy to validate", async || {
        process.exit_status()?.context("it is running")
    })
    .await?;
    ensure!(status.success(), "{status}\n{}", process.tail());
    Ok(())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{}: not UTF-8", PathBuf::from(path).display()))
}
