//! Returns memory that is free inside the process to the system.
//!
//! On its own, glibc returns only free memory at the end of its heap. After a large drop (a removed
//! service with many routes, or many instances or proxies) the rest would stay in the holes between
//! live blocks: gigabytes, after a large mesh.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, warn};

/// How often the heap is checked.
const INTERVAL: Duration = Duration::from_secs(10);

/// The least newly free memory that is worth the time.
const WORTH_BYTES: usize = 64 << 20;

/// Decides when memory is returned. Pure.
#[derive(Default)]
struct Trimmer {
    /// The least free memory since the last return. Returned memory still counts as free.
    free_bytes_min: usize,
}

impl Trimmer {
    /// Whether to return memory, with this much free.
    fn is_due(&mut self, free_bytes: usize) -> bool {
        self.free_bytes_min = self.free_bytes_min.min(free_bytes);
        let is_due = free_bytes - self.free_bytes_min >= WORTH_BYTES;
        if is_due {
            self.free_bytes_min = free_bytes;
        }
        is_due
    }
}

/// Checks periodically, forever.
pub async fn give_back() {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut trimmer = Trimmer::default();
    loop {
        ticks.tick().await;
        // Both take a while in a large heap.
        let looked = tokio::task::spawn_blocking(move || {
            let free_bytes = heap::free_bytes();
            if trimmer.is_due(free_bytes) {
                heap::trim();
                debug!(free_bytes, "free memory is returned to the system");
            }
            trimmer
        });
        match looked.await {
            Ok(looked) => trimmer = looked,
            Err(error) => {
                warn!(%error, "free memory is no longer returned to the system");
                return;
            }
        }
    }
}

/// Returns the memory that is free now.
pub fn trim() {
    heap::trim();
}

#[cfg(target_env = "gnu")]
#[allow(unsafe_code)] // Two calls of glibc that no crate wraps: neither takes a pointer.
mod heap {
    /// Bytes that are free inside the process.
    pub(super) fn free_bytes() -> usize {
        // SAFETY: it only reads glibc's own counters, under its locks.
        unsafe { libc::mallinfo2() }.fordblks
    }

    pub(super) fn trim() {
        // SAFETY: it touches only pages on which nothing is allocated, under glibc's locks.
        unsafe { libc::malloc_trim(0) };
    }
}

/// Other allocators return memory on their own.
#[cfg(not(target_env = "gnu"))]
mod heap {
    pub(super) fn free_bytes() -> usize {
        0
    }

    pub(super) fn trim() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_once_after_each_large_drop() {
        let mut trimmer = Trimmer::default();
        let mib = |n: usize| n << 20;
        let looks = [
            (10, false),
            (63, false),
            (500, true), // a large drop
            (500, false),
            (520, false), // small ones
            (100, false), // in use again
            (150, false),
            (164, true),
            (2_000, true),
            (2_000, false),
        ];
        for (n, (free, due)) in looks.into_iter().enumerate() {
            assert_eq!(trimmer.is_due(mib(free)), due, "{n}: {free} MiB are free");
        }
    }
}
