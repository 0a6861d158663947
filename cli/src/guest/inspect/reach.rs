//! Which routes of an Envoy take requests of fenced services.
//!
//! Without Tidegate's configuration every route may. With it, a route does if it can match a
//! request of a fenced route, and no earlier route of its virtual host takes all of these.

use policy::{Route, RouteMatch};
use serde_json::Value;

use super::{
    Known,
    json::{field, is_true, list, text},
    view::{Manager, VirtualHost},
};
use policy::listed::{is_host_within, is_path_within};

/// The routes of a virtual host that may take requests of fenced services, with their positions.
pub(super) fn fenced<'v>(
    host: &VirtualHost<'v>,
    manager: &Manager<'v>,
    known: &Known,
) -> Vec<(usize, &'v Value)> {
    let routes = list(host.config, "routes").iter().enumerate();
    if !known.is_configured {
        return routes.collect();
    }
    let mut left: Vec<&Route> = known
        .fenced()
        .filter(|route| meets(host, manager, route))
        .collect();
    let mut taken = vec![];
    for (at, route) in routes {
        let rule = field(route, "match").unwrap_or(&Value::Null);
        if left.iter().any(|fenced| overlaps(rule, &fenced.matches)) {
            taken.push((at, route));
        }
        left.retain(|fenced| !(is_unconditional(rule, fenced) && covers(rule, &fenced.matches)));
    }
    taken
}

/// Whether a route matches methods that read, and no others.
pub(super) fn is_read_only(route: &Value, known: &Known) -> bool {
    let rule = field(route, "match").unwrap_or(&Value::Null);
    let is_safe = |method: &str| matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE");
    let reads = |header: &Value| {
        let exact = field(header, "string_match").unwrap_or(header);
        let method = match text(exact, "exact") {
            "" => text(exact, "exact_match"),
            method => method,
        };
        let regex = field(exact, "safe_regex").map(|regex| text(regex, "regex"));
        let regex = regex.unwrap_or_default().trim_matches(['^', '$', '(', ')']);
        let methods: Vec<&str> = match method {
            "" => regex.split('|').collect(),
            method => vec![method],
        };
        text(header, "name") == ":method"
            && !is_true(header, "invert_match")
            && methods.into_iter().all(is_safe)
    };
    let is_listed_write = known.routes.iter().any(|(route, _)| {
        route.class == policy::ClassRule::Always(policy::Class::Write)
            && overlaps(rule, &route.matches)
    });
    list(rule, "headers").iter().any(reads) && !is_listed_write
}

/// Whether a virtual host may take requests of this route's host.
fn meets(host: &VirtualHost<'_>, manager: &Manager<'_>, route: &Route) -> bool {
    let domains = list(host.config, "domains")
        .iter()
        .filter_map(Value::as_str);
    let mut domains = domains.map(without_port);
    let is_exact_elsewhere = || {
        let others = manager
            .hosts
            .iter()
            .filter(|other| !std::ptr::eq(other.config, host.config));
        let mut names = others.flat_map(|other| list(other.config, "domains"));
        names.any(|name| name.as_str().map(without_port) == Some(route.host.as_str()))
    };
    domains.any(|domain| {
        let domain = domain.to_ascii_lowercase();
        // A pattern like `shop.*`, of which the policy has none.
        let is_open = domain.len() > 1 && domain.ends_with('*');
        let wide = is_open || is_host_within(&route.host, &domain);
        domain == route.host
            || is_host_within(&domain, &route.host)
            || wide && !is_exact_elsewhere()
    })
}

fn without_port(domain: &str) -> &str {
    match domain.rsplit_once(':') {
        Some((name, port))
            if port
                .bytes()
                .all(|byte| byte.is_ascii_digit() || byte == b'*') =>
        {
            name
        }
        _ => domain,
    }
}

/// The path of a match, as far as it is one of a known form.
enum Path<'v> {
    Prefix(&'v str),
    Separated(&'v str),
    Exact(&'v str),
    Any,
}

fn path(rule: &Value) -> Path<'_> {
    let present = |name: &str| field(rule, name).and_then(Value::as_str);
    if let Some(prefix) = present("prefix") {
        return Path::Prefix(prefix);
    }
    if let Some(prefix) = present("path_separated_prefix") {
        return Path::Separated(prefix);
    }
    present("path").map_or(Path::Any, Path::Exact)
}

fn below(matches: &RouteMatch) -> String {
    match matches {
        RouteMatch::Prefix(prefix) => prefix.trim_end_matches('/').to_owned(),
        RouteMatch::Grpc(name) => format!("/{name}"),
    }
}

/// Whether some request of the fenced route matches. Paths are compared without their case, since a
/// route may ignore it.
fn overlaps(rule: &Value, fenced: &RouteMatch) -> bool {
    let fenced = below(fenced).to_ascii_lowercase();
    let prefix = |text: &str| RouteMatch::Prefix(text.to_ascii_lowercase());
    let within = |inner: &RouteMatch, outer: &RouteMatch| is_path_within(inner, outer);
    match path(rule) {
        Path::Any => true,
        Path::Exact(path) => within(&prefix(path), &prefix(&fenced)),
        Path::Separated(path) => {
            within(&prefix(path), &prefix(&fenced)) || within(&prefix(&fenced), &prefix(path))
        }
        Path::Prefix(path) => {
            let path = path.to_ascii_lowercase();
            fenced.starts_with(&path)
                || format!("{fenced}/").starts_with(&path)
                || within(&prefix(&path), &prefix(&fenced))
        }
    }
}

/// Whether every request of the fenced route matches, by its path.
fn covers(rule: &Value, fenced: &RouteMatch) -> bool {
    let is_grpc = matches!(fenced, RouteMatch::Grpc(_));
    let fenced = below(fenced);
    match path(rule) {
        Path::Any | Path::Exact(_) => false,
        // A method follows the name of a gRPC service.
        Path::Prefix(path) if is_grpc => format!("{fenced}/").starts_with(path),
        Path::Prefix(path) => fenced.starts_with(path) || path == "/",
        Path::Separated(path) => is_path_within(
            &RouteMatch::Prefix(fenced),
            &RouteMatch::Prefix(path.to_owned()),
        ),
    }
}

/// Whether the match has no condition besides the path that a request of the fenced route may miss.
fn is_unconditional(rule: &Value, fenced: &Route) -> bool {
    let is_grpc = matches!(fenced.matches, RouteMatch::Grpc(_));
    let conditions = [
        "headers",
        "query_parameters",
        "cookies",
        "runtime_fraction",
        "grpc",
        "tls_context",
        "dynamic_metadata",
        "filter_state",
    ];
    let mut present = conditions
        .into_iter()
        .filter(|name| field(rule, name).is_some());
    present.all(|name| name == "grpc" && is_grpc)
}
