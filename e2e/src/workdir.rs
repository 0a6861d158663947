//! A directory for the files of one mesh: configurations, logs, stores.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::paths;

/// The directory of a mesh's files.
pub enum Workdir {
    /// Removed with the value.
    Temporary(TempDir),
    /// Below `target/e2e`, to inspect the logs after a test. A later run removes it.
    Kept(PathBuf),
}

impl Workdir {
    /// A directory that is removed at the end.
    pub fn temporary() -> Result<Workdir> {
        let directory = tempfile::Builder::new()
            .prefix("tidegate-")
            .tempdir()
            .context("a temporary directory")?;
        Ok(Workdir::Temporary(directory))
    }

    /// A directory for the test `name`. Removes those of ended test runs first.
    pub fn kept(name: &str) -> Result<Workdir> {
        let parent = paths::workspace().join("target/e2e");
        fs::create_dir_all(&parent).with_context(|| parent.display().to_string())?;
        remove_old(&parent)?;
        let directory = parent.join(format!("{name}.{}", process::id()));
        fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
        Ok(Workdir::Kept(directory))
    }

    pub fn path(&self) -> &Path {
        match self {
            Workdir::Temporary(directory) => directory.path(),
            Workdir::Kept(directory) => directory,
        }
    }
}

/// Removes the directories of ended processes: the number after the dot is the process id.
fn remove_old(parent: &Path) -> Result<()> {
    for entry in fs::read_dir(parent)? {
        let path = entry?.path();
        let owner = path.extension().and_then(|number| number.to_str());
        if owner.is_none_or(|number| !Path::new("/proc").join(number).exists()) {
            // Another test may have been faster.
            let _ = fs::remove_dir_all(&path);
        }
    }
    Ok(())
}
