//! A process that stands in for the proxy's.

use std::{collections::BTreeMap, num::NonZeroU32};

use policy::fence::TermsId;
use prost::Message;
use protos::{fence::HolderSays, guest::GuestSays, wire};

use super::{
    control_stream::StreamHost,
    ending::Ending,
    process::{Process, Reading, Version},
};
use crate::{
    applied::ReportHost, apply::HostFailed, guest::follower::GuestHost, metrics::Metric,
    stream::Token,
};

/// Clock, shared data, and the way to a control plane.
#[derive(Default)]
pub(crate) struct Fake {
    pub(crate) at: Reading,
    values: BTreeMap<String, (Vec<u8>, u32)>,
    versions: u32,
    drawn: u128,
    /// So many swaps come too late.
    pub(crate) lost_swaps: usize,
    /// Every call fails.
    pub(crate) fails: bool,
    /// No stream can be opened.
    pub(crate) away: bool,
    streams: u32,
    /// The texts of the node, by their paths with slashes.
    pub(crate) node_texts: BTreeMap<String, String>,
    /// The bytes of a request that have come.
    pub(crate) came: u64,
    /// The notes of a request that is over.
    pub(crate) ending: Ending,
    /// The effects, as lines.
    pub(crate) effects: Vec<String>,
}

impl Fake {
    pub(crate) fn pass(&mut self, us: u64) {
        self.at.monotonic_us += us;
        self.at.wall_us += us;
    }

    pub(crate) fn put(&mut self, key: &str, value: &[u8]) {
        self.versions += 1;
        self.values
            .insert(key.into(), (value.to_vec(), self.versions));
    }

    pub(crate) fn value(&self, key: &str) -> &[u8] {
        &self.values[key].0
    }

    /// The value whose key ends like this, with its key.
    pub(crate) fn value_ending(&self, end: &str) -> (String, Vec<u8>) {
        let mut values = self.values.iter();
        let found = values.find(|(key, _)| key.ends_with(end));
        let (key, (value, _)) = found.unwrap();
        (key.clone(), value.clone())
    }

    /// The effects since the last call.
    pub(crate) fn done(&mut self) -> Vec<String> {
        std::mem::take(&mut self.effects)
    }
}

impl Process for Fake {
    fn now(&mut self) -> Option<Reading> {
        (!self.fails).then_some(self.at)
    }

    fn random(&mut self) -> Option<u128> {
        self.drawn += 1;
        (!self.fails).then_some(self.drawn)
    }

    fn get(&mut self, key: &str) -> Result<Option<(Vec<u8>, Version)>, HostFailed> {
        if self.fails {
            return Err(HostFailed);
        }
        let value = self.values.get(key).cloned();
        Ok(value.map(|(value, version)| (value, NonZeroU32::new(version).unwrap())))
    }

    fn swap(&mut self, key: &str, seen: Option<Version>, value: &[u8]) -> Result<bool, HostFailed> {
        if self.fails {
            return Err(HostFailed);
        }
        if self.lost_swaps > 0 {
            self.lost_swaps -= 1;
            return Ok(false);
        }
        let version = self.values.get(key).map(|(_, version)| *version);
        if version != seen.map(Version::get) {
            return Ok(false);
        }
        self.put(key, value);
        Ok(true)
    }

    fn count(&mut self, counter: Metric, by: u32) {
        self.effects.push(format!("count {} {by}", counter.name()));
    }

    fn record(&mut self, gauge: Metric, value: u64) {
        self.effects
            .push(format!("record {} {value}", gauge.name()));
    }
}

impl StreamHost for Fake {
    fn open(&mut self, cluster: &str) -> Result<Token, HostFailed> {
        self.effects.push(format!("open {cluster}"));
        if self.away {
            return Err(HostFailed);
        }
        self.streams += 1;
        Ok(Token(self.streams))
    }

    fn send(&mut self, token: Token, says: &HolderSays) -> Result<(), HostFailed> {
        let says = match says {
            HolderSays::Hello {
                holder,
                zone,
                node,
                role,
            } => format!("hello {} {zone} {node} {role}", holder.0),
            HolderSays::Ask { nonce, terms: None } => format!("ask {nonce}"),
            HolderSays::Ask {
                nonce,
                terms: Some(TermsId(terms)),
            } => format!("ask {nonce} by {terms}"),
            HolderSays::Drained { cell, fence } => {
                format!("drained {cell} {}/{}", fence.epoch, fence.revision.0)
            }
        };
        self.effects.push(format!("{}: {says}", token.0));
        Ok(())
    }

    fn cancel(&mut self, token: Token) {
        self.effects.push(format!("{}: cancel", token.0));
    }

    fn node(&mut self) -> String {
        "node".into()
    }

    fn role(&mut self) -> String {
        "gateway".into()
    }

    fn note(&mut self, line: &str) {
        self.effects.push(format!("note {line}"));
    }
}

impl GuestHost for Fake {
    fn follow(&mut self, cluster: &str) -> Result<Token, HostFailed> {
        self.effects.push(format!("follow {cluster}"));
        if self.away {
            return Err(HostFailed);
        }
        self.streams += 1;
        Ok(Token(self.streams))
    }

    fn tell(&mut self, token: Token, says: &GuestSays) -> Result<(), HostFailed> {
        let says = match says {
            GuestSays::Hello(hello) => {
                let (zone, mode, held) = (&hello.zone, hello.mode, hello.held.len());
                let problems = hello.problems.join("; ");
                let problems = match problems.is_empty() {
                    true => problems,
                    false => format!(", {problems}"),
                };
                format!("guest of {zone} {mode:?}, {held} held{problems}")
            }
            GuestSays::Poll => "poll".to_owned(),
        };
        self.effects.push(format!("{}: {says}", token.0));
        Ok(())
    }

    fn node_text(&mut self, path: &[&str]) -> Option<String> {
        self.node_texts.get(&path.join("/")).cloned()
    }
}

impl ReportHost for Fake {
    fn report(&mut self, cluster: &str, report: &[u8]) -> Result<(), HostFailed> {
        if self.away {
            return Err(HostFailed);
        }
        let report = wire::AppliedReport::decode(report).unwrap();
        let applied = (report.applied.iter())
            .map(|edition| {
                format!(
                    "{}/{} x{}",
                    edition.version, edition.generation, edition.threads
                )
            })
            .collect::<Vec<_>>();
        let refused = report.refused.map_or(String::new(), |refused| {
            let (version, generation) = (refused.version, refused.generation);
            format!(", refused {version}/{generation} {}", refused.message)
        });
        let applied = applied.join(", ");
        self.effects
            .push(format!("{cluster}: {} {applied}{refused}", report.node));
        Ok(())
    }

    fn name(&mut self) -> String {
        "node".into()
    }
}
