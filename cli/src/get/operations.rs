//! `tidegate get operations`.

use serde::Deserialize;

/// A move of a cell.
#[derive(Deserialize)]
pub(super) struct Operation {
    id: String,
    cell: String,
    from: Vec<String>,
    to: Vec<String>,
    cause: String,
    #[serde(default)]
    reason: String,
    epoch: Option<u64>,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    step: String,
}

impl super::Listed for Operation {
    const KIND: &'static str = "operation";
    const PATH: &'static str = "/v1/operations";
    const HEADERS: &'static [&'static str] = &[
        "OPERATION",
        "CELL",
        "FROM",
        "TO",
        "EPOCH",
        "STEP",
        "CAUSE",
        "REASON",
    ];

    fn name(&self) -> String {
        self.id.clone()
    }

    fn row(&self) -> Vec<String> {
        let last = self.steps.last().map(|step| step.step.clone());
        vec![
            self.id.clone(),
            self.cell.clone(),
            self.from.join(","),
            self.to.join(","),
            self.epoch
                .map(|epoch| epoch.to_string())
                .unwrap_or_default(),
            last.unwrap_or_default(),
            self.cause.clone(),
            self.reason.clone(),
        ]
    }
}
