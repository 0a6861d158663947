//! The server that `cargo xtask bench xds` measures beside ours: a small Go program on
//! go-control-plane, built with Debian's Go and its packaged libraries. Only the program stays; Go
//! itself goes with the scratch directory.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::golang::Unpacked;
use super::{Site, announce};
use crate::run::quiet;

const SOURCE: &str = "bench/src/xds/peer/main.go";

/// The sources of the program, besides Go and its standard library.
const LIBRARIES: [&str; 12] = [
    "golang-github-envoyproxy-go-control-plane-dev",
    "golang-github-envoyproxy-protoc-gen-validate-dev",
    "golang-github-cncf-xds-dev",
    "golang-github-golang-protobuf-1-5-dev",
    "golang-google-grpc-dev",
    "golang-google-protobuf-dev",
    "golang-google-genproto-dev",
    "golang-cel-expr-dev",
    "golang-golang-x-net-dev",
    "golang-golang-x-sys-dev",
    "golang-golang-x-text-dev",
    "golang-opentelemetry-proto-dev",
];

/// The benchmark does without where it cannot be had, and says so.
pub(super) fn try_build(site: &Site<'_>) {
    if let Err(error) = ensure(site) {
        announce(&format!(
            "going on without go-control-plane to compare with: {error:#}"
        ));
    }
}

fn ensure(site: &Site<'_>) -> Result<()> {
    let source = site.tree.root().join(SOURCE);
    let wanted = fs::read_to_string(&source).with_context(|| source.display().to_string())?;
    let pins = [wanted, LIBRARIES.join(" ")];
    let is_good = |home: &Path| home.join("xds-peer").exists();
    let home = site.provide("xds-peer", &pins, is_good, |fresh| {
        let go = Unpacked::with(site, &LIBRARIES)?;
        announce("building the go-control-plane server, which takes a minute or two");
        let cache = site.scratch()?.dir("xds-peer-cache")?;
        build(&go, &source, &fresh.join("xds-peer"), &cache)
    })?;
    site.tree.link("xds-peer", &home)
}

fn build(go: &Unpacked, source: &Path, program: &Path, cache: &Path) -> Result<()> {
    quiet(
        go.command()?
            .args(["build", "-o"])
            .arg(program)
            .arg(source)
            // Packages lie where Debian puts them, and nothing is asked of the network.
            .env("GO111MODULE", "off")
            .env("GOTOOLCHAIN", "local")
            .env("CGO_ENABLED", "0")
            .env("GOFLAGS", "")
            .env("GOPATH", go.root.join("usr/share/gocode"))
            .env("GOCACHE", cache),
    )
    .map(drop)
}
