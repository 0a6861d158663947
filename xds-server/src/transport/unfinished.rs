//! Long messages that have begun and are not complete: how much they may take together, and for how long.
//!
//! A message may have megabytes, a client many streams, and there are thousands of clients. One that sends all but the end of
//! its messages must not take the memory of all others.

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

/// What all of them may take together.
const BYTES_MAX: usize = 256 * 1024 * 1024;
/// Messages up to this length are not counted: the longest that a proxy sends as long as all is well.
const SHORT_BYTES_MAX: usize = 64 * 1024;
/// How long one may take.
const TIME_MAX: Duration = Duration::from_secs(60);

/// What they share. Cheap to clone: all clones are one.
#[derive(Clone, Default)]
pub(crate) struct Room {
    taken: Arc<AtomicUsize>,
}

/// One stream's share.
pub(crate) struct Unfinished {
    room: Room,
    bytes: usize,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Unfinished {
    pub(crate) fn new(room: Room) -> Unfinished {
        Unfinished {
            room,
            bytes: 0,
            deadline: None,
        }
    }

    /// So many bytes wait for the rest of their message. Errors: there is no room for them.
    pub(crate) fn follow(&mut self, waiting: usize) -> Result<(), Status> {
        let bytes = if waiting > SHORT_BYTES_MAX {
            waiting
        } else {
            0
        };
        let taken = &self.room.taken;
        if bytes <= self.bytes {
            taken.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
        } else {
            let more = bytes - self.bytes;
            let grown = taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                Some(taken + more).filter(|taken| *taken <= BYTES_MAX)
            });
            grown.map_err(|_| {
                Status::resource_exhausted("too many long requests at once: try again later")
            })?;
        }
        match (bytes, &self.deadline) {
            (0, Some(_)) => self.deadline = None,
            (1.., None) => self.deadline = Some(Box::pin(sleep(TIME_MAX))),
            _ => {}
        }
        self.bytes = bytes;
        Ok(())
    }

    /// Ready when it takes too long.
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

impl Drop for Unfinished {
    fn drop(&mut self) {
        self.room.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[tokio::test]
    async fn who_finds_no_room_takes_none_and_who_is_done_gives_it_back() {
        let room = Room::default();
        let mut others = Unfinished::new(room.clone());
        others.follow(BYTES_MAX - SHORT_BYTES_MAX).expect("room");
        let mut one = Unfinished::new(room.clone());
        one.follow(SHORT_BYTES_MAX).expect("short ones are free");
        let full = one.follow(SHORT_BYTES_MAX + 1).expect_err("no room");
        assert_eq!(full.code(), Code::ResourceExhausted);
        others.follow(0).expect("less is always possible");
        one.follow(SHORT_BYTES_MAX + 1).expect("room again");
        drop((one, others));
        assert_eq!(room.taken.load(Ordering::Relaxed), 0);
    }
}
