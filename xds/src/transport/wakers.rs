//! Wakers that tell which future has to be polled.
//!
//! A connection and its streams wake each other all the time: a stream that sends wakes the
//! connection to write, and the connection wakes the streams that it has read something for. With
//! the task's own waker each of these would poll everything once more.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Wake, Waker},
};

use futures::task::AtomicWaker;

/// Rings when one half of a task has something to do.
#[derive(Default)]
pub(super) struct Bell {
    rung: AtomicBool,
    house: Arc<House>,
}

/// The shared state of a task's bells.
#[derive(Default)]
pub(super) struct House {
    /// The task is awake, and looks at its bells before it sleeps.
    awake: AtomicBool,
    task: AtomicWaker,
}

impl House {
    /// The task is awake from now on, and is woken by `waker` when it sleeps.
    pub(super) fn wake_up(&self, waker: &Waker) {
        self.task.register(waker);
        self.awake.store(true, SeqCst);
    }

    /// From now on a bell wakes the task. The caller looks at the bells once more afterwards: one
    /// may have rung just before.
    pub(super) fn fall_asleep(&self) {
        self.awake.store(false, SeqCst);
    }
}

impl Bell {
    /// A bell that has rung: its future has not been polled yet.
    pub(super) fn of(house: &Arc<House>) -> Arc<Bell> {
        Arc::new(Bell {
            rung: AtomicBool::new(true),
            house: Arc::clone(house),
        })
    }

    /// Whether it has rung since the last time.
    pub(super) fn answer(&self) -> bool {
        self.rung.swap(false, SeqCst)
    }

    pub(super) fn has_rung(&self) -> bool {
        self.rung.load(SeqCst)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, SeqCst);
        if !self.house.awake.load(SeqCst) {
            self.house.task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use super::*;

    /// Bells that others ring at any moment are never missed: a task that counts to the number of rings comes to its end.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_ring_is_lost() {
        const RINGS: usize = 20_000;
        let house = Arc::new(House::default());
        let bell = Bell::of(&house);
        let waker = Waker::from(Arc::clone(&bell));
        let (rings, mut rung) = tokio::sync::mpsc::channel::<()>(1);
        let ringing = tokio::spawn(async move {
            for _ in 0..RINGS {
                rings.send(()).await.expect("somebody listens");
            }
        });
        let mut heard = 0;
        let hearing = std::future::poll_fn(|context| {
            house.wake_up(context.waker());
            // Bounded as where it is used: once a task has had its share of time, each of its
            // questions has it ring again.
            for _ in 0..16 {
                if bell.answer() {
                    let mut inner = std::task::Context::from_waker(&waker);
                    while let Poll::Ready(ring) = rung.poll_recv(&mut inner) {
                        match ring {
                            Some(()) => heard += 1,
                            None => return Poll::Ready(()),
                        }
                    }
                }
                house.fall_asleep();
                if !bell.has_rung() {
                    return Poll::Pending;
                }
                house.wake_up(context.waker());
            }
            house.fall_asleep();
            context.waker().wake_by_ref();
            Poll::Pending
        });
        let deadline = std::time::Duration::from_secs(60);
        let heard_all = tokio::time::timeout(deadline, hearing).await;
        heard_all.expect("it never slept through a ring");
        ringing.await.expect("it ends");
        assert_eq!(heard, RINGS);
    }
}
