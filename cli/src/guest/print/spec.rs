//! What the pieces are made of.

use std::collections::BTreeMap;

use policy::{Route, guest::Mode};
use serde_json::{Value, json};

use super::super::lists::{self, Classes};

/// A guest for one host.
#[derive(Clone, Debug)]
pub(in crate::guest) struct Spec {
    pub(in crate::guest) mode: Mode,
    /// As in the guest's configuration: a name, or `{from: ...}`.
    pub(in crate::guest) zone: Value,
    /// The name of the host's cluster that leads to the control plane.
    pub(in crate::guest) control_plane: String,
    /// Where the control plane listens for proxies.
    pub(in crate::guest) host: String,
    pub(in crate::guest) port: u16,
    pub(in crate::guest) drain_ms: u64,
    pub(in crate::guest) unfenced: Vec<Route>,
    pub(in crate::guest) classes: Classes,
    /// Names of the host's clusters by service, with `route`.
    pub(in crate::guest) clusters: BTreeMap<String, String>,
    /// The text for `{namespace}` in these names.
    pub(in crate::guest) template_namespace: Option<String>,
    /// The net counts what it would reject, and rejects nothing.
    pub(in crate::guest) is_shadow: bool,
    /// The routes of fenced services; none where no configuration was given.
    pub(in crate::guest) fenced: Vec<Route>,
    /// A path on the proxy's machine, or an address.
    pub(in crate::guest) module: String,
    /// The module itself, for an inline delivery.
    pub(in crate::guest) inline: Option<Vec<u8>>,
    pub(in crate::guest) sha256: Option<String>,
    pub(in crate::guest) place: Place,
}

/// The proxies of a mesh that the objects are for.
#[derive(Clone, Debug)]
pub(in crate::guest) struct Place {
    pub(in crate::guest) namespace: String,
    pub(in crate::guest) context: Context,
    /// Labels of the pods.
    pub(in crate::guest) selector: Vec<(String, String)>,
    /// The name of a `Gateway` of the Gateway API: a waypoint, or Envoy Gateway's.
    pub(in crate::guest) gateway: String,
    /// Envoy Gateway: the names of its listeners as its xDS has them.
    pub(in crate::guest) listeners: Vec<String>,
    /// Virtual hosts with routes of fenced services, by Istio's names.
    pub(in crate::guest) virtual_hosts: Vec<String>,
    pub(in crate::guest) delivery: Delivery,
}

/// The proxies of Istio in which a guest stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(in crate::guest) enum Context {
    /// Gateways: requests that enter the mesh.
    Gateway,
    /// Sidecars of clients: requests of their applications.
    SidecarOutbound,
    /// Sidecars of instances: requests to their applications.
    SidecarInbound,
    /// A waypoint of ambient mode.
    Waypoint,
}

/// How the module comes to the proxies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(in crate::guest) enum Delivery {
    /// It lies on the proxy's disk before Envoy starts: an image volume, or an init container.
    File,
    /// It stands in the configuration itself: nothing is fetched.
    Inline,
    /// The host's own object names an address: Istio's and Higress' `WasmPlugin`, Envoy Gateway's
    /// `EnvoyExtensionPolicy`.
    Plugin,
    /// `TrafficExtension`, which supersedes `WasmPlugin` since Istio 1.30.
    TrafficExtension,
}

impl Spec {
    /// The guest's configuration: one line of JSON, with a space behind each colon and comma, so
    /// that it is YAML, too.
    pub(in crate::guest) fn configuration(&self) -> String {
        let mode = match self.mode {
            Mode::Fence => "fence",
            Mode::Route => "route",
        };
        let mut fields = vec![
            ("control_plane", json!(self.control_plane)),
            ("mode", json!(mode)),
            ("zone", self.zone.clone()),
            ("drain_ms", json!(self.drain_ms)),
        ];
        let list = |routes: &[Route]| Value::from_iter(routes.iter().map(lists::json));
        if !self.unfenced.is_empty() {
            fields.push(("unfenced", list(&self.unfenced)));
        }
        if !self.classes.listed.is_empty() {
            fields.push(("classes", list(&self.classes.listed)));
        }
        if !self.clusters.is_empty() {
            fields.push(("clusters", json!(self.clusters)));
        }
        if let Some(namespace) = &self.template_namespace {
            fields.push(("namespace", json!(namespace)));
        }
        let field = |(name, value): &(&str, Value)| format!("\"{name}\": {}", spaced(value));
        let fields: Vec<_> = fields.iter().map(field).collect();
        format!("{{{}}}", fields.join(", "))
    }

    /// `drain_ms` as a duration of Envoy.
    pub(in crate::guest) fn drain(&self) -> String {
        duration(self.drain_ms)
    }
}

/// JSON with spaces.
fn spaced(value: &Value) -> String {
    match value {
        Value::Array(all) => {
            let all: Vec<_> = all.iter().map(spaced).collect();
            format!("[{}]", all.join(", "))
        }
        Value::Object(all) => {
            let field = |(name, value)| {
                format!(
                    "{}: {}",
                    Value::from(name as &String as &str),
                    spaced(value)
                )
            };
            let all: Vec<_> = all.iter().map(field).collect();
            format!("{{{}}}", all.join(", "))
        }
        plain => plain.to_string(),
    }
}

fn duration(ms: u64) -> String {
    let (seconds, rest) = (ms / 1_000, ms % 1_000);
    match rest {
        0 => format!("{seconds}s"),
        _ => {
            format!("{seconds}.{rest:03}")
                .trim_end_matches('0')
                .to_owned()
                + "s"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_envoy() {
        let all = [
            (1_500, "1.5s"),
            (15_000, "15s"),
            (1, "0.001s"),
            (1_050, "1.05s"),
        ];
        for (ms, text) in all {
            assert_eq!(duration(ms), text);
        }
    }
}
