//! The list of findings: in the guide, and each with a name of its own.

use std::{collections::BTreeSet, fs};

/// The names as the code has them.
fn names() -> BTreeSet<String> {
    let code = include_str!("../finding.rs");
    let (_, code) = code.split_once("const fn name").unwrap();
    let (code, _) = code.split_once("const fn remedy").unwrap();
    let quoted = code.split('"').skip(1).step_by(2);
    quoted.map(str::to_owned).collect()
}

#[test]
fn the_guide_lists_each_finding() {
    let path = format!(
        "{}/../docs/reference/guest-findings.md",
        env!("CARGO_MANIFEST_DIR")
    );
    let page = fs::read_to_string(path).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    let listed: BTreeSet<String> = rows
        .filter_map(|row| Some(row.split_once('`')?.0.to_owned()))
        .collect();
    assert_eq!(listed, names());
}
