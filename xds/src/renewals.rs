//! When a stream renews the times to live of its client's resources.

use std::{future::pending, num::NonZeroU32, pin::Pin, time::Duration};

use tokio::time::{Instant, Sleep, sleep_until};

use super::stream::Stream;
use crate::resource::Kind;

/// The part of a time to live after which it is renewed. If a renewal is lost or late, the next one
/// is still in time.
const SHARE: u32 = 3;

/// By kind. Costs nothing without times to live.
#[derive(Default)]
pub(super) struct Renewals {
    next: [Option<Instant>; Kind::ALL.len()],
    timer: Option<Pin<Box<Sleep>>>,
}

impl Renewals {
    /// Updates from the stream's state.
    pub(super) fn follow(&mut self, stream: &Stream) {
        let before = self.first();
        for kind in Kind::ALL {
            let next = &mut self.next[kind.index()];
            *next = stream.ttl_s(kind).map(|ttl_s| {
                let latest = Instant::now() + interval(ttl_s);
                next.map_or(latest, |next| next.min(latest))
            });
        }
        if self.first() != before {
            self.timer = self.first().map(|at| Box::pin(sleep_until(at)));
        }
    }

    /// Completes when a renewal is due. Cancel safe.
    pub(super) async fn due(&mut self) {
        match &mut self.timer {
            Some(timer) => timer.await,
            None => pending().await,
        }
    }

    /// Renews the times to live that are due; [`Renewals::follow`] plans the next time.
    pub(super) fn begin(&mut self, stream: &mut Stream) {
        let now = Instant::now();
        for kind in Kind::ALL {
            let next = &mut self.next[kind.index()];
            if next.take_if(|at| *at <= now).is_some() {
                stream.renew(kind);
            }
        }
        self.timer = self.first().map(|at| Box::pin(sleep_until(at)));
    }

    fn first(&self) -> Option<Instant> {
        self.next.iter().flatten().min().copied()
    }
}

fn interval(ttl_s: NonZeroU32) -> Duration {
    Duration::from_secs(u64::from(ttl_s.get())) / SHARE
}
