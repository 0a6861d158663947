//! The printing of answers.

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use serde_json::Value;

/// `-o`, as in kubectl.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// A table.
    #[default]
    Table,
    /// The items as the admin port returns them, as a JSON list.
    Json,
    /// The same as YAML.
    Yaml,
    /// `kind/name`, one per line.
    Name,
}

/// A table of these rows, with two spaces between columns and none at the end of a line.
pub(crate) fn table(headers: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headers);
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines = table.to_string();
    let lines = lines.lines().map(|line| format!("{}\n", line.trim_end()));
    lines.collect()
}

/// JSON for people, with a final line break.
pub(crate) fn json(value: &Value) -> String {
    format!("{value:#}\n")
}

/// The same as YAML.
///
/// # Errors
///
/// Those of the writer, for values that YAML cannot represent.
pub(crate) fn yaml(value: &Value) -> anyhow::Result<String> {
    let text = serde_saphyr::to_string(value)?;
    Ok(format!("{}\n", text.trim_end()))
}

/// Several documents of YAML.
///
/// # Errors
///
/// As [`yaml`].
pub(crate) fn documents(values: &[&Value]) -> anyhow::Result<String> {
    let documents = values.iter().map(|value| yaml(value));
    Ok(documents.collect::<anyhow::Result<Vec<_>>>()?.join("---\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_aligned_columns_and_no_trailing_spaces() {
        let rows = vec![
            vec!["sh-a".to_owned(), "healthy".to_owned(), String::new()],
            vec![
                "a-longer-zone".to_owned(),
                "drained".to_owned(),
                "x".to_owned(),
            ],
        ];
        let table = table(&["ZONE", "STATE", "WHY"], rows);
        let expected = "\
ZONE           STATE    WHY
sh-a           healthy
a-longer-zone  drained  x
";
        assert_eq!(table, expected);
    }

    #[test]
    fn yaml_is_the_same_document_as_json() {
        let value = serde_json::json!([{"zone": "sh-a", "share": 1000, "why": null}]);
        let read: Value = serde_saphyr::from_str(&yaml(&value).unwrap()).unwrap();
        assert_eq!(read, value);
    }
}
