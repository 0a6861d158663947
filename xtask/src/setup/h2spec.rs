//! h2spec, built from the module in `e2e/peers/h2spec`, which pins it and its dependencies.

use std::fs;

use anyhow::{Context, Result};

use super::{Site, announce, golang};
use crate::run::quiet;
use crate::tree::put;

const MODULE: &str = "e2e/peers/h2spec";
/// The program lies beside copies of them, so that a change of theirs is noticed.
const PINS: [&str; 2] = ["go.mod", "go.sum"];

pub(super) fn ensure(site: &Site<'_>) -> Result<()> {
    let module = site.tree.root().join(MODULE);
    let home = site.tree.tools().join("h2spec");
    let is_built_from = |pin: &str| {
        let wanted = fs::read(module.join(pin));
        wanted.is_ok_and(|wanted| fs::read(home.join(pin)).is_ok_and(|built| built == wanted))
    };
    if PINS.iter().all(|pin| is_built_from(pin)) && home.join("h2spec").exists() {
        return Ok(());
    }
    announce("building h2spec, which takes a minute");
    let fresh = site.scratch.dir("h2spec")?;
    let mut go = golang::any(site)?;
    go.args(["build", "-o"])
        .arg(fresh.join("h2spec"))
        .arg("tool")
        .current_dir(&module)
        .env("GOTOOLCHAIN", "local")
        .env("GOWORK", "off")
        .env("CGO_ENABLED", "0")
        // The module cache is read-only by default, and could not be removed with the scratch
        // directory.
        .env("GOFLAGS", "-mod=readonly -modcacherw")
        .env("GOMODCACHE", site.scratch.dir("go-modules")?)
        .env("GOCACHE", site.scratch.dir("go-cache")?);
    quiet(&mut go).context("cannot build h2spec")?;
    for pin in PINS {
        fs::copy(module.join(pin), fresh.join(pin))?;
    }
    if home.exists() {
        fs::remove_dir_all(&home)?;
    }
    put(&fresh, &home)
}
