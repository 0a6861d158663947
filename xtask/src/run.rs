//! Running other programs.

use std::env;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::tree::Tree;

/// How much of a failed program's output an error repeats.
const LINES_SHOWN_MAX: usize = 15;

/// The cargo that runs this program, or the one in `$PATH`, in the root of the checkout.
pub(crate) fn cargo(tree: &Tree, arguments: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(tree.root());
    // Of the `cargo run` that started this program. Build scripts watch them, so with these cargo
    // would compile again what a plain `cargo build` has compiled, and the other way round.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

/// Runs to the end with the output on the terminal.
pub(crate) fn shown(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {}", name(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status})", line(command));
    }
    Ok(())
}

/// Runs to the end without showing its output, and returns it; after a failure the error contains
/// the last lines.
pub(crate) fn quiet(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}: is it installed?", name(command)))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let all = text + &String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = all.lines().filter(|line| !line.trim().is_empty()).collect();
    let tail = lines[lines.len().saturating_sub(LINES_SHOWN_MAX)..].join("\n  ");
    bail!("`{}` failed ({}):\n  {tail}", line(command), output.status)
}

/// The program's version text, or `None` if it does not run here.
pub(crate) fn says(program: &Path, arguments: &[&str]) -> Option<String> {
    quiet(Command::new(program).args(arguments)).ok()
}

fn name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

fn line(command: &Command) -> String {
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or(command.get_program());
    std::iter::once(program)
        .chain(command.get_args())
        .map(|part| part.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}
