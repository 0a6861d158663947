//! Combines the lines of upstreams to writes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::Write;
use crate::write_log::{Event, Line};

/// Accepts any number of lines; those of one instance in their order.
#[derive(Default)]
pub struct Collector {
    writes: Vec<Write>,
    /// Positions of writes that have not ended: by instance and serial.
    open: HashMap<(Arc<str>, u64), usize>,
    /// One copy of each name, however many lines contain it.
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

    /// The number of writes that have not ended.
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
