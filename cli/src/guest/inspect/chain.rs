//! The filters of a connection manager around the guest, and what the manager makes of paths and
//! hosts before them.

use serde_json::Value;

use super::{
    finding::Problem,
    json::{at, field, is_true, list, text},
    view::{Filter, Manager},
};

const PREFIX: &str = "x-tidegate";

/// Filters that may change path, host or headers of a request.
const CHANGES_REQUESTS: [&str; 12] = [
    ".lua.v3.Lua",
    ".http.wasm.v3.Wasm",
    ".ext_proc.v3.ExternalProcessor",
    ".ext_authz.v3.ExtAuthz",
    ".golang.v3alpha.Config",
    ".dynamic_modules.v3.DynamicModuleFilter",
    ".header_mutation.v3.HeaderMutation",
    ".grpc_json_transcoder.v3.GrpcJsonTranscoder",
    ".grpc_http1_reverse_bridge.v3.FilterConfig",
    ".grpc_web.v3.GrpcWeb",
    ".composite.v3.Composite",
    ".match_delegate.v3.ExtensionWithMatcher",
];

/// The net of a connection manager: an RBAC filter that names marks of the guest.
pub(super) fn net(manager: &Manager<'_>) -> Option<usize> {
    let is_net = |filter: &Filter<'_>| {
        filter.is(".rbac.v3.RBAC") && filter.config.to_string().contains(PREFIX)
    };
    manager.filters.iter().position(is_net)
}

/// The findings about filters.
pub(super) fn check(
    manager: &Manager<'_>,
    guest: usize,
    net: Option<usize>,
    found: &mut impl FnMut(Problem, &str),
) {
    strip(manager, guest, found);
    let router = manager
        .filters
        .iter()
        .position(|filter| filter.is(".router.v3.Router"));
    let end = router.unwrap_or(manager.filters.len());
    for (index, filter) in manager.filters.iter().enumerate().take(end).skip(guest + 1) {
        let changes = CHANGES_REQUESTS.iter().any(|kind| filter.is(kind));
        if changes && Some(index) != net && !is_strip(filter) {
            let filter_name = filter.name.to_owned();
            found(
                Problem::FilterBetween {
                    filter: filter_name,
                },
                &filter.place,
            );
        }
    }
    let Some((at, filter)) = net.and_then(|at| Some((at, manager.filters.get(at)?))) else {
        return found(Problem::NetMissing, &manager.place);
    };
    if at < guest {
        found(Problem::NetOrder, &filter.place);
    }
    let Some(rules) = field(filter.config, "rules") else {
        return found(Problem::NetShadow, &filter.place);
    };
    if let Some(policy) = open_policy(rules) {
        found(Problem::NetOpen { policy }, &filter.place);
    }
}

/// A policy of the net that permits any request.
fn open_policy(rules: &Value) -> Option<String> {
    let policies = field(rules, "policies")?.as_object()?;
    let denies = field(rules, "action").and_then(Value::as_str) == Some("DENY");
    let open = policies.iter().find(|(_, policy)| {
        let mut permissions = list(policy, "permissions").iter();
        permissions.any(|permission| match denies {
            true => field(permission, "not_rule").is_some_and(matches_all),
            false => matches_all(permission),
        })
    });
    open.map(|(name, _)| name.clone())
}

/// Whether a permission matches every request.
fn matches_all(permission: &Value) -> bool {
    let alternatives = field(permission, "or_rules");
    let mut alternatives = alternatives
        .map(|it| list(it, "rules"))
        .into_iter()
        .flatten();
    is_true(permission, "any") || alternatives.any(|it| is_true(it, "any"))
}

fn strip(manager: &Manager<'_>, guest: usize, found: &mut impl FnMut(Problem, &str)) {
    let early = list(manager.config, "early_header_mutation_extensions").iter();
    let is_early = early
        .filter_map(|at| field(at, "typed_config"))
        .any(removes_marks);
    let position = manager.filters.iter().position(is_strip);
    let place = |at: usize| {
        manager
            .filters
            .get(at)
            .map_or(&*manager.place, |filter| &filter.place)
    };
    let until = match (is_early, position) {
        (true, _) => return,
        (false, None) => {
            found(Problem::StripMissing, &manager.place);
            guest
        }
        (false, Some(at)) if at > guest => {
            found(Problem::StripOrder, place(at));
            guest
        }
        (false, Some(at)) => at,
    };
    for filter in manager.filters.iter().take(until) {
        let is_marked = filter
            .config
            .to_string()
            .to_ascii_lowercase()
            .contains(PREFIX);
        if is_marked && !is_strip(filter) && !filter.is(".rbac.v3.RBAC") {
            let name = filter.name.to_owned();
            found(Problem::MarkBeforeStrip { filter: name }, &filter.place);
        }
    }
}

fn is_strip(filter: &Filter<'_>) -> bool {
    filter.is(".header_mutation.v3.HeaderMutation")
        && !filter.is_disabled
        && removes_marks(filter.config)
}

/// Whether every header with our prefix is removed.
fn removes_marks(config: &Value) -> bool {
    let requests = at(config, &["mutations"]).map(|mutations| match mutations.as_array() {
        // Of the early extension.
        Some(all) => all.as_slice(),
        None => list(mutations, "request_mutations"),
    });
    let removes = |mutation: &Value| {
        let prefix =
            at(mutation, &["remove_on_match", "key_matcher"]).map(|key| text(key, "prefix"));
        prefix.is_some_and(|prefix| {
            !prefix.is_empty() && PREFIX.starts_with(&prefix.to_ascii_lowercase())
        })
    };
    requests.is_some_and(|all| all.iter().any(removes))
}

/// The findings about paths and hosts that the guest sees otherwise than the routes do.
pub(super) fn normalization(manager: &Manager<'_>, found: &mut impl FnMut(Problem, &str)) {
    let mut add = |problem| found(problem, &manager.place);
    if !is_true(manager.config, "normalize_path") {
        add(Problem::NormalizePath);
    }
    if !is_true(manager.config, "merge_slashes") {
        add(Problem::MergeSlashes);
    }
    match text(manager.config, "path_with_escaped_slashes_action") {
        "REJECT_REQUEST" | "UNESCAPE_AND_REDIRECT" | "UNESCAPE_AND_FORWARD" => {}
        _ => add(Problem::EscapedSlashes),
    }
    if !is_true(manager.config, "strip_trailing_host_dot") {
        add(Problem::HostDot);
    }
}
