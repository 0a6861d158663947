//! Follows files that are renewed while a process runs: configuration, certificates.
//!
//! It reads them again and again, and compares their contents. Events of the kernel (inotify) would
//! need the same reads besides. Kubernetes renews a mounted ConfigMap or Secret by swapping a
//! symbolic link above the file, so nothing happens to the file that is watched. Network file
//! systems report no change that another machine made. Queues of events run over. Times of files
//! and their sizes tell less, too: a swapped link may lead to a file that is older and as long. A
//! read of some kilobytes takes tens of microseconds.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// How often files are looked at, and how soon a change is believed.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub every: Duration,
    /// How many looks in a row must find the same before it counts.
    pub looks: u32,
    /// How many looks in a row must fail before that counts: a swap takes a moment.
    pub failures: u32,
}

impl Pace {
    /// For certificate, key and CA: files that belong together are not written in one moment.
    pub const CERTIFICATES: Pace = Pace {
        every: Duration::from_secs(1),
        looks: 2,
        failures: 2,
    };
}

/// Follows what `read` reads.
pub struct FileWatcher<C, E> {
    read: Arc<dyn Fn() -> Result<C, E> + Send + Sync>,
    looks: Looks<C>,
    ticks: Interval,
}

impl<C: PartialEq + Send + 'static, E: Send + 'static> FileWatcher<C, E> {
    /// Follows from now on; `known` was read last. It is to be called on a runtime of tokio.
    pub fn new(
        read: impl Fn() -> Result<C, E> + Send + Sync + 'static,
        known: C,
        pace: Pace,
    ) -> FileWatcher<C, E> {
        let mut ticks = interval(pace.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        FileWatcher {
            read: Arc::new(read),
            looks: Looks::new(known, pace),
            ticks,
        }
    }

    /// Waits for other contents than the last ones, good or bad. Files that cannot be read are told
    /// once, and so is their return, though they say what they said before.
    ///
    /// A look that is under way is lost where this future is dropped.
    ///
    /// # Errors
    ///
    /// The files cannot be read.
    pub async fn changed(&mut self) -> Result<Arc<C>, E> {
        loop {
            self.ticks.tick().await;
            let read = Arc::clone(&self.read);
            let Ok(read) = spawn_blocking(move || read()).await else {
                // Only where the runtime ends, or `read` panics: then nothing follows.
                return std::future::pending().await;
            };
            if let Some(change) = self.looks.take(read) {
                return change;
            }
        }
    }
}

/// The looks so far: decides which count. Knows no file and no time.
struct Looks<C> {
    pace: Pace,
    /// None: the files cannot be read.
    told: Option<Arc<C>>,
    /// The last look's, and how many looks in a row have found it.
    seen: (Option<Arc<C>>, u32),
}

impl<C: PartialEq> Looks<C> {
    fn new(known: C, pace: Pace) -> Looks<C> {
        let known = Some(Arc::new(known));
        Looks {
            pace,
            told: known.clone(),
            seen: (known, pace.looks),
        }
    }

    /// The change, if this look makes one.
    fn take<E>(&mut self, look: Result<C, E>) -> Option<Result<Arc<C>, E>> {
        let (seen, count) = &mut self.seen;
        match seen.as_deref() == look.as_ref().ok() {
            true => *count = count.saturating_add(1),
            false => *count = 1,
        }
        let needed = match &look {
            Ok(_) => self.pace.looks,
            Err(_) => self.pace.failures,
        };
        let error = match look {
            // One copy is kept.
            Ok(found) if *count == 1 => {
                *seen = Some(Arc::new(found));
                None
            }
            Ok(_) => None,
            Err(error) => {
                *seen = None;
                Some(error)
            }
        };
        if *count < needed || *seen == self.told {
            return None;
        }
        self.told.clone_from(seen);
        match (seen, error) {
            (Some(found), _) => Some(Ok(Arc::clone(found))),
            (None, error) => error.map(Err),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// What is told of these looks, by their position; `-` is a look that fails. `a` is known.
    fn told(pace: Pace, looks: &str) -> String {
        let mut state = Looks::new('a', pace);
        let letters = looks.chars();
        let told = letters.enumerate().filter_map(|(at, letter)| {
            let look = if letter == '-' { Err(()) } else { Ok(letter) };
            let letter = state.take(look)?.map_or('-', |found| *found);
            Some(format!("{at}{letter} "))
        });
        told.collect()
    }

    #[test]
    fn a_change_counts_once_and_only_when_it_lasts() {
        let every = Duration::ZERO;
        let pace = |looks, failures| Pace {
            every,
            looks,
            failures,
        };
        for (pace, looks, expected) in [
            (pace(1, 3), "aaabbbc", "3b 6c "),
            // A file that is away for a moment, for long, and again.
            (pace(1, 3), "a--aa---a---b", "7- 8a 11- 12b "),
            (pace(1, 3), "a--b", "3b "),
            (pace(1, 3), "----------", "2- "),
            // A change that is not complete yet.
            (pace(2, 2), "abcddd", "4d "),
            (pace(2, 2), "ababaab", ""),
            (pace(2, 2), "aba--a-aa", "4- 8a "),
            (pace(2, 2), "-a-b-bb--", "6b 8- "),
        ] {
            assert_eq!(told(pace, looks), expected, "{pace:?} {looks}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_swapped_link_is_a_change_and_so_is_a_file_that_comes_back() {
        // As Kubernetes mounts a ConfigMap: `file` leads over `..data` to a directory.
        let mount = tempfile::tempdir().unwrap();
        let at = |name: &str| mount.path().join(name);
        let swap = |version: &str, text: &str| {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("file"), text).unwrap();
            symlink(version, at("..data_tmp")).unwrap();
            fs::rename(at("..data_tmp"), at("..data")).unwrap();
        };
        swap("1", "one");
        symlink("..data/file", at("file")).unwrap();
        let file = at("file");
        let read = move || fs::read_to_string(&file);
        let known = read().unwrap();
        let mut watcher = FileWatcher::new(read, known, Pace::CERTIFICATES);
        swap("2", "two");
        assert_eq!(*watcher.changed().await.unwrap(), "two");
        fs::remove_file(at("..data")).unwrap();
        let gone = watcher.changed().await.unwrap_err();
        assert_eq!(gone.kind(), std::io::ErrorKind::NotFound);
        symlink("2", at("..data")).unwrap();
        assert_eq!(*watcher.changed().await.unwrap(), "two");
    }
}
