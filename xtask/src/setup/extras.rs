//! Tools of single commands: docker-compose checks a file in the tests, wrk and h2load make load in
//! the benchmarks.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
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
        .find(|program| is_compose(program))
}

fn is_compose(program: &Path) -> bool {
    says(program, &["version", "--short"]).is_some_and(|it| is_2(&it))
}

fn is_2(version: &str) -> bool {
    version.trim_start_matches('v').starts_with("2.")
}

/// The tests do without docker-compose where it cannot be had, and say so in their summary.
pub(super) fn try_compose(site: &Site<'_>) {
    if compose(site.tree).is_some() {
        return;
    }
    if let Err(error) = fetch_compose(site) {
        announce(&format!("going on without docker-compose: {error:#}"));
    }
}

fn fetch_compose(site: &Site<'_>) -> Result<()> {
    let pins = [Suite::Pinned.to_string(), "docker-compose".to_owned()];
    let is_good = |home: &Path| is_compose(&home.join("docker-compose"));
    let home = site.provide("docker-compose", &pins, is_good, |fresh| {
        let root = site.packages(Suite::Pinned, &["docker-compose"])?;
        let program = root.join("usr/libexec/docker/cli-plugins/docker-compose");
        put(&program, &fresh.join("docker-compose"))
    })?;
    site.tree
        .link("bin/docker-compose", &home.join("docker-compose"))
}

/// wrk and h2load, the machine's or else its own suite's, with any libraries that the machine
/// lacks.
pub(super) fn load_generators(site: &Site<'_>) -> Result<()> {
    for (program, package) in [("wrk", "wrk"), ("h2load", "nghttp2-client")] {
        let place = site.tree.tool(program);
        if place.exists() {
            continue;
        }
        if let Some(installed) = in_path(program) {
            site.tree.link(&format!("bin/{program}"), &installed)?;
            continue;
        }
        let pins = [Suite::Own.to_string(), package.to_owned()];
        let is_good = |home: &Path| home.join(program).exists();
        let home = site.provide(program, &pins, is_good, |fresh| {
            let root = site.packages(Suite::Own, &[package])?;
            put(&root, &fresh.join("root"))?;
            let wrapper = fresh.join(program);
            fs::write(&wrapper, script(&fresh.join("root"), program)?)?;
            Ok(fs::set_permissions(
                &wrapper,
                Permissions::from_mode(0o755),
            )?)
        });
        let home = home.with_context(|| {
            format!("cannot get {program}: install it (Debian and Ubuntu: {package})")
        })?;
        site.tree
            .link(&format!("bin/{program}"), &home.join(program))?;
    }
    Ok(())
}

/// A shell script beside `root` that runs the program with the libraries unpacked there.
fn script(root: &Path, program: &str) -> Result<String> {
    let mut places = Vec::new();
    for libraries in [root.join("usr/lib"), root.join("lib")] {
        for entry in fs::read_dir(&libraries).into_iter().flatten() {
            places.push(entry?.path());
        }
        places.push(libraries);
    }
    places.retain(|place| place.is_dir());
    let places: Vec<String> = places
        .iter()
        .filter_map(|place| place.strip_prefix(root).ok())
        .map(|place| format!("$root/{}", place.display()))
        .collect();
    Ok(format!(
        "#!/bin/sh\n# Unpacked by `cargo xtask setup --bench`, with the libraries that the machine lacks.\n\
         root=$(dirname \"$(readlink -f \"$0\")\")/root\n\
         LD_LIBRARY_PATH=\"{}\" exec \"$root/usr/bin/{program}\" \"$@\"\n",
        places.join(":")
    ))
}
