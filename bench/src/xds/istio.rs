//! A real istiod on a real Kubernetes API server, with the settings that it ships with: the
//! endpoints stand in ServiceEntries, and a change is a server-side apply of one.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;
use e2e::config::region_of;
use e2e::peers::istio::Istiod;
use e2e::peers::kubernetes::Kubernetes;
use e2e::peers::objects::Objects;
use e2e::process::Process;
use serde_json::{Value, json};

use super::servers::{Change, PORT, Shape, ZONE, service};

const NAMESPACE: &str = "bench";

/// The node of a sidecar. istiod reads kind, address, name and domain from it.
pub(super) const NODE: &str = "sidecar~127.255.0.1~app.bench~bench.svc.cluster.local";

/// istiod with its API server.
pub(super) struct Istio {
    istiod: Istiod,
    objects: Objects,
    _kubernetes: Kubernetes,
    shape: Shape,
    moves: u16,
}

fn host(cluster: usize) -> String {
    format!("{}.bench.example", service(cluster))
}

/// The names of the resources in istiod.
pub(super) fn names(shape: Shape) -> Vec<String> {
    let clusters = 0..shape.clusters;
    clusters
        .map(|at| format!("outbound|{PORT}||{}", host(at)))
        .collect()
}

impl Istio {
    pub(super) async fn start(directory: &Path, shape: Shape) -> Result<Istio> {
        let kubernetes = Kubernetes::start(directory, &[]).await?;
        let istiod = Istiod::start(directory, &kubernetes).await?;
        let objects = kubernetes.objects().await?;
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE },
        });
        objects.apply_one(&namespace).await?;
        let istio = Istio {
            istiod,
            objects,
            _kubernetes: kubernetes,
            shape,
            moves: 0,
        };
        for cluster in 0..shape.clusters {
            istio.objects.apply_one(&istio.entry(cluster, PORT)).await?;
        }
        Ok(istio)
    }

    pub(super) fn xds(&self) -> SocketAddr {
        self.istiod.xds()
    }

    pub(super) fn process(&self) -> &Process {
        self.istiod.process()
    }

    pub(super) async fn change(&mut self, change: Change) -> Result<()> {
        self.moves += 1;
        let port = PORT + self.moves;
        let clusters = match change {
            Change::One(cluster) => cluster..cluster + 1,
            Change::All => 0..self.shape.clusters,
        };
        for cluster in clusters {
            self.objects.apply_one(&self.entry(cluster, port)).await?;
        }
        Ok(())
    }

    /// The service, whose first endpoint has this port.
    fn entry(&self, cluster: usize, port: u16) -> Value {
        let endpoints = (0..self.shape.endpoints).map(|index| {
            let port = if index == 0 { port } else { PORT };
            json!({
                "address": format!("10.{}.{}.{}", cluster % 250, index / 250, index % 250),
                "ports": { "http": port },
                "locality": format!("{}/{ZONE}", region_of(ZONE)),
            })
        });
        json!({
            "apiVersion": "networking.istio.io/v1",
            "kind": "ServiceEntry",
            "metadata": { "name": service(cluster), "namespace": NAMESPACE },
            "spec": {
                "hosts": [host(cluster)],
                "ports": [{ "number": PORT, "name": "http", "protocol": "HTTP" }],
                "resolution": "STATIC",
                "location": "MESH_INTERNAL",
                "endpoints": endpoints.collect::<Vec<_>>(),
            },
        })
    }
}
