//! When a stream has to renew the times to live of its client's resources.

use std::{future::pending, num::NonZeroU32, pin::Pin, time::Duration};

use tokio::time::{Instant, Sleep, sleep_until};

use super::stream::Stream;
use crate::resource::Kind;

/// After which part of a time to live it is renewed. A renewal may be lost or late, and the next one still comes in time.
const SHARE: u32 = 3;

/// By kind. Costs nothing where nothing has a time to live.
#[derive(Default)]
pub(super) struct Renewals {
    next: [Option<Instant>; Kind::ALL.len()],
    timer: Option<Pin<Box<Sleep>>>,
}

impl Renewals {
    /// Takes in the stream's present state.
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

    /// Comes when something is to be renewed. Nothing is lost if it is given up meanwhile.
    pub(super) async fn due(&mut self) {
        match &mut self.timer {
            Some(timer) => timer.await,
            None => pending().await,
        }
    }

    /// Has the stream renew the times to live that are due; [`Renewals::follow`] plans the next
    /// time.
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
