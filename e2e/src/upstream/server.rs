//! HTTP/1.1, HTTP/2 without TLS, and gRPC on one port.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::body::to_bytes;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;
use tonic::metadata::MetadataMap;

use crate::client::Echo;
use crate::orders::orders_server::{Orders, OrdersServer};
use crate::orders::{GetOrderRequest, OrderReply, PutOrderRequest};
use crate::registry::InstanceName;
use crate::write_log::WriteLog;

/// The largest body that is read, and the longest time of `/slow`.
const BODY_BYTES_MAX: usize = 8 << 20;
const SLOW_MAX: Duration = Duration::from_secs(30);

/// A server that counts. Dropping it cuts its connections, like the death of a process.
pub struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

struct Shared {
    name: InstanceName,
    served: AtomicU64,
    in_flight: AtomicUsize,
    conduct: watch::Sender<Conduct>,
    writes: Option<WriteLog>,
}

/// How requests are handled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Conduct {
    #[default]
    Answers,
    /// Accepts them and does not respond, until that changes.
    Hangs,
    /// Status 500.
    Fails,
    /// Status 503.
    Unavailable,
    /// Responds, and completes a request that it has begun even if its client is gone: like a
    /// service whose database continues.
    GoesOn,
}

impl Server {
    pub async fn start(name: InstanceName, listen: SocketAddr) -> Result<Server> {
        Server::start_with(name, listen, None).await
    }

    /// As [`start`](Server::start), and logs every write. With a log it [goes on](Conduct::GoesOn).
    pub async fn start_with(
        name: InstanceName,
        listen: SocketAddr,
        writes: Option<WriteLog>,
    ) -> Result<Server> {
        let listener = TcpListener::bind(listen)
            .await
            .with_context(|| format!("cannot listen on {listen}"))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            name,
            served: AtomicU64::new(0),
            in_flight: AtomicUsize::new(0),
            // A judge of writes has to see all of each.
            conduct: watch::Sender::new(match &writes {
                Some(_) => Conduct::GoesOn,
                None => Conduct::Answers,
            }),
            writes,
        });
        let (stop, stopped) = watch::channel(false);
        let accepting = tokio::spawn(accept(listener, router(shared.clone()), stopped));
        Ok(Server {
            address,
            shared,
            stop,
            accepting,
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests answered or being answered.
    pub fn served(&self) -> u64 {
        self.shared.served.load(Ordering::Relaxed)
    }

    pub fn in_flight(&self) -> usize {
        self.shared.in_flight.load(Ordering::Relaxed)
    }

    /// Changes the handling of requests, including hung ones.
    pub fn conduct(&self, conduct: Conduct) {
        self.shared.conduct.send_replace(conduct);
    }

    /// Accepts no connections any more, and waits until the open ones have completed their
    /// requests.
    pub async fn close(mut self) {
        self.stop.send_replace(true);
        let _ = (&mut self.accepting).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The task owns all connections.
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, router: Router, stopped: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve(stream, router.clone(), stopped.clone()));
                }
                // Out of file descriptors: others must end first.
                Err(_) => sleep(Duration::from_millis(10)).await,
            },
            () = told(stopped.clone()) => break,
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Ready when the server is stopped or dropped.
async fn told(mut stopped: watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stop| *stop).await;
}

async fn serve(stream: TcpStream, router: Router, stopped: watch::Receiver<bool>) {
    let _ = stream.set_nodelay(true);
    let builder = auto::Builder::new(TokioExecutor::new());
    let connection =
        builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    // An error on a connection concerns only the peer.
    tokio::select! {
        _ = connection.as_mut() => {}
        () = told(stopped) => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

fn router(shared: Arc<Shared>) -> Router {
    let grpc = OrdersServer::new(OrdersService(shared.clone()));
    Router::new()
        .route_service("/shop.v1.Orders/{*method}", grpc)
        .fallback(echo)
        .with_state(shared.clone())
        .layer(middleware::from_fn_with_state(shared, count))
}

async fn count(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    /// Dropping the handler, when a client disconnects, must also decrement the count.
    struct InFlight(Arc<Shared>);
    impl Drop for InFlight {
        fn drop(&mut self) {
            self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
        }
    }
    shared.in_flight.fetch_add(1, Ordering::Relaxed);
    shared.served.fetch_add(1, Ordering::Relaxed);
    let mut conduct = shared.conduct.subscribe();
    let in_flight = InFlight(shared);
    let goes_on = *conduct.borrow() == Conduct::GoesOn;
    let serving = async move {
        let shared = &in_flight.0;
        let log = shared.writes.as_ref();
        let log = log.filter(|_| !request.method().is_safe());
        let _write = log.map(|log| log.begin(&shared.name, request.headers()));
        let Ok(conduct) = conduct.wait_for(|c| *c != Conduct::Hangs).await.map(|c| *c) else {
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        };
        match conduct {
            Conduct::Fails => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            Conduct::Unavailable => StatusCode::SERVICE_UNAVAILABLE.into_response(),
            Conduct::Answers | Conduct::Hangs | Conduct::GoesOn => next.run(request).await,
        }
    };
    match goes_on {
        // A handler is dropped with its connection; a task is not.
        true => match tokio::spawn(serving).await {
            Ok(response) => response,
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        },
        false => serving.await,
    }
}

#[derive(Deserialize)]
struct Slow {
    #[serde(default)]
    ms: u64,
}

/// Answers with the request that arrived; a path ending in `/slow?ms=N` takes that long.
async fn echo(
    State(shared): State<Arc<Shared>>,
    Query(slow): Query<Slow>,
    request: Request,
) -> Response {
    let (head, body) = request.into_parts();
    if to_bytes(body, BODY_BYTES_MAX).await.is_err() {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    }
    if head.uri.path().ends_with("/slow") {
        sleep(Duration::from_millis(slow.ms).min(SLOW_MAX)).await;
    }
    let InstanceName {
        service,
        zone,
        instance,
    } = shared.name.clone();
    let echo = Echo {
        service,
        zone,
        instance,
        method: head.method.to_string(),
        path: head
            .uri
            .path_and_query()
            .map_or_else(String::new, ToString::to_string),
        headers: as_text(&head.headers),
    };
    Json(echo).into_response()
}

fn as_text<M: FromIterator<(String, String)>>(headers: &HeaderMap) -> M {
    headers
        .keys()
        .map(|name| {
            let values: Vec<_> = headers
                .get_all(name)
                .iter()
                .map(|value| String::from_utf8_lossy(value.as_bytes()))
                .collect();
            (name.to_string(), values.join(", "))
        })
        .collect()
}

struct OrdersService(Arc<Shared>);

impl OrdersService {
    fn reply(&self, id: String, metadata: &MetadataMap) -> tonic::Response<OrderReply> {
        let instance = self.0.name.instance.clone();
        let named = instance.parse();
        let mut response = tonic::Response::new(OrderReply {
            id,
            zone: self.0.name.zone.clone(),
            instance,
            headers: as_text(&metadata.clone().into_headers()),
        });
        // For clients without the message's definition.
        if let Ok(name) = named {
            response.metadata_mut().insert("x-instance", name);
        }
        response
    }
}

#[tonic::async_trait]
impl Orders for OrdersService {
    async fn get_order(
        &self,
        request: tonic::Request<GetOrderRequest>,
    ) -> Result<tonic::Response<OrderReply>, tonic::Status> {
        let (metadata, _, message) = request.into_parts();
        Ok(self.reply(message.id, &metadata))
    }

    async fn put_order(
        &self,
        request: tonic::Request<PutOrderRequest>,
    ) -> Result<tonic::Response<OrderReply>, tonic::Status> {
        let (metadata, _, message) = request.into_parts();
        Ok(self.reply(message.id, &metadata))
    }
}
