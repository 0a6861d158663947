//! The time in which a gRPC client applies routes that it has acknowledged.
//!
//! Envoy acknowledges routes after it has applied them. A gRPC client acknowledges routes that it
//! understands. A call that has chosen its cluster picks an instance later, so an empty cluster
//! would fail it.

use std::{future::pending, pin::Pin, time::Duration};

use tokio::time::{Sleep, sleep};

use super::stream::Stream;

/// Long compared with a call's way from its cluster to its instance, and short for an operator: the
/// instances are unhealthy already, and get no new calls.
const GRACE: Duration = Duration::from_secs(1);

/// Costs nothing while no endpoints wait.
#[derive(Default)]
pub(super) struct Grace {
    timer: Option<Pin<Box<Sleep>>>,
}

impl Grace {
    /// Updates whether endpoints wait now.
    pub(super) fn follow(&mut self, stream: &Stream) {
        match stream.awaits_grace() {
            true if self.timer.is_none() => self.timer = Some(Box::pin(sleep(GRACE))),
            true => {}
            false => self.timer = None,
        }
    }

    /// Completes when they have waited long enough. Cancel safe.
    pub(super) async fn over(&mut self) {
        match &mut self.timer {
            Some(timer) => timer.await,
            None => pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::{Instant, timeout};

    use super::*;
    use crate::{stream::Variant, view::View};

    #[tokio::test(start_paused = true)]
    async fn grace_ends_after_a_second_and_never_where_no_endpoints_wait() {
        let view = View::new(Default::default(), Default::default());
        let stream = Stream::new(Variant::StateOfTheWorld, Arc::new(view));
        let mut grace = Grace {
            timer: Some(Box::pin(sleep(GRACE))),
        };
        let began = Instant::now();
        grace.over().await;
        assert_eq!(began.elapsed(), GRACE);
        grace.follow(&stream);
        assert!(timeout(10 * GRACE, grace.over()).await.is_err());
    }
}
