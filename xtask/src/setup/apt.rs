//! Debian packages without installing them, and without being root.
//!
//! apt runs on a configuration of its own: own lists, own cache, own sources, all in a scratch
//! directory. The machine lends three things: the mirror and how to trust it (from its own
//! sources), the proxy and certificate settings, and for [`Suite::Own`] the list of installed
//! packages. The packages are checked by apt against the archive's signature as ever, then unpacked
//! with `dpkg-deb -x`.

mod sources;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fmt, fs};

use anyhow::{Context, Result, bail};

use super::announce;
use crate::run::quiet;
use crate::tree::{in_path, make_dir};
use sources::{Archive, archives};

/// The Debian suite whose versions of etcd and docker-compose the project is tested with. They need
/// little more than an old libc, so they run on older Debians and on Ubuntu too.
const PINNED: &str = "trixie";

/// Always carries the newest of everything, and packages that no release has yet.
const UNSTABLE: &str = "sid";

const STATUS: &str = "/var/lib/dpkg/status";

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Suite {
    /// Debian [`PINNED`] on any machine: the packages alone, for programs that need no library.
    Pinned,
    /// Debian [`UNSTABLE`], the packages alone as well: for those that may be missing.
    Unstable,
    /// The machine's own suite: the packages and all their missing dependencies, which then fit the
    /// installed ones.
    Own,
}

impl fmt::Display for Suite {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Pinned => PINNED,
            Self::Unstable => UNSTABLE,
            Self::Own => "own",
        })
    }
}

/// apt with its lists read, ready to fetch.
pub(super) struct Apt {
    dir: PathBuf,
    suite: Suite,
}

impl Apt {
    /// Sets up a private apt in `dir` (empty, absolute) and reads the lists of the suite from the
    /// first mirror that carries it.
    pub(super) fn open(dir: PathBuf, suite: Suite) -> Result<Self> {
        for program in ["apt-get", "apt-config", "dpkg-deb"] {
            in_path(program).with_context(|| format!("no {program}: not a Debian or Ubuntu"))?;
        }
        let archives = archives(Path::new("/etc/apt"), &os_release("VERSION_CODENAME")?)?;
        if archives.is_empty() {
            bail!(
                "no archive of this system in apt's sources (a `deb` line for its own suite, with `main`)"
            );
        }
        for part in ["lists/partial", "archives/partial", "sources", "none"] {
            make_dir(&dir.join(part))?;
        }
        fs::write(dir.join("empty"), "")?;
        fs::write(dir.join("apt.conf"), configuration(&dir, suite)?)?;
        let apt = Self { dir, suite };
        let mut failures = Vec::new();
        for archive in &archives {
            match apt.read_lists(archive) {
                Ok(()) => return Ok(apt),
                Err(error) => failures.push(format!("{error:#}")),
            }
        }
        bail!(
            "no mirror in apt's sources gives the suite {suite}:\n{}",
            failures.join("\n")
        )
    }

    fn read_lists(&self, archive: &Archive) -> Result<()> {
        let suite = match self.suite {
            Suite::Pinned => PINNED,
            Suite::Unstable => UNSTABLE,
            Suite::Own => &archive.suite,
        };
        // Ubuntu keeps most programs in `universe`; a Debian has no such component.
        let components = if os_release("ID")? == "ubuntu" && self.suite == Suite::Own {
            "main universe"
        } else {
            "main"
        };
        let sources = self.dir.join("sources");
        fs::remove_dir_all(&sources)?;
        make_dir(&sources)?;
        let (file, text) = archive.entry(suite, components);
        fs::write(sources.join(file), text)?;
        announce(&format!("reading the package lists of {suite}"));
        quiet(self.apt_get().arg("update")).map(drop)
    }

    /// Unpacks the packages into a new directory and gives it; the programs lie in its `usr/bin`.
    pub(super) fn fetch(&self, packages: &[&str]) -> Result<PathBuf> {
        announce(&format!("fetching the packages {}", packages.join(", ")));
        let name = packages.first().context("no package named")?;
        let (debs, root) = (
            self.dir.join(format!("{name}-debs")),
            self.dir.join(format!("{name}-root")),
        );
        make_dir(&debs)?;
        make_dir(&root)?;
        let mut command = self.apt_get();
        match self.suite {
            Suite::Pinned | Suite::Unstable => command.arg("download"),
            Suite::Own => command
                .args([
                    "install",
                    "--download-only",
                    "--reinstall",
                    "--no-install-recommends",
                    "--no-remove",
                    "--yes",
                    "-o",
                ])
                .arg(format!("Dir::Cache::archives={}", debs.display())),
        };
        quiet(command.args(packages).current_dir(&debs))?;
        for entry in fs::read_dir(&debs)? {
            let deb = entry?.path();
            if deb.extension().is_some_and(|extension| extension == "deb") {
                quiet(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&root))?;
            }
        }
        Ok(root)
    }

    /// Names the package and everything that it needs on a machine where nothing is installed.
    pub(super) fn with_dependencies(&self, package: &str) -> Result<Vec<String>> {
        let arguments = ["install", "--simulate", "--no-install-recommends", package];
        let plan = quiet(self.apt_get().args(arguments))?;
        let installed = plan.lines().filter_map(|line| line.strip_prefix("Inst "));
        Ok(installed
            .filter_map(|rest| rest.split_whitespace().next().map(str::to_owned))
            .collect())
    }

    fn apt_get(&self) -> Command {
        let mut command = Command::new("apt-get");
        command
            .arg("--quiet=2")
            .env("APT_CONFIG", self.dir.join("apt.conf"))
            .env("DEBIAN_FRONTEND", "noninteractive");
        command
    }
}

/// The private configuration. The machine's own is not read at all, for the sake of its hooks,
/// which would run on the system; only its network settings are copied.
fn configuration(dir: &Path, suite: Suite) -> Result<String> {
    let network: String = quiet(Command::new("apt-config").arg("dump"))?
        .lines()
        .filter(|line| {
            line.starts_with("Acquire::")
                && !["Acquire::IndexTargets", "Acquire::Changelogs"]
                    .iter()
                    .any(|no| line.starts_with(no))
        })
        .map(|line| format!("{line}\n"))
        .collect();
    let (dir, empty) = (dir.display(), dir.join("empty"));
    let status = if suite == Suite::Own {
        Path::new(STATUS)
    } else {
        &empty
    };
    let (empty, status) = (empty.display(), status.display());
    Ok(format!(
        r#"{network}
Acquire::Retries "3";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
APT::Sandbox::User "root";
APT::Update::Error-Mode "any";
Debug::NoLocking "true";
Dir::Cache "{dir}";
Dir::Cache::archives "{dir}/archives";
Dir::Etc::main "{empty}";
Dir::Etc::parts "{dir}/none";
Dir::Etc::preferences "{empty}";
Dir::Etc::preferencesparts "{dir}/none";
Dir::Etc::sourcelist "{empty}";
Dir::Etc::sourceparts "{dir}/sources";
Dir::State "{dir}";
Dir::State::lists "{dir}/lists";
Dir::State::status "{status}";
"#
    ))
}

fn os_release(key: &str) -> Result<String> {
    let text = fs::read_to_string("/etc/os-release")
        .context("no /etc/os-release: not a Debian or Ubuntu")?;
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
        .map(|value| value.trim_matches('"').to_owned())
        .with_context(|| format!("no {key} in /etc/os-release: not a Debian or Ubuntu"))
}
