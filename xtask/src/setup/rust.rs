//! The toolchain of `rust-toolchain.toml`, complete. rustup adds it by itself, unless
//! `RUSTUP_AUTO_INSTALL=0`.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::announce;
use crate::run::{cargo, quiet};
use crate::tree::{Tree, in_path};

pub(super) fn ensure(tree: &Tree) -> Result<()> {
    let text = fs::read_to_string(tree.root().join("rust-toolchain.toml"))
        .context("cannot read rust-toolchain.toml")?;
    let sysroot = quiet(
        Command::new("rustc")
            .args(["--print", "sysroot"])
            .current_dir(tree.root()),
    )?;
    let has_target = |target: &&str| {
        Path::new(sysroot.trim())
            .join("lib/rustlib")
            .join(target)
            .join("lib")
            .is_dir()
    };
    let has_component = |component: &&str| {
        let command = if *component == "rustfmt" {
            "fmt"
        } else {
            component
        };
        quiet(&mut cargo(tree, &[command, "--version"])).is_ok()
    };
    add(
        tree,
        "target",
        strings(&text, "targets")
            .into_iter()
            .filter(|it| !has_target(it))
            .collect(),
    )?;
    add(
        tree,
        "component",
        strings(&text, "components")
            .into_iter()
            .filter(|it| !has_component(it))
            .collect(),
    )
}

fn add(tree: &Tree, kind: &str, missing: Vec<&str>) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if in_path("rustup").is_none() {
        bail!(
            "this Rust lacks the {kind} {names}, and there is no rustup to add it: add it the way Rust was installed"
        );
    }
    announce(&format!("adding the Rust {kind} {names}"));
    quiet(
        Command::new("rustup")
            .args([kind, "add"])
            .args(&missing)
            .current_dir(tree.root()),
    )
    .map(drop)
}

/// The strings of `key = ["…", "…"]`. The file is ours and flat, which spares a TOML parser.
fn strings<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix('='));
    value
        .map(|value| value.split('"').skip(1).step_by(2).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::strings;

    #[test]
    fn the_toolchain_file_is_read() {
        let text = "[toolchain]\nchannel = \"1.95.0\"\ncomponents = [\"clippy\", \"rustfmt\"]\n";
        assert_eq!(strings(text, "components"), ["clippy", "rustfmt"]);
        assert_eq!(strings(text, "channel"), ["1.95.0"]);
        assert!(strings(text, "targets").is_empty());
    }
}
