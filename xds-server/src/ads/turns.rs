//! Turns for long requests.

use std::sync::Arc;

use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::Semaphore,
    task::block_in_place,
};

/// Requests that are longer take long to be taken in: up to seconds, with hundreds of thousands of names.
const LONG_BYTES_MIN: usize = 64 * 1024;

/// Has long requests wait for each other, and everybody else for none of them. Cheap to clone: all clones are one.
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
    /// Does what there is to do for a request of so many bytes. If it is long, the streams that this thread serves as well go on
    /// meanwhile on another one.
    pub(super) async fn take<T>(&self, request_bytes: usize, work: impl FnOnce() -> T) -> T {
        if request_bytes < LONG_BYTES_MIN {
            return work();
        }
        // It is never closed.
        let _turn = self.one.acquire().await;
        match Handle::current().runtime_flavor() {
            RuntimeFlavor::MultiThread => block_in_place(work),
            // There is no other thread.
            _ => work(),
        }
    }
}
