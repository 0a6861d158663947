//! The mark beside the embedded store's file: its last known revision, to detect an older copy that
//! was put back.
//!
//! Each life of the store has a number, its *generation*, in the file and in the mark. The mark
//! follows the revision, with a lag of at most a second. A file is an old copy if its generation
//! differs from the mark's, its revision is below the mark's, or its mark is missing. An old copy
//! gets another cluster id, like a restored etcd: everything known of the store becomes invalid,
//! and no zone writes under its authority records before an operator recovers the cells. An older
//! copy of both files cannot be detected.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// The content of the mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) generation: u64,
    pub(super) revision: i64,
    /// The file has that generation. Otherwise a start was interrupted, and the file may have the
    /// previous one.
    pub(super) settled: bool,
}

const MAGIC: &str = "tidegate-mark";

/// The mark of a store's file.
pub(super) fn path_of(store: &Path) -> PathBuf {
    let mut name = store.as_os_str().to_owned();
    name.push(".mark");
    PathBuf::from(name)
}

impl Mark {
    /// Whether the mark belongs to a file of this generation and revision.
    pub(super) fn is_of(&self, generation: u64, revision: i64) -> bool {
        let before = !self.settled && generation.checked_add(1) == Some(self.generation);
        (generation == self.generation || before) && revision >= self.revision
    }

    fn encode(&self) -> String {
        let Mark {
            generation,
            revision,
            settled,
        } = self;
        format!(
            "{MAGIC} v1 {generation} {revision} {}\n",
            u8::from(*settled)
        )
    }

    fn decode(text: &str) -> Option<Mark> {
        let mut words = text.strip_suffix('\n')?.split(' ');
        if (words.next(), words.next()) != (Some(MAGIC), Some("v1")) {
            return None;
        }
        let mark = Mark {
            generation: words.next()?.parse().ok()?,
            revision: words.next()?.parse().ok()?,
            settled: words.next()? == "1",
        };
        words.next().is_none().then_some(mark)
    }

    /// Reads it; none if it is missing or unreadable.
    pub(super) fn read(path: &Path) -> io::Result<Option<Mark>> {
        match fs::read_to_string(path) {
            Ok(text) => Ok(Mark::decode(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Replaces it, durably.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(".new");
        let fresh = PathBuf::from(fresh);
        let mut file = File::create(&fresh)?;
        file.write_all(self.encode().as_bytes())?;
        file.sync_all()?;
        drop(file);
        fs::rename(&fresh, path)?;
        let directory = path.parent().filter(|d| !d.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_comes_back_as_it_went_and_knows_its_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("store.mark");
        assert_eq!(Mark::read(&path).expect("none"), None);
        let mark = Mark {
            generation: 3,
            revision: 40,
            settled: true,
        };
        mark.write(&path).expect("a write");
        assert_eq!(Mark::read(&path).expect("a mark"), Some(mark));
        for (generation, revision, is) in [
            (3, 40, true),
            (3, 41, true),
            (3, 39, false),
            (2, 50, false),
            (4, 50, false),
        ] {
            assert_eq!(
                mark.is_of(generation, revision),
                is,
                "{generation} {revision}"
            );
        }
        let begun = Mark {
            settled: false,
            ..mark
        };
        assert!(begun.is_of(2, 40) && begun.is_of(3, 40) && !begun.is_of(2, 39));
        for bad in [
            "",
            "tidegate-mark v1 3 40 1",
            "tidegate-mark v2 3 40 1\n",
            "x\n",
        ] {
            fs::write(&path, bad).expect("a write");
            assert_eq!(Mark::read(&path).expect("no mark"), None, "{bad:?}");
        }
    }
}
