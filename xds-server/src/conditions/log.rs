//! The log lines of conditions: one at the begin, one at the end, with a limit for each code.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{error, info, warn};

use super::{Code, Severity};
use crate::log_budget;

/// How many lines each code may still write.
#[derive(Default)]
pub(super) struct Budget {
    by_code: log_budget::Budget<Code>,
}

impl Budget {
    pub(super) fn began(&mut self, code: Code, subject: &str, detail: &str) {
        let Some(suppressed) = self.by_code.take(code, Instant::now()) else {
            return;
        };
        let (name, is) = (code.name(), code.entry().meaning);
        match code.severity() {
            Severity::Error => {
                error!(%code, name, subject, detail, suppressed, "condition begins: {is}");
            }
            Severity::Warning => {
                warn!(%code, name, subject, detail, suppressed, "condition begins: {is}");
            }
        }
    }

    pub(super) fn ended(&mut self, code: Code, subject: &str, after: Duration) {
        if let Some(suppressed) = self.by_code.take(code, Instant::now()) {
            let name = code.name();
            info!(%code, name, subject, ?after, suppressed, "condition ends");
        }
    }
}
