//! The proxy as the host of its workers: clocks, shared data and streams.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use filter_core::{
    apply::HostFailed,
    fence::{
        control_stream::StreamHost,
        process::{Process, Reading, Version},
    },
    metrics::Metric,
    stream::Token,
};
use protos::fence::HolderSays;
use tokio::sync::mpsc;
use xds_server::authority::Clock;

use super::{Heard, Site, connection::Wire};
use crate::rng::Rng;

/// The proxy's host interface for its workers.
pub(super) struct Host {
    pub(super) site: Site,
    pub(super) rng: Rng,
    pub(super) shared: BTreeMap<String, (u32, Vec<u8>)>,
    pub(super) wall_lead_us: u64,
    pub(super) streams: BTreeMap<u32, StreamOf>,
    pub(super) tokens: u32,
    pub(super) heard: mpsc::UnboundedSender<Heard>,
    /// The worker that runs.
    pub(super) worker: usize,
}

/// The proxy's side of a stream; the stream ends with this value.
pub(super) struct StreamOf {
    pub(super) worker: usize,
    says: mpsc::UnboundedSender<HolderSays>,
}

impl Process for Host {
    fn now(&mut self) -> Option<Reading> {
        let monotonic_us = self.site.clock.now_us();
        let wall_us = 1_700_000_000_000_000 + monotonic_us + self.wall_lead_us;
        Some(Reading {
            monotonic_us,
            wall_us,
        })
    }

    fn random(&mut self) -> Option<u128> {
        Some((u128::from(self.rng.next()) << 64) | u128::from(self.rng.next()))
    }

    fn get(&mut self, key: &str) -> Result<Option<(Vec<u8>, Version)>, HostFailed> {
        let found = self.shared.get(key);
        Ok(found.map(|(version, value)| (value.clone(), Version::new(*version).unwrap())))
    }

    fn swap(&mut self, key: &str, seen: Option<Version>, value: &[u8]) -> Result<bool, HostFailed> {
        let present = self.shared.get(key).map(|(version, _)| *version);
        if present != seen.map(Version::get) {
            return Ok(false);
        }
        let next = present.unwrap_or(0) + 1;
        self.shared.insert(key.to_owned(), (next, value.to_vec()));
        Ok(true)
    }

    fn count(&mut self, _: Metric, _: u32) {}

    fn record(&mut self, _: Metric, _: u64) {}
}

impl StreamHost for Host {
    fn open(&mut self, _: &str) -> Result<Token, HostFailed> {
        self.tokens += 1;
        let token = Token(self.tokens);
        let (says, said) = mpsc::unbounded_channel();
        let worker = self.worker;
        self.streams.insert(token.0, StreamOf { worker, says });
        let roster = self.site.roster.lock().unwrap().clone();
        let replica = match roster.is_empty() {
            true => None,
            false => Some(roster[self.rng.below(roster.len() as u64) as usize].clone()),
        };
        let wire = Wire {
            worker,
            token,
            cut: self.site.cut.clone(),
            rng: Arc::new(Mutex::new(self.rng.fork())),
            heard: self.heard.clone(),
        };
        tokio::task::spawn_local(wire.run(replica, said));
        Ok(token)
    }

    fn send(&mut self, token: Token, says: &HolderSays) -> Result<(), HostFailed> {
        let stream = self.streams.get(&token.0).ok_or(HostFailed)?;
        stream.says.send(says.clone()).map_err(|_| HostFailed)
    }

    fn cancel(&mut self, token: Token) {
        self.streams.remove(&token.0);
    }

    fn node(&mut self) -> String {
        self.site.zone.to_owned()
    }

    fn role(&mut self) -> String {
        "gateway".to_owned()
    }

    fn note(&mut self, _: &str) {}
}
