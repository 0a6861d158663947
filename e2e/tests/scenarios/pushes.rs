//! Whole services are pushed and withdrawn under load.

use anyhow::{Context, ensure};
use e2e::client::Request;
use e2e::envoy::Protocol;
use e2e::load::Load;
use e2e::mesh::{Builder, Store};
use e2e::workdir::Workdir;
use serde_json::json;

use crate::control_plane::gateway;
use crate::shared::plain;
use crate::support::{Registered, run};

const SERVICES: usize = 8;
const GATEWAYS: [(&str, Protocol); 2] = [
    ("shanghai-a", Protocol::Delta),
    ("shanghai-b", Protocol::Sotw),
];

#[test]
fn a_new_service_costs_no_request_and_neither_does_one_that_goes() {
    run(async {
        let everything = json!({ "name": "site", "routes": [{ "prefix": "/" }] });
        let mut builder = Builder::new(Workdir::kept("pushes")?)
            .store(Store::Etcd(1))
            .service(everything)
            .upstreams("site", 1);
        for (zone, protocol) in GATEWAYS {
            builder = builder.envoy(gateway(zone, protocol));
        }
        let mut mesh = builder.start().await?;
        let names: Vec<String> = (0..SERVICES).map(|i| format!("new-{i}")).collect();
        let mut servers = vec![];
        let mut requests = vec![];
        for name in &names {
            // Registered before the service is configured: its cluster, endpoints and routes all
            // arrive at once. Written to the store directly, since the control plane rejects an
            // instance of an unknown service.
            let etcd = mesh.etcd.as_ref().context("etcd")?;
            servers.push(Registered::start(etcd, name, "shanghai-a", name).await?);
            for (zone, _) in GATEWAYS {
                let address = mesh.address(zone)?;
                let path = format!("/{name}");
                requests.push((address, Request::get(&path).home("shanghai-a")));
                requests.push((address, Request::post(&path).home("shanghai-a")));
            }
        }
        let answers = async |mesh: &e2e::mesh::Mesh, path: &str, service: &str| {
            for (zone, _) in GATEWAYS {
                let what = format!("{service} to answer {path} by {zone}");
                let request = Request::get(path).home("shanghai-a");
                mesh.eventually(zone, &what, request, |reply| {
                    let seen = reply.echo()?.service;
                    ensure!(seen == service, "{seen} answered");
                    Ok(())
                })
                .await?;
            }
            Ok::<(), anyhow::Error>(())
        };
        answers(&mesh, "/new-0", "site").await?;

        let mut load = Load::steady(requests).start();
        for name in &names {
            mesh.control_plane
                .configure(|config| config.services.push(plain(name)))?;
            answers(&mesh, &format!("/{name}"), name).await?;
            load.next(50).await?;
        }
        for name in &names {
            mesh.control_plane
                .configure(|config| config.services.retain(|service| service["name"] != **name))?;
            answers(&mesh, &format!("/{name}"), "site").await?;
            load.next(50).await?;
        }
        load.stop().await.check_no_failure()
    });
}
