//! The little of YAML that is written here: flow style for values, indentation for blocks.

use serde_json::Value;

/// A value on one line. Texts without a special character stand without quotes.
pub(super) fn flow(value: &Value) -> String {
    match value {
        Value::String(text) => scalar(text),
        Value::Array(all) => {
            let all: Vec<_> = all.iter().map(flow).collect();
            format!("[{}]", all.join(", "))
        }
        Value::Object(all) => {
            let field =
                |(name, value): (&String, &Value)| format!("{}: {}", scalar(name), flow(value));
            let all: Vec<_> = all.iter().map(field).collect();
            format!("{{{}}}", all.join(", "))
        }
        plain => plain.to_string(),
    }
}

/// A text as a scalar.
pub(super) fn scalar(text: &str) -> String {
    let begins = text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '/');
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte);
    // Words that YAML takes for something else.
    let word = text.to_ascii_lowercase();
    let is_word = matches!(
        word.as_str(),
        "true" | "false" | "null" | "yes" | "no" | "on" | "off" | "y" | "n"
    );
    match begins && !is_word && text.bytes().all(plain) {
        true => text.to_owned(),
        false => Value::from(text).to_string(),
    }
}

/// Each line of `text` that is not empty, `columns` further to the right.
pub(super) fn indent(text: &str, columns: usize) -> String {
    let lines = text.lines().map(|line| match line.is_empty() {
        true => "\n".to_owned(),
        false => format!("{:columns$}{line}\n", ""),
    });
    lines.collect()
}

/// An element of a list: the first line behind a dash.
pub(super) fn item(text: &str) -> String {
    let mut text = indent(text, 2);
    if text.starts_with("  ") {
        text.replace_range(..1, "-");
    }
    text
}

/// Comment lines of at most 96 characters.
pub(super) fn comment(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let fits = lines
            .last()
            .is_some_and(|line| line.is_empty() || line.len() + 1 + word.len() <= 96);
        match lines.last_mut() {
            Some(line) if fits => {
                if !line.is_empty() {
                    line.push(' ');
                }
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.iter().map(|line| format!("# {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn flow_style_reads_back_as_the_same_value() {
        let value = json!({
            "@type": "type.googleapis.com/x.Y", ":method": "GET", "a b": ["on", "1.5s", "*", "a-b", ""],
            "n": 1, "t": true, "none": null, "quoted": "a \"b\" \\ c: d # e", "/p": {"x": []},
        });
        let read: Value = serde_saphyr::from_str(&flow(&value)).unwrap();
        assert_eq!(read, value);
    }

    #[test]
    fn blocks_are_indented_and_comments_wrapped() {
        assert_eq!(item("a: 1\nb: 2\n"), "- a: 1\n  b: 2\n");
        assert_eq!(indent("a\n\nb\n", 2), "  a\n\n  b\n");
        let text = comment(&"word ".repeat(40));
        assert!(
            text.lines()
                .all(|line| line.starts_with("# word") && line.len() <= 98)
        );
        assert_eq!(text.matches("word").count(), 40);
    }
}
