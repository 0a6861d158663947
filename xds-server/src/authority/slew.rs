//! The kernel's slew of this machine's clock, which adds to the agreed drift.
//!
//! `CLOCK_BOOTTIME`, which counts sessions and grants, follows the rate that a time daemon sets.
//! Two faults are not detected here: a clock with a wrong rate of its own, and a machine that a
//! hypervisor has stopped without notice, since no clock of the guest shows that.

use std::time::Duration;

use tracing::warn;

use super::Agreements;
use crate::{conditions::Code, metrics::Metrics};

/// How often the kernel is queried.
const INTERVAL: Duration = Duration::from_secs(10);

/// The kernel's tick without a slew, in microseconds, and the effect of one more microsecond, in
/// parts per million.
const TICK_US: i64 = 10_000;
const PPM_PER_TICK_US: i64 = 100;

/// Queries the kernel periodically, and reports a slew of its clock beyond the agreed drift. Never
/// ends.
pub async fn watch(agreements: Agreements, metrics: Metrics) {
    let mut ticks = tokio::time::interval(INTERVAL);
    loop {
        ticks.tick().await;
        let Some(ppm) = slew_ppm() else {
            continue;
        };
        metrics.clock_slew_ppm.set(ppm);
        let drift = (agreements.known()).map(|agreement| agreement.current.drift_permille);
        let detail = drift.and_then(|permille| too_fast(ppm, permille));
        let held = metrics.conditions.holds(Code::ClockSlewed);
        if let Some(detail) = detail.as_deref().filter(|_| !held) {
            warn!(detail, "the clock is slewed by more than the agreed drift");
        }
        metrics.conditions.set(Code::ClockSlewed, "", detail);
    }
}

/// Why the slew is too large; none if it is not.
fn too_fast(ppm: i64, drift_permille: u16) -> Option<String> {
    let allowed = i64::from(drift_permille) * 1_000;
    (ppm.abs() > allowed).then(|| {
        format!("the kernel slews the clock by {ppm} ppm; drift_permille {drift_permille} allows {allowed}")
    })
}

/// By how many parts per million the slew speeds up the clock; none if the kernel does not report
/// it.
fn slew_ppm() -> Option<i64> {
    // All zeros: no mode, which changes nothing and needs no privilege. SAFETY: `timex` consists of
    // plain numbers, for which zeros are a value.
    #[allow(unsafe_code, reason = "no crate of ours wraps adjtimex")]
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a `timex` of our own, which the kernel fills.
    #[allow(unsafe_code, reason = "no crate of ours wraps adjtimex")]
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    (state >= 0).then(|| ppm_of(timex.tick, timex.freq))
}

/// From the tick in microseconds, and the frequency in parts per million with 16 binary places.
fn ppm_of(tick_us: i64, freq: i64) -> i64 {
    (tick_us - TICK_US) * PPM_PER_TICK_US + (freq >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slew_by_more_than_what_is_agreed_on_is_said() {
        // No slew; a drift that a daemon corrects; chrony's fastest slew, in both directions.
        assert_eq!(ppm_of(10_000, 0), 0);
        assert_eq!(ppm_of(10_000, -35 << 16), -35);
        let fastest = ppm_of(10_833, 333 << 16);
        assert_eq!(fastest, 83_633);
        assert_eq!(too_fast(fastest, 100), None);
        assert_eq!(too_fast(-fastest, 100), None);
        let said = too_fast(-fastest, 10).unwrap();
        assert!(
            said.contains("-83633 ppm") && said.contains("allows 10000"),
            "{said}"
        );
    }

    #[test]
    fn the_kernel_says_how_it_slews() {
        assert!(slew_ppm().is_some());
    }
}
