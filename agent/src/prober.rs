//! Looks at one instance again and again, and tells the table when the verdict changes.

use std::sync::Arc;
use std::time::Duration;

use registry::record::InstanceKey;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{info, warn};

use crate::health::{Machine, ProbeVerdict, Thresholds};
use crate::instances::Instances;
use crate::metrics::{FailureLabels, Metrics, ProbeLabels};
use crate::probe::{Probe, ProbeError};

/// When to look, and how long to wait for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// From one look's start to the next one's.
    pub interval: Duration,
    /// The same while the verdict is in doubt.
    pub retry: Duration,
    /// Everything included: connecting, asking, the answer's head.
    pub timeout: Duration,
    pub thresholds: Thresholds,
}

/// One instance under watch.
pub struct Prober {
    pub key: InstanceKey,
    /// A free label for metrics.
    pub role: String,
    pub probe: Arc<dyn Probe>,
    pub pace: Pace,
}

impl Prober {
    /// Looks for ever. Each instance has a task of its own, so one that hangs costs only its own
    /// looks.
    pub async fn run(self, instances: Instances, metrics: Metrics) {
        let labels = self.labels();
        let mut machine = Machine::new(self.pace.thresholds);
        metrics.probe_status.get_or_create(&labels).set(0);
        loop {
            let started = Instant::now();
            let outcome = timeout(self.pace.timeout, self.probe.look()).await;
            let outcome = outcome.unwrap_or(Err(ProbeError::Timeout {
                after: self.pace.timeout,
            }));
            metrics
                .probe_duration
                .get_or_create(&labels)
                .observe(started.elapsed().as_secs_f64());
            if let Err(error) = &outcome {
                let failure = FailureLabels {
                    probe: labels.clone(),
                    reason: error.code(),
                };
                metrics.probe_failures.get_or_create(&failure).inc();
            }
            if let Some(verdict) = machine.observe(outcome.is_ok()) {
                self.tell(&instances, verdict, outcome.err());
                let healthy = i64::from(verdict == ProbeVerdict::Healthy);
                metrics.probe_status.get_or_create(&labels).set(healthy);
            }
            let pause = if machine.in_doubt() {
                self.pace.retry
            } else {
                self.pace.interval
            };
            sleep_until(started + pause).await;
        }
    }

    fn tell(&self, instances: &Instances, verdict: ProbeVerdict, error: Option<ProbeError>) {
        let InstanceKey {
            service, instance, ..
        } = &self.key;
        let reason = error.map(|error| error.to_string());
        match &reason {
            None => info!(%service, %instance, "healthy"),
            Some(reason) => warn!(%service, %instance, %reason, "unhealthy"),
        }
        instances.update(&self.key, |known| {
            known.verdict = Some(verdict);
            known.reason = reason;
        });
    }

    fn labels(&self) -> ProbeLabels {
        ProbeLabels {
            az: self.key.zone.clone(),
            role: self.role.clone(),
            probe: self.probe.kind(),
            service: self.key.service.clone(),
            instance: self.key.instance.clone(),
        }
    }
}
