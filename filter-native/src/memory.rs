//! The memory of the core's one worker, which all threads of the process are.
//!
//! Only the fence, the refusals and the deadlines are used by Envoy's workers; the rest by its main
//! thread alone. A lock that a panic has poisoned is never lent again: then no write is admitted, and
//! no fence acknowledged.

use std::sync::{LazyLock, Mutex};

use filter_core::{
    applied::Applied, deadlines::Deadlines, fence::worker::Worker, guest::follower::Follower,
    refusals::Refusals,
};
use protos::Decoder;

pub(crate) static DECODER: LazyLock<Mutex<Decoder>> = LazyLock::new(Mutex::default);
pub(crate) static WORKER: Mutex<Option<Worker>> = Mutex::new(None);
pub(crate) static REFUSALS: Mutex<Refusals> = Mutex::new(Refusals::new());
pub(crate) static FOLLOWER: LazyLock<Mutex<Follower>> = LazyLock::new(Mutex::default);
pub(crate) static DEADLINES: Mutex<Deadlines> = Mutex::new(Deadlines::new());
pub(crate) static APPLIED: Mutex<Option<Applied>> = Mutex::new(None);

pub(crate) fn lend<P, T>(part: &Mutex<P>, act: impl FnOnce(&mut P) -> T) -> Option<T> {
    Some(act(&mut *part.lock().ok()?))
}

/// Lends the parts to a host of the process.
macro_rules! lends_memory {
    ($host:ty) => {
        impl filter_core::memory::Memory for $host {
            fn decoder<T>(act: impl FnOnce(&mut protos::Decoder) -> T) -> Option<T> {
                $crate::memory::lend(&$crate::memory::DECODER, act)
            }

            fn worker<T>(
                act: impl FnOnce(&mut Option<filter_core::fence::worker::Worker>) -> T,
            ) -> Option<T> {
                $crate::memory::lend(&$crate::memory::WORKER, act)
            }

            fn refusals<T>(
                act: impl FnOnce(&mut filter_core::refusals::Refusals) -> T,
            ) -> Option<T> {
                $crate::memory::lend(&$crate::memory::REFUSALS, act)
            }

            fn follower<T>(
                act: impl FnOnce(&mut filter_core::guest::follower::Follower) -> T,
            ) -> Option<T> {
                $crate::memory::lend(&$crate::memory::FOLLOWER, act)
            }

            fn deadlines<T>(
                act: impl FnOnce(&mut filter_core::deadlines::Deadlines) -> T,
            ) -> Option<T> {
                $crate::memory::lend(&$crate::memory::DEADLINES, act)
            }

            fn applied<T>(
                act: impl FnOnce(&mut Option<filter_core::applied::Applied>) -> T,
            ) -> Option<T> {
                $crate::memory::lend(&$crate::memory::APPLIED, act)
            }
        }
    };
}
pub(crate) use lends_memory;
