//! An Envoy with a configuration of its own.

use std::cmp::Reverse;

use policy::{Route, RouteMatch, guest::Mode};
use serde_json::{Value, json};

use super::{
    pieces,
    spec::Spec,
    yaml::{flow, indent, item},
};
use crate::guest::lists;

/// One document: the pieces by the places where they belong.
pub(super) fn print(spec: &Spec) -> String {
    let notes = pieces::notes(spec);
    let manager = [
        "# The filter and the routes must see the same path and host.\n",
        pieces::normalization(),
        "# In this order, and the router behind them.\n",
        "http_filters:\n",
        &pieces::filters(spec),
        "# tidegate, 3: the net's 403 is told as the fence's 503.\n",
        &pieces::local_replies(),
    ]
    .concat();
    let manager = indent(&manager, 2);
    let routes = routes(spec);
    let clusters = item(&pieces::cluster(spec));
    format!(
        "\
# The pieces of a guest, by the places where they belong: docs/guides/existing-envoy.md.
#
# Adopt it on one Envoy first, and ask `tidegate check --guest FILE`. The order: cluster, strip and
# bounds; guest; net.
{notes}
# Each connection manager that leads to a fenced service.
http_connection_manager:
{manager}
# tidegate, 5: routes of fenced services. No write lives longer than the fence waits for it, and
# none is sent twice. The bound counts for reads, too: a route of their own by method has its own.
{}routes:
{routes}
clusters:
# tidegate, 4: the way to the control plane. `type`, address and TLS are yours.
{clusters}",
        pieces::following(spec),
    )
}

fn routes(spec: &Spec) -> String {
    let any = [Route {
        host: "*".to_owned(),
        matches: RouteMatch::Prefix("/orders".to_owned()),
        class: policy::ClassRule::ByMethod,
    }];
    let mut routes = match spec.fenced.is_empty() {
        true => any.to_vec(),
        false => spec.fenced.clone(),
    };
    // Envoy takes the first route that matches.
    let length = |route: &Route| match &route.matches {
        RouteMatch::Prefix(prefix) => prefix.len(),
        RouteMatch::Grpc(name) => name.len() + 1,
    };
    routes.sort_by_key(|route| (Reverse(route.host.clone()), Reverse(length(route))));
    let mut text = String::new();
    if spec.fenced.is_empty() {
        text += "# An example: with --config the routes of fenced services stand here.\n";
    }
    for route in &routes {
        text += &format!("# {}\n", lists::text(route));
        if spec.mode == Mode::Route {
            let marked = json!([{ "name": "x-tidegate-to", "present_match": true }]);
            let to = "cluster_header: x-tidegate-to\n".to_owned();
            text += &action(&matches(route, Some(marked)), &(to + &pieces::bounds(spec)));
        }
        let local = "cluster: YOURS\n".to_owned() + &pieces::bounds(spec);
        text += &action(&matches(route, None), &local);
    }
    text
}

fn action(matches: &Value, action: &str) -> String {
    item(&format!(
        "match: {}\nroute:\n{}",
        flow(matches),
        indent(action, 2)
    ))
}

/// The match of Envoy's route for a route.
fn matches(route: &Route, headers: Option<Value>) -> Value {
    let mut matches = match &route.matches {
        RouteMatch::Prefix(prefix) if prefix == "/" => json!({ "prefix": "/" }),
        RouteMatch::Prefix(prefix) => json!({ "path_separated_prefix": prefix }),
        RouteMatch::Grpc(name) => json!({ "prefix": format!("/{name}/"), "grpc": {} }),
    };
    if let (Some(matches), Some(headers)) = (matches.as_object_mut(), headers) {
        matches.insert("headers".to_owned(), headers);
    }
    matches
}
