//! Higress: its own `WasmPlugin`, and Istio's `EnvoyFilter`, which its controller serves, too.

use super::{
    istio, pieces,
    spec::Spec,
    yaml::{comment, indent, scalar},
};

/// The objects as one stream of documents.
pub(super) fn print(spec: &Spec) -> String {
    let base = "\
# The pieces of a guest in Higress. Its controller serves EnvoyFilters of its own namespace.
#
# A canary on one gateway is the first step: the selector names its pods. The order: tidegate-base,
# tidegate, tidegate-net.
"
    .to_owned()
        + &pieces::notes(spec)
        + &istio::base(spec);
    [base, guest(spec), istio::net(spec, "higress")].join("---\n")
}

fn guest(spec: &Spec) -> String {
    let is_file = spec.module.starts_with("file://");
    let (strategy, why) = match is_file {
        true => (
            "FAIL_CLOSE",
            "Not FAIL_OPEN: that would let writes pass. The API has no FAIL_RELOAD.",
        ),
        false => (
            "FAIL_OPEN",
            "FAIL_OPEN, since the agent fetches the module: with FAIL_CLOSE it rejects every \
             request, reads too, while it cannot. The net holds the fence. The API has no FAIL_RELOAD: \
             a worker whose filter has trapped stays without it until a restart, and rejects writes.",
        ),
    };
    let sha256 = spec
        .sha256
        .as_ref()
        .map(|sha256| format!("sha256: {sha256}\n"));
    let label = |(name, value): &(String, String)| format!("{}: {}", scalar(name), scalar(value));
    let labels: Vec<_> = spec.place.selector.iter().map(label).collect();
    let fields = format!(
        "\
selector: {{matchLabels: {{{}}}}}
# The last of its phase: the other plugins have changed path and host before it decides.
phase: UNSPECIFIED_PHASE
priority: 1
url: {}
{}{}failStrategy: {strategy}
# For every domain and route: with `matchRules` alone the guest would be away elsewhere.
defaultConfigDisable: false
defaultConfig:
  {}
",
        labels.join(", "),
        scalar(&spec.module),
        sha256.unwrap_or_default(),
        comment(why),
        spec.configuration(),
    );
    format!(
        "\
# tidegate, 2: the guest.
apiVersion: extensions.higress.io/v1alpha1
kind: WasmPlugin
metadata: {{name: tidegate, namespace: {}}}
spec:
{}",
        scalar(&spec.place.namespace),
        indent(&fields, 2)
    )
}
