//! The real Envoy accepts every shipped bootstrap.

use std::net::SocketAddr;

use e2e::bootstrap::Bootstrap;
use e2e::{envoy, paths};

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

#[tokio::test]
async fn envoy_takes_the_bootstraps_of_the_mesh() {
    let directory = tempfile::tempdir().unwrap();
    for role in ["gateway", "sidecar"] {
        let bootstrap = Bootstrap::read(&format!("{role}.yaml"))
            .and_then(|bootstrap| bootstrap.node("one", "shanghai", "shanghai-a"))
            .and_then(|bootstrap| bootstrap.cluster_at("tidegate", loopback(18_000)))
            .unwrap();
        let certificates = directory.path().join("certificates");
        std::fs::create_dir_all(&certificates).unwrap();
        for name in ["tls.crt", "tls.key", "ca.crt"] {
            // Envoy does not read them before they are needed.
            std::fs::write(certificates.join(name), "").unwrap();
        }
        let encrypted = bootstrap.clone().tls(directory.path(), &certificates);
        for bootstrap in [
            bootstrap.clone(),
            bootstrap.state_of_the_world().unwrap(),
            encrypted.unwrap(),
        ] {
            envoy::validate(directory.path(), role, &bootstrap)
                .await
                .unwrap();
        }
    }
}

#[tokio::test]
async fn envoy_takes_the_bootstrap_of_the_edge() {
    let directory = tempfile::tempdir().unwrap();
    let bootstrap = Bootstrap::read("edge.yaml")
        .and_then(|bootstrap| bootstrap.edge(loopback(0), &paths::filter()?))
        .and_then(|bootstrap| bootstrap.cluster_at("origin", loopback(8080)))
        .unwrap();
    envoy::validate(directory.path(), "edge", &bootstrap)
        .await
        .unwrap();
}
