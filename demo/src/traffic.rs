//! The demo's traffic: the requests, their targets, and their outcome.

use std::time::Duration;

use anyhow::Result;
use e2e::client::Request;
use e2e::config::{EXPLAIN, ZONES, region_of};
use e2e::load::{Load, RunningLoad, Tally};
use e2e::mesh::Mesh;

/// The homes that requests name; `None`: no home.
const HOMES: [Option<&str>; 3] = [None, Some("shanghai-a"), Some("beijing-c")];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Read,
    Write,
}

/// One kind of request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub(crate) gateway: &'static str,
    /// `X-Region-ID`.
    pub(crate) header: Option<&'static str>,
    pub(crate) class: Class,
}

/// The outcome of one kind.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) kind: Kind,
    pub(crate) tally: Tally,
}

impl Kind {
    pub(crate) fn all() -> impl Iterator<Item = Kind> {
        ZONES.into_iter().flat_map(|(gateway, _)| {
            HOMES.into_iter().flat_map(move |header| {
                [Class::Read, Class::Write].map(|class| Kind {
                    gateway,
                    header,
                    class,
                })
            })
        })
    }

    /// Without a header the gateway's own zone is the home.
    pub(crate) fn home(self) -> &'static str {
        self.header.unwrap_or(self.gateway)
    }

    fn request(self) -> Request {
        let (header, token) = EXPLAIN;
        let request = match self.class {
            Class::Read => Request::get("/orders/7"),
            Class::Write => Request::post("/orders"),
        }
        .header(header, token);
        match self.header {
            Some(home) => request.home(home),
            None => request,
        }
    }
}

impl Row {
    /// Requests answered by a zone outside of the home's region.
    pub(crate) fn remote(&self) -> u64 {
        let region = region_of(self.kind.home());
        let zones = self.tally.zones.iter();
        let remote = zones.filter(|(zone, _)| region_of(zone) != region);
        remote.map(|(_, count)| count).sum()
    }
}

/// Continuous traffic.
pub(crate) struct Traffic(RunningLoad);

impl Traffic {
    pub(crate) fn start(mesh: &Mesh) -> Result<Traffic> {
        let requests = Kind::all()
            .map(|kind| Ok((mesh.address(kind.gateway)?, kind.request())))
            .collect::<Result<_>>()?;
        let load = Load {
            concurrency: 6,
            pace: Duration::from_millis(5),
            ..Load::steady(requests)
        };
        Ok(Traffic(load.start()))
    }

    /// The outcome of each kind since the last call.
    pub(crate) fn take(&mut self) -> Vec<Row> {
        Kind::all()
            .zip(self.0.take())
            .map(|(kind, tally)| Row { kind, tally })
            .collect()
    }

    /// Lets the last requests end.
    pub(crate) async fn stop(self) {
        self.0.stop().await;
    }
}

/// Adds newer rows to older ones.
pub(crate) fn add(rows: &mut [Row], newer: &[Row]) {
    for (row, newer) in rows.iter_mut().zip(newer) {
        row.tally.add(&newer.tally);
    }
}
