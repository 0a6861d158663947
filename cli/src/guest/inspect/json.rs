//! Fields of protobuf messages as JSON: each name may stand in snake case or in camel case, and a
//! field of another shape counts as absent.

use serde_json::Value;

/// The field of an object by its name in snake case.
pub(super) fn field<'v>(value: &'v Value, name: &str) -> Option<&'v Value> {
    let object = value.as_object()?;
    let found = object.get(name).or_else(|| object.get(&camel(name)));
    found.filter(|found| !found.is_null())
}

fn camel(name: &str) -> String {
    let mut text = String::new();
    let mut parts = name.split('_');
    text.extend(parts.next());
    for part in parts {
        let mut letters = part.chars();
        text.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        text.push_str(letters.as_str());
    }
    text
}

/// The field at the end of a path of fields.
pub(super) fn at<'v>(value: &'v Value, path: &[&str]) -> Option<&'v Value> {
    path.iter()
        .try_fold(value, |value, name| field(value, name))
}

/// A text; empty where there is none.
pub(super) fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    field(value, name)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// A list; empty where there is none.
pub(super) fn list<'v>(value: &'v Value, name: &str) -> &'v [Value] {
    field(value, name)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

pub(super) fn is_true(value: &Value, name: &str) -> bool {
    field(value, name)
        .and_then(Value::as_bool)
        .unwrap_or_default()
}

/// The type of an `Any`: its last part, like `Wasm`, behind the last dot.
pub(super) fn type_of(any: &Value) -> &str {
    let url = any.get("@type").and_then(Value::as_str).unwrap_or_default();
    match url.ends_with(".TypedStruct") {
        true => text(any, "type_url"),
        false => url,
    }
}

/// The message of an `Any`.
pub(super) fn message(any: &Value) -> &Value {
    let url = any.get("@type").and_then(Value::as_str).unwrap_or_default();
    match url.ends_with(".TypedStruct") {
        true => field(any, "value").unwrap_or(&Value::Null),
        false => any,
    }
}

/// A duration like `1.5s` in milliseconds, rounded up.
pub(super) fn duration_ms(value: &Value) -> Option<u64> {
    let text = value.as_str()?.strip_suffix('s')?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: u64 = seconds.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) || fraction.len() > 9 {
        return None;
    }
    let nanos: u64 = format!("{fraction:0<9}").parse().ok()?;
    Some(
        seconds
            .checked_mul(1_000)?
            .saturating_add(nanos.div_ceil(1_000_000)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_stand_in_both_cases() {
        let value = json!({ "maxStreamDuration": 1, "max_x": 2, "gone": null });
        assert_eq!(field(&value, "max_stream_duration"), Some(&json!(1)));
        assert_eq!(field(&value, "max_x"), Some(&json!(2)));
        assert_eq!(
            (field(&value, "gone"), field(&json!([]), "x")),
            (None, None)
        );
    }

    #[test]
    fn durations_are_rounded_up() {
        for (text, ms) in [
            ("1.5s", Some(1_500)),
            ("0s", Some(0)),
            ("0.0000001s", Some(1)),
            ("15s", Some(15_000)),
            ("-1s", None),
            ("1.5", None),
            ("s", None),
            ("1.xs", None),
            ("99999999999999999999s", None),
            ("18446744073709551615s", None),
        ] {
            assert_eq!(duration_ms(&json!(text)), ms, "{text}");
        }
    }
}
