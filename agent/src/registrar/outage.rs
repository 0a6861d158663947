//! How long a registry has been failing, and when to ask it again. Pure: time is a parameter.

use std::time::Duration;

use tokio::time::Instant;

use super::target::TargetError;

/// The first pause after a failure. It doubles with each further one.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Failures in a row of one kind of request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outage {
    pub(super) since: Instant,
    pub(super) retry_at: Instant,
    pause: Duration,
    /// Time-outs so far. What fails at once in between does not end the row, only a success does: a connection on which
    /// nothing was answered breaks in the end, and the next one hangs again.
    pub(super) timeouts: u32,
}

impl Outage {
    /// The first failure.
    pub(super) fn begin(now: Instant, error: &TargetError) -> Outage {
        let mut outage = Outage {
            since: now,
            retry_at: now,
            pause: PAUSE_MIN / 2,
            timeouts: 0,
        };
        outage.again(now, error);
        outage
    }

    /// A further failure, of a request that began after [`retry_at`](Outage::retry_at).
    pub(super) fn again(&mut self, now: Instant, error: &TargetError) {
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        self.retry_at = now + self.pause;
        if matches!(error, TargetError::Timeout(_)) {
            self.timeouts = self.timeouts.saturating_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pauses_double_up_to_a_second_and_only_time_outs_count() {
        let now = Instant::now();
        let timeout = TargetError::Timeout(Duration::from_secs(1));
        let refused = TargetError::Unavailable("refused".to_owned());
        let mut outage = Outage::begin(now, &timeout);
        let mut pauses = vec![(outage.retry_at - now).as_millis()];
        for _ in 0..6 {
            outage.again(now, &timeout);
            pauses.push((outage.retry_at - now).as_millis());
        }
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1000, 1000]);
        assert_eq!(outage.timeouts, 7);
        outage.again(now, &refused);
        assert_eq!(outage.timeouts, 7);
        assert_eq!(Outage::begin(now, &refused).timeouts, 0);
    }
}
