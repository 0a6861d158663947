//! Real gRPC through the filter.

use anyhow::{Context, Result, ensure};
use e2e::mesh::Mesh;
use e2e::orders::orders_client::OrdersClient;
use e2e::orders::{GetOrderRequest, PutOrderRequest};
use e2e::wait::{PATIENCE, eventually};
use tonic::metadata::AsciiMetadataKey;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::shared::mesh;
use crate::support::{Registered, on, run};

/// A client of a zone's gateway with the authority `host`.
async fn client(mesh: &Mesh, zone: &str, host: &str) -> Result<OrdersClient<Channel>> {
    let endpoint = Endpoint::from_shared(format!("http://{}", mesh.address(zone)?))?;
    let endpoint = endpoint.origin(format!("http://{host}").parse()?);
    Ok(OrdersClient::new(endpoint.connect().await?))
}

fn get() -> Request<GetOrderRequest> {
    Request::new(GetOrderRequest { id: "7".to_owned() })
}

fn put() -> Request<PutOrderRequest> {
    Request::new(PutOrderRequest {
        id: "7".to_owned(),
        item: "tide table".to_owned(),
    })
}

fn with<T>(mut request: Request<T>, name: &'static str, value: &'static str) -> Request<T> {
    let name = AsciiMetadataKey::from_static(name);
    request.metadata_mut().append(name, value.parse().unwrap());
    request
}

fn home<T>(request: Request<T>, zone: &'static str) -> Request<T> {
    with(request, "x-region-id", zone)
}

#[test]
fn calls_are_routed_and_classed_by_method() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        let mut client = client(mesh, "shanghai-a", "any.example").await?;
        let read = client
            .get_order(home(get(), "beijing-c"))
            .await?
            .into_inner();
        assert_eq!((&*read.id, &*read.zone), ("7", "beijing-c"));
        assert_eq!(read.headers["x-tidegate-class"], "read");
        let write = client
            .put_order(home(put(), "shanghai-b"))
            .await?
            .into_inner();
        assert_eq!(write.zone, "shanghai-b");
        assert_eq!(write.headers["x-tidegate-class"], "write");
        let local = client.put_order(put()).await?.into_inner();
        assert_eq!(local.zone, "shanghai-a");
        Ok(())
    }
    run(async { on(mesh().await?, scenario).await });
}

#[track_caller]
fn assert_refused<T>(outcome: Result<T, Status>, code: Code, detail: &str) {
    let Err(status) = outcome else {
        panic!("the call got through");
    };
    assert_eq!(status.code(), code, "{status}");
    assert!(status.message().contains(detail), "{status}");
}

#[test]
fn a_refusal_is_a_grpc_status() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        let mut client = client(mesh, "shanghai-a", "strict.example").await?;
        let reply = client.get_order(home(get(), "beijing-c")).await?;
        assert_eq!(reply.into_inner().zone, "beijing-c");
        let missing = client.get_order(get()).await;
        assert_refused(missing, Code::InvalidArgument, "demands X-Region-ID");
        let unknown = client.put_order(home(put(), "atlantis")).await;
        assert_refused(unknown, Code::InvalidArgument, "no known zone or region");
        Ok(())
    }
    run(async { on(mesh().await?, scenario).await });
}

#[test]
fn calls_that_write_never_leave_the_region() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        let etcd = mesh.etcd.as_ref().context("etcd")?;
        let far = Registered::start(etcd, "rpc-far", "beijing-c", "rpc-far-1").await?;
        let mut client = client(mesh, "shanghai-a", "far.example").await?;
        eventually(PATIENCE, "a remote read", async || {
            let reply = client.get_order(get()).await?.into_inner();
            ensure!(reply.zone == "beijing-c");
            ensure!(reply.headers["x-tidegate-tier"] == "remote");
            Ok(())
        })
        .await?;
        let served = far.server.served();
        for write in [
            put(),
            with(put(), "x-tidegate-class", "read"),
            with(put(), "x-tidegate-to", "rpc-far/beijing-c"),
        ] {
            let refused = client.put_order(write).await;
            assert_refused(refused, Code::Unavailable, "healthy instance");
        }
        assert_eq!(far.server.served(), served);
        Ok(())
    }
    run(async { on(mesh().await?, scenario).await });
}
