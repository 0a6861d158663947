//! Go, and nothing of it that stays on the machine.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fmt, fs};

use anyhow::{Context, Result};

use super::Site;
use super::apt::Suite;
use crate::run::says;
use crate::tree::in_path;

/// The oldest one that the modules in `e2e/peers` are built with.
const OLDEST: u32 = 26;

/// Debian's newest Go, unpacked with other packages.
pub(super) struct Unpacked {
    pub(super) root: PathBuf,
}

impl Unpacked {
    pub(super) fn with(site: &Site<'_>, packages: &[&str]) -> Result<Unpacked> {
        let go = site.apt(Suite::Unstable)?.with_dependencies("golang-go")?;
        // Its compiler and standard library, under the version of the day; its other dependencies
        // are needed for C only.
        let go = go.iter().filter(|name| {
            let version = name.strip_prefix("golang-").unwrap_or_default();
            version.starts_with(|first: char| first.is_ascii_digit())
        });
        let packages: Vec<&str> = go
            .map(String::as_str)
            .chain(packages.iter().copied())
            .collect();
        let root = site.packages(Suite::Unstable, &packages)?;
        Ok(Unpacked { root })
    }

    /// Its `go`, with everything set that is about where it lies.
    pub(super) fn command(&self) -> Result<Command> {
        let roots = fs::read_dir(self.root.join("usr/lib"))?.flatten();
        let go_root = roots
            .map(|entry| entry.path())
            .find(|path| path.join("bin/go").exists())
            .context("no Go in the packages")?;
        let mut command = Command::new(go_root.join("bin/go"));
        command.env("GOROOT", &go_root);
        Ok(command)
    }
}

/// There is no Go, and none to be had.
#[derive(Debug)]
struct NoGo;

impl fmt::Display for NoGo {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "no Go here, and none to be had: install 1.{OLDEST} or newer"
        )
    }
}

/// Any Go that is new enough.
pub(super) enum Go {
    Installed(PathBuf),
    Debian(Unpacked),
}

impl Go {
    /// The machine's `go`, or else Debian's.
    pub(super) fn find(site: &Site<'_>) -> Result<Go> {
        if let Some(go) = in_path("go").filter(|go| is_new_enough(go)) {
            return Ok(Go::Installed(go));
        }
        let unpacked = Unpacked::with(site, &[]).context(NoGo)?;
        Ok(Go::Debian(unpacked))
    }

    pub(super) fn command(&self) -> Result<Command> {
        match self {
            Go::Installed(go) => Ok(Command::new(go)),
            Go::Debian(unpacked) => unpacked.command(),
        }
    }
}

fn is_new_enough(go: &Path) -> bool {
    let version = says(go, &["env", "GOVERSION"]);
    version
        .and_then(|it| minor(&it))
        .is_some_and(|minor| minor >= OLDEST)
}

/// Of `go1.26.8`, `go1.25rc1` or `go1.24-custom`: the second number.
fn minor(version: &str) -> Option<u32> {
    let rest = version.trim().strip_prefix("go1.")?;
    let end = rest.find(|c: char| !c.is_ascii_digit());
    rest.get(..end.unwrap_or(rest.len()))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::minor;

    #[test]
    fn the_second_number_decides() {
        assert_eq!(minor("go1.26.8\n"), Some(26));
        assert_eq!(minor("go1.25rc1"), Some(25));
        assert_eq!(minor("go1.24"), Some(24));
        assert_eq!(minor("devel +1234"), None);
    }
}
