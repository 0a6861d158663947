//! The paths of this checkout.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::{env, fs, process};

use anyhow::{Context, Result};

pub(crate) struct Tree {
    root: PathBuf,
    target: PathBuf,
}

impl Tree {
    pub(crate) fn of_this_checkout() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .unwrap_or(Path::new("."))
            .to_path_buf();
        // Like cargo, a relative CARGO_TARGET_DIR is resolved from the current directory.
        let target =
            env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        Self { root, target }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of cargo's output; `CARGO_TARGET_DIR` may change it.
    pub(crate) fn built(&self) -> &Path {
        &self.target
    }

    /// Links to the tools. Always in the checkout, with any `CARGO_TARGET_DIR`:
    /// `.cargo/config.toml` and the tests expect them here.
    pub(crate) fn tools(&self) -> PathBuf {
        self.root.join("target/tools")
    }

    pub(crate) fn tool(&self, name: &str) -> PathBuf {
        self.tools().join("bin").join(name)
    }

    /// Makes `name` below [`tools`](Self::tools) a link to `to`, at once and in place of an older
    /// tool.
    pub(crate) fn link(&self, name: &str, to: &Path) -> Result<()> {
        let place = self.tools().join(name);
        if fs::read_link(&place).is_ok_and(|old| old == to) {
            return Ok(());
        }
        if fs::symlink_metadata(&place).is_ok_and(|old| old.is_dir()) {
            fs::remove_dir_all(&place)
                .with_context(|| format!("cannot remove {}", place.display()))?;
        }
        make_dir(place.parent().unwrap_or(&place))?;
        let fresh = place.with_extension(format!("new-{}", process::id()));
        // Of a process that had this number and was killed.
        let _ = fs::remove_file(&fresh);
        symlink(to, &fresh).with_context(|| format!("cannot link {}", fresh.display()))?;
        put(&fresh, &place)
    }

    pub(crate) fn filter(&self) -> PathBuf {
        self.root.join("target/filter/tidegate_filter.wasm")
    }

    pub(crate) fn module(&self) -> PathBuf {
        self.root.join("target/filter/libtidegate_module.so")
    }
}

/// A directory for unfinished work. Creating it removes the remains of a killed run, and dropping
/// it removes it. Finished files are renamed out of it, so it is on the same file system as its
/// destination.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn at(path: PathBuf) -> Result<Self> {
        if path.exists() {
            fs::remove_dir_all(&path)
                .with_context(|| format!("cannot clear {}", path.display()))?;
        }
        make_dir(&path)?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// A directory in here that is gone before this one is: for what takes much room.
    pub(crate) fn inner(&self, name: &str) -> Result<Self> {
        Self::at(self.0.join(name))
    }

    /// A directory in here.
    pub(crate) fn dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.0.join(name);
        make_dir(&dir)?;
        Ok(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path)
        .with_context(|| format!("cannot create {}: check its permissions", path.display()))
}

/// Moves a finished file into place at once: a partial file is never visible, and a running old one
/// is not affected.
pub(crate) fn put(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        make_dir(parent)?;
    }
    fs::rename(from, to)
        .with_context(|| format!("cannot move {} to {}", from.display(), to.display()))
}

/// The program of this name in `$PATH`.
pub(crate) fn in_path(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .map(|dir| dir.join(name))
        .find(|program| program.is_file())
}
