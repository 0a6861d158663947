//! The node of this Envoy. The ABI does not show it, so it is read where Envoy reads it: from the
//! command line, and from the bootstrap that is named there.

use std::{fs, path::Path, sync::LazyLock};

use serde_json::{Value, json};

static NODE: LazyLock<Value> = LazyLock::new(|| {
    let line = fs::read("/proc/self/cmdline").unwrap_or_default();
    let arguments = line.split(|byte| *byte == 0);
    let arguments: Vec<String> = arguments
        .map(|argument| String::from_utf8_lossy(argument).into_owned())
        .collect();
    node(&arguments, |path| fs::read_to_string(path).ok())
});

/// The name under which this proxy is known to its control plane.
pub(crate) fn id() -> String {
    text(&["id"]).unwrap_or_default()
}

/// A text of the node, by its path.
pub(crate) fn text(path: &[&str]) -> Option<String> {
    find(&NODE, path)
}

fn find(node: &Value, path: &[&str]) -> Option<String> {
    let mut at = node;
    for part in path {
        at = at.get(part)?;
    }
    at.as_str().map(str::to_owned)
}

/// The node by Envoy's rules: the file, over it the text of `--config-yaml`, and over both the
/// options of their own.
fn node(arguments: &[String], read: impl Fn(&Path) -> Option<String>) -> Value {
    let mut node = json!({});
    let file = option(arguments, &["-c", "--config-path"]);
    let file = file.and_then(|path| read(Path::new(path)));
    let inline = option(arguments, &["--config-yaml"]).map(str::to_owned);
    for text in [file, inline].into_iter().flatten() {
        let bootstrap: Option<Value> = serde_saphyr::from_str(&text).ok();
        if let Some(own) = bootstrap.as_ref().and_then(|all| all.get("node")) {
            merge(&mut node, own);
        }
    }
    for (name, field) in [
        ("--service-node", json!({ "id": "" })),
        ("--service-cluster", json!({ "cluster": "" })),
        ("--service-zone", json!({ "locality": { "zone": "" } })),
    ] {
        if let Some(value) = option(arguments, &[name]).filter(|value| !value.is_empty()) {
            merge(&mut node, &filled(field, value));
        }
    }
    node
}

/// The same with this value in place of the empty one.
fn filled(field: Value, value: &str) -> Value {
    match field {
        Value::Object(fields) => Value::Object(
            (fields.into_iter())
                .map(|(name, field)| (name, filled(field, value)))
                .collect(),
        ),
        _ => Value::from(value),
    }
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (name, value) in from {
                merge(into.entry(name.as_str()).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

/// The value of an option: behind it, or in it behind an equals sign.
fn option<'a>(arguments: &'a [String], names: &[&str]) -> Option<&'a str> {
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        for name in names {
            if argument == name {
                return rest.next().map(String::as_str);
            }
            let value = argument.strip_prefix(name);
            if let Some(value) = value.and_then(|rest| rest.strip_prefix('=')) {
                return Some(value);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "
node:
  id: gateway-1
  locality: {region: shanghai, zone: shanghai-a}
  metadata: {tidegate: {role: gateway}, LABELS: {'topology.kubernetes.io/zone': b}}
admin: {}
";

    fn of(line: &str) -> Value {
        let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let read = |path: &Path| (path == Path::new("a.yaml")).then(|| FILE.to_owned());
        node(&arguments, read)
    }

    fn text(line: &str, path: &[&str]) -> Option<String> {
        find(&of(line), path)
    }

    #[test]
    fn the_bootstrap_names_the_node() {
        for line in ["envoy -c a.yaml", "envoy --config-path=a.yaml -l info"] {
            assert_eq!(text(line, &["id"]).as_deref(), Some("gateway-1"));
            let zone = text(line, &["locality", "zone"]);
            assert_eq!(zone.as_deref(), Some("shanghai-a"));
            let label = ["metadata", "LABELS", "topology.kubernetes.io/zone"];
            assert_eq!(text(line, &label).as_deref(), Some("b"));
            assert_eq!(text(line, &["metadata", "LABELS"]), None, "no text");
        }
        assert_eq!(of("envoy -c missing.yaml"), json!({}));
        assert_eq!(of("envoy"), json!({}));
    }

    #[test]
    fn options_and_inline_text_go_over_the_file() {
        let line = "envoy -c a.yaml --config-yaml node:{id:x}";
        assert_eq!(
            text(line, &["id"]).as_deref(),
            Some("gateway-1"),
            "no YAML of a node"
        );
        let line =
            "envoy -c a.yaml --config-yaml {\"node\":{\"id\":\"x\",\"locality\":{\"zone\":\"y\"}}}";
        assert_eq!(text(line, &["id"]).as_deref(), Some("x"));
        assert_eq!(
            text(line, &["locality", "region"]).as_deref(),
            Some("shanghai")
        );
        let line = format!("{line} --service-node z --service-zone=w");
        assert_eq!(text(&line, &["id"]).as_deref(), Some("z"));
        assert_eq!(text(&line, &["locality", "zone"]).as_deref(), Some("w"));
    }
}
