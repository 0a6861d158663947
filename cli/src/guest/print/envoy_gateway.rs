//! Envoy Gateway: `EnvoyExtensionPolicy` for the guest, `EnvoyPatchPolicy` for what its API has no
//! words for, `BackendTrafficPolicy` for the bounds of writes.

use policy::guest::Mode;

use super::{
    pieces,
    spec::{Delivery, Spec},
    yaml::{indent, item, scalar},
};

const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const ROUTER: &str = "..http_filters[?(@.name=='envoy.filters.http.router')]";

/// The objects as one stream of documents.
pub(super) fn print(spec: &Spec) -> String {
    let heading = "\
# The pieces of a guest in Envoy Gateway.
#
# `EnvoyPatchPolicy` must be allowed: `extensionApis: {enableEnvoyPatchPolicy: true}` in the
# configuration of Envoy Gateway. Listeners have the names of its xDS: NAMESPACE/GATEWAY/LISTENER.
# A canary on one Gateway is the first step. The order: tidegate-base, tidegate-bounds; tidegate;
# tidegate-net. The Envoys need a zone: Envoy Gateway's topology injector sets their locality.
"
    .to_owned()
        + &pieces::notes(spec)
        + match spec.mode {
            Mode::Fence => "",
            Mode::Route => {
                "\
# With mode `route` HTTPRoutes match on x-tidegate-to, since the API has no cluster_header. An
# EnvoyPatchPolicy of a RouteConfiguration can set it.
"
            }
        };
    let base = heading + &base(spec);
    [base, bounds(spec), guest(spec), net(spec)].join("---\n")
}

fn target(spec: &Spec) -> String {
    let name = scalar(&spec.place.gateway);
    format!("{{group: gateway.networking.k8s.io, kind: Gateway, name: {name}}}")
}

fn patch_policy(name: &str, spec: &Spec, patches: &[String]) -> String {
    let patches: Vec<_> = patches
        .iter()
        .map(|patch| indent(&item(patch), 2))
        .collect();
    format!(
        "\
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: EnvoyPatchPolicy
metadata: {{name: {name}, namespace: {}}}
spec:
  targetRef: {}
  type: JSONPatch
  jsonPatches:
{}",
        scalar(&spec.place.namespace),
        target(spec),
        patches.concat()
    )
}

/// Adds `value` before the element at a JSON path, or as the field `path` of it.
fn listener(name: &str, at: &str, path: Option<&str>, value: &str) -> String {
    let path = path
        .map(|path| format!("  path: {path}\n"))
        .unwrap_or_default();
    let value = match value.lines().count() {
        1 => format!("  value: {value}"),
        _ => format!("  value:\n{}", indent(value, 4)),
    };
    format!(
        "\
type: {LISTENER}
name: {}
operation:
  op: add
  jsonPath: \"{at}\"
{path}{value}",
        scalar(name)
    )
}

const MANAGER: &str =
    "..filters[?(@.name=='envoy.filters.network.http_connection_manager')].typed_config";

fn base(spec: &Spec) -> String {
    let mut patches = vec![format!(
        "\
# tidegate, 4: the way to the control plane. TLS is yours: a transport_socket.
type: {CLUSTER}
name: {}
operation:
  op: add
  path: \"\"
  value:
{}",
        scalar(&spec.control_plane),
        indent(&pieces::cluster(spec), 4)
    )];
    for name in &spec.place.listeners {
        patches.push(
            "# tidegate, 1: nothing from outside bears our names.\n".to_owned()
                + &listener(name, "..http_filters[0]", None, &pieces::strip()),
        );
        patches.push(
            "# The filter and the routes must see the same host. Paths are normalized already.\n"
                .to_owned()
                + &listener(name, MANAGER, Some("strip_trailing_host_dot"), "true\n"),
        );
    }
    patch_policy("tidegate-base", spec, &patches)
}

fn bounds(spec: &Spec) -> String {
    format!(
        "\
# tidegate, 5: no write lives longer than the fence waits for it, and none is sent twice. It is for
# all routes of the Gateway; name an HTTPRoute for those of fenced services alone.
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: BackendTrafficPolicy
metadata: {{name: tidegate-bounds, namespace: {}}}
spec:
  targetRefs: [{}]
  timeout: {{http: {{requestTimeout: 0s, maxStreamDuration: {}}}}}
  retry: {{retryOn: {{triggers: [connect-failure, refused-stream]}}}}
",
        scalar(&spec.place.namespace),
        target(spec),
        gateway_duration(spec.drain_ms),
    )
}

/// The Gateway API's durations have no fractions.
fn gateway_duration(ms: u64) -> String {
    match ms % 1_000 {
        0 => format!("{}s", ms / 1_000),
        _ => format!("{ms}ms"),
    }
}

fn guest(spec: &Spec) -> String {
    let code = match spec.module.starts_with("http://") || spec.module.starts_with("https://") {
        true => format!("type: HTTP, http: {{url: {}", scalar(&spec.module)),
        false => format!("type: Image, image: {{url: {}", scalar(&spec.module)),
    };
    let sha256 = spec
        .sha256
        .as_ref()
        .map(|sha256| format!(", sha256: {sha256}"));
    let delivery = match spec.place.delivery {
        Delivery::Plugin => "",
        _ => "# Envoy Gateway's API knows no other delivery than an address.\n",
    };
    format!(
        "\
# tidegate, 2: the guest. Envoy Gateway fetches the module, and its Envoys fetch it from there.
{delivery}apiVersion: gateway.envoyproxy.io/v1alpha1
kind: EnvoyExtensionPolicy
metadata: {{name: tidegate, namespace: {}}}
spec:
  targetRefs: [{}]
  wasm:
  - name: tidegate
    # Not true: that would let writes pass.
    failOpen: false
    code: {{{code}{}}}}}
    config: {}
",
        scalar(&spec.place.namespace),
        target(spec),
        sha256.unwrap_or_default(),
        spec.configuration(),
    )
}

fn net(spec: &Spec) -> String {
    let mut patches = vec![];
    for name in &spec.place.listeners {
        patches.push(
            "# tidegate, 3: the net, which holds the fence where the guest is away.\n".to_owned()
                + &listener(name, ROUTER, None, &pieces::net(spec)),
        );
        let replies = pieces::local_replies();
        let (_, replies) = replies.split_once('\n').unwrap_or_default();
        patches.push(
            "# tidegate, 3: the net's 403 is told as the fence's 503.\n".to_owned()
                + &listener(name, MANAGER, Some("local_reply_config"), &outdent(replies)),
        );
        patches.push(
            "\
# tidegate, 2: a worker whose filter has trapped loads it again. The API cannot say so.
"
            .to_owned()
                + &listener(
                    name,
                    &format!(
                        "..http_filters[?(@.name=='envoy.filters.http.wasm/envoyextensionpolicy/{}/tidegate/wasm/0')].typed_config.config",
                        spec.place.namespace
                    ),
                    Some("failure_policy"),
                    "FAIL_RELOAD\n",
                ),
        );
    }
    patch_policy("tidegate-net", spec, &patches)
}

/// Two columns less.
fn outdent(text: &str) -> String {
    let lines = text
        .lines()
        .map(|line| line.strip_prefix("  ").unwrap_or(line));
    lines.map(|line| format!("{line}\n")).collect()
}
