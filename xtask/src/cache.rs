//! The tools of this user, which all checkouts share: each lies in a folder that is named by a
//! digest of its pins, so that two checkouts with different pins do not disturb each other.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::{env, iter, path};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::tree::{Scratch, make_dir};

/// Takes the place of the usual folder.
const VARIABLE: &str = "TIDEGATE_CACHE";

/// Marks the folder as ours. Backup programs know the first line of this file, and leave the folder
/// out.
const TAG: &str = "CACHEDIR.TAG";
const PARTIAL_TAG: &str = "CACHEDIR.TAG.partial";
const TAG_TEXT: &str = "Signature: 8a477f597d28d172789f06886806bc55\n\
    # The tools of Tidegate's checkouts. `cargo xtask clean` removes this folder.\n";

const LOCK: &str = "lock";

/// How many bytes of a digest are in the name of a folder.
const DIGEST_BYTES: usize = 8;

/// How often a lock is taken anew, because another process has removed the folder meanwhile.
const LOCK_ATTEMPTS: usize = 10;

/// The folder. It need not exist.
pub(crate) struct Cache {
    dir: PathBuf,
}

/// The right to change the cache, and a place for half-done work on its file system.
pub(crate) struct Exclusive {
    // The order matters: the scratch directory is gone before another process may make its own.
    scratch: Scratch,
    _lock: File,
}

impl Exclusive {
    pub(crate) fn scratch(&self) -> &Scratch {
        &self.scratch
    }
}

impl Cache {
    /// `$TIDEGATE_CACHE`, or else `tidegate` in the folder that the XDG Base Directory
    /// Specification names.
    pub(crate) fn of_this_user() -> Result<Self> {
        let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
        if let Some(dir) = variable(VARIABLE) {
            let dir = path::absolute(dir)?;
            return Ok(Self { dir });
        }
        // The specification has relative values ignored.
        let xdg = variable("XDG_CACHE_HOME").map(PathBuf::from);
        let home = || Some(PathBuf::from(variable("HOME")?).join(".cache"));
        let caches = xdg.filter(|dir| dir.is_absolute()).or_else(home);
        let caches = caches.with_context(|| format!("no $HOME: set {VARIABLE} to a folder"))?;
        Ok(Self {
            dir: caches.join("tidegate"),
        })
    }

    /// The folder of a tool with these pins.
    pub(crate) fn entry(&self, tool: &str, pins: &[impl AsRef<str>]) -> PathBuf {
        self.dir.join(format!("{tool}-{}", digest(pins)))
    }

    /// Makes the folder, and waits until no other process changes it.
    pub(crate) fn lock(&self) -> Result<Exclusive> {
        make_dir(&self.dir)?;
        self.refuse_foreign()?;
        let lock = self.lock_file()?;
        self.mark()?;
        let scratch = Scratch::at(self.dir.join("scratch"))?;
        Ok(Exclusive {
            scratch,
            _lock: lock,
        })
    }

    fn lock_file(&self) -> Result<File> {
        let path = self.dir.join(LOCK);
        for _ in 0..LOCK_ATTEMPTS {
            make_dir(&self.dir)?;
            let file =
                File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
            if file.try_lock().is_err() {
                eprintln!(
                    "setup: waiting for another `cargo xtask` that changes {}",
                    self.dir.display()
                );
                file.lock()
                    .with_context(|| format!("cannot lock {}", path.display()))?;
            }
            // A `clean` may have removed the file that this process waited for.
            let locked = file.metadata()?.ino();
            if fs::metadata(&path).is_ok_and(|current| current.ino() == locked) {
                return Ok(file);
            }
        }
        bail!(
            "{} disappears again and again: end the processes that remove it",
            self.dir.display()
        )
    }

    /// An error for a folder with other files: `clean` would remove them.
    fn refuse_foreign(&self) -> Result<()> {
        let entries = fs::read_dir(&self.dir);
        let mut entries = entries.with_context(|| format!("cannot read {}", self.dir.display()))?;
        // Those of a process that is about to mark it.
        let is_ours = |name: &OsStr| name == LOCK || name == TAG || name == PARTIAL_TAG;
        let is_foreign = entries.any(|it| it.is_ok_and(|entry| !is_ours(&entry.file_name())));
        ensure!(
            self.is_marked() || !is_foreign,
            "{} has other files than Tidegate's tools: set {VARIABLE} to a new folder",
            self.dir.display()
        );
        Ok(())
    }

    fn mark(&self) -> Result<()> {
        if self.is_marked() {
            return Ok(());
        }
        let partial = self.dir.join(PARTIAL_TAG);
        fs::write(&partial, TAG_TEXT)
            .and_then(|()| fs::rename(&partial, self.dir.join(TAG)))
            .with_context(|| format!("cannot write to {}", self.dir.display()))
    }

    fn is_marked(&self) -> bool {
        fs::read_to_string(self.dir.join(TAG)).is_ok_and(|text| text == TAG_TEXT)
    }

    /// Removes the folder, and says what was in it.
    pub(crate) fn clean(&self) -> Result<()> {
        if !self.dir.exists() {
            println!("{} does not exist: nothing to remove", self.dir.display());
            return Ok(());
        }
        ensure!(
            self.is_marked(),
            "{} was not made by `cargo xtask setup`: remove it by hand, if it is to go",
            self.dir.display()
        );
        let alone = self.lock()?;
        let mut all = 0;
        let mut entries: Vec<PathBuf> = fs::read_dir(&self.dir)?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?;
        entries.sort();
        for entry in entries.iter().filter(|entry| entry.is_dir()) {
            let bytes = size(entry)?;
            all += bytes;
            if !entry.ends_with("scratch") {
                println!("{:>6} MB  {}", megabytes(bytes), name(entry));
            }
        }
        fs::remove_dir_all(&self.dir)
            .with_context(|| format!("cannot remove {}", self.dir.display()))?;
        drop(alone);
        println!("removed {}: {} MB", self.dir.display(), megabytes(all));
        Ok(())
    }
}

/// Each pin with its length, so that no two lists of pins give the same bytes.
fn digest(pins: &[impl AsRef<str>]) -> String {
    let mut hasher = Sha256::new();
    // A folder of users may be shared by machines of different kinds.
    for pin in iter::once(env::consts::ARCH).chain(pins.iter().map(AsRef::as_ref)) {
        hasher.update(pin.len().to_le_bytes());
        hasher.update(pin);
    }
    let bytes = hasher.finalize();
    let shown = bytes.iter().take(DIGEST_BYTES);
    shown.map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of all files below.
fn size(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let entry = entry?;
            // Of a link itself, never of its target.
            let metadata = entry.metadata()?;
            match metadata.is_dir() {
                true => folders.push(entry.path()),
                false => bytes += metadata.len(),
            }
        }
    }
    Ok(bytes)
}

fn megabytes(bytes: u64) -> u64 {
    bytes.div_ceil(1_000_000)
}

fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of this test, gone at its end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(test: &str) -> Self {
            let name = format!("tidegate-cache-{test}-{}", std::process::id());
            Self(env::temp_dir().join(name))
        }

        fn cache(&self) -> Cache {
            Cache {
                dir: self.0.clone(),
            }
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_change_of_any_pin_changes_the_folder() {
        let cache = Folder::new("pins").cache();
        let entry = |pins: &[&str]| cache.entry("envoy", pins);
        assert_eq!(entry(&["1.40.0", "a"]), entry(&["1.40.0", "a"]));
        assert_ne!(entry(&["1.40.0", "a"]), entry(&["1.40.1", "a"]));
        assert_ne!(entry(&["1.40.0", "a"]), entry(&["1.40.0a", ""]));
        assert_ne!(cache.entry("etcd", &["a"]), entry(&["a"]));
    }

    #[test]
    fn clean_removes_the_folder_and_a_later_setup_makes_it_again() {
        let folder = Folder::new("clean");
        let cache = folder.cache();
        let entry = || cache.entry("tool", &["1.0"]);
        for _ in 0..2 {
            let alone = cache.lock().unwrap();
            let fresh = alone.scratch().dir("tool").unwrap();
            fs::write(fresh.join("program"), "x").unwrap();
            fs::rename(&fresh, entry()).unwrap();
            assert_eq!(size(&entry()).unwrap(), 1);
            drop(alone);
            assert!(!folder.0.join("scratch").exists());
            cache.clean().unwrap();
            assert!(!folder.0.exists());
        }
        cache.clean().unwrap();
    }

    #[test]
    fn a_folder_with_other_files_is_neither_used_nor_removed() {
        let folder = Folder::new("others");
        fs::create_dir_all(&folder.0).unwrap();
        fs::write(folder.0.join("thesis.tex"), "x").unwrap();
        let cache = folder.cache();
        let refused = cache.lock().err().expect("a refusal").to_string();
        assert!(refused.contains(VARIABLE), "{refused}");
        assert!(cache.clean().is_err());
        assert!(folder.0.join("thesis.tex").exists());
    }

    #[test]
    fn one_process_at_a_time_changes_the_folder() {
        let folder = Folder::new("lock");
        let alone = folder.cache().lock().unwrap();
        let lock = File::open(folder.0.join("lock")).unwrap();
        assert!(lock.try_lock().is_err());
        drop(alone);
        assert!(lock.try_lock().is_ok());
    }
}
