//! Bounds the size and duration of long incomplete messages.
//!
//! A message may have megabytes, a client many streams, and there are thousands of clients. A
//! client that withholds the end of its messages must not use up the memory of all others.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Sleep, sleep};
use tonic::Status;

/// The most bytes of all of them, separately for very long ones and for the others.
const BYTES_MAX: usize = 256 * 1024 * 1024;
/// Shorter beginnings are not counted.
const SHORT_BYTES_MAX: usize = 4 * 1024;
/// Longer ones have their own budget, so that a few of them do not block all others.
const LONG_BYTES_MIN: usize = 1024 * 1024;
/// How long a message may take.
const TIME_MAX: Duration = Duration::from_secs(60);

/// The shared budget. Cheap to clone: clones share it.
#[derive(Clone, Default)]
pub(crate) struct Budget {
    taken: Arc<Taken>,
}

#[derive(Default)]
struct Taken {
    usual: AtomicUsize,
    long: AtomicUsize,
}

/// One stream's share.
pub(crate) struct Unfinished {
    budget: Budget,
    bytes: usize,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Unfinished {
    pub(crate) fn new(budget: Budget) -> Unfinished {
        Unfinished {
            budget,
            bytes: 0,
            deadline: None,
        }
    }

    /// Records that this many bytes wait for the rest of their message. Fails without room for
    /// them.
    pub(crate) fn follow(&mut self, waiting: usize) -> Result<(), Status> {
        let bytes = match waiting {
            ..=SHORT_BYTES_MAX => 0,
            _ => waiting,
        };
        if bytes == self.bytes {
            return Ok(());
        }
        let grown =
            self.budget
                .part(bytes)
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                    Some(taken + bytes).filter(|taken| *taken <= BYTES_MAX)
                });
        grown.map_err(|_| {
            Status::resource_exhausted(
                "there is no room for this request: other clients have too many long requests under way; retry in a minute",
            )
        })?;
        let before = self.budget.part(self.bytes);
        before.fetch_sub(self.bytes, Ordering::Relaxed);
        // With fewer bytes than before, the previous message has ended, and this is another one.
        if bytes < self.bytes || self.bytes == 0 {
            self.deadline = (bytes > 0).then(|| Box::pin(sleep(TIME_MAX)));
        }
        self.bytes = bytes;
        Ok(())
    }

    /// Ready when the message takes too long.
    pub(crate) fn poll_late(&mut self, context: &mut Context<'_>) -> Poll<Status> {
        match &mut self.deadline {
            Some(deadline) => {
                ready!(deadline.as_mut().poll(context));
                Poll::Ready(Status::deadline_exceeded("the request does not end"))
            }
            None => Poll::Pending,
        }
    }
}

impl Budget {
    /// The bytes in use by messages of this length class.
    fn part(&self, bytes: usize) -> &AtomicUsize {
        match bytes {
            LONG_BYTES_MIN.. => &self.taken.long,
            _ => &self.taken.usual,
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let part = self.budget.part(self.bytes);
        part.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[tokio::test]
    async fn who_finds_no_room_takes_none_and_who_is_done_gives_it_back() {
        let budget = Budget::default();
        let mut others = Unfinished::new(budget.clone());
        others.follow(BYTES_MAX - LONG_BYTES_MIN).expect("room");
        let mut one = Unfinished::new(budget.clone());
        one.follow(LONG_BYTES_MIN - 1).expect("room of its own");
        let full = one.follow(LONG_BYTES_MIN + 1).expect_err("no room");
        assert_eq!(full.code(), Code::ResourceExhausted);
        others.follow(LONG_BYTES_MIN).expect("less is possible");
        one.follow(LONG_BYTES_MIN + 1).expect("room again");
        one.follow(SHORT_BYTES_MAX).expect("short ones are free");
        drop((one, others));
        for part in [&budget.taken.usual, &budget.taken.long] {
            assert_eq!(part.load(Ordering::Relaxed), 0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_message_has_its_own_time() {
        let mut one = Unfinished::new(Budget::default());
        let late = |one: &mut Unfinished| {
            let mut context = Context::from_waker(std::task::Waker::noop());
            one.poll_late(&mut context).is_ready()
        };
        one.follow(100_000).expect("room");
        tokio::time::advance(TIME_MAX / 2).await;
        one.follow(200_000).expect("more of the same");
        assert!(!late(&mut one));
        tokio::time::advance(TIME_MAX / 2).await;
        assert!(late(&mut one));
        one.follow(50_000).expect("the next one");
        assert!(!late(&mut one));
        tokio::time::advance(TIME_MAX).await;
        assert!(late(&mut one));
        one.follow(0).expect("all have ended");
        assert!(!late(&mut one));
    }
}
