//! Small configurations and their findings. Each change of an example gives exactly its finding.

mod dumps;
mod examples;
mod listed;

use serde_json::{Value, json};
use xds_server::config::Config;

use super::*;

/// An example of the repository.
fn example(name: &str) -> Value {
    let path = format!(
        "{}/../examples/envoy/{name}.yaml",
        env!("CARGO_MANIFEST_DIR")
    );
    agent::yaml::read(&path, &std::fs::read_to_string(&path).unwrap()).unwrap()
}

/// Tidegate's configuration: a fenced service, and one that is not.
fn mesh() -> Known {
    mesh_with("  - {name: web, fenced: false, routes: [{prefix: /web}]}\n")
}

/// The configuration for an example: `route` has clusters of the fenced service alone.
fn mesh_of(example: &str) -> Known {
    match example {
        "route" => mesh_with(""),
        _ => mesh(),
    }
}

fn mesh_with(services: &str) -> Known {
    let text = "
store: {embedded: {path: /tmp/store.redb}}
filter: {path: /etc/tidegate/tidegate_filter.wasm}
zones:
  - {name: shanghai-a, region: shanghai}
  - {name: shanghai-b, region: shanghai}
  - {name: beijing-c, region: beijing}
authority:
  write_drain_ms: 1500
  cells: [{name: main, owners: [shanghai-a], standby: [shanghai-b]}]
services:
  - {name: orders, fenced: true, routes: [{prefix: /orders}]}
";
    let text = format!("{text}{services}");
    Known::of(&Config::parse("mesh.yaml", &text).unwrap())
}

/// The names of the findings.
fn names(document: &Value, known: &Known) -> Vec<&'static str> {
    let findings = inspect(document, known).unwrap();
    findings
        .iter()
        .map(|finding| finding.problem.name())
        .collect()
}

/// `/static_resources/...`, from the connection manager on.
const MANAGER: &str = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config";

/// A change of an example.
enum Change {
    /// A value in place of the one at a JSON pointer.
    Set(&'static str, Value),
    /// A field or an element taken away.
    Remove(&'static str),
    /// An element put in before that at a JSON pointer, or behind the last one.
    Insert(&'static str, Value),
}

use Change::{Insert, Remove, Set};

impl Change {
    /// Pointers that begin with `~` are those of the connection manager.
    fn apply(&self, document: &mut Value) {
        let path = |pointer: &str| match pointer.strip_prefix('~') {
            Some(rest) => format!("{MANAGER}{rest}"),
            None => pointer.to_owned(),
        };
        let split = |pointer: &str| {
            let path = path(pointer);
            let (parent, last) = path.rsplit_once('/').unwrap();
            (parent.to_owned(), last.to_owned())
        };
        match self {
            Set(pointer, value) => {
                let (parent, last) = split(pointer);
                match document.pointer_mut(&parent).unwrap() {
                    Value::Array(all) => all[last.parse::<usize>().unwrap()] = value.clone(),
                    parent => parent[last] = value.clone(),
                }
            }
            Remove(pointer) => {
                let (parent, last) = split(pointer);
                match document.pointer_mut(&parent).unwrap() {
                    Value::Array(all) => drop(all.remove(last.parse().unwrap())),
                    parent => drop(parent.as_object_mut().unwrap().remove(&last).unwrap()),
                }
            }
            Insert(pointer, value) => {
                let (parent, last) = split(pointer);
                let all = document
                    .pointer_mut(&parent)
                    .unwrap()
                    .as_array_mut()
                    .unwrap();
                all.insert(last.parse().unwrap_or(all.len()), value.clone());
            }
        }
    }
}

fn changed(name: &str, changes: &[Change]) -> Value {
    let mut document = example(name);
    changes
        .iter()
        .for_each(|change| change.apply(&mut document));
    document
}

/// A filter of a type, by the last parts of its name.
fn filter(name: &str, kind: &str) -> Value {
    let kind = format!("type.googleapis.com/envoy.extensions.filters.http.{kind}");
    json!({ "name": name, "typed_config": { "@type": kind } })
}

#[test]
fn other_documents_are_told() {
    for document in [
        json!(null),
        json!([]),
        json!("text"),
        json!({}),
        json!({ "configs": {} }),
        json!({ "static_resources": [] }),
        json!({ "apiVersion": "v1", "kind": "List" }),
    ] {
        assert_eq!(
            inspect(&document, &Known::unknown()).err(),
            Some(NotEnvoy),
            "{document}"
        );
    }
}

/// Replaces each part of an example by values of other shapes, one at a time.
#[test]
fn no_malformed_part_is_a_panic() {
    fn pointers(value: &Value, at: &str, all: &mut Vec<String>) {
        all.push(at.to_owned());
        match value {
            Value::Array(list) => {
                for (index, value) in list.iter().enumerate() {
                    pointers(value, &format!("{at}/{index}"), all);
                }
            }
            Value::Object(object) => {
                for (name, value) in object {
                    let name = name.replace('~', "~0").replace('/', "~1");
                    pointers(value, &format!("{at}/{name}"), all);
                }
            }
            _ => {}
        }
    }
    let known = mesh();
    let mut inspected = 0;
    for name in ["fence", "route"] {
        let example = example(name);
        let mut all = vec![];
        pointers(&example, "", &mut all);
        for pointer in all {
            for value in [
                json!(null),
                json!([]),
                json!({}),
                json!("{"),
                json!(-1),
                json!([[null]]),
            ] {
                let mut document = example.clone();
                *document.pointer_mut(&pointer).unwrap() = value;
                inspected += usize::from(inspect(&document, &known).is_ok());
                inspected += usize::from(inspect(&document, &Known::unknown()).is_ok());
            }
        }
    }
    assert!(inspected > 1_000, "{inspected}");
}
