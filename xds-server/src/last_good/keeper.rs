//! Writes the last good state in the background, at most once a second and in at most a fiftieth of
//! the time.
//!
//! The written state is that of the previous check, a second ago or more. So when writing is held
//! back, because most instances have just disappeared, the file still has the earlier state. A
//! clean shutdown writes the current state.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tracing::{error, info};

use super::{LastGood, file};
use crate::{
    conditions::Code,
    metrics::{Metrics, ResultLabel},
};

/// The least time between two writes.
const INTERVAL: Duration = Duration::from_secs(1);
/// The least time between two writes, as a multiple of the duration of a write: the file is written
/// as a whole, which takes longer for a larger state.
const REST_PER_WRITE: u32 = 50;
/// How long a shutdown waits for the last write.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// The handle of the writing task. Without a path nothing is kept.
#[derive(Clone)]
pub struct Keeper {
    known: watch::Sender<Option<Arc<LastGood>>>,
    held: Arc<AtomicBool>,
    stop: Option<mpsc::Sender<oneshot::Sender<()>>>,
}

impl Keeper {
    /// Begins to write to `path`. `present` is the state in the file.
    pub fn start(path: PathBuf, present: Option<LastGood>, metrics: Metrics) -> Keeper {
        let (stop, stops) = mpsc::channel(1);
        let present = present.map(Arc::new);
        let (known, states) = watch::channel(present.clone());
        let held = Arc::new(AtomicBool::new(false));
        let writer = Writer {
            path,
            states,
            held: Arc::clone(&held),
            written: present,
            failing: false,
            metrics,
        };
        tokio::spawn(writer.run(stops));
        Keeper {
            known,
            held,
            stop: Some(stop),
        }
    }

    /// A keeper without a file.
    pub fn none() -> Keeper {
        Keeper {
            known: watch::Sender::new(None),
            held: Arc::default(),
            stop: None,
        }
    }

    /// Updates the state to keep.
    pub fn keep(&self, state: &LastGood) {
        if self.stop.is_some() {
            self.known.send_replace(Some(Arc::new(state.clone())));
        }
    }

    /// While held, the file is not changed: the store's state is in doubt.
    pub fn hold(&self, held: bool) {
        self.held.store(held, Ordering::Relaxed);
    }

    /// Writes the known state, unless it is in doubt, and ends.
    pub async fn stop(&self) {
        let Some(stop) = &self.stop else { return };
        let (done, written) = oneshot::channel();
        if stop.send(done).await.is_ok() {
            // An error means that the task has ended, which it has logged.
            let _ = tokio::time::timeout(STOP_TIMEOUT, written).await;
        }
    }
}

struct Writer {
    path: PathBuf,
    states: watch::Receiver<Option<Arc<LastGood>>>,
    held: Arc<AtomicBool>,
    written: Option<Arc<LastGood>>,
    failing: bool,
    metrics: Metrics,
}

impl Writer {
    async fn run(mut self, mut stops: mpsc::Receiver<oneshot::Sender<()>>) {
        let mut rest = Duration::ZERO;
        let mut settled = self.written.clone();
        loop {
            tokio::select! {
                () = tokio::time::sleep(rest) => {
                    let begin = Instant::now();
                    self.write(settled).await;
                    rest = INTERVAL.max(begin.elapsed() * REST_PER_WRITE);
                    settled = self.states.borrow_and_update().clone();
                }
                stop = stops.recv() => {
                    let known = self.states.borrow_and_update().clone();
                    self.write(known).await;
                    // The waiting side may be gone.
                    let _ = stop.map(|done| done.send(()));
                    return;
                }
            }
        }
    }

    /// Writes `state` if it differs from the last written one; a failure is retried with the next
    /// state.
    async fn write(&mut self, state: Option<Arc<LastGood>>) {
        let Some(state) = state else { return };
        let same = |written: &Arc<LastGood>| written.says_the_same(&state);
        if self.written.as_ref().is_some_and(same) || self.held.load(Ordering::Relaxed) {
            return;
        }
        let outcome = write_off_thread(&self.path, Arc::clone(&state)).await;
        let result = if outcome.is_ok() { "ok" } else { "error" };
        self.metrics
            .state_writes
            .get_or_create(&ResultLabel { result })
            .inc();
        let file = self.path.display();
        match outcome {
            Ok(()) => {
                if std::mem::take(&mut self.failing) {
                    info!(%file, "the last good state is written again");
                }
                self.written = Some(state);
                self.metrics
                    .conditions
                    .clear(Code::StateNotKept, file.to_string());
            }
            // Logged once: it is retried every second.
            Err(_) if self.failing => {}
            Err(error) => {
                self.failing = true;
                self.metrics.conditions.raise(
                    Code::StateNotKept,
                    file.to_string(),
                    error.to_string(),
                );
                error!(%file, %error, "the last good state cannot be written: a restart without the store would serve an older one; check the disk and its permissions");
            }
        }
    }
}

async fn write_off_thread(path: &Path, state: Arc<LastGood>) -> std::io::Result<()> {
    let path = path.to_owned();
    #[allow(
        clippy::disallowed_methods,
        reason = "the time of writing, for people only"
    )]
    let now = SystemTime::now();
    let written = tokio::task::spawn_blocking(move || file::write(&path, &state, now));
    written.await.unwrap_or_else(|error| Err(error.into()))
}
