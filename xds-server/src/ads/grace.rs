//! The time in which a gRPC client applies routes that it has acknowledged.
//!
//! Envoy acknowledges routes that it uses. A gRPC client acknowledges those that it understands, and a call
//! that has chosen its cluster looks for an instance later, so an empty cluster would fail it.

use std::{future::pending, pin::Pin, time::Duration};

use tokio::time::{Sleep, sleep};

use super::stream::Stream;

/// Long beside what a call takes from its cluster to its instance, and short beside a person's notice: the
/// instances are unhealthy already, and no new call goes to them.
const GRACE: Duration = Duration::from_secs(1);

/// Costs nothing where no endpoints wait.
#[derive(Default)]
pub(super) struct Grace {
    timer: Option<Pin<Box<Sleep>>>,
}

impl Grace {
    /// Takes in whether endpoints wait now.
    pub(super) fn follow(&mut self, stream: &Stream) {
        match stream.awaits_grace() {
            true if self.timer.is_none() => self.timer = Some(Box::pin(sleep(GRACE))),
            true => {}
            false => self.timer = None,
        }
    }

    /// Comes when they have waited long enough. Nothing is lost if it is given up meanwhile.
    pub(super) async fn over(&mut self) {
        match &mut self.timer {
            Some(timer) => timer.await,
            None => pending().await,
        }
    }
}
