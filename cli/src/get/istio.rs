//! `tidegate get istio-objects`.

use serde::Deserialize;
use serde_json::Value;

/// An object of Istio that Tidegate keeps.
#[derive(Deserialize)]
pub(super) struct Object {
    kind: String,
    namespace: String,
    name: String,
    host: String,
    state: String,
    detail: String,
}

impl super::Listed for Object {
    const KIND: &'static str = "istio-object";
    const PATH: &'static str = "/v1/istio/objects";
    const HEADERS: &'static [&'static str] = &["KIND", "NAMESPACE", "NAME", "HOST", "STATE"];

    /// As `kubectl apply` takes it.
    fn manifest(item: &Value) -> Option<&Value> {
        item.get("object")
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn row(&self) -> Vec<String> {
        let columns = [
            &self.kind,
            &self.namespace,
            &self.name,
            &self.host,
            &self.state,
        ];
        columns.map(String::clone).to_vec()
    }

    fn remarks(&self) -> Vec<String> {
        let Object { kind, name, .. } = self;
        match self.detail.is_empty() {
            true => vec![],
            false => vec![format!("{kind} {name}: {}", self.detail.escape_debug())],
        }
    }
}
