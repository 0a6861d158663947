//! The pieces that all hosts share, in Envoy's own terms.

use policy::guest::Mode;

use super::{
    predicate,
    spec::{Delivery, Spec},
    yaml::{comment, flow, indent, item, scalar},
};
use crate::guest::lists;

const TYPE: &str = "type.googleapis.com/envoy.extensions";

/// 1: nothing from outside bears our names.
pub(super) fn strip() -> String {
    format!(
        "\
name: tidegate.strip
typed_config:
  \"@type\": {TYPE}.filters.http.header_mutation.v3.HeaderMutation
  mutations:
    request_mutations:
    - remove_on_match: {{key_matcher: {{prefix: x-tidegate, ignore_case: true}}}}
"
    )
}

/// 2: the guest itself, as a filter of Envoy.
pub(super) fn guest(spec: &Spec) -> String {
    let code = match (spec.place.delivery, &spec.inline) {
        (Delivery::Inline, Some(bytes)) => {
            let text = data_encoding::BASE64.encode(bytes);
            format!("local: {{inline_bytes: {text}}}")
        }
        _ => format!("local: {{filename: {}}}", scalar(&spec.module)),
    };
    format!(
        "\
name: tidegate
typed_config:
  \"@type\": {TYPE}.filters.http.wasm.v3.Wasm
  config:
    name: tidegate
    # Not FAIL_OPEN: that would let writes pass.
    failure_policy: FAIL_RELOAD
    reload_config:
      backoff: {{base_interval: 0.1s, max_interval: 1s}}
    configuration:
      \"@type\": type.googleapis.com/google.protobuf.StringValue
      value: |
        {}
    vm_config:
      vm_id: tidegate
      runtime: envoy.wasm.runtime.v8
      code:
        {code}
",
        spec.configuration()
    )
}

/// The name of the net's policy. It stands in the response code details of what the net rejects:
/// the RBAC filters of others reject under other names.
const NET: &str = "tidegate.net";

/// 3: the net, an RBAC filter. It rejects everything but a list of exceptions.
pub(super) fn net(spec: &Spec) -> String {
    let rules = match spec.is_shadow {
        true => {
            "\
  # Under `observe` the net counts (rbac.shadow_denied), and rejects nothing.
  shadow_rules_stat_prefix: tidegate_net.
  shadow_rules:
"
        }
        false => "  rules:\n",
    };
    format!(
        "\
name: tidegate.net
typed_config:
  \"@type\": {TYPE}.filters.http.rbac.v3.RBAC
{rules}    action: DENY
    policies:
      {NET}:
        principals: [{{any: true}}]
        permissions:
        # Everything but these.
        - not_rule:
            or_rules:
              rules:
{}",
        indent(&permitted(spec), 14)
    )
}

/// The requests that the net lets pass.
fn permitted(spec: &Spec) -> String {
    let mut text = "\
# Requests with a mark of the guest. The strip has removed marks from outside.
- header: {name: x-tidegate-epoch, present_match: true}
- header: {name: x-tidegate-to, present_match: true}
- header: {name: x-tidegate-class, present_match: true}
"
    .to_owned();
    text += "\
# Safe methods without an upgrade";
    text += match spec.classes.writes.is_empty() {
        true => ".\n",
        false => ", except on routes of `class: write`.\n",
    };
    text += "\
- and_rules:
    rules:
";
    for rule in predicate::safe(&spec.classes.writes) {
        text += &format!("    - {}\n", flow(&rule));
    }
    if !spec.classes.reads.is_empty() {
        text += "\
# Reads by other methods. Each passes without the guest, too.
";
        for read in &spec.classes.reads {
            text += &format!("# {}\n", lists::text(&read.route));
            text += &format!("- {}\n", flow(&predicate::exception(read)));
        }
    }
    text
}

/// The fields of the connection manager by which filter and routes see the same path and host.
pub(super) fn normalization() -> &'static str {
    "\
normalize_path: true
merge_slashes: true
path_with_escaped_slashes_action: REJECT_REQUEST
strip_trailing_host_dot: true
"
}

/// 3: the net's 403 is told as the fence's 503.
pub(super) fn local_replies() -> String {
    format!(
        "\
local_reply_config:
  mappers:
  - filter:
      extension_filter:
        name: envoy.access_loggers.extension_filters.cel
        typed_config:
          \"@type\": {TYPE}.access_loggers.filters.cel.v3.ExpressionFilter
          expression: response.code_details == \"rbac_access_denied_matched_policy[{NET}]\"
    status_code: 503
    headers_to_add:
    - header: {{key: retry-after, value: \"1\"}}
    body_format_override:
      content_type: application/problem+json
      json_format: {{type: \"about:blank\", status: 503, reason: fenced, detail: \"the filter of this proxy is away: try again\"}}
"
    )
}

/// 4: the way to the control plane.
pub(super) fn cluster(spec: &Spec) -> String {
    let name = scalar(&spec.control_plane);
    let (host, port) = (scalar(&spec.host), spec.port);
    format!(
        "\
name: {name}
type: STRICT_DNS
connect_timeout: 1s
typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    \"@type\": {TYPE}.upstreams.http.v3.HttpProtocolOptions
    explicit_http_config:
      http2_protocol_options:
        connection_keepalive: {{interval: 5s, timeout: 2s}}
load_assignment:
  cluster_name: {name}
  endpoints:
  - lb_endpoints:
    - endpoint:
        address:
          socket_address: {{address: {host}, port_value: {port}}}
"
    )
}

/// 5: the fields of the action of a route that takes writes of a fenced service.
pub(super) fn bounds(spec: &Spec) -> String {
    format!(
        "\
timeout: 0s
max_stream_duration: {{max_stream_duration: {}}}
retry_policy: {{retry_on: \"connect-failure,refused-stream\"}}
",
        spec.drain()
    )
}

/// What the lists and the net cannot hold, as comments.
pub(super) fn notes(spec: &Spec) -> String {
    let mut text = String::new();
    for (read, by) in &spec.classes.left_out {
        text += &comment(&format!(
            "{}: not in the guest's classes, which cannot name {} below it. While the guest has no \
             policy, it rejects its reads by other methods than GET, HEAD, OPTIONS and TRACE.",
            lists::text(read),
            lists::text(by),
        ));
    }
    for (write, below) in &spec.classes.covered {
        text += &comment(&format!(
            "{}: while the guest has no policy, it also rejects the reads of {}.",
            lists::text(write),
            lists::text(below),
        ));
    }
    text
}

/// The list of http filters of an Envoy, without the router.
pub(super) fn filters(spec: &Spec) -> String {
    let strip =
        "# tidegate, 1: nothing from outside bears our names.\n".to_owned() + &item(&strip());
    let guest = "# tidegate, 2: the guest.\n".to_owned() + &item(&guest(spec));
    let net = "# tidegate, 3: the net, which holds the fence where the guest is away.\n".to_owned()
        + &item(&net(spec));
    [strip, guest, net].concat()
}

/// How the host's routes follow the guest, with `route`.
pub(super) fn following(spec: &Spec) -> &'static str {
    match spec.mode {
        Mode::Fence => "",
        Mode::Route => {
            "\
# With mode `route` the guest names the cluster. A request without that name goes where the host
# sends it: until the guest has a policy, and while it is away.
"
        }
    }
}
