//! Turns for long requests.

use std::sync::Arc;

use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::Semaphore,
    task::block_in_place,
};

/// Longer requests take long to handle: up to seconds, with hundreds of thousands of names.
const LONG_BYTES_MIN: usize = 64 * 1024;

/// Makes long requests wait for each other, and short ones for none. Cheap to clone: clones share
/// the turns.
#[derive(Clone)]
pub(super) struct Turns {
    one: Arc<Semaphore>,
}

impl Default for Turns {
    fn default() -> Turns {
        Turns {
            one: Arc::new(Semaphore::new(1)),
        }
    }
}

impl Turns {
    /// Does the work of a request of this many bytes. During a long one, the other streams of this
    /// thread continue on another thread.
    pub(super) async fn take<T>(&self, request_bytes: usize, work: impl FnOnce() -> T) -> T {
        if request_bytes < LONG_BYTES_MIN {
            return work();
        }
        // The semaphore is never closed.
        let _turn = self.one.acquire().await;
        match Handle::current().runtime_flavor() {
            RuntimeFlavor::MultiThread => block_in_place(work),
            // There is only one thread.
            _ => work(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use tokio::{sync::oneshot, time::timeout};

    use super::*;

    const ENOUGH: Duration = Duration::from_secs(60);

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_long_request_holds_up_long_ones_and_nobody_else() {
        let turns = Turns::default();
        let long = |begun: oneshot::Sender<()>, end: mpsc::Receiver<()>| {
            let turns = turns.clone();
            tokio::spawn(async move {
                let work = move || {
                    begun.send(()).expect("a request waits for it");
                    end.recv_timeout(ENOUGH).expect("it may end");
                };
                turns.take(LONG_BYTES_MIN, work).await;
            })
        };
        let ((begins, begun), (may_end, end)) = (oneshot::channel(), mpsc::channel());
        let first = long(begins, end);
        timeout(ENOUGH, begun)
            .await
            .expect("in time")
            .expect("it begins");
        let ((begins, mut begun), (may_end_too, end)) = (oneshot::channel(), mpsc::channel());
        let second = long(begins, end);
        // On the only worker thread, which is also the first one's.
        let short = turns.clone();
        let short = tokio::spawn(async move { short.take(LONG_BYTES_MIN - 1, || 7).await });
        let done = timeout(ENOUGH, short)
            .await
            .expect("it waits for no request");
        assert_eq!(done.expect("it ends"), 7);
        assert!(begun.try_recv().is_err(), "one after the other");
        may_end.send(()).expect("it works");
        timeout(ENOUGH, begun)
            .await
            .expect("in time")
            .expect("its turn");
        may_end_too.send(()).expect("it works");
        first.await.expect("it ends");
        second.await.expect("it ends");
    }
}
