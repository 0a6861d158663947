//! When a listener that a proxy refused is sent again.
//!
//! Whether a proxy can listen depends on its machine, too: a port is busy, a log's directory is missing, the filter's file has not
//! come yet. None of that changes the listener, so that it would never be sent again. Other kinds are refused for what they say.

use std::{future::pending, pin::Pin, time::Duration};

use tokio::time::{Sleep, sleep};

use super::stream::Stream;
use crate::resource::Kind;

/// How long after the first refusal; twice as long after each further one.
const FIRST: Duration = Duration::from_secs(1);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(60);

/// Costs nothing where nothing is refused.
#[derive(Default)]
pub(super) struct Retries {
    /// The last wait; none where nothing is refused.
    wait: Option<Duration>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Retries {
    /// Takes in what the client refuses now.
    pub(super) fn follow(&mut self, stream: &Stream) {
        if stream.refusal(Kind::Listener).is_none() {
            *self = Retries::default();
        } else if self.timer.is_none() && stream.rejected(Kind::Listener).next().is_some() {
            let wait = self.wait.map_or(FIRST, |wait| LONGEST.min(wait * 2));
            self.wait = Some(wait);
            self.timer = Some(Box::pin(sleep(wait)));
        }
    }

    /// Comes when something is to be sent again. Nothing is lost if it is given up meanwhile.
    pub(super) async fn due(&mut self) {
        match &mut self.timer {
            Some(timer) => timer.await,
            None => pending().await,
        }
    }

    /// Has the stream send it again; [`Retries::follow`] plans the next time.
    pub(super) fn begin(&mut self, stream: &mut Stream) {
        self.timer = None;
        stream.retry(Kind::Listener);
    }
}
