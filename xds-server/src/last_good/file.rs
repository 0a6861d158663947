//! The file: a header line with magic, format version, length and checksum, then JSON.
//!
//! It is replaced as a whole (a new file, synced and renamed over the old one), so a reader finds
//! the old state or the new one, even if the machine stops at any moment.

use std::{
    fs::{self, File, Permissions},
    io::{self, Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use registry::store::{ClusterId, Entry, Revision};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::LastGood;

/// The longest file that is accepted, in bytes: some hundred thousand instances.
pub const FILE_BYTES_MAX: u64 = 256 * 1024 * 1024;

const MAGIC: &str = "tidegate-state";
/// Raised when an older reader would misunderstand a file.
const VERSION: &str = "v1";
/// As of any new file; the umask takes from it.
const MODE: u32 = 0o666;
/// How many unreadable files are kept.
const ASIDE_MAX: u32 = 100;

/// Why a file is not a valid state. The text names the remedy.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("is not a file: set `state.path` to a file")]
    NoFile,
    #[error("has {0} bytes, more than {FILE_BYTES_MAX}: it is not a state file of Tidegate")]
    TooLong(u64),
    #[error("is not a state file of Tidegate: set `state.path` to another file")]
    Foreign,
    #[error(
        "has format {0:?}, and this program reads {VERSION:?}: start the version that wrote it, or remove the file"
    )]
    Version(String),
    #[error("is damaged ({0}): the disk may be failing, or another program wrote to it")]
    Damaged(&'static str),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    /// In hexadecimal: JSON readers round 64-bit numbers.
    cluster: String,
    revision: i64,
    written_at_unix_s: u64,
    entries: Vec<BodyEntry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BodyEntry {
    key: String,
    create_revision: i64,
    mod_revision: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    /// In place of `value` if that is not UTF-8: an unusable record, but it belongs to others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value_bytes: Option<Vec<u8>>,
}

/// The bytes of a file with `state`, written at `now`.
fn encode(state: &LastGood, now: SystemTime) -> io::Result<Vec<u8>> {
    let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH);
    let body = Body {
        cluster: format!("{:016x}", state.cluster.0),
        revision: state.revision.0,
        written_at_unix_s: since_epoch.unwrap_or_default().as_secs(),
        entries: state.entries.values().map(body_entry).collect(),
    };
    let json = serde_json::to_vec(&body)?;
    let mut bytes = header(&json).into_bytes();
    bytes.extend(json);
    Ok(bytes)
}

fn header(json: &[u8]) -> String {
    format!("{MAGIC} {VERSION} {} {:016x}\n", json.len(), xxh3_64(json))
}

fn body_entry(entry: &Entry) -> BodyEntry {
    let text = str::from_utf8(&entry.value).ok();
    BodyEntry {
        key: entry.key.clone(),
        create_revision: entry.create_revision.0,
        mod_revision: entry.mod_revision.0,
        value: text.map(str::to_owned),
        value_bytes: text.is_none().then(|| entry.value.to_vec()),
    }
}

fn decode(bytes: &[u8]) -> Result<LastGood, StateError> {
    if bytes.is_empty() {
        return Err(StateError::Damaged("it is empty"));
    }
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let (line, json) = match end {
        Some(end) => bytes.split_at(end + 1),
        None => (bytes, &[][..]),
    };
    let line = str::from_utf8(line).map_err(|_| StateError::Foreign)?;
    let mut words = line.split(' ');
    if words.next() != Some(MAGIC) {
        return Err(StateError::Foreign);
    }
    let version = words.next().unwrap_or_default();
    if version.trim_end() != VERSION {
        return Err(StateError::Version(version.trim_end().to_owned()));
    }
    let length = words.next().unwrap_or_default();
    if length != json.len().to_string() {
        return Err(StateError::Damaged(
            "its length differs from the length in its header",
        ));
    }
    // Compares the whole line, so that no other spelling of the same numbers is accepted.
    if line != header(json) {
        return Err(StateError::Damaged("its checksum differs"));
    }
    let body: Body = serde_json::from_slice(json)
        .map_err(|_| StateError::Damaged("its content is not of this format"))?;
    let cluster = u64::from_str_radix(&body.cluster, 16)
        .map_err(|_| StateError::Damaged("its cluster is not a number"))?;
    let entries = body.entries.into_iter().map(|entry| {
        let text = entry.value.map(Bytes::from);
        let value = text.or(entry.value_bytes.map(Bytes::from));
        let entry = Entry {
            key: entry.key,
            value: value.unwrap_or_default(),
            create_revision: Revision(entry.create_revision),
            mod_revision: Revision(entry.mod_revision),
            lease: None,
        };
        (entry.key.clone(), entry)
    });
    let written_at = Duration::from_secs(body.written_at_unix_s);
    Ok(LastGood {
        cluster: ClusterId(cluster),
        revision: Revision(body.revision),
        written_at: (SystemTime::UNIX_EPOCH.checked_add(written_at))
            .ok_or(StateError::Damaged("its time is out of range"))?,
        entries: entries.collect(),
    })
}

/// Reads the file; none if it does not exist.
pub fn read(path: &Path) -> Result<Option<LastGood>, StateError> {
    // Checked first: opening a pipe would wait for a writer.
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if !metadata.is_file() {
        return Err(StateError::NoFile);
    }
    if metadata.len() > FILE_BYTES_MAX {
        return Err(StateError::TooLong(metadata.len()));
    }
    let mut bytes = Vec::new();
    // It may have grown since.
    File::open(path)?
        .take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)?;
    decode(&bytes).map(Some)
}

/// Replaces the file. After an error the old one is unchanged.
pub fn write(path: &Path, state: &LastGood, now: SystemTime) -> io::Result<()> {
    let bytes = encode(state, now)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!(
            "{} bytes, more than the {FILE_BYTES_MAX} that a start accepts",
            bytes.len()
        )));
    }
    let fresh = with_suffix(path, "new");
    // A killed process has left it. A random name would leave one more each time.
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    // It is removed if a step fails: half a state must not fill a full disk.
    let mut file = tempfile::Builder::new()
        .permissions(Permissions::from_mode(MODE))
        .prefix(fresh.file_name().unwrap_or_default())
        .suffix("")
        .rand_bytes(0)
        .tempfile_in(directory(path))?;
    file.write_all(&bytes)?;
    // `persist` renames, and syncs nothing.
    file.as_file().sync_all()?;
    file.persist(path)?;
    // The rename is durable once the directory is synced.
    File::open(directory(path))?.sync_all()
}

/// Renames an unreadable file to `<path>.broken` (or `.broken-2`, and so on, if that exists), and
/// returns the new path.
pub fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let names = (1..=ASIDE_MAX).map(|number| match number {
        1 => with_suffix(path, "broken"),
        _ => with_suffix(path, &format!("broken-{number}")),
    });
    for aside in names {
        // A link fails if the name exists; a rename would overwrite it.
        match fs::symlink_metadata(&aside) {
            Ok(_) => continue,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        fs::rename(path, &aside)?;
        return Ok(aside);
    }
    Err(io::Error::other(format!(
        "{ASIDE_MAX} unreadable files are kept beside it: check and remove them"
    )))
}

/// The directory that the file is in.
pub(super) fn directory(path: &Path) -> &Path {
    let parent = path.parent().filter(|d| !d.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use imbl::OrdMap;
    use proptest::{collection::btree_map, prelude::*};

    use super::*;

    fn state(values: impl IntoIterator<Item = (String, Vec<u8>)>) -> LastGood {
        let entries: OrdMap<String, Entry> = (1..)
            .zip(values)
            .map(|(revision, (key, value))| {
                let entry = Entry {
                    key: key.clone(),
                    value: value.into(),
                    create_revision: Revision(1),
                    mod_revision: Revision(revision),
                    lease: None,
                };
                (key, entry)
            })
            .collect();
        LastGood {
            cluster: ClusterId(u64::MAX),
            revision: Revision(entries.len() as i64),
            written_at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
            entries,
        }
    }

    fn small() -> (LastGood, Vec<u8>) {
        let state = state([("/tidegate/v1/instances/o/a/1".into(), b"{}".into())]);
        let bytes = encode(&state, state.written_at).expect("bytes");
        (state, bytes)
    }

    proptest! {
        #[test]
        fn a_state_comes_back_as_it_went(
            values in btree_map(".{1,20}", proptest::collection::vec(any::<u8>(), 0..40), 0..20)
        ) {
            let state = state(values);
            let bytes = encode(&state, state.written_at).expect("bytes");
            prop_assert_eq!(decode(&bytes).expect("a state"), state);
        }
    }

    #[test]
    fn every_change_of_a_byte_is_found() {
        let (_, bytes) = small();
        for at in 0..bytes.len() {
            for other in 0..=u8::MAX {
                let mut broken = bytes.clone();
                broken[at] = other;
                assert_eq!(decode(&broken).is_ok(), other == bytes[at], "{at}: {other}");
            }
        }
    }

    #[test]
    fn every_truncation_and_addition_is_found() {
        let (state, bytes) = small();
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length]).is_err(), "{length} bytes");
        }
        assert_eq!(decode(&bytes).expect("a state"), state);
        assert!(decode(&[&bytes[..], b" "].concat()).is_err());
    }

    #[test]
    fn errors_say_what_is_wrong_and_what_to_do() {
        let (_, bytes) = small();
        let text = String::from_utf8(bytes).expect("text");
        for (broken, expected) in [
            (String::new(), "it is empty"),
            ("zones: []\n".to_owned(), "to another file"),
            (
                text.replace(" v1 ", " v2 "),
                "start the version that wrote it",
            ),
            (text.replace("{}", "[]"), "checksum"),
            (text[..text.len() - 1].to_owned(), "length"),
        ] {
            let error = decode(broken.as_bytes()).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn what_is_no_file_of_ours_is_not_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("state");
        assert!(read(&path).expect("none is no error").is_none());
        let huge = File::create(&path).expect("a file");
        huge.set_len(FILE_BYTES_MAX + 1).expect("a hole");
        assert!(matches!(read(&path), Err(StateError::TooLong(_))));
        assert!(matches!(read(directory.path()), Err(StateError::NoFile)));
    }

    #[test]
    fn a_write_leaves_nothing_but_the_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("state");
        let (state, _) = small();
        let names = || {
            let entries = fs::read_dir(directory.path()).expect("a directory");
            let names = entries.map(|entry| entry.expect("an entry").file_name());
            names.collect::<Vec<_>>()
        };
        // What a killed process leaves behind.
        fs::write(directory.path().join("state.new"), "half a st").expect("a file");
        write(&path, &state, state.written_at).expect("written");
        assert_eq!(names(), ["state"]);
        assert_eq!(read(&path).expect("a state"), Some(state.clone()));
        let plain = directory.path().join("plain");
        let like = File::create(&plain).and_then(|file| file.metadata());
        fs::remove_file(plain).expect("removed");
        let mode = fs::metadata(&path).expect("a file").permissions();
        assert_eq!(mode, like.expect("a file").permissions());
        // A directory cannot be replaced.
        fs::remove_file(&path).expect("removed");
        fs::create_dir(&path).expect("a directory");
        write(&path, &state, state.written_at).expect_err("not written");
        assert_eq!(names(), ["state"]);
    }

    #[test]
    fn broken_files_are_kept_beside_each_other() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("state");
        for name in ["state.broken", "state.broken-2"] {
            fs::write(&path, name).expect("a file");
            assert_eq!(
                set_aside(&path).expect("set aside"),
                directory.path().join(name)
            );
            assert!(!path.exists());
        }
        let kept = fs::read_to_string(directory.path().join("state.broken"));
        assert_eq!(kept.expect("the first one"), "state.broken");
    }
}
