//! The table of codes as text: a page for the documentation, lines for a terminal.

use super::{
    Code, Kind,
    codes::{AREAS, Entry},
};

/// The text above the table.
const HEAD: &str = "# Codes

<!-- Generated: `tidegate codes --markdown > docs/reference/codes.md`. The table is in
xds-server/src/conditions/codes.rs. -->

Every state that may need an operator's action has a code. `tidegate status` shows the present
conditions, `tidegate codes TG2001` explains one of them.

- A *condition* is a state. It is in `/readyz` and `GET /v1/conditions`, in the metric
  `tidegate_condition{code,name,severity}` (1 while it holds; `tidegate_condition_subjects` counts
  the cells, proxies or files), and in the log: one line when it begins and one when it ends.
- *Severity* `error`: requests are rejected or may be soon, or a protection is lost. `warning`:
  everything is served, but may not stay so, or a part of a requested change is not done.
- A condition marked *not ready* makes `/readyz` answer 503. With all others a replica stays ready:
  it serves its known state, which is better for proxies than none.
- A *rule* rejects a command. `--accept CODE --reason TEXT` on the command line, or
  `\"accept\": [\"CODE\"], \"reason\": \"TEXT\"` over HTTP, overrides it.
";

/// `docs/reference/codes.md`.
pub fn markdown() -> String {
    let mut page = HEAD.to_owned();
    for (digit, title) in AREAS {
        page += &format!("\n## TG{digit}: {title}\n");
        for entry in entries().filter(|entry| entry.id.chars().nth(2) == Some(digit)) {
            let Entry {
                id,
                name,
                meaning,
                what_to_do,
                ..
            } = entry;
            let kind = kind(entry);
            let meaning = wrapped(&format!("*{kind}.* {meaning}"));
            let what_to_do = wrapped(what_to_do);
            page += &format!("\n### {id} `{name}`\n\n{meaning}\n\n{what_to_do}\n");
        }
    }
    page
}

/// In lines of at most 100 columns.
fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= 100 => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.join("\n")
}

/// One line for each code.
pub fn list() -> String {
    let mut lines = String::new();
    for entry in entries() {
        let Entry {
            id, name, meaning, ..
        } = entry;
        let severity = entry.severity.as_str();
        lines += &format!("{id}  {severity:<8} {name:<24} {meaning}\n");
    }
    lines
}

/// One code, for a terminal.
pub fn explain(code: Code) -> String {
    let entry = code.entry();
    let Entry {
        id,
        name,
        meaning,
        what_to_do,
        ..
    } = entry;
    let kind = kind(entry);
    format!("{id} {name} ({kind})\n{meaning}\nWhat to do: {what_to_do}\n")
}

fn kind(entry: &Entry) -> String {
    let severity = entry.severity.as_str();
    match entry.kind {
        Kind::Condition => format!("Condition, {severity}"),
        Kind::NotReady => format!("Condition, {severity}, not ready"),
        Kind::Rule => format!("Rule, {severity}"),
    }
}

fn entries() -> impl Iterator<Item = &'static Entry> {
    Code::ALL.iter().map(|code| code.entry())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_of_codes_is_what_the_table_says() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/codes.md");
        let page = std::fs::read_to_string(file).unwrap_or_default();
        assert!(
            page == markdown(),
            "docs/reference/codes.md is stale: cargo run -p tidegate -- codes --markdown > docs/reference/codes.md"
        );
    }

    #[test]
    fn a_code_is_explained_with_what_to_do() {
        let text = explain(Code::StoreFull);
        assert!(text.starts_with("TG2004 store_full (Condition, error)\n"));
        assert!(text.contains("etcdctl alarm disarm"), "{text}");
        assert_eq!(list().lines().count(), Code::ALL.len());
    }
}
