//! Children that never outlive their parent.
//!
//! A child is killed, by its own process id, when its [`Process`] is dropped. The kernel kills it
//! when this program ends without dropping anything (a test run that gets SIGKILL). Each child has
//! its own process group, so that Ctrl-C reaches only this program, which then cleans up in its own
//! order.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use std::{io, thread};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use crate::netns;
use crate::wait::eventually;

/// How much of a log a failure shows.
const TAIL_LINES: usize = 25;

/// How often, a millisecond apart, a child is checked for having stopped.
const STOP_LOOKS_MAX: u32 = 10_000;

/// A running child with its log.
pub struct Process {
    name: String,
    child: Mutex<Child>,
    log: PathBuf,
}

impl Process {
    /// Starts `program`; its output is appended to `<directory>/<name>.log`.
    pub fn start(
        directory: &Path,
        name: &str,
        program: &Path,
        arguments: &[String],
    ) -> Result<Process> {
        let log = directory.join(format!("{name}.log"));
        let out = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| log.display().to_string())?;
        // setpriv asks the kernel to kill the child with its parent, then becomes the program.
        // Doing that here would need unsafe code between fork and exec.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(arguments)
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .process_group(0);
        let child = spawn(command)
            .with_context(|| format!("cannot start {} through setpriv", program.display()))?;
        Ok(Process {
            name: name.to_owned(),
            child: Mutex::new(child),
            log,
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn pid(&self) -> u32 {
        self.child().id()
    }

    /// The file with the child's output.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Its exit status, if it has ended.
    pub fn exit_status(&self) -> Result<Option<ExitStatus>> {
        Ok(self.child().try_wait()?)
    }

    /// Sends a signal. Fails if the child has ended: its id may belong to another process by now.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let mut child = self.child();
        let ended = child.try_wait()?;
        ensure!(ended.is_none(), "{} has ended", self.name);
        signal::kill(Pid::from_raw(child.id().try_into()?), signal)
            .with_context(|| format!("{signal} to {}", self.name))
    }

    /// Makes it hang: no thread answers, all connections stay open. The signal stops one thread
    /// after another. On a busy machine a request sent right after it may still be answered, so
    /// this waits until all of them have stopped.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)?;
        for _ in 0..STOP_LOOKS_MAX {
            if self.has_stopped()? {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(1));
        }
        bail!("{} does not stop", self.name)
    }

    fn has_stopped(&self) -> Result<bool> {
        for task in fs::read_dir(format!("/proc/{}/task", self.pid()))? {
            let Ok(stat) = fs::read_to_string(task?.path().join("stat")) else {
                // It has ended meanwhile.
                continue;
            };
            // `id (name) state ...`, where the name may contain anything.
            let state = stat.rsplit_once(") ").map(|(_, rest)| rest);
            if !state.is_some_and(|state| state.starts_with('T')) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Ends [`pause`](Process::pause).
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Kills it, and waits until it has ended.
    pub fn kill(&self) -> Result<()> {
        let mut child = self.child();
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Asks it to shut down (SIGTERM) and waits until it has ended.
    pub async fn terminate(&self, within: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.ended(within).await
    }

    /// Waits until it has ended.
    pub async fn ended(&self, within: Duration) -> Result<ExitStatus> {
        let what = format!("{} to end", self.name);
        let ended = eventually(within, &what, async || {
            self.exit_status()?.context("it is running")
        });
        ended.await.map_err(|error| self.with_tail(&error))
    }

    /// Waits for `future`, but not longer than the child lives: afterwards the future cannot
    /// complete any more.
    pub async fn unless_it_ends<T>(&self, future: impl Future<Output = Result<T>>) -> Result<T> {
        let ended = async {
            loop {
                if let Some(status) = self.exit_status()? {
                    return Ok(status);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            result = future => result.map_err(|error| self.with_tail(&error)),
            status = ended => {
                let status: Result<ExitStatus> = status;
                bail!("{} ended with {}\n{}", self.name, status?, self.tail())
            }
        }
    }

    /// The end of its log.
    pub fn tail(&self) -> String {
        let lines = last_lines(&self.log).unwrap_or_else(|error| error.to_string());
        format!("--- end of {}\n{lines}---", self.log.display())
    }

    fn with_tail(&self, error: &anyhow::Error) -> anyhow::Error {
        anyhow!("{error:#}\n{}", self.tail())
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.tail());
        }
        // It may have ended already.
        let _ = self.kill();
    }
}

fn last_lines(log: &Path) -> io::Result<String> {
    let mut last = VecDeque::new();
    for line in BufReader::new(File::open(log)?).split(b'\n') {
        if last.len() == TAIL_LINES {
            last.pop_front();
        }
        last.push_back(format!("{}\n", String::from_utf8_lossy(&line?)));
    }
    Ok(last.into_iter().collect())
}

type Spawned = io::Result<Child>;
/// A command, the network that its child is in, and the channel for the child.
type Order = (Command, netns::Current, Sender<Spawned>);

/// Starts a child from a thread that lives as long as this program. For the kernel the parent of a
/// child is a *thread*, and a test's thread ends before the processes that it shares with other
/// tests. The child is in the network namespace of the calling thread, as any child would be.
fn spawn(command: Command) -> Spawned {
    static SPAWNER: OnceLock<Mutex<Sender<Order>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, orders) = channel::<Order>();
        thread::spawn(move || {
            for (mut command, network, answer) in orders {
                let spawned = network.enter().and_then(|()| command.spawn());
                // The caller is gone: the child is dropped, and dies with this program at the
                // latest.
                let _ = answer.send(spawned);
            }
        });
        Mutex::new(sender)
    });
    let network = netns::Current::of_this_thread()?;
    let (answer, spawned) = channel();
    let gone = || io::Error::other("the thread that starts children is gone");
    spawner
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send((command, network, answer))
        .map_err(|_| gone())?;
    spawned.recv().map_err(|_| gone())?
}

/// Writes a file so that a reader sees the old content or the new, never a mixture.
pub(crate) fn write_atomically(path: &Path, content: &str) -> Result<()> {
    let fresh = path.with_extension("new");
    fs::write(&fresh, content)
        .and_then(|()| fs::rename(&fresh, path))
        .with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::PATIENCE;

    fn sleeper(directory: &Path) -> Process {
        let arguments = ["-c".to_owned(), "echo ready; exec sleep 100".to_owned()];
        Process::start(directory, "sleeper", Path::new("/bin/sh"), &arguments).unwrap()
    }

    #[test]
    fn a_dropped_child_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let process = sleeper(directory.path());
        let proc = PathBuf::from(format!("/proc/{}", process.pid()));
        assert!(proc.exists());
        drop(process);
        assert!(!proc.exists());
    }

    #[tokio::test]
    async fn a_child_outlives_the_thread_that_asked_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        let process = thread::spawn(move || sleeper(&path)).join().unwrap();
        let said = eventually(PATIENCE, "the child to speak", async || {
            ensure!(process.tail().contains("ready"), "{}", process.tail());
            Ok(())
        });
        said.await.unwrap();
        assert!(process.exit_status().unwrap().is_none());
        assert!(!process.terminate(PATIENCE).await.unwrap().success());
        assert!(process.signal(Signal::SIGTERM).is_err());
    }

    #[tokio::test]
    async fn waiting_ends_with_the_child() {
        let directory = tempfile::tempdir().unwrap();
        let arguments = ["-c".to_owned(), "echo no luck; exit 3".to_owned()];
        let process =
            Process::start(directory.path(), "short", Path::new("/bin/sh"), &arguments).unwrap();
        let waited = process.unless_it_ends(std::future::pending::<Result<()>>());
        let message = waited.await.unwrap_err().to_string();
        assert!(message.contains("exit status: 3"), "{message}");
        assert!(message.contains("no luck"), "{message}");
    }
}
