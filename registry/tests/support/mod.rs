//! Shared by the tests of the store: waiting for conditions, and a real etcd.

pub(crate) mod certificates;
pub(crate) mod etcd;

use std::future::Future;
use std::time::Duration;

/// How long a test waits for an event; generous, for a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// Polls until the answer is `Some`, or fails the test with `what` after the deadline.
pub(crate) async fn eventually<T, F>(what: &str, mut ask: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let asked = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    match tokio::time::timeout(DEADLINE, asked).await {
        Ok(answer) => answer,
        Err(_) => panic!("not within {DEADLINE:?}: {what}"),
    }
}

/// The answer, or a failed test if it takes longer than `limit`.
pub(crate) async fn within<T>(limit: Duration, what: &str, answer: impl Future<Output = T>) -> T {
    match tokio::time::timeout(limit, answer).await {
        Ok(answer) => answer,
        Err(_) => panic!("not within {limit:?}: {what}"),
    }
}
