//! An upstream's log of every write that reaches it: when it began and ended, and with which
//! permission. [`history`](crate::history) checks the lines of all zones together.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use hyper::HeaderMap;
use serde::{Deserialize, Serialize};

use crate::clock::monotonic_us;
use crate::registry::InstanceName;

/// The header with a write's name, chosen by the client.
pub const ID: &str = "x-write-id";
/// When the client sent it, by [`monotonic_us`].
pub const SENT: &str = "x-write-sent-us";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Event {
    Begin,
    End,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    pub monotonic_us: u64,
    pub zone: String,
    pub instance: String,
    /// The same at the begin and the end of one write, and unique within this instance.
    pub serial: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cell: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_us: Option<u64>,
    pub event: Event,
}

/// A file that lines are appended to.
pub struct WriteLog {
    file: File,
    serial: AtomicU64,
}

impl WriteLog {
    pub fn open(path: &Path) -> Result<WriteLog> {
        let file = File::options().create(true).append(true).open(path);
        Ok(WriteLog {
            file: file.with_context(|| path.display().to_string())?,
            // Higher than the numbers of an earlier process here.
            serial: AtomicU64::new(monotonic_us()),
        })
    }

    /// Records that a write begins now. It ends when the returned value is dropped, on any path.
    pub(crate) fn begin<'l>(&'l self, name: &InstanceName, headers: &HeaderMap) -> Open<'l> {
        let text = |name: &str| headers.get(name)?.to_str().ok();
        let line = Line {
            monotonic_us: monotonic_us(),
            zone: name.zone.clone(),
            instance: name.instance.clone(),
            serial: self.serial.fetch_add(1, Ordering::Relaxed),
            cell: text("x-tidegate-cell").map(str::to_owned),
            epoch: text("x-tidegate-epoch").and_then(|epoch| epoch.parse().ok()),
            id: text(ID).map(str::to_owned),
            sent_us: text(SENT).and_then(|time| time.parse().ok()),
            event: Event::Begin,
        };
        self.append(&line);
        Open { log: self, line }
    }

    fn append(&self, line: &Line) {
        let written = serde_json::to_vec(line).map_err(anyhow::Error::from);
        let written = written.and_then(|mut bytes| {
            bytes.push(b'\n');
            // In one write: appended lines of several threads do not mix.
            (&self.file).write_all(&bytes)?;
            Ok(())
        });
        if let Err(error) = written {
            eprintln!("a write is not in the log: {error:#}");
        }
    }
}

/// A write that has not ended.
pub(crate) struct Open<'l> {
    log: &'l WriteLog,
    line: Line,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.line.monotonic_us = monotonic_us();
        self.line.event = Event::End;
        self.log.append(&self.line);
    }
}

/// Reads a growing log incrementally.
pub struct Reader {
    path: PathBuf,
    at: u64,
}

impl Reader {
    pub fn new(path: PathBuf) -> Reader {
        Reader { path, at: 0 }
    }

    /// The lines since the last call; none while there is no file.
    pub fn more(&mut self) -> Result<Vec<Line>> {
        let Ok(mut file) = File::open(&self.path) else {
            return Ok(vec![]);
        };
        file.seek(SeekFrom::Start(self.at))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        // The last line may be incomplete.
        let complete = text.rfind('\n').map_or(0, |end| end + 1);
        self.at += complete as u64;
        let lines = text[..complete].lines();
        lines
            .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_two_lines_with_what_it_carried() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("writes");
        let mut reader = Reader::new(path.clone());
        assert!(reader.more().unwrap().is_empty());
        let log = WriteLog::open(&path).unwrap();
        let name = InstanceName::new("orders", "shanghai-a", "one");
        let mut headers = HeaderMap::new();
        headers.insert("x-tidegate-epoch", "7".parse().unwrap());
        headers.insert("x-tidegate-cell", "main".parse().unwrap());
        headers.insert(ID, "w-1".parse().unwrap());
        let first = log.begin(&name, &headers);
        let second = log.begin(&name, &HeaderMap::new());
        let begun = reader.more().unwrap();
        assert_eq!(begun[0].epoch, Some(7));
        assert_eq!(begun[0].id.as_deref(), Some("w-1"));
        assert_eq!((begun[1].epoch, begun[1].event), (None, Event::Begin));
        drop(first);
        drop(second);
        let ended = reader.more().unwrap();
        assert_eq!(ended[0].serial, begun[0].serial);
        assert_eq!(ended[1].event, Event::End);
        assert!(ended[0].monotonic_us >= begun[0].monotonic_us);
        assert!(reader.more().unwrap().is_empty());
    }
}
