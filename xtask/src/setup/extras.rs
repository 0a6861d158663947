//! Tools of single commands: docker-compose checks a file in the tests, wrk and h2load make load in
//! the benchmarks.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::apt::Suite;
use super::{Site, announce};
use crate::run::says;
use crate::tree::{Tree, in_path, put};

/// Version 2 is one Go binary; the 1.x that older Debians carry is another program.
pub(crate) fn compose(tree: &Tree) -> Option<PathBuf> {
    let candidates = [Some(tree.tool("docker-compose")), in_path("docker-compose")];
    candidates
        .into_iter()
        .flatten()
        .find(|program| says(program, &["version", "--short"]).is_some_and(|it| is_2(&it)))
}

fn is_2(version: &str) -> bool {
    version.trim_start_matches('v').starts_with("2.")
}

/// The tests do without docker-compose where it cannot be had, and say so in their summary.
pub(super) fn try_compose(site: &Site<'_>) {
    if compose(site.tree).is_some() {
        return;
    }
    let fetched = site
        .packages(Suite::Pinned, &["docker-compose"])
        .and_then(|root| {
            put(
                &root.join("usr/libexec/docker/cli-plugins/docker-compose"),
                &site.tree.tool("docker-compose"),
            )
        });
    if let Err(error) = fetched {
        announce(&format!("going on without docker-compose: {error:#}"));
    }
}

/// wrk and h2load, the machine's or else its own suite's, with any libraries that the machine
/// lacks.
pub(super) fn load_generators(site: &Site<'_>) -> Result<()> {
    for (program, package) in [("wrk", "wrk"), ("h2load", "nghttp2-client")] {
        let place = site.tree.tool(program);
        if place.exists() {
            continue;
        }
        let fresh = site.scratch.dir("load-generators")?.join(program);
        if let Some(installed) = in_path(program) {
            symlink(installed, &fresh)?;
            put(&fresh, &place)?;
            continue;
        }
        let root = site.packages(Suite::Own, &[package]).with_context(|| {
            format!("cannot get {program}: install it (Debian and Ubuntu: {package})")
        })?;
        let home = site.tree.tools().join(program);
        if home.exists() {
            fs::remove_dir_all(&home)?;
        }
        put(&root, &home)?;
        // Last of all: where the wrapper is, the rest is.
        fs::write(&fresh, wrapper(&home, program)?)?;
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755))?;
        put(&fresh, &place)?;
    }
    Ok(())
}

/// A shell script that runs the program with the libraries unpacked beside it.
fn wrapper(home: &Path, program: &str) -> Result<String> {
    let mut places = Vec::new();
    for libraries in [home.join("usr/lib"), home.join("lib")] {
        for entry in fs::read_dir(&libraries).into_iter().flatten() {
            places.push(entry?.path());
        }
        places.push(libraries);
    }
    places.retain(|place| place.is_dir());
    let libraries =
        std::env::join_paths(places).context("the checkout's path must not contain a colon")?;
    Ok(format!(
        "#!/bin/sh\n# Unpacked by `cargo xtask setup --bench`, with the libraries that the machine lacks.\n\
         LD_LIBRARY_PATH='{}' exec '{}' \"$@\"\n",
        libraries.to_string_lossy(),
        home.join("usr/bin").join(program).display()
    ))
}
