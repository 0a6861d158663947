//! The modules of the crate have no import cycle, direct or indirect.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use regex::Regex;

type Imports = BTreeMap<String, BTreeSet<String>>;

#[test]
fn modules_import_each_other_in_no_circle() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut imports = Imports::new();
    for entry in fs::read_dir(&source).expect("the sources are there") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().and_then(|name| name.to_str());
        let name = name.expect("a name").to_owned();
        if name != "lib" {
            collect(&path, imports.entry(name).or_default());
        }
    }
    for (name, imported) in &mut imports {
        imported.remove(name);
    }
    assert!(imports.len() > 20 && imports["world"].contains("translate"));
    // Removes modules without remaining imports until none is left.
    loop {
        let left: BTreeSet<String> = imports.keys().cloned().collect();
        let is_free = |imported: &BTreeSet<String>| imported.is_disjoint(&left);
        let before = imports.len();
        imports.retain(|_, imported| !is_free(imported));
        if imports.is_empty() {
            return;
        }
        let among = |(name, imported): (&String, &BTreeSet<String>)| {
            let others: Vec<&str> = imported.intersection(&left).map(String::as_str).collect();
            format!("{name} imports {}", others.join(", "))
        };
        let told: Vec<String> = imports.iter().map(among).collect();
        assert!(
            imports.len() < before,
            "modules form a circle, or lead to one:\n{}",
            told.join("\n")
        );
    }
}

/// Adds the modules of the crate that the code below `path` imports, without its tests.
fn collect(path: &Path, imported: &mut BTreeSet<String>) {
    let name = path.file_stem().and_then(|name| name.to_str());
    if name == Some("tests") {
        return;
    }
    if path.is_dir() {
        for entry in fs::read_dir(path).expect("a directory") {
            collect(&entry.expect("an entry").path(), imported);
        }
        return;
    }
    let text = fs::read_to_string(path).expect("text");
    // Tests are at the end of a file.
    let code = text.split("#[cfg(test)]\nmod tests {").next();
    let code: String = code
        .unwrap_or_default()
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .map(|line| format!("{line}\n"))
        .collect();
    let named = Regex::new(r"\bcrate::(\w+)").expect("a pattern");
    imported.extend(named.captures_iter(&code).map(|c| c[1].to_owned()));
    let grouped = Regex::new(r"(?s)\buse crate::\{(.*?)\};").expect("a pattern");
    for group in grouped.captures_iter(&code) {
        imported.extend(first_names(&group[1]));
    }
}

/// `a::{b, c}, d::e` begins with `a` and `d`.
fn first_names(group: &str) -> Vec<String> {
    let mut depth = 0;
    let mut items = vec![String::new()];
    for letter in group.chars() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                items.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(item) = items.last_mut() {
            item.push(letter);
        }
    }
    let first = |item: String| {
        let name = item.trim().split("::").next().map(str::trim);
        name.filter(|name| !name.is_empty()).map(str::to_owned)
    };
    items.into_iter().filter_map(first).collect()
}
