//! Provisioning: the tools that cargo does not bring land below `target/tools/`, with nothing
//! installed on the machine.
//!
//! Every tool is asked whether it is there, runs, and has the right version. If not, it is fetched
//! into a scratch directory, tried there, and only then renamed into `target/tools/bin/`. So a run
//! that is killed half-way leaves nothing that the next one would take for done, and a second run
//! with everything in place takes well under a second.

mod apt;
mod envoy;
mod etcd;
mod extras;
mod golang;
mod grpc;
mod h2spec;
mod peer;
mod pip;
mod rust;

use std::cell::OnceCell;
use std::fs::File;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::tree::{Scratch, Tree, make_dir, put};
use apt::{Apt, Suite};
use pip::Pip;

pub(crate) use extras::compose;
pub(crate) use grpc::GrpcClient;

/// The caller's next command, which decides what it needs.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Wanted {
    Filter,
    Demo,
    Test,
    /// The programs that our servers are tested with by hand and at night.
    Peers,
    /// With the server that `xds` measures beside ours, or without.
    Bench {
        peer: bool,
    },
}

/// The common state of the steps while they run: the checkout, the scratch directory, and apt and
/// pip once a step has asked for them.
struct Site<'a> {
    tree: &'a Tree,
    scratch: Scratch,
    pinned: OnceCell<Apt>,
    unstable: OnceCell<Apt>,
    own: OnceCell<Apt>,
    pip: OnceCell<Pip>,
}

impl<'a> Site<'a> {
    fn new(tree: &'a Tree) -> Result<Self> {
        let scratch = Scratch::at(tree.tools().join("scratch"))?;
        Ok(Self {
            tree,
            scratch,
            pinned: OnceCell::new(),
            unstable: OnceCell::new(),
            own: OnceCell::new(),
            pip: OnceCell::new(),
        })
    }

    fn pip(&self) -> Result<&Pip> {
        match self.pip.get() {
            Some(pip) => Ok(pip),
            None => {
                let found = Pip::find(self)?;
                Ok(self.pip.get_or_init(|| found))
            }
        }
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
        if let Some(apt) = slot.get() {
            return Ok(apt);
        }
        let opened = Apt::open(self.scratch.dir(&format!("apt-{suite}"))?, suite)?;
        Ok(slot.get_or_init(|| opened))
    }
}

/// Provisions at most once at a time per checkout: two terminals may both run tests.
fn lock(tree: &Tree) -> Result<File> {
    let path = tree.tools().join("lock");
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    if file.try_lock().is_err() {
        announce("waiting for another `cargo xtask` that is setting up this checkout");
        file.lock()
            .with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}

pub(crate) fn run(tree: &Tree, wanted: Wanted) -> Result<()> {
    rust::ensure(tree)?;
    make_dir(&tree.tools())?;
    let _alone = lock(tree)?;
    let site = Site::new(tree)?;
    protoc(&site)?;
    if wanted == Wanted::Filter {
        return Ok(());
    }
    envoy::ensure(&site)?;
    etcd::ensure(&site)?;
    match wanted {
        Wanted::Test => {
            extras::try_compose(&site);
            grpc::try_clients(&site);
        }
        Wanted::Peers => h2spec::ensure(&site)?,
        Wanted::Bench { peer } => {
            extras::load_generators(&site)?;
            if peer {
                peer::try_build(&site);
            }
        }
        Wanted::Filter | Wanted::Demo => {}
    }
    Ok(())
}

/// The build script of etcd-client runs protoc. A crate carries it, so here is only a link to it; a
/// link and not a copy, because protoc looks for the well-known types beside its real place.
/// Cleaning cargo's registry breaks the link, and the next run mends it.
fn protoc(site: &Site<'_>) -> Result<()> {
    let carried = protoc_bin_vendored::protoc_bin_path().context(
        "no protoc for this machine: install one (Debian: protobuf-compiler) and set PROTOC to it",
    )?;
    let place = site.tree.tool("protoc");
    if std::fs::read_link(&place).is_ok_and(|old| old == carried) {
        return Ok(());
    }
    let fresh = site.scratch.dir("protoc")?.join("protoc");
    symlink(&carried, &fresh).with_context(|| format!("cannot link {}", fresh.display()))?;
    put(&fresh, &place)
}

/// One line before each step that takes longer than a second, so that it does not seem to hang.
fn announce(what: &str) {
    eprintln!("setup: {what}");
}
