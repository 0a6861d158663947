//! The state of a worker that outlives its configurations.
//!
//! A host keeps one of each part for each worker, and lends it to one user at a time. A worker is
//! what decides and fences for itself: a thread of the proxy with a VM of its own, or a whole
//! process whose threads share their memory.

use policy::fence::WorkerId;
use protos::Decoder;

use crate::{
    applied::Applied,
    deadlines::Deadlines,
    fence::{permits::Permits, process::Process, worker::Worker},
    guest::follower::Follower,
    refusals::Refusals,
};

/// The parts of one worker's memory. None where a part is lent already: nothing that its user calls
/// leads back to it. Were it otherwise, the inner use would do nothing: then a write is not
/// admitted, or its end not noticed, and a fence waits longer.
pub trait Memory {
    /// The decoder of policies. It knows the one before.
    fn decoder<T>(act: impl FnOnce(&mut Decoder) -> T) -> Option<T>;
    /// The part in the fence. None until there is something to fence, or for want of a random
    /// number.
    fn worker<T>(act: impl FnOnce(&mut Option<Worker>) -> T) -> Option<T>;
    /// The refusals that wait for a body.
    fn refusals<T>(act: impl FnOnce(&mut Refusals) -> T) -> Option<T>;
    /// The stream for the policy of guests.
    fn follower<T>(act: impl FnOnce(&mut Follower) -> T) -> Option<T>;
    /// The admitted writes that the filter ends by itself.
    fn deadlines<T>(act: impl FnOnce(&mut Deadlines) -> T) -> Option<T>;
    /// The part in the reports of applied policies. None before the first, or for want of a random
    /// number.
    fn applied<T>(act: impl FnOnce(&mut Option<Applied>) -> T) -> Option<T>;
}

/// Lets a worker's part in the fence act, if it has one.
pub(crate) fn with_worker<M: Memory, T>(act: impl FnOnce(&mut Worker) -> T) -> Option<T> {
    M::worker(|worker| worker.as_mut().map(act))?
}

/// Makes a worker's part in the fence.
pub(crate) fn join<M: Memory>(process: &mut (impl Process + ?Sized)) {
    M::worker(|worker| {
        if worker.is_none() {
            let me = process.random().map(|bits| WorkerId(bits as u64));
            *worker = me.map(|me| Worker::new(Permits::new(me)));
        }
    });
}

/// Lets a worker's part in the reports act, if it can have one.
pub(crate) fn with_applied<M: Memory, P: Process, T>(
    process: &mut P,
    act: impl FnOnce(&mut Applied, &mut P) -> T,
) -> Option<T> {
    M::applied(|applied| {
        if applied.is_none() {
            *applied = process.random().map(|bits| Applied::new(bits as u64));
        }
        applied.as_mut().map(|applied| act(applied, process))
    })?
}
