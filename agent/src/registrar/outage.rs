//! How long a registry has been failing, and when to ask it again. Pure: time is a parameter.

use std::time::Duration;

use registry::backoff::Backoff;
use tokio::time::Instant;

use super::target::TargetError;

/// The first pause after a failure. It doubles with each further one.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Failures in a row of one kind of request.
#[derive(Debug)]
pub(super) struct Outage {
    pub(super) since: Instant,
    pub(super) retry_at: Instant,
    backoff: Backoff,
    /// Time-outs so far. A failure at once in between does not end the row, only a success does: a
    /// connection on which nothing was answered breaks in the end, and the next one hangs again.
    pub(super) timeouts: u32,
}

impl Outage {
    /// The first failure.
    pub(super) fn begin(now: Instant, error: &TargetError) -> Outage {
        let mut outage = Outage {
            since: now,
            retry_at: now,
            backoff: Backoff::new(PAUSE_MIN, PAUSE_MAX),
            timeouts: 0,
        };
        outage.again(now, error);
        outage
    }

    /// A further failure, of a request that began after [`retry_at`](Outage::retry_at).
    pub(super) fn again(&mut self, now: Instant, error: &TargetError) {
        self.retry_at = now + self.backoff.next_pause();
        if matches!(error, TargetError::Timeout(_)) {
            self.timeouts = self.timeouts.saturating_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pauses_grow_up_to_a_second_and_only_time_outs_count() {
        let now = Instant::now();
        let timeout = TargetError::Timeout(Duration::from_secs(1));
        let refused = TargetError::Unavailable("refused".to_owned());
        let mut outage = Outage::begin(now, &timeout);
        assert!(outage.retry_at - now <= PAUSE_MIN);
        for _ in 0..6 {
            outage.again(now, &timeout);
        }
        assert!((PAUSE_MAX / 2..=PAUSE_MAX).contains(&(outage.retry_at - now)));
        assert_eq!(outage.timeouts, 7);
        outage.again(now, &refused);
        assert_eq!(outage.timeouts, 7);
        assert_eq!(Outage::begin(now, &refused).timeouts, 0);
    }
}
