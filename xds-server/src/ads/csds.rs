//! The client status discovery service on tonic.

use std::pin::Pin;

use envoy_types::pb::envoy::service::status::v3::{
    ClientStatusRequest, ClientStatusResponse,
    client_status_discovery_service_server::{
        ClientStatusDiscoveryService, ClientStatusDiscoveryServiceServer,
    },
};
use futures::Stream;
use tokio_stream::StreamExt;
use tonic::{Request, Response, Status, Streaming};

use super::{
    client_status::{Matchers, Unanswerable},
    proxies::Proxies,
};

/// The longest question, in bytes.
const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// The service for a tonic server: what the connected proxies have. Contents of resources are never in an answer.
pub fn service(proxies: Proxies) -> ClientStatusDiscoveryServiceServer<Csds> {
    ClientStatusDiscoveryServiceServer::new(Csds(proxies))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
}

/// The client status discovery service.
#[derive(Clone)]
pub struct Csds(Proxies);

impl Csds {
    fn answer(&self, request: ClientStatusRequest) -> Result<ClientStatusResponse, Status> {
        let config = Matchers::read(request.node_matchers)
            .and_then(|matchers| self.0.client_configs(&matchers))
            .map_err(|error| match error {
                Unanswerable::Metadata | Unanswerable::Pattern(_) => {
                    Status::invalid_argument(error.to_string())
                }
                Unanswerable::TooMuch => Status::resource_exhausted(error.to_string()),
            })?;
        Ok(ClientStatusResponse { config })
    }
}

#[tonic::async_trait]
impl ClientStatusDiscoveryService for Csds {
    type StreamClientStatusStream =
        Pin<Box<dyn Stream<Item = Result<ClientStatusResponse, Status>> + Send>>;

    async fn stream_client_status(
        &self,
        request: Request<Streaming<ClientStatusRequest>>,
    ) -> Result<Response<Self::StreamClientStatusStream>, Status> {
        let csds = self.clone();
        // One answer to each question, worked out when the client takes it. An error ends the stream.
        let answers = request
            .into_inner()
            .map(move |request| csds.answer(request?));
        Ok(Response::new(Box::pin(answers)))
    }

    async fn fetch_client_status(
        &self,
        request: Request<ClientStatusRequest>,
    ) -> Result<Response<ClientStatusResponse>, Status> {
        Ok(Response::new(self.answer(request.into_inner())?))
    }
}
