//! The archive of a machine's own packages, and its trust in it, read from apt's sources in both
//! formats.
//!
//! Options beside the address (the signing key, the architecture, `trusted`) are kept as they are;
//! only the suite and the components change.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

/// Names that a suite may go by besides its code name.
const ALIASES: [&str; 5] = ["stable", "oldstable", "testing", "unstable", "sid"];

/// One archive that carries the machine's own suite.
#[derive(Debug, PartialEq)]
pub(super) struct Archive {
    /// The machine's own suite, by the name that its sources give it.
    pub(super) suite: String,
    address: String,
    rest: Rest,
}

#[derive(Debug, PartialEq)]
enum Rest {
    /// `[signed-by=…]` or empty, of a one-line entry
    Options(String),
    /// The other fields of a deb822 stanza
    Fields(String),
}

impl Archive {
    /// A sources file, by name and text, for another suite of this archive.
    pub(super) fn entry(&self, suite: &str, components: &str) -> (&'static str, String) {
        let address = &self.address;
        match &self.rest {
            Rest::Options(options) => (
                "private.list",
                format!("deb {options} {address} {suite} {components}\n"),
            ),
            Rest::Fields(fields) => (
                "private.sources",
                format!(
                    "Types: deb\nURIs: {address}\nSuites: {suite}\nComponents: {components}\n{fields}"
                ),
            ),
        }
    }
}

/// The archives in `etc` (`/etc/apt`) for the suite with this code name, the distribution's own
/// before others that happen to use the same suite names.
pub(super) fn archives(etc: &Path, codename: &str) -> Result<Vec<Archive>> {
    let mut files = vec![etc.join("sources.list")];
    if let Ok(parts) = fs::read_dir(etc.join("sources.list.d")) {
        let mut parts: Vec<PathBuf> = parts.flatten().map(|part| part.path()).collect();
        parts.sort();
        files.extend(parts);
    }
    let mut found: Vec<Archive> = files
        .iter()
        .filter_map(|file| Some((file.extension()?.to_str()?, fs::read_to_string(file).ok()?)))
        .flat_map(|(extension, text)| match extension {
            "list" => one_line(&text, codename),
            "sources" => deb822(&text, codename),
            _ => Vec::new(),
        })
        .collect();
    found.sort_by_key(|archive| {
        !archive.address.contains("debian") && !archive.address.contains("ubuntu")
    });
    found.dedup();
    Ok(found)
}

/// `deb [options] address suite component…`, one a line.
fn one_line(text: &str, codename: &str) -> Vec<Archive> {
    let parse = |line: &str| {
        let entry = line.split('#').next()?.trim().strip_prefix("deb")?;
        let entry = entry.strip_prefix([' ', '\t'])?.trim_start();
        let (options, entry) = match entry.starts_with('[') {
            true => entry.split_at(entry.find(']')? + 1),
            false => ("", entry),
        };
        let mut words = entry.split_whitespace();
        let (address, suite) = (words.next()?, words.next()?);
        let carried = is_own(suite, codename)
            && is_network(address)
            && words.any(|component| component == "main");
        carried.then(|| Archive {
            suite: suite.to_owned(),
            address: address.to_owned(),
            rest: Rest::Options(options.to_owned()),
        })
    };
    text.lines().filter_map(parse).collect()
}

/// Stanzas of `Field: value`, parted by empty lines; a line that begins with a space goes on with
/// the field before it.
fn deb822(text: &str, codename: &str) -> Vec<Archive> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    lines
        .split(|line| line.trim().is_empty())
        .filter_map(|stanza| one_stanza(stanza, codename))
        .collect()
}

fn one_stanza(lines: &[&str], codename: &str) -> Option<Archive> {
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in lines {
        match (line.starts_with([' ', '\t']), line.split_once(':')) {
            (true, _) => {
                let (_, value) = fields.last_mut()?;
                *value += "\n";
                *value += line;
            }
            (false, Some((name, value))) => {
                fields.push((name.to_ascii_lowercase(), value.trim().to_owned()))
            }
            (false, None) => return None,
        }
    }
    let values = |wanted: &str| {
        let field = fields.iter().find(|(name, _)| name == wanted);
        field
            .map(|(_, value)| value.split_whitespace().collect::<Vec<_>>())
            .unwrap_or_default()
    };
    let suite = *values("suites")
        .iter()
        .find(|suite| is_own(suite, codename))?;
    let addresses: Vec<&str> = values("uris")
        .into_iter()
        .filter(|address| is_network(address))
        .collect();
    let carried = values("types").contains(&"deb")
        && values("components").contains(&"main")
        && !addresses.is_empty()
        && !values("enabled")
            .iter()
            .any(|value| ["no", "false", "0"].contains(value));
    let replaced = ["types", "uris", "suites", "components", "enabled"];
    carried.then(|| Archive {
        suite: suite.to_owned(),
        address: addresses.join(" "),
        rest: Rest::Fields(
            fields
                .iter()
                .filter(|(name, _)| !replaced.contains(&name.as_str()))
                .map(|(name, value)| format!("{name}: {value}\n"))
                .collect(),
        ),
    })
}

fn is_own(suite: &str, codename: &str) -> bool {
    suite == codename || ALIASES.contains(&suite)
}

fn is_network(address: &str) -> bool {
    !address.starts_with("cdrom:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(found: Vec<Archive>, expected: &[&str]) {
        let entries: Vec<String> = found
            .iter()
            .map(|archive| archive.entry("trixie", "main").1)
            .collect();
        assert_eq!(entries, expected);
    }

    #[test]
    fn a_one_line_entry_keeps_its_options_and_its_address() {
        check(
            one_line(
                "deb [arch=amd64 signed-by=/k.gpg] http://mirror.test/debian bookworm main contrib # the mirror\n\
                 deb http://mirror.test/debian bookworm-updates main\n\
                 deb-src http://mirror.test/debian bookworm main\n\
                 # deb http://old.test/debian bookworm main\n\
                 deb cdrom:[Debian]/ bookworm main\n\
                 deb http://tools.test/linux bookworm stable\n",
                "bookworm",
            ),
            &["deb [arch=amd64 signed-by=/k.gpg] http://mirror.test/debian trixie main\n"],
        );
    }

    #[test]
    fn an_entry_by_alias_and_without_options_counts() {
        check(
            one_line("deb\thttp://mirror.test/debian\tstable main", "bookworm"),
            &["deb  http://mirror.test/debian trixie main\n"],
        );
    }

    #[test]
    fn a_stanza_keeps_its_other_fields_an_inline_key_included() {
        check(
            deb822(
                "Types: deb deb-src\n# http://snapshot.test\nURIs: http://mirror.test/debian\n\
                 Suites: bookworm bookworm-updates\nComponents: main\nSigned-By:\n -----BEGIN-----\n .\n abc\n\
                 \n\
                 Types: deb\nURIs: http://mirror.test/debian-security\nSuites: bookworm-security\nComponents: main\n\
                 \n\
                 Types: deb\nURIs: http://other.test/debian\nSuites: bookworm\nComponents: main\nEnabled: no\n",
                "bookworm",
            ),
            &[
                "Types: deb\nURIs: http://mirror.test/debian\nSuites: trixie\nComponents: main\n\
               signed-by: \n -----BEGIN-----\n .\n abc\n",
            ],
        );
    }

    #[test]
    fn a_broken_stanza_is_passed_over() {
        check(
            deb822(" goes on with nothing\n\nno colon here\n", "bookworm"),
            &[],
        );
    }
}
