//! `tidegate get zones`.

use serde::Deserialize;
use serde_json::Value;

/// The state of a service in a zone.
#[derive(Deserialize)]
pub(super) struct Zone {
    service: String,
    zone: String,
    state: String,
    share: u16,
    healthy: u32,
    unhealthy: u32,
    draining: u32,
    flaps: u8,
    held_for_ms: Option<u64>,
    intent: Option<Intent>,
}

#[derive(Deserialize)]
struct Intent {
    intent: String,
    reason: String,
}

impl super::Listed for Zone {
    const KIND: &'static str = "zone";
    const PATH: &'static str = "/v1/zones";
    const HEADERS: &'static [&'static str] = &[
        "SERVICE", "ZONE", "STATE", "SHARE", "HEALTHY", "FLAPS", "INTENT",
    ];

    fn items(mut answer: Value) -> Option<Vec<Value>> {
        match answer.get_mut("zones")?.take() {
            Value::Array(zones) => Some(zones),
            _ => None,
        }
    }

    fn remark(answer: &Value) -> Option<String> {
        let implausible = answer.get("implausible")?.as_str()?;
        let kept = answer.get("kept").and_then(Value::as_u64).unwrap_or(0);
        Some(format!("IMPLAUSIBLE: {implausible} ({kept} kept)"))
    }

    fn name(&self) -> String {
        self.zone.clone()
    }

    fn row(&self) -> Vec<String> {
        let all_of_it = self.healthy + self.unhealthy;
        let draining = match self.draining {
            0 => String::new(),
            n => format!(" +{n}"),
        };
        let held = self
            .held_for_ms
            .map(|ms| format!(" {} s", ms.div_ceil(1_000)));
        let intent = self
            .intent
            .as_ref()
            .map(|wanted| match wanted.reason.as_str() {
                "" => wanted.intent.clone(),
                reason => format!("{}: {reason}", wanted.intent),
            });
        vec![
            self.service.clone(),
            self.zone.clone(),
            format!("{}{}", self.state, held.unwrap_or_default()),
            format!("{}.{} %", self.share / 10, self.share % 10),
            format!("{}/{all_of_it}{draining}", self.healthy),
            self.flaps.to_string(),
            intent.unwrap_or_default(),
        ]
    }
}
