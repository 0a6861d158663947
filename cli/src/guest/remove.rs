//! How a guest leaves: the order in which filter, net and objects go.
//!
//! The net rejects writes without a mark of the guest, so it goes before the guest: otherwise writes
//! fail. The guest goes only once its services have left the fence, or its proxy takes no requests:
//! otherwise writes pass without one.

use policy::guest::Mode;

use super::print::{Context, Delivery, Kind, Spec};

/// The steps, with their commands.
pub(super) fn print(kind: Kind, spec: &Spec) -> String {
    let mut steps = vec![fence(spec)];
    if spec.mode == Mode::Route {
        steps.push(routes(kind));
    }
    steps.extend([net(kind, spec), guest(kind, spec), base(kind, spec), last()]);
    let steps: Vec<_> = (1..)
        .zip(steps)
        .map(|(at, step)| format!("# {at}. {step}"))
        .collect();
    format!(
        "\
# How a guest leaves, without an open fence or a failed read. Take one gateway first, as on the way
# in. Only the order of the steps matters; between them everything works.

{}",
        steps.join("\n")
    )
}

fn fence(spec: &Spec) -> String {
    format!(
        "\
The services leave the fence, or the proxy leaves the traffic. One of the two:
#    - Set `fenced: false` for the services that this proxy reaches, in Tidegate's configuration.
#      Wait {}, and until every proxy has applied it.
tidegate check --config tidegate.yaml
tidegate get proxies
#    - Or the fence stays: take this proxy out of its load balancer, and wait until it has no
#      requests in flight. The other proxies go on.
",
        spec.drain()
    )
}

fn routes(kind: Kind) -> String {
    let how = match kind {
        Kind::Envoy => {
            "Remove the routes with `cluster_header: x-tidegate-to`; those behind them remain."
        }
        Kind::EnvoyGateway => "Remove the HTTPRoute rules that match on x-tidegate-to.",
        Kind::Istio | Kind::Higress => {
            "Remove the VirtualService routes that match on x-tidegate-to."
        }
    };
    format!("The host's own routes take over: requests go where the host sends them.\n#    {how}\n")
}

fn delete(kind: &str, name: &str, spec: &Spec) -> String {
    format!(
        "kubectl delete {kind} {name} --namespace {}\n",
        spec.place.namespace
    )
}

fn net(kind: Kind, spec: &Spec) -> String {
    let why = "The net. Behind it the guest still decides: no request changes its way.\n";
    let how = match kind {
        Kind::Envoy => {
            "#    Remove the filter `tidegate.net` and its mapper of local_reply_config.\n"
                .to_owned()
        }
        Kind::Istio | Kind::Higress => {
            delete("envoyfilters.networking.istio.io", "tidegate-net", spec)
        }
        Kind::EnvoyGateway => delete(
            "envoypatchpolicies.gateway.envoyproxy.io",
            "tidegate-net",
            spec,
        ),
    };
    format!("{why}{how}")
}

fn guest(kind: Kind, spec: &Spec) -> String {
    let why = "\
The guest. The control plane waits for its grants to expire. No read fails: without guest and
#    net requests go where the host sends them.
";
    let how = match (kind, spec.place.delivery) {
        (Kind::Envoy, _) => "#    Remove the filter `tidegate`.\n".to_owned(),
        (Kind::Istio, Delivery::File | Delivery::Inline) => {
            delete("envoyfilters.networking.istio.io", "tidegate-guest", spec)
        }
        (Kind::Istio, Delivery::Plugin) => {
            delete("wasmplugins.extensions.istio.io", "tidegate", spec)
        }
        (Kind::Istio, Delivery::TrafficExtension) => {
            delete("trafficextensions.extensions.istio.io", "tidegate", spec)
        }
        (Kind::EnvoyGateway, _) => delete(
            "envoyextensionpolicies.gateway.envoyproxy.io",
            "tidegate",
            spec,
        ),
        (Kind::Higress, _) => delete("wasmplugins.extensions.higress.io", "tidegate", spec),
    };
    format!("{why}{how}")
}

fn base(kind: Kind, spec: &Spec) -> String {
    let why = "Strip, bounds and the control plane's cluster: nothing uses them any more.\n";
    let how = match kind {
        Kind::Envoy => format!(
            "#    Remove the filter `tidegate.strip`, the bounds of routes, and the cluster {:?}.\n",
            spec.control_plane
        ),
        Kind::Istio | Kind::Higress => {
            delete("envoyfilters.networking.istio.io", "tidegate-base", spec)
        }
        Kind::EnvoyGateway => [
            delete(
                "backendtrafficpolicies.gateway.envoyproxy.io",
                "tidegate-bounds",
                spec,
            ),
            delete(
                "envoypatchpolicies.gateway.envoyproxy.io",
                "tidegate-base",
                spec,
            ),
        ]
        .concat(),
    };
    let waypoint = match spec.place.context {
        Context::Waypoint => "#    A waypoint has no bounds of routes.\n",
        _ => "",
    };
    format!("{why}{waypoint}{how}")
}

fn last() -> String {
    "\
The rule of `access.proxies` for this proxy, and the module on its disk.
"
    .to_owned()
}
