//! One build for all tests.
//!
//! Cargo selects the features of a dependency by the packages of a command. So commands with
//! different packages compile the same dependencies again and again. This module builds the whole
//! workspace once, and runs the resulting programs like `cargo test`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::run::cargo;
use crate::tree::Tree;

/// A test program.
pub(crate) struct TestProgram {
    /// The name of the target: `scenarios`, or that of the crate for its unit tests.
    pub(crate) name: String,
    pub(crate) is_library: bool,
    package_dir: PathBuf,
    executable: PathBuf,
}

impl TestProgram {
    /// The folder of its package below the root of the checkout: `e2e`, `policy/model`.
    pub(crate) fn package<'p>(&'p self, tree: &Tree) -> &'p Path {
        let below = self.package_dir.strip_prefix(tree.root());
        below.unwrap_or(&self.package_dir)
    }

    /// The command, in the folder of its package, like in `cargo test`.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.executable);
        command
            .current_dir(&self.package_dir)
            .env("CARGO_MANIFEST_DIR", &self.package_dir);
        command
    }
}

/// Builds all programs and tests of the workspace, and returns the tests in the order of their
/// names.
pub(crate) fn everything(tree: &Tree) -> Result<Vec<TestProgram>> {
    let arguments = [
        "build",
        "--workspace",
        "--all-targets",
        "--message-format=json-render-diagnostics",
    ];
    let build = cargo(tree, &arguments).stderr(Stdio::inherit()).output();
    let build = build.context("cannot start cargo")?;
    if !build.status.success() {
        bail!("the build failed: see above");
    }
    let lines = build.stdout.split(|byte| *byte == b'\n');
    let messages = lines.filter_map(|line| serde_json::from_slice::<Value>(line).ok());
    let mut programs: Vec<TestProgram> = messages.filter_map(|m| test_program(&m)).collect();
    programs.sort_by(|a, b| (&a.package_dir, &a.name).cmp(&(&b.package_dir, &b.name)));
    Ok(programs)
}

/// See "External tools" in cargo's book.
fn test_program(message: &Value) -> Option<TestProgram> {
    let is_test = message["profile"]["test"].as_bool()?;
    let kinds: Vec<&str> = message["target"]["kind"]
        .as_array()?
        .iter()
        .filter_map(Value::as_str)
        .collect();
    // With `--all-targets` these are built as tests, and `cargo test` runs neither.
    let is_run = !kinds.contains(&"bench") && !kinds.contains(&"example");
    let executable = message["executable"].as_str()?;
    (is_test && is_run).then_some(())?;
    Some(TestProgram {
        name: message["target"]["name"].as_str()?.to_owned(),
        is_library: kinds.iter().any(|kind| kind.ends_with("lib")),
        package_dir: Path::new(message["manifest_path"].as_str()?)
            .parent()?
            .to_owned(),
        executable: PathBuf::from(executable),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn artifact(kind: &str, is_test: bool) -> Value {
        json!({
            "reason": "compiler-artifact", "manifest_path": "/here/policy/Cargo.toml",
            "target": {"kind": [kind], "name": "policy"}, "profile": {"test": is_test},
            "executable": "/here/target/debug/deps/policy-1",
        })
    }

    #[test]
    fn tests_are_told_from_programs_benches_and_examples() {
        let found = |kind, is_test| test_program(&artifact(kind, is_test)).is_some();
        assert!(found("lib", true) && found("test", true) && found("bin", true));
        assert!(!found("bin", false) && !found("bench", true) && !found("example", true));
        assert!(test_program(&json!({"reason": "build-finished", "success": true})).is_none());
        let library = test_program(&artifact("lib", true)).expect("a program");
        assert!(library.is_library && library.package_dir == Path::new("/here/policy"));
    }
}
