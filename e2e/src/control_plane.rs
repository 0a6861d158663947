//! The control plane, as a process.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::config::Config;
use crate::paths;
use crate::process::{Process, write_atomically};
use crate::registry::Registry;
use crate::wait::{PATIENCE, eventually};

/// A control plane that can be stopped, killed and restarted at the same addresses.
pub struct ControlPlane {
    directory: PathBuf,
    config: Config,
    process: Process,
    registry: Registry,
    addresses: Addresses,
    /// On SIGTERM it hands its cells over; from the next start on.
    pub hands_over: bool,
}

impl ControlPlane {
    /// Starts it with `config` and waits until it is ready to serve.
    pub async fn start(directory: &Path, config: Config) -> Result<ControlPlane> {
        let control_plane = ControlPlane::launch(directory, config).await?;
        control_plane.until_ready().await?;
        Ok(control_plane)
    }

    /// Starts it with `config` and waits until it listens: it may have nothing to serve, or require
    /// certificates.
    pub async fn launch(directory: &Path, config: Config) -> Result<ControlPlane> {
        write_config(directory, &config)?;
        let (process, addresses) = serve(directory, false).await?;
        Ok(ControlPlane {
            directory: directory.to_owned(),
            config,
            process,
            registry: Registry::new(addresses.admin),
            addresses,
            hands_over: false,
        })
    }

    /// The address for proxies.
    pub fn xds(&self) -> SocketAddr {
        self.addresses.xds
    }

    /// Its admin API.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The host and port of its admin API.
    pub fn admin(&self) -> SocketAddr {
        self.addresses.admin
    }

    /// The process, to pause, resume and kill it, or to read its log.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The configuration that it was started with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Changes the configuration file. The control plane reads it within a second; wait for the
    /// effect.
    pub fn configure(&mut self, change: impl FnOnce(&mut Config)) -> Result<()> {
        change(&mut self.config);
        write_config(&self.directory, &self.config)
    }

    /// Replaces the configuration file by any text.
    pub fn misconfigure(&self, text: &str) -> Result<()> {
        write_atomically(&config_file(&self.directory), text)
    }

    /// Asks it to shut down, and waits for the end.
    pub async fn stop(&self) -> Result<()> {
        let status = self.process.terminate(PATIENCE).await?;
        ensure!(status.success(), "{status}\n{}", self.process.tail());
        Ok(())
    }

    /// Restarts it at its addresses, after [`stop`](ControlPlane::stop) or a kill, and waits until
    /// it is ready to serve.
    pub async fn restart(&mut self) -> Result<()> {
        self.begin().await?;
        self.until_ready().await
    }

    /// Restarts it, and waits until it listens: it may have nothing to serve.
    pub async fn begin(&mut self) -> Result<()> {
        // Its proxies and instances expect it at its old addresses.
        self.config.xds = self.addresses.xds;
        self.config.admin = self.addresses.admin;
        write_config(&self.directory, &self.config)?;
        let (process, addresses) = serve(&self.directory, self.hands_over).await?;
        ensure!(addresses == self.addresses, "{addresses:?}");
        self.process = process;
        Ok(())
    }

    async fn until_ready(&self) -> Result<()> {
        let ready = eventually(PATIENCE, "the control plane to be ready", async || {
            self.registry.ready().await
        });
        self.process.unless_it_ends(ready).await
    }
}

/// The addresses that the control plane prints once it listens.
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Addresses {
    xds: SocketAddr,
    admin: SocketAddr,
}

fn config_file(directory: &Path) -> PathBuf {
    directory.join("tidegate.yaml")
}

fn write_config(directory: &Path, config: &Config) -> Result<()> {
    write_atomically(
        &config_file(directory),
        &config.text(&config.flavour.file()?),
    )
}

async fn serve(directory: &Path, hands_over: bool) -> Result<(Process, Addresses)> {
    let file = directory.join("addresses.json");
    // From an earlier start.
    let _ = fs::remove_file(&file);
    let mut arguments = vec![
        "serve".to_owned(),
        "--config".to_owned(),
        config_file(directory).display().to_string(),
        "--addresses-file".to_owned(),
        file.display().to_string(),
        "--filter".to_owned(),
        paths::filter()?.display().to_string(),
    ];
    arguments.extend(hands_over.then(|| "--hand-over".to_owned()));
    let process = Process::start(directory, "tidegate", &paths::tidegate()?, &arguments)?;
    let listens = eventually(PATIENCE, "the control plane to listen", async || {
        let text = fs::read_to_string(&file).context("no addresses file")?;
        let addresses: Addresses = serde_json::from_str(&text).context(text)?;
        Ok(addresses)
    });
    let addresses = process.unless_it_ends(listens).await?;
    Ok((process, addresses))
}
