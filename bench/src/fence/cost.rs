//! The cost of the fence for a write: processor time of Envoy's only worker, as a ratio to a write
//! of an unfenced service, with the same filter in the same Envoy. The two take turns; a ratio
//! compares measurements of one round.

use anyhow::{Context, Result};
use e2e::client::Request;
use e2e::config::ZONES;
use e2e::envoy::Options;
use e2e::figures::{Figure, median, spread};
use e2e::mesh::Builder;
use e2e::workdir::Workdir;
use serde_json::json;

use crate::filter::Amount;
use crate::filter::load::{Load, Worker};

const OWNER: &str = "shanghai-a";

pub(super) async fn measure(amount: Amount) -> Result<Vec<Figure>> {
    let Amount { rounds, requests } = amount;
    println!("\nfence: one gateway with a fenced service and one that is not, {rounds} rounds");
    // Long: with all processors busy the control plane may be late, and no write may be rejected.
    // But the first owner waits for the length of a session before it writes.
    let authority = json!({
        "zones": ZONES.map(|(zone, _)| zone),
        "session_ttl_ms": 12_000,
        "grant_ttl_ms": 6_000,
        "write_drain_ms": 1_000,
        "cells": [{ "name": "main", "owners": [OWNER], "standby": [] }],
    });
    let mesh = Builder::new(Workdir::temporary()?)
        .service(json!({ "name": "fenced", "routes": [{ "prefix": "/fenced" }] }))
        .service(json!({ "name": "free", "routes": [{ "prefix": "/free" }], "fenced": false }))
        .authority(authority)
        .bare()
        .upstreams("fenced", 1)
        .upstreams("free", 1)
        .envoy(Options::gateway("shanghai", OWNER))
        .start()
        .await?;
    let paths = ["/fenced", "/free"];
    for path in paths {
        mesh.eventually(OWNER, "writes", Request::post(path), |reply| {
            reply.echo().map(drop)
        })
        .await
        .with_context(|| mesh.logs())?;
    }
    let at = mesh.address(OWNER)?;
    let worker = Worker::of(mesh.gateway(OWNER)?.process().pid())?;
    let (mut costs, mut ratios) = ([vec![], vec![]], vec![]);
    // The first round is a warm-up.
    for round in 0..=rounds {
        let mut of_round = [0.0; 2];
        for turn in 0..2 {
            let which = (round as usize + turn) % 2;
            let load = Load {
                path: paths[which],
                region: None,
                post: true,
            };
            let cost = worker.serve(at, &load, requests).await;
            of_round[which] = cost.with_context(|| paths[which])?.cpu_us;
        }
        if round > 0 {
            costs[0].push(of_round[0]);
            costs[1].push(of_round[1]);
            ratios.push(of_round[0] / of_round[1]);
        }
    }
    println!(
        "fence: {:.2} us of a worker for a fenced write, {:.2} us for another; ratio {}",
        median(&costs[0]),
        median(&costs[1]),
        spread(&ratios, 3)
    );
    Ok(vec![Figure::quantile(
        "fence_cpu_ratio",
        "ratio",
        &ratios,
        0.5,
    )])
}
