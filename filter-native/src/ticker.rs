//! The ticks of configurations.
//!
//! The ABI gives a filter no timer. A thread of the module asks Envoy's main thread for each tick, for
//! all configurations that want one; it sleeps while none does.

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use crate::abi::ConfigScheduler;

/// The ticks of one configuration.
pub(crate) struct Ticks {
    scheduler: ConfigScheduler,
    /// 0 for none.
    period_ms: AtomicU32,
    /// Milliseconds since the last one.
    passed_ms: AtomicU32,
    /// One is asked for that Envoy has not given yet: a busy main thread gets no further ones.
    asked: AtomicBool,
}

/// The configurations that want ticks. Envoy's main loop may be gone once the last configuration is,
/// so a tick is asked for only while the list is locked.
static TICKING: Mutex<Ticking> = Mutex::new(Ticking {
    list: Vec::new(),
    has_thread: false,
});
static CHANGED: Condvar = Condvar::new();

struct Ticking {
    list: Vec<Arc<Ticks>>,
    has_thread: bool,
}

/// The shortest period.
const STEP_MS: u32 = 10;

impl Ticks {
    pub(crate) fn new(scheduler: ConfigScheduler) -> Arc<Ticks> {
        Arc::new(Ticks {
            scheduler,
            period_ms: AtomicU32::new(0),
            passed_ms: AtomicU32::new(0),
            asked: AtomicBool::new(false),
        })
    }

    /// The tick that was asked for is there.
    pub(crate) fn came(&self) {
        self.asked.store(false, Ordering::Release);
    }

    fn step(&self) {
        let passed_ms = self.passed_ms.load(Ordering::Relaxed) + STEP_MS;
        let is_due = passed_ms >= self.period_ms.load(Ordering::Relaxed);
        if is_due && !self.asked.swap(true, Ordering::AcqRel) {
            self.scheduler.commit();
        }
        let passed_ms = if is_due { 0 } else { passed_ms };
        self.passed_ms.store(passed_ms, Ordering::Relaxed);
    }
}

fn ticking() -> MutexGuard<'static, Ticking> {
    // Nothing panics while it is locked, and the list is whole at every step.
    TICKING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has a configuration ticked this often; 0 for never. False if there can be no thread.
pub(crate) fn every(ticks: &Arc<Ticks>, period_ms: u32) -> bool {
    let mut ticking = ticking();
    ticks.period_ms.store(period_ms, Ordering::Relaxed);
    ticking.list.retain(|other| !Arc::ptr_eq(other, ticks));
    if period_ms > 0 {
        if !ticking.has_thread {
            let thread = thread::Builder::new().name("tidegate-ticks".to_owned());
            ticking.has_thread = thread.spawn(run).is_ok();
        }
        if !ticking.has_thread {
            return false;
        }
        ticking.list.push(Arc::clone(ticks));
        CHANGED.notify_one();
    }
    true
}

fn run() {
    loop {
        let is_idle = |ticking: &mut Ticking| ticking.list.is_empty();
        drop(
            CHANGED
                .wait_while(ticking(), is_idle)
                .unwrap_or_else(PoisonError::into_inner),
        );
        thread::sleep(Duration::from_millis(STEP_MS.into()));
        for ticks in &ticking().list {
            ticks.step();
        }
    }
}
