//! Waiting for a condition instead of a time.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tokio::time::{Instant, sleep, timeout_at};

/// How long anything may take that is immediate on an idle machine. A busy one with two cores needs
/// the rest.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Between two attempts: short compared with the wait, long compared with an attempt.
const PAUSE: Duration = Duration::from_millis(20);

/// Retries until `attempt` succeeds and returns its result. At the deadline the error contains the
/// awaited condition and the error of the last attempt.
pub async fn eventually<T>(
    within: Duration,
    what: &str,
    mut attempt: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let deadline = Instant::now() + within;
    let mut last = anyhow!("the first look did not end");
    loop {
        match timeout_at(deadline, attempt()).await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(error)) => last = error,
            Err(_) => break,
        }
        if Instant::now() + PAUSE >= deadline {
            break;
        }
        sleep(PAUSE).await;
    }
    Err(last).with_context(|| format!("waited {within:?} for: {what}; last seen"))
}

#[cfg(test)]
mod tests {
    use anyhow::ensure;

    use super::*;

    #[tokio::test]
    async fn a_condition_that_comes_true_is_found() {
        let mut looks = 0;
        let found = eventually(PATIENCE, "three looks", async || {
            looks += 1;
            ensure!(looks == 3, "{looks} looks");
            Ok("there")
        });
        assert_eq!(found.await.unwrap(), "there");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_names_what_was_awaited_and_last_seen() {
        let never = eventually(Duration::from_secs(1), "the tide", async || {
            Err::<(), _>(anyhow!("low water"))
        });
        let message = format!("{:#}", never.await.unwrap_err());
        assert_eq!(message, "waited 1s for: the tide; last seen: low water");
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_that_hangs_is_bounded_too() {
        let hung = eventually(Duration::from_secs(1), "an answer", async || {
            std::future::pending::<Result<()>>().await
        });
        assert!(hung.await.is_err());
    }
}
