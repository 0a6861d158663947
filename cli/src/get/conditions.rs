//! `tidegate get conditions`.

use serde::Deserialize;
use xds_server::conditions::Condition;

/// A condition that holds.
#[derive(Deserialize)]
#[serde(transparent)]
pub(super) struct Held(Condition);

impl super::Listed for Held {
    const KIND: &'static str = "condition";
    const PATH: &'static str = "/v1/conditions";
    const HEADERS: &'static [&'static str] = &["CODE", "NAME", "SEVERITY", "SUBJECT", "AGE"];

    fn name(&self) -> String {
        self.0.code.to_string()
    }

    fn row(&self) -> Vec<String> {
        let Condition {
            code,
            name,
            severity,
            subject,
            since_s,
            ..
        } = &self.0;
        vec![
            code.to_string(),
            name.clone(),
            severity.as_str().to_owned(),
            subject.clone(),
            format!("{since_s}s"),
        ]
    }

    fn remarks(&self) -> Vec<String> {
        vec![format!(
            "{} {}: {}",
            self.0.code, self.0.subject, self.0.detail
        )]
    }
}
