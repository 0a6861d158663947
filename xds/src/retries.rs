//! When a listener that a proxy rejected is sent again.
//!
//! Whether a proxy can listen depends on its machine, too: a port is in use, a log's directory is
//! missing, the filter's file has not arrived yet. None of these changes the listener, so without a
//! retry it would never be sent again. Other kinds are rejected because of their contents.

use std::{future::pending, pin::Pin, time::Duration};

use tokio::time::{Sleep, sleep};

use super::stream::Stream;
use crate::resource::Kind;

/// The wait after the first rejection; each further one doubles it.
const FIRST: Duration = Duration::from_secs(1);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(60);

/// Costs nothing without rejections.
#[derive(Default)]
pub(super) struct Retries {
    /// The last wait; none without rejections.
    wait: Option<Duration>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Retries {
    /// Updates from the client's present rejections.
    pub(super) fn follow(&mut self, stream: &Stream) {
        if stream.refusal(Kind::Listener).is_none() {
            *self = Retries::default();
        } else if self.timer.is_none() && stream.rejected(Kind::Listener).next().is_some() {
            let wait = self.wait.map_or(FIRST, |wait| LONGEST.min(wait * 2));
            self.wait = Some(wait);
            self.timer = Some(Box::pin(sleep(wait)));
        }
    }

    /// Completes when a retry is due. Cancel safe.
    pub(super) async fn due(&mut self) {
        match &mut self.timer {
            Some(timer) => timer.await,
            None => pending().await,
        }
    }

    /// Sends it again; [`Retries::follow`] plans the next time.
    pub(super) fn begin(&mut self, stream: &mut Stream) {
        self.timer = None;
        stream.retry(Kind::Listener);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use envoy_types::pb::envoy::config::cluster::v3::Cluster;
    use tokio::time::{Instant, timeout};

    use super::*;
    use crate::{
        resource::{Resource, Resources},
        stream::{Variant, Verdict},
        view::View,
    };

    /// A client that rejects its only listener.
    fn refusing() -> Stream {
        let mut resources: [Resources; Kind::ALL.len()] = Default::default();
        // The protocol does not depend on the type of message.
        let listener = Arc::new(Resource::encode("gateway", &Cluster::default()));
        resources[Kind::Listener.index()].insert(Arc::clone(&listener.name), listener);
        let view = View::new(resources, Default::default());
        let mut stream = Stream::new(Variant::Delta, Arc::new(view));
        let names = ["gateway"].into_iter();
        stream.subscribe_delta(Kind::Listener, names, [].into_iter(), [].into_iter());
        stream
    }

    fn refuse(stream: &mut Stream) {
        let sent = stream.next_due().expect("the listener is sent");
        let refused = Verdict::Nack {
            nonce: &sent.nonce.to_string(),
            message: "cannot bind: address already in use",
        };
        stream
            .settle(Kind::Listener, &refused)
            .expect("it is the last nonce");
        assert!(stream.next_due().is_none(), "not at once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_listener_is_sent_again_after_longer_and_longer_waits() {
        let mut stream = refusing();
        let mut retries = Retries::default();
        for wait_s in [1, 2, 4, 8, 16, 32, 60, 60] {
            refuse(&mut stream);
            retries.follow(&stream);
            let began = Instant::now();
            let due = timeout(2 * LONGEST, retries.due()).await;
            due.expect("it is sent again");
            assert_eq!(began.elapsed().as_secs(), wait_s);
            retries.begin(&mut stream);
        }
    }
}
