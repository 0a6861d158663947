//! Istio: `EnvoyFilter`, `WasmPlugin`, `TrafficExtension`. The same three objects in the order in
//! which they are applied: base, guest, net.

use policy::guest::Mode;

use super::{
    pieces,
    spec::{Context, Delivery, Place, Spec},
    yaml::{comment, indent, item, scalar},
};

const MANAGER: &str = "envoy.filters.network.http_connection_manager";

/// The objects as one stream of documents.
pub(super) fn print(spec: &Spec) -> String {
    let base = heading(spec) + &base(spec);
    [base, guest(spec), net(spec, "istio")].join("---\n")
}

fn heading(spec: &Spec) -> String {
    let mut text = "\
# The pieces of a guest in Istio: docs/guides/istio.md.
#
# A canary on one gateway is the first step: the selector names its pods. `tidegate check --guest`
# reads the result of `pilot-agent request GET config_dump`. The order: tidegate-base, the guest,
# tidegate-net; `tidegate guest --remove --kind istio` prints the order back.
"
    .to_owned();
    text += match spec.place.context {
        Context::Gateway => "",
        Context::SidecarOutbound => {
            "\
# In clients' sidecars the net stands before all their HTTP requests: while the guest is away,
# writes of services without a fence are rejected, too. `portNumber` beside `filterChain` narrows
# it.
"
        }
        Context::SidecarInbound => {
            "\
# In instances' sidecars. With `interceptionMode: NONE` there is no listener `virtualInbound`:
# leave its name out.
"
        }
        Context::Waypoint => {
            "\
# istiod patches a waypoint's listeners as inbound ones, and its routes not at all: the guest alone
# ends writes (piece 5). The listener is named, since the tunnel's own takes CONNECT.
# Requests of an east-west gateway skip the destination's waypoint.
"
        }
    };
    text + &pieces::notes(spec)
}

/// What stands at the head of an `EnvoyFilter`. Those of a lower priority apply first.
pub(super) fn envoy_filter(name: &str, place: &Place, priority: i32, patches: &[String]) -> String {
    let patches: Vec<_> = patches
        .iter()
        .map(|patch| indent(&item(patch), 2))
        .collect();
    format!(
        "\
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {{name: {name}, namespace: {}}}
spec:
  priority: {priority}
{}  configPatches:
{}",
        scalar(&place.namespace),
        indent(&target(place, "workloadSelector", "labels"), 2),
        patches.concat(),
    )
}

/// The proxies that an object is for.
fn target(place: &Place, selector: &str, labels: &str) -> String {
    if place.context == Context::Waypoint {
        let name = scalar(&place.gateway);
        return format!(
            "targetRefs:\n- {{group: gateway.networking.k8s.io, kind: Gateway, name: {name}}}\n"
        );
    }
    let label = |(name, value): &(String, String)| format!("{}: {}", scalar(name), scalar(value));
    let all: Vec<_> = place.selector.iter().map(label).collect();
    format!("{selector}: {{{labels}: {{{}}}}}\n", all.join(", "))
}

fn context(place: &Place) -> &'static str {
    match place.context {
        Context::Gateway => "GATEWAY",
        Context::SidecarOutbound => "SIDECAR_OUTBOUND",
        Context::SidecarInbound | Context::Waypoint => "SIDECAR_INBOUND",
    }
}

/// A patch. `listener` is the part of the match that selects within listeners.
pub(super) fn patch(place: &Place, to: &str, within: &str, operation: &str, value: &str) -> String {
    format!(
        "\
applyTo: {to}
match:
  context: {}
{}patch:
  operation: {operation}
  value:
{}",
        context(place),
        indent(within, 2),
        indent(value, 4),
    )
}

/// The match of a filter within a connection manager; of the manager itself without a name.
pub(super) fn in_manager(place: &Place, filter: Option<&str>) -> String {
    let name = match place.context {
        Context::Waypoint => "  name: main_internal\n",
        Context::SidecarInbound => "  name: virtualInbound\n",
        Context::Gateway | Context::SidecarOutbound => "",
    };
    let within = filter.map(|name| format!("      subFilter: {{name: {name}}}\n"));
    format!(
        "\
listener:
{name}  filterChain:
    filter:
      name: {MANAGER}
{}",
        within.unwrap_or_default()
    )
}

/// A change of fields of the connection manager.
pub(super) fn manager(place: &Place, fields: &str) -> String {
    let value = format!(
        "\
name: {MANAGER}
typed_config:
  \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
{}",
        indent(fields, 2)
    );
    patch(
        place,
        "NETWORK_FILTER",
        &in_manager(place, None),
        "MERGE",
        &value,
    )
}

/// Cluster, strip, normalisation and bounds: they change nothing by themselves.
pub(super) fn base(spec: &Spec) -> String {
    let place = &spec.place;
    let first = in_manager(place, None);
    let mut patches = vec![
        "# tidegate, 4: the way to the control plane. TLS is yours: a transport_socket.\n"
            .to_owned()
            + &patch(place, "CLUSTER", "", "ADD", &pieces::cluster(spec)),
        "# tidegate, 1: nothing from outside bears our names.\n".to_owned()
            + &patch(
                place,
                "HTTP_FILTER",
                &first,
                "INSERT_FIRST",
                &pieces::strip(),
            ),
        "# The filter and the routes must see the same path and host.\n".to_owned()
            + &manager(place, pieces::normalization()),
    ];
    patches.extend(bounds(spec));
    envoy_filter("tidegate-base", place, -10, &patches)
}

/// The routes of fenced services: by virtual host, or by the domains of their configuration.
fn bounds(spec: &Spec) -> Vec<String> {
    let place = &spec.place;
    if place.context == Context::Waypoint {
        return vec![];
    }
    let mut hosts: Vec<&str> = spec
        .fenced
        .iter()
        .map(|route| route.host.as_str())
        .collect();
    hosts.sort_unstable();
    hosts.dedup();
    let domain = |host: &&str| format!("domainName: {}, ", scalar(host));
    let name = |name: &String| format!("name: {}, ", scalar(name));
    let selected: Vec<String> = match place.virtual_hosts.is_empty() {
        false => place.virtual_hosts.iter().map(name).collect(),
        true if hosts.contains(&"*") => vec![String::new()],
        true => hosts.iter().map(domain).collect(),
    };
    let is_all = selected.is_empty() || selected.iter().any(String::is_empty);
    let selected = match is_all {
        true => vec![String::new()],
        false => selected,
    };
    let mut comments = "\
# tidegate, 5: no write lives longer than the fence waits for it, and none is sent twice. Istio's
# own default retries more.
"
    .to_owned();
    if is_all {
        comments += "\
# All routes of these proxies: --virtual-host names those of fenced services.
";
    }
    let bound = |vhost: String| {
        let within =
            format!("routeConfiguration: {{vhost: {{{vhost}route: {{action: ROUTE}}}}}}\n");
        let value = format!("route:\n{}", indent(&pieces::bounds(spec), 2));
        comments.clone() + &patch(place, "HTTP_ROUTE", &within, "MERGE", &value)
    };
    selected.into_iter().map(bound).collect()
}

/// The net, and its answer.
pub(super) fn net(spec: &Spec, host: &str) -> String {
    let place = &spec.place;
    let router = in_manager(place, Some("envoy.filters.http.router"));
    let patches = [
        "# tidegate, 3: the net, which holds the fence where the guest is away.\n".to_owned()
            + &patch(
                place,
                "HTTP_FILTER",
                &router,
                "INSERT_BEFORE",
                &pieces::net(spec),
            ),
        "# tidegate, 3: the net's 403 is told as the fence's 503.\n".to_owned()
            + &manager(place, &pieces::local_replies()),
    ];
    let text = envoy_filter("tidegate-net", place, 10, &patches);
    let heading = format!(
        "# Behind the guest: the priority is higher than that of {}.\n",
        match (host, spec.place.delivery) {
            ("higress", _) | (_, Delivery::Plugin | Delivery::TrafficExtension) =>
                "every other filter",
            _ => "tidegate-guest",
        }
    );
    heading + &text
}

fn guest(spec: &Spec) -> String {
    let following = pieces::following(spec);
    let routes = match spec.mode {
        Mode::Fence => "",
        Mode::Route => {
            "\
# A VirtualService matches on x-tidegate-to, since Istio's API has no cluster_header: Tidegate keeps
# such objects (`istio.services`), and `tidegate get istio-objects` prints them.
"
        }
    };
    let object = match spec.place.delivery {
        Delivery::File | Delivery::Inline => by_envoy_filter(spec),
        Delivery::Plugin => by_plugin(spec),
        Delivery::TrafficExtension => by_traffic_extension(spec),
    };
    [following, routes, &object].concat()
}

fn by_envoy_filter(spec: &Spec) -> String {
    let place = &spec.place;
    let router = in_manager(place, Some("envoy.filters.http.router"));
    let delivered = match place.delivery {
        Delivery::Inline => "# The module stands in the object: nothing is fetched.\n",
        _ => {
            "# The module is on the proxy's disk before Envoy starts: an image volume, an init container.\n"
        }
    };
    let patch = patch(
        place,
        "HTTP_FILTER",
        &router,
        "INSERT_BEFORE",
        &pieces::guest(spec),
    );
    let patches = ["# tidegate, 2: the guest.\n".to_owned() + delivered + &patch];
    envoy_filter("tidegate-guest", place, 0, &patches)
}

/// What a host's agent does with a module that it cannot fetch. A file is not fetched.
fn fail_strategy(spec: &Spec) -> (&'static str, String) {
    match spec.module.starts_with("file://") {
        true => (
            "FAIL_RELOAD",
            "# Not FAIL_OPEN: that would let writes pass.\n".to_owned(),
        ),
        false => (
            "FAIL_OPEN",
            comment(
                "FAIL_OPEN, since Istio's agent fetches the module: with the others it rejects every \
                 request, reads too, while it cannot. With FAIL_OPEN the net holds the fence. A worker \
                 whose filter has trapped stays without it until a restart, and rejects writes. \
                 A module on disk (file://) or in an EnvoyFilter has none of this.",
            ),
        ),
    }
}

fn plugin_fields(spec: &Spec) -> String {
    let (strategy, why) = fail_strategy(spec);
    let sha256 = spec
        .sha256
        .as_ref()
        .map(|sha256| format!("sha256: {sha256}\n"));
    format!(
        "url: {}\n{}{why}failStrategy: {strategy}\npluginConfig:\n  {}\n",
        scalar(&spec.module),
        sha256.unwrap_or_default(),
        spec.configuration(),
    )
}

/// The listeners of a plugin: gateways and clients' sidecars are clients.
fn traffic(place: &Place) -> &'static str {
    match place.context {
        Context::Gateway | Context::SidecarOutbound => "match: [{mode: CLIENT}]\n",
        Context::SidecarInbound => "match: [{mode: SERVER}]\n",
        Context::Waypoint => "",
    }
}

fn by_plugin(spec: &Spec) -> String {
    let place = &spec.place;
    let fields = [
        &target(place, "selector", "matchLabels"),
        traffic(place),
        "# Behind authentication and authorization, before the router.\n",
        "phase: UNSPECIFIED_PHASE\n",
        &plugin_fields(spec),
    ]
    .concat();
    format!(
        "\
# tidegate, 2: the guest.
apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: {{name: tidegate, namespace: {}}}
spec:
{}",
        scalar(&place.namespace),
        indent(&fields, 2)
    )
}

fn by_traffic_extension(spec: &Spec) -> String {
    let place = &spec.place;
    let fields = [
        &target(place, "selector", "matchLabels"),
        traffic(place),
        "# Behind authentication and authorization, before the router.\n",
        "phase: UNSPECIFIED\n",
        "wasm:\n",
        &indent(&plugin_fields(spec), 2),
    ]
    .concat();
    format!(
        "\
# tidegate, 2: the guest. Since Istio 1.30; WasmPlugin before.
apiVersion: extensions.istio.io/v1alpha1
kind: TrafficExtension
metadata: {{name: tidegate, namespace: {}}}
spec:
{}",
        scalar(&place.namespace),
        indent(&fields, 2)
    )
}
