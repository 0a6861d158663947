//! `tidegate serve` and `tidegate check`.

use std::{
    ffi::OsString,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::Context;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};
use xds_server::{
    config::StoreConfig,
    control_plane::{ControlPlane, Leaving, Options},
    reload,
    start::Start,
};

/// Runs a control plane until SIGTERM or SIGINT; a second one ends it at once, which is also safe.
#[tokio::main]
pub(crate) async fn serve(
    options: Options,
    addresses_file: Option<&Path>,
    leaving: Leaving,
) -> anyhow::Result<()> {
    let control_plane = ControlPlane::build(options).await?;
    if let Some(file) = addresses_file {
        let (xds, admin) = control_plane.addresses();
        write_addresses(file, xds, admin)?;
    }
    let (told, shutdown) = mpsc::channel(2);
    let signals = [
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    ];
    for signal in signals {
        tokio::spawn(pass_on(signal, told.clone()));
    }
    control_plane.run(leaving, shutdown).await
}

async fn pass_on(mut signal: Signal, told: mpsc::Sender<()>) {
    while signal.recv().await.is_some() && told.send(()).await.is_ok() {}
}

pub(crate) fn check(config: &Path, zone: Option<&str>) -> anyhow::Result<()> {
    let (config, _) = reload::read(config)?;
    for warning in &config.warnings {
        println!("warning: {warning}");
    }
    Start::of(&config, zone, state_directory().as_deref())?;
    if let StoreConfig::Etcd { access, .. } = &config.store {
        access.try_files()?;
    }
    let mesh = &config.mesh;
    println!(
        "good: {} zones, {} services. The filter and the named certificates were not checked",
        mesh.topology.zones().len(),
        mesh.services.len()
    );
    Ok(())
}

/// Where the container image has the filter; none outside of it.
pub(crate) fn filter_of_the_image() -> Option<PathBuf> {
    let path = Path::new("/usr/local/share/tidegate/tidegate_filter.wasm");
    path.exists().then(|| path.to_owned())
}

/// The directory that systemd assigns for a service's state.
pub(crate) fn state_directory() -> Option<OsString> {
    #[allow(clippy::disallowed_methods, reason = "systemd names the directory so")]
    std::env::var_os("STATE_DIRECTORY")
}

/// Writes under another name first: a waiting reader never reads a partial file.
fn write_addresses(file: &Path, xds: SocketAddr, admin: SocketAddr) -> anyhow::Result<()> {
    let text = serde_json::json!({ "xds": xds, "admin": admin }).to_string();
    let partial = file.with_extension("partial");
    std::fs::write(&partial, text)
        .and_then(|()| std::fs::rename(&partial, file))
        .with_context(|| format!("cannot write {}", file.display()))
}
