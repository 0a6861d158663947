//! The client status discovery service on tonic.

use std::{pin::Pin, sync::Arc};

use envoy_types::pb::envoy::service::status::v3::{
    ClientStatusRequest, ClientStatusResponse,
    client_status_discovery_service_server::{
        ClientStatusDiscoveryService, ClientStatusDiscoveryServiceServer,
    },
};
use futures::{Stream, stream::try_unfold};
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    client_status::{Matchers, Unanswerable},
    clients::Clients,
    discovery::Key,
};

/// The longest request, in bytes.
const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// How many answers may be built or waiting for their clients at a time. Each may have megabytes.
const ANSWERS_MAX: usize = 4;
/// The longest answer to a unary request: the default limit of gRPC's clients.
const SINGLE_BYTES_MAX: usize = 4 << 20;

/// The service for a tonic server: the state of the connected clients, without the contents of
/// resources.
pub fn service<K: Key>(clients: Clients<K>) -> ClientStatusDiscoveryServiceServer<Csds<K>> {
    let csds = Csds {
        clients,
        answers: Arc::new(Semaphore::new(ANSWERS_MAX)),
    };
    ClientStatusDiscoveryServiceServer::new(csds).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

/// The client status discovery service.
pub struct Csds<K> {
    clients: Clients<K>,
    answers: Arc<Semaphore>,
}

impl<K> Clone for Csds<K> {
    fn clone(&self) -> Csds<K> {
        Csds {
            clients: self.clients.clone(),
            answers: Arc::clone(&self.answers),
        }
    }
}

impl<K: Key> Csds<K> {
    /// The answer, and its permit until it is dropped.
    async fn answer_in_turn(
        &self,
        request: ClientStatusRequest,
    ) -> Result<(ClientStatusResponse, OwnedSemaphorePermit), Status> {
        let place = Arc::clone(&self.answers).acquire_owned().await;
        // The semaphore is never closed.
        let place = place.map_err(|error| Status::internal(error.to_string()))?;
        Ok((self.answer(request)?, place))
    }

    fn answer(&self, request: ClientStatusRequest) -> Result<ClientStatusResponse, Status> {
        let config = Matchers::read(request.node_matchers)
            .and_then(|matchers| self.clients.client_configs(&matchers))
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
impl<K: Key> ClientStatusDiscoveryService for Csds<K> {
    type StreamClientStatusStream =
        Pin<Box<dyn Stream<Item = Result<ClientStatusResponse, Status>> + Send>>;

    async fn stream_client_status(
        &self,
        request: Request<Streaming<ClientStatusRequest>>,
    ) -> Result<Response<Self::StreamClientStatusStream>, Status> {
        let csds = self.clone();
        // One answer to each request, computed when the client reads it. An error ends the stream.
        let start = (request.into_inner(), None);
        let answers = try_unfold(start, move |(mut questions, place)| {
            let csds = csds.clone();
            async move {
                // The permit is released once its answer is on its way.
                drop::<Option<OwnedSemaphorePermit>>(place);
                let Some(question) = questions.message().await? else {
                    return Ok(None);
                };
                let (answer, place) = csds.answer_in_turn(question).await?;
                Ok(Some((answer, (questions, Some(place)))))
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn fetch_client_status(
        &self,
        request: Request<ClientStatusRequest>,
    ) -> Result<Response<ClientStatusResponse>, Status> {
        let (answer, _place) = self.answer_in_turn(request.into_inner()).await?;
        if answer.encoded_len() > SINGLE_BYTES_MAX {
            return Err(Status::resource_exhausted(
                "the answer exceeds the default limit of gRPC clients: use StreamClientStatus, or select fewer clients by node_matchers",
            ));
        }
        Ok(Response::new(answer))
    }
}
