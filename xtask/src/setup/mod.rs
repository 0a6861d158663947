//! Provisioning: the tools that cargo does not bring land in the user's cache folder
//! ([`crate::cache`]), with nothing installed on the machine. `target/tools/` has links to them.
//!
//! Every tool is asked whether it is there, runs, and has the right version. If not, it is fetched
//! into a scratch directory, tried there, and only then renamed into the cache. So a run that is
//! killed half-way leaves nothing that the next one would take for done, and a second run with
//! everything in place takes well under a second.

mod apt;
mod envoy;
mod etcd;
mod extras;
mod go_peers;
mod golang;
mod grpc;
mod pip;
mod rust;
mod xds_peer;

use std::cell::OnceCell;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::cache::{Cache, Exclusive};
use crate::tree::{Scratch, Tree, put};
use apt::{Apt, Suite};
use golang::Go;
use pip::Pip;

pub(crate) use envoy::oldest as oldest_envoy;
pub(crate) use extras::compose;
pub(crate) use grpc::GrpcClient;

/// The caller's next command, which decides what it needs.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Wanted {
    Filter,
    Demo,
    Test,
    /// The oldest Envoy that guests are promised for.
    OldestEnvoy,
    /// Istio on a Kubernetes API server.
    Istio,
    /// All programs that ours are tested with and beside.
    Peers,
    /// With the server that `xds` measures beside ours, or without.
    Bench {
        peer: bool,
    },
}

/// The common state of the steps while they run: the checkout and the cache; the right to change
/// the cache, apt, pip and Go once a step has asked for them.
struct Site<'a> {
    tree: &'a Tree,
    cache: Cache,
    exclusive: OnceCell<Exclusive>,
    pinned: OnceCell<Apt>,
    unstable: OnceCell<Apt>,
    own: OnceCell<Apt>,
    pip: OnceCell<Pip>,
    go: OnceCell<Go>,
}

impl<'a> Site<'a> {
    fn new(tree: &'a Tree) -> Result<Self> {
        Ok(Self {
            tree,
            cache: Cache::of_this_user()?,
            exclusive: OnceCell::new(),
            pinned: OnceCell::new(),
            unstable: OnceCell::new(),
            own: OnceCell::new(),
            pip: OnceCell::new(),
            go: OnceCell::new(),
        })
    }

    /// Gives the folder of a tool in the cache. `make` fills a new one where the tool is missing,
    /// or is not good (any more).
    fn provide(
        &self,
        tool: &str,
        pins: &[impl AsRef<str>],
        is_good: impl Fn(&Path) -> bool,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let home = self.cache.entry(tool, pins);
        if is_good(&home) {
            return Ok(home);
        }
        let fresh = self.scratch()?.inner(tool)?;
        // Another checkout may have made it while this one waited for the lock.
        if is_good(&home) {
            return Ok(home);
        }
        make(fresh.path())?;
        ensure!(
            is_good(fresh.path()),
            "the {tool} that was fetched does not run here"
        );
        if home.exists() {
            fs::remove_dir_all(&home)
                .with_context(|| format!("cannot remove {}", home.display()))?;
        }
        put(fresh.path(), &home)?;
        Ok(home)
    }

    /// The place of half-done work. No other process changes the cache from here on.
    fn scratch(&self) -> Result<&Scratch> {
        let exclusive = once(&self.exclusive, || self.cache.lock())?;
        Ok(exclusive.scratch())
    }

    fn pip(&self) -> Result<&Pip> {
        once(&self.pip, || Pip::find(self))
    }

    fn go(&self) -> Result<&Go> {
        once(&self.go, || Go::find(self))
    }

    /// Unpacks the packages of that suite into a new directory, which it gives.
    fn packages(&self, suite: Suite, packages: &[&str]) -> Result<PathBuf> {
        self.apt(suite)?.fetch(packages)
    }

    fn apt(&self, suite: Suite) -> Result<&Apt> {
        let slot = match suite {
            Suite::Pinned => &self.pinned,
            Suite::Unstable => &self.unstable,
            Suite::Own => &self.own,
        };
        once(slot, || {
            Apt::open(self.scratch()?.dir(&format!("apt-{suite}"))?, suite)
        })
    }
}

/// The value of a cell, made at the first call.
fn once<T>(cell: &OnceCell<T>, make: impl FnOnce() -> Result<T>) -> Result<&T> {
    match cell.get() {
        Some(found) => Ok(found),
        None => {
            let made = make()?;
            Ok(cell.get_or_init(|| made))
        }
    }
}

pub(crate) fn run(tree: &Tree, wanted: Wanted) -> Result<()> {
    rust::ensure(tree)?;
    protoc(tree)?;
    if wanted == Wanted::Filter {
        return Ok(());
    }
    let site = Site::new(tree)?;
    envoy::ensure(&site)?;
    etcd::ensure(&site)?;
    match wanted {
        Wanted::Test => {
            extras::try_compose(&site);
            grpc::try_clients(&site);
        }
        Wanted::Bench { peer } => {
            extras::load_generators(&site)?;
            if peer {
                xds_peer::try_build(&site);
            }
        }
        Wanted::OldestEnvoy => envoy::ensure_oldest(&site)?,
        Wanted::Filter | Wanted::Demo | Wanted::Istio | Wanted::Peers => {}
    }
    go_peers::ensure(&site, wanted)
}

/// The build script of etcd-client runs protoc. A crate carries it, so here is only a link to it; a
/// link and not a copy, because protoc looks for the well-known types beside its real place.
/// Cleaning cargo's registry breaks the link, and the next run mends it.
fn protoc(tree: &Tree) -> Result<()> {
    let carried = protoc_bin_vendored::protoc_bin_path().context(
        "no protoc for this machine: install one (Debian: protobuf-compiler) and set PROTOC to it",
    )?;
    tree.link("bin/protoc", &carried)
}

/// One line before each step that takes longer than a second, so that it does not seem to hang.
fn announce(what: &str) {
    eprintln!("setup: {what}");
}
