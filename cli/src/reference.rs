//! Checks that the options in `docs/reference/cli.md` are those of the code.

use std::{fs, path::Path};

const BEGIN: &str =
    "<!-- begin: generated from the code; TIDEGATE_BLESS=1 cargo test -p tidegate reference -->\n";
const END: &str = "<!-- end -->\n";

#[test]
fn every_option_is_in_the_reference() {
    let options = clap_markdown::MarkdownOptions::new()
        .show_footer(false)
        .show_table_of_contents(false)
        .title("`tidegate`".to_owned());
    let generated = clap_markdown::help_markdown_custom::<super::Cli>(&options);
    // Without its title; headings one level below the page's own.
    let line = |line: &str| match line.strip_prefix("###### ") {
        Some(bold) => bold.to_owned(),
        None if line.starts_with("## ") => format!("#{line}"),
        None => line.trim_end().to_owned(),
    };
    let lines = generated
        .lines()
        .skip_while(|line| !line.starts_with("## "));
    let lines: Vec<String> = lines.map(line).collect();
    let generated = format!("\n{}\n\n", lines.join("\n").trim());

    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/cli.md");
    let page = fs::read_to_string(&file).expect("the page is there");
    let (before, rest) = page.split_once(BEGIN).expect("the page has a beginning");
    let (present, after) = rest.split_once(END).expect("the page has an end");
    if std::env::var_os("TIDEGATE_BLESS").is_some() {
        let blessed = [before, BEGIN, &generated, END, after].concat();
        fs::write(&file, blessed).expect("the page can be written");
        return;
    }
    assert!(
        present == generated,
        "docs/reference/cli.md is stale: TIDEGATE_BLESS=1 cargo test -p tidegate reference"
    );
}
