//! The permissions of the net: the exact requests that pass without a mark of the guest.
//!
//! The text of a host is compared as the filter does it: in any case, without its port. The path is
//! compared without its query, and ends at a segment.

use policy::{Class, ClassRule, Route, RouteMatch};
use serde_json::{Value, json};

use super::super::lists::Exception;

/// The definition of Envoy and of the filter: `application/grpc`, alone or with a suffix.
const GRPC: &str = r"application/grpc(\+.*)?";

/// Requests of the methods of RFC 9110, 9.2.1, that ask for no other protocol, except on `writes`.
pub(super) fn safe(writes: &[Exception]) -> Vec<Value> {
    let methods = ["GET", "HEAD", "OPTIONS", "TRACE"];
    let method = |method: &&str| header(":method", "exact", method);
    let mut rules = vec![
        any_of(methods.iter().map(method).collect()),
        not(json!({ "header": { "name": "upgrade", "present_match": true } })),
    ];
    rules.extend(writes.iter().map(|write| not(exception(write))));
    rules
}

/// The requests of a read, without those that a more specific route takes.
pub(super) fn exception(at: &Exception) -> Value {
    let mut rules = requests(&at.route);
    let other_host = |other: &&Route| other.host != at.route.host;
    // A more specific host decides alone.
    let mut hosts: Vec<&str> = (at.except.iter().filter(other_host))
        .map(|other| other.host.as_str())
        .collect();
    hosts.sort_unstable();
    hosts.dedup();
    rules.extend(hosts.into_iter().filter_map(host).map(not));
    let paths = at.except.iter().filter(|other| !other_host(other));
    rules.extend(paths.map(|other| not(all_of(path(&other.matches)))));
    all_of(rules)
}

/// The requests that match a route by host, path and class.
fn requests(route: &Route) -> Vec<Value> {
    let mut rules: Vec<_> = host(&route.host).into_iter().collect();
    match (&route.matches, &route.class) {
        (RouteMatch::Grpc(name), ClassRule::GrpcReads(reads)) => {
            let method = |read: &String| url_path("exact", &format!("/{name}/{read}"));
            rules.push(any_of(reads.iter().map(method).collect()));
            rules.push(header("content-type", "safe_regex", GRPC));
        }
        (matches, ClassRule::ByMethod | ClassRule::GrpcReads(_)) => rules.extend(path(matches)),
        (matches, ClassRule::Always(Class::Read | Class::Write)) => rules.extend(path(matches)),
    }
    rules
}

fn path(matches: &RouteMatch) -> Vec<Value> {
    match matches {
        RouteMatch::Prefix(prefix) if prefix == "/" => vec![url_path("prefix", "/")],
        RouteMatch::Prefix(prefix) => vec![any_of(vec![
            url_path("exact", prefix),
            url_path("prefix", &format!("{prefix}/")),
        ])],
        RouteMatch::Grpc(name) => vec![
            url_path("prefix", &format!("/{name}/")),
            header("content-type", "safe_regex", GRPC),
        ],
    }
}

/// None for any host.
fn host(pattern: &str) -> Option<Value> {
    let quoted = |text: &str| text.replace('.', r"\.");
    // The port begins at the last colon, with or without a number.
    let regex = match pattern.strip_prefix('*') {
        Some("") => return None,
        Some(suffix) => format!(r"(?i).+{}(:[^:\]]*)?", quoted(suffix)),
        None => format!(r"(?i){}(:[^:\]]*)?", quoted(pattern)),
    };
    Some(header(":authority", "safe_regex", &regex))
}

fn url_path(how: &str, text: &str) -> Value {
    json!({ "url_path": { "path": { how: text } } })
}

fn header(name: &str, how: &str, text: &str) -> Value {
    let text = match how {
        "safe_regex" => json!({ "regex": text }),
        _ => json!(text),
    };
    json!({ "header": { "name": name, "string_match": { how: text } } })
}

fn not(rule: Value) -> Value {
    json!({ "not_rule": rule })
}

fn all_of(mut rules: Vec<Value>) -> Value {
    match rules.len() {
        1 => rules.remove(0),
        _ => json!({ "and_rules": { "rules": rules } }),
    }
}

fn any_of(mut rules: Vec<Value>) -> Value {
    match rules.len() {
        1 => rules.remove(0),
        _ => json!({ "or_rules": { "rules": rules } }),
    }
}
