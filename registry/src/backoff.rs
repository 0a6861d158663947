//! Pauses between retries.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use fastrand::Rng;

/// Pauses that double from one failure to the next, up to a bound. Each is random, between half of
/// its length and the whole, so that the clients of a failed server do not all return at once.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    draws: Rng,
    pauses: ExponentialBackoff,
}

impl Backoff {
    /// The first pause, and the longest.
    pub fn new(first: Duration, longest: Duration) -> Backoff {
        let mut draws = Rng::new();
        Backoff {
            first,
            longest,
            pauses: pauses(first, longest, draws.u64(..)),
            draws,
        }
    }

    /// The pause after another failure, in whole milliseconds, like timers.
    pub fn next_pause(&mut self) -> Duration {
        // There always is a next pause.
        let pause = self.pauses.next().unwrap_or(self.longest);
        Duration::from_millis(pause.as_millis() as u64)
    }

    /// An attempt succeeded: the next failure counts as the first.
    pub fn reset(&mut self) {
        self.pauses = pauses(self.first, self.longest, self.draws.u64(..));
    }
}

fn pauses(first: Duration, longest: Duration, seed: u64) -> ExponentialBackoff {
    // The library adds a random part of up to the same length.
    ExponentialBuilder::new()
        .with_min_delay(first / 2)
        .with_max_delay(longest / 2)
        .with_factor(2.0)
        .with_jitter()
        .with_jitter_seed(seed)
        .without_max_times()
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_differ_among_clients() {
        let ms = Duration::from_millis;
        let pauses = || {
            let mut backoff = Backoff::new(ms(50), ms(1_000));
            let pauses: Vec<Duration> = (0..8).map(|_| backoff.next_pause()).collect();
            backoff.reset();
            assert!(backoff.next_pause() <= ms(50));
            pauses
        };
        let one = pauses();
        for (pause, whole) in one
            .iter()
            .zip([50, 100, 200, 400, 800, 1_000, 1_000, 1_000])
        {
            assert!(
                (ms(whole) / 2..=ms(whole)).contains(pause),
                "{pause:?} of {whole} ms"
            );
        }
        assert_ne!(one, pauses(), "drawn");
    }
}
