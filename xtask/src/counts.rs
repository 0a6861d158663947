//! Counts the test functions that ran.

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::built::TestProgram;

/// How many test functions ran, over all runs of `cargo test`.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

impl Counts {
    /// Runs these programs one after the other, even after a failure. Fails if some failed, or if
    /// there is none.
    pub(crate) fn add_all<'p>(
        &mut self,
        programs: impl Iterator<Item = &'p TestProgram>,
        arguments: &[&str],
    ) -> Result<()> {
        let mut failed = Vec::new();
        let mut count = 0;
        for program in programs {
            println!("\n--- {}", program.name);
            count += 1;
            if self.add(program.command().args(arguments)).is_err() {
                failed.push(program.name.as_str());
            }
        }
        ensure!(count > 0, "no test program was built");
        ensure!(
            failed.is_empty(),
            "tests of {} failed: they are named above",
            failed.join(", ")
        );
        Ok(())
    }

    /// Runs tests, forwards their output at once, and counts.
    pub(crate) fn add(&mut self, command: &mut Command) -> Result<()> {
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the tests")?;
        let mut out = io::stdout();
        // Bytes, not lines of text: the output of a test need not be UTF-8.
        let mut lines = BufReader::new(child.stdout.take().context("no output of the tests")?);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line)? > 0 {
            out.write_all(&line)?;
            out.flush()?;
            self.read(&String::from_utf8_lossy(&line));
            line.clear();
        }
        let status = child.wait()?;
        if !status.success() {
            bail!("tests failed ({status}): they are named above");
        }
        Ok(())
    }

    /// `test result: ok. 12 passed; 0 failed; 1 ignored; …`
    fn read(&mut self, line: &str) {
        let Some((_, results)) = line
            .strip_prefix("test result: ")
            .and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for part in results.split(';') {
            match part.trim().split_once(' ') {
                Some((number, "passed")) => self.passed += number.parse().unwrap_or(0),
                Some((number, "failed")) => self.failed += number.parse().unwrap_or(0),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Counts;

    #[test]
    fn the_results_of_all_runs_add_up() {
        let mut counts = Counts::default();
        for line in [
            "running 3 tests\n",
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.52s\n",
            "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n",
        ] {
            counts.read(line);
        }
        assert_eq!(
            counts,
            Counts {
                passed: 14,
                failed: 1
            }
        );
    }
}
