//! `tidegate get instances`.

use registry::record::Instance;
use serde::Deserialize;

/// The health in the record.
fn health(record: &Instance) -> String {
    let health = serde_json::to_value(record.health).unwrap_or_default();
    health.as_str().unwrap_or_default().to_owned()
}

/// A record of an instance.
#[derive(Deserialize)]
pub(super) struct Listed {
    key: String,
    record: Option<Instance>,
    error: Option<String>,
    #[serde(default)]
    warnings: Vec<String>,
}

impl super::Listed for Listed {
    const KIND: &'static str = "instance";
    const PATH: &'static str = "/v1/instances";
    const HEADERS: &'static [&'static str] = &["INSTANCE", "ADDRESS", "HEALTH", "WEIGHT", "USED"];

    /// `service/zone/instance`: the end of the key.
    fn name(&self) -> String {
        let mut parts: Vec<&str> = self.key.rsplit('/').take(3).collect();
        parts.reverse();
        parts.join("/")
    }

    fn row(&self) -> Vec<String> {
        let of = |get: fn(&Instance) -> String| self.record.as_ref().map(get).unwrap_or_default();
        vec![
            self.name(),
            of(|record| std::net::SocketAddr::new(record.address, record.port).to_string()),
            of(health),
            of(|record| record.weight.to_string()),
            if self.error.is_none() { "yes" } else { "no" }.to_owned(),
        ]
    }

    fn remarks(&self) -> Vec<String> {
        let told = self.error.iter().chain(&self.warnings);
        // Text from a record must not move the operator's cursor.
        told.map(|told| format!("{}: {}", self.name(), told.escape_debug()))
            .collect()
    }
}
