//! Pairing the lines of upstreams into writes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::Write;
use crate::write_log::{Event, Line};

/// Takes lines in any amount; those of one instance in their order.
#[derive(Default)]
pub struct Collector {
    writes: Vec<Write>,
    /// Where writes are that have not ended: by instance and serial.
    open: HashMap<(Arc<str>, u64), usize>,
    /// One of each name, however often it stands in lines.
    names: HashSet<Arc<str>>,
}

impl Collector {
    pub fn add(&mut self, lines: Vec<Line>) {
        for line in lines {
            let instance = self.name(&line.instance);
            let key = (instance.clone(), line.serial);
            match line.event {
                Event::Begin => {
                    self.open.insert(key, self.writes.len());
                    let write = Write {
                        zone: self.name(&line.zone),
                        instance,
                        cell: line.cell.map(|cell| self.name(&cell)),
                        epoch: line.epoch,
                        id: line.id.map(Arc::from),
                        sent_us: line.sent_us,
                        begin_us: line.monotonic_us,
                        end_us: None,
                    };
                    self.writes.push(write);
                }
                Event::End => {
                    let at = self.open.remove(&key);
                    if let Some(write) = at.and_then(|at| self.writes.get_mut(at)) {
                        write.end_us = Some(line.monotonic_us);
                    }
                }
            }
        }
    }

    /// All writes so far, in the order in which their lines were read.
    pub fn writes(&self) -> &[Write] {
        &self.writes
    }

    /// How many have not ended.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    fn name(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.names.get(name) {
            return known.clone();
        }
        let name: Arc<str> = name.into();
        self.names.insert(name.clone());
        name
    }
}
