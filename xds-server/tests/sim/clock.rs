//! Clocks that drift, over tokio's virtual time.

use std::time::Duration;

use tokio::time::Instant;
use xds_server::authority::Clock;

#[derive(Clone, Copy)]
pub(crate) struct Drifting {
    start: Instant,
    /// Relative to real time, in per mille.
    rate_permille: u64,
    offset_us: u64,
}

impl Drifting {
    pub(crate) fn new(start: Instant, rate_permille: u64, offset_us: u64) -> Drifting {
        Drifting {
            start,
            rate_permille,
            offset_us,
        }
    }

    /// How long by real time until this clock has counted `span`.
    pub(crate) fn real(&self, span: Duration) -> Duration {
        span * 1_000 / u32::try_from(self.rate_permille).unwrap()
    }
}

impl Clock for Drifting {
    fn now_us(&self) -> u64 {
        let real = u64::try_from(self.start.elapsed().as_micros()).unwrap();
        self.offset_us + real * self.rate_permille / 1_000
    }
}
