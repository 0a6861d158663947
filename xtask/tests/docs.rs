//! The documents' links are valid: files exist, and so do headings.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the checkout")
        .to_owned()
}

/// Every document of the project.
fn documents() -> Vec<PathBuf> {
    let mut found = vec![];
    let mut folders = vec![root().join("docs")];
    let top = fs::read_dir(root()).expect("the checkout");
    found.extend(top.map(|entry| entry.expect("an entry").path()));
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            match path.is_dir() {
                true => folders.push(path),
                false => found.push(path),
            }
        }
    }
    found.retain(|path| path.extension().is_some_and(|ending| ending == "md"));
    found
}

/// The text without code blocks and spans.
fn prose(text: &str) -> String {
    let mut inside = false;
    let lines = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        inside ^= fence;
        !inside && !fence
    });
    let lines: Vec<&str> = lines.collect();
    // Every second piece is a code span.
    lines.join("\n").split('`').step_by(2).collect()
}

/// The targets of `[words](target)`.
fn links(text: &str) -> Vec<String> {
    let pieces = prose(text);
    let behind = pieces.split("](").skip(1);
    behind
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target.to_owned())
        .collect()
}

/// A heading's anchor, as code hosts build it.
fn anchor(heading: &str) -> String {
    let kept = |c: char| match c {
        ' ' => Some('-'),
        '-' | '_' => Some(c),
        c if c.is_alphanumeric() => Some(c),
        _ => None,
    };
    heading
        .trim()
        .to_lowercase()
        .chars()
        .filter_map(kept)
        .collect()
}

fn anchors(text: &str) -> BTreeSet<String> {
    let mut inside = false;
    let headings = text.lines().filter(|line| {
        inside ^= line.trim_start().starts_with("```");
        !inside && line.starts_with('#')
    });
    headings
        .map(|line| anchor(line.trim_start_matches('#')))
        .collect()
}

/// Why a link of this document is broken.
fn fault(document: &Path, link: &str) -> Option<String> {
    if link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let (file, heading) = match link.split_once('#') {
        Some((file, heading)) => (file, Some(heading)),
        None => (link, None),
    };
    let target = match file {
        "" => document.to_owned(),
        file => document.parent()?.join(file),
    };
    if !target.exists() {
        return Some(format!("{}: no file {link}", document.display()));
    }
    let heading = heading?;
    let text = fs::read_to_string(&target).ok()?;
    let is_there = anchors(&text).contains(heading);
    (!is_there).then(|| format!("{}: no heading {link}", document.display()))
}

#[test]
fn links_lead_somewhere() {
    let mut faults = vec![];
    let mut count = 0;
    for document in documents() {
        let text = fs::read_to_string(&document).expect("a document");
        for link in links(&text) {
            count += 1;
            faults.extend(fault(&document, &link));
        }
    }
    assert!(count > 50, "only {count} links were found");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_broken_link_is_found() {
    let readme = root().join("README.md");
    assert!(fault(&readme, "docs/nowhere.md").is_some());
    assert!(fault(&readme, "ARCHITECTURE.md#nothing-of-this-name").is_some());
    assert_eq!(fault(&readme, "ARCHITECTURE.md#code-map"), None);
    assert_eq!(links("a [b](c) `[d](e)` [f](g#h)"), ["c", "g#h"]);
}

/// `mdbook build` omits any page that the summary does not name.
#[test]
fn the_book_has_every_page() {
    let docs = root().join("docs");
    let summary = docs.join("SUMMARY.md");
    let text = fs::read_to_string(&summary).expect("docs/SUMMARY.md");
    let named: BTreeSet<PathBuf> = links(&text).iter().map(|page| docs.join(page)).collect();
    let pages = documents().into_iter();
    let pages = pages.filter(|page| page.starts_with(&docs) && *page != summary);
    let missing: Vec<PathBuf> = pages.filter(|page| !named.contains(page)).collect();
    assert_eq!(missing, Vec::<PathBuf>::new(), "not in docs/SUMMARY.md");
}
