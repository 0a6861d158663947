//! Wakers that show which future has to be polled.
//!
//! A connection and its streams wake each other all the time: a stream that sends wakes the
//! connection to write, and the connection wakes the streams whose data it has read. With the
//! task's own waker each wake-up would poll all of them again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Wake, Waker},
};

use futures::task::AtomicWaker;

/// The waker of one part of a task: of its streams, or of its connection.
#[derive(Default)]
pub(super) struct PartWaker {
    woken: AtomicBool,
    task_waker: Arc<TaskWaker>,
}

/// The waker of the whole task, shared by its parts.
#[derive(Default)]
pub(super) struct TaskWaker {
    /// The task is awake, and checks its parts before it sleeps.
    awake: AtomicBool,
    task: AtomicWaker,
}

impl TaskWaker {
    /// The task is awake from now on; `waker` wakes it when it sleeps.
    pub(super) fn begin_turn(&self, waker: &Waker) {
        self.task.register(waker);
        self.awake.store(true, SeqCst);
    }

    /// From now on a part wakes the task. The caller checks the parts once more afterwards: one may
    /// have been woken just before.
    pub(super) fn sleep(&self) {
        self.awake.store(false, SeqCst);
    }
}

impl PartWaker {
    /// A part that is woken initially: its future has not been polled yet.
    pub(super) fn of(task_waker: &Arc<TaskWaker>) -> Arc<PartWaker> {
        Arc::new(PartWaker {
            woken: AtomicBool::new(true),
            task_waker: Arc::clone(task_waker),
        })
    }

    /// Whether it was woken since the last call.
    pub(super) fn take(&self) -> bool {
        self.woken.swap(false, SeqCst)
    }

    pub(super) fn is_woken(&self) -> bool {
        self.woken.load(SeqCst)
    }
}

impl Wake for PartWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, SeqCst);
        if !self.task_waker.awake.load(SeqCst) {
            self.task_waker.task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use super::*;

    /// Wake-ups of parts are never missed: a task that counts all of them terminates.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_ring_is_lost() {
        const RINGS: usize = 20_000;
        let task_waker = Arc::new(TaskWaker::default());
        let part = PartWaker::of(&task_waker);
        let waker = Waker::from(Arc::clone(&part));
        let (rings, mut woken) = tokio::sync::mpsc::channel::<()>(1);
        let ringing = tokio::spawn(async move {
            for _ in 0..RINGS {
                rings.send(()).await.expect("somebody listens");
            }
        });
        let mut heard = 0;
        let hearing = std::future::poll_fn(|context| {
            task_waker.begin_turn(context.waker());
            // Bounded as in production: once a task has used its share of time, each poll wakes it
            // again.
            for _ in 0..16 {
                if part.take() {
                    let mut inner = std::task::Context::from_waker(&waker);
                    while let Poll::Ready(ring) = woken.poll_recv(&mut inner) {
                        match ring {
                            Some(()) => heard += 1,
                            None => return Poll::Ready(()),
                        }
                    }
                }
                task_waker.sleep();
                if !part.is_woken() {
                    return Poll::Pending;
                }
                task_waker.begin_turn(context.waker());
            }
            task_waker.sleep();
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
