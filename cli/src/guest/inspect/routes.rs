//! The routes that take writes of fenced services: bounds, retries, and whether they follow the
//! guest.

use policy::guest::Mode;
use serde_json::Value;

use super::{
    Known,
    finding::Problem,
    guests::Guest,
    json::{at, duration_ms, field, is_true, list, text},
    reach,
    view::{Filter, Manager, Target, VirtualHost, target},
};

const MARKS: &str = "x-tidegate";
const TO: &str = "x-tidegate-to";

/// The findings about the routes of a connection manager with a guest.
pub(super) fn check(
    manager: &Manager<'_>,
    guest: &Guest,
    net: Option<usize>,
    known: &Known,
    found: &mut impl FnMut(Problem, &str),
) {
    let config = guest.config.as_ref().ok();
    let mode = config.map(|config| config.guest.mode);
    let drain_ms = config.and_then(|config| config.guest.drain_ms);
    let limit = Limits {
        max_ms: drain_ms.into_iter().chain(known.write_drain_ms).min(),
        inherited: at(
            manager.config,
            &["common_http_protocol_options", "max_stream_duration"],
        ),
    };
    let filter = |index: Option<usize>| index.and_then(|index| manager.filters.get(index));
    let (guest, net) = (filter(Some(guest.index)), filter(net));
    let mut follows = false;
    let mut count = 0_usize;
    for host in &manager.hosts {
        for (index, route) in list(host.config, "routes").iter().enumerate() {
            let place = format!("{}.routes[{index}]", host.place);
            if let Some(header) = forged(route, host) {
                found(Problem::MarkForged { header }, &place);
            }
            let sends_nothing = target(route) == Target::Nothing;
            count += usize::from(!sends_nothing);
            follows |= !sends_nothing && is_following(route);
            if target(route) == Target::Header(TO) && mode == Some(Mode::Fence) {
                found(Problem::ClusterHeaderUnset, &place);
            }
        }
        for (index, route) in reach::fenced(host, manager, known) {
            let runs = guest.is_some_and(|guest| guest.runs_on(route, host));
            // Without the guest it is a way past, which `ways` finds.
            if target(route) == Target::Nothing || !runs {
                continue;
            }
            let place = format!("{}.routes[{index}]", host.place);
            if net.is_some_and(|net| is_overridden(net, route, host)) {
                found(Problem::NetDisabled, &place);
            }
            if field(route, "match").and_then(|rule| field(rule, "case_sensitive"))
                == Some(&Value::Bool(false))
            {
                found(Problem::CaseInsensitive, &place);
            }
            if !reach::is_read_only(route, known) {
                writes(route, host, &limit, &mut |problem| found(problem, &place));
            }
        }
    }
    if mode == Some(Mode::Route) && count > 0 && !follows && manager.unread.is_none() {
        found(Problem::RoutesIgnoreGuest, &manager.place);
    }
}

struct Limits<'v> {
    max_ms: Option<u64>,
    /// The bound of the connection manager, for routes without one.
    inherited: Option<&'v Value>,
}

/// A route that takes writes.
fn writes(
    route: &Value,
    host: &VirtualHost<'_>,
    limits: &Limits<'_>,
    add: &mut impl FnMut(Problem),
) {
    let Some(action) = field(route, "route") else {
        return;
    };
    let own = at(action, &["max_stream_duration", "max_stream_duration"]);
    let bound = own.or(limits.inherited).and_then(duration_ms);
    match (bound.filter(|ms| *ms > 0), limits.max_ms) {
        (None, _) => add(Problem::UnboundedWrite),
        (Some(ms), Some(max_ms)) if ms > max_ms => add(Problem::LongWrite { ms, max_ms }),
        (Some(_), _) => {}
    }
    let of = |name: &str| field(action, name).or_else(|| field(host.config, name));
    let retry_on = of("retry_policy").map(|policy| text(policy, "retry_on"));
    let tokens = retry_on.unwrap_or_default().split(',').map(str::trim);
    let others = tokens.filter(|on| !matches!(*on, "" | "connect-failure" | "refused-stream"));
    let others: Vec<_> = others.collect();
    if !others.is_empty() {
        add(Problem::Retries {
            on: others.join(","),
        });
    }
    let hedges = |policy: &Value| {
        let requests = field(policy, "initial_requests").and_then(Value::as_u64);
        requests.is_some_and(|requests| requests > 1)
            || is_true(policy, "hedge_on_per_try_timeout")
            || field(policy, "additional_request_chance").is_some()
    };
    if of("hedge_policy").is_some_and(hedges) {
        add(Problem::Hedging);
    }
    let scopes = [action, host.config, host.table];
    if scopes
        .iter()
        .any(|scope| !list(scope, "request_mirror_policies").is_empty())
    {
        add(Problem::Mirror);
    }
}

/// Whether a route has another net, or none.
fn is_overridden(net: &Filter<'_>, route: &Value, host: &VirtualHost<'_>) -> bool {
    let own = |scope: &&Value| {
        let all = field(scope, "typed_per_filter_config");
        all.and_then(|all| all.get(net.name)).is_some()
    };
    [route, host.config, host.table].iter().any(own) || net.is_disabled
}

/// Whether the guest's decision selects a route or its cluster.
fn is_following(route: &Value) -> bool {
    let rule = field(route, "match").unwrap_or(&Value::Null);
    let mut headers = list(rule, "headers").iter();
    target(route) == Target::Header(TO)
        || headers.any(|header| text(header, "name").starts_with(MARKS))
}

/// Whether a route goes to the cluster that the guest names. Others match on the name.
pub(super) fn names_clusters(manager: &Manager<'_>) -> bool {
    let mut routes = manager
        .hosts
        .iter()
        .flat_map(|host| list(host.config, "routes"));
    routes.any(|route| target(route) == Target::Header(TO))
}

/// A header of ours that the route, or what it stands in, sets.
fn forged(route: &Value, host: &VirtualHost<'_>) -> Option<String> {
    let weighted = at(route, &["route", "weighted_clusters"]).map(|all| list(all, "clusters"));
    let scopes = [route, host.config, host.table].into_iter();
    let scopes = scopes.chain(weighted.unwrap_or_default());
    let mut added = scopes.flat_map(|scope| list(scope, "request_headers_to_add"));
    added.find_map(|option| {
        let key = text(field(option, "header")?, "key").to_ascii_lowercase();
        key.starts_with(MARKS).then_some(key)
    })
}
