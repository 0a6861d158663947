//! The tonic service for the streams on which proxies hold grants.

use std::{pin::Pin, time::Duration};

use futures::Stream;
use policy::fence::HolderId;
use protos::{
    fence::{GrantorSays, HolderSays},
    wire,
};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info, warn};

use super::{Authorities, HopKeys, JoinError};
use crate::{
    access_rules::AccessRules,
    generated::fence_server::{Fence, FenceServer},
    metrics::{Metrics, ReasonLabel},
    net::access::Caller,
    net::tls::Peer,
    snapshot::Role,
};

/// How long a new stream may take to send its first message.
const INTRODUCTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Messages that may wait for a slow proxy: more than the cells of a mesh.
const OUTGOING_MAX: usize = 256;
/// The longest message of a proxy, in bytes: all are short.
const MESSAGE_BYTES_MAX: usize = 4 * 1024;

/// The service.
#[derive(Clone)]
pub struct FenceService {
    authorities: Authorities,
    rules: AccessRules,
    hop_keys: HopKeys,
    metrics: Metrics,
}

/// The service for a tonic server.
pub fn service(
    authorities: Authorities,
    rules: AccessRules,
    hop_keys: HopKeys,
    metrics: Metrics,
) -> FenceServer<FenceService> {
    let service = FenceService {
        authorities,
        rules,
        hop_keys,
        metrics,
    };
    FenceServer::new(service).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

#[tonic::async_trait]
impl Fence for FenceService {
    type HoldStream = Pin<Box<dyn Stream<Item = Result<wire::GrantorMessage, Status>> + Send>>;

    async fn hold(
        &self,
        request: Request<Streaming<wire::HolderMessage>>,
    ) -> Result<Response<Self::HoldStream>, Status> {
        let (out, outgoing) = mpsc::channel(1);
        let service = self.clone();
        let caller = Peer::of(request.extensions());
        tokio::spawn(async move {
            // The proxy gets the error, unless it is gone.
            if let Err(status) = hold(service, caller, request.into_inner(), out.clone()).await {
                let _ = out.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

async fn hold(
    service: FenceService,
    caller: Caller,
    mut incoming: Streaming<wire::HolderMessage>,
    out: mpsc::Sender<Result<wire::GrantorMessage, Status>>,
) -> Result<(), Status> {
    let first = tokio::time::timeout(INTRODUCTION_TIMEOUT, next(&mut incoming)).await;
    let Some(first) = first.map_err(|_| Status::deadline_exceeded("say hello first"))?? else {
        return Ok(());
    };
    let HolderSays::Hello {
        holder,
        zone,
        node,
        role,
    } = first
    else {
        return Err(Status::invalid_argument("say hello first"));
    };
    let FenceService {
        authorities,
        rules,
        hop_keys,
        metrics,
    } = service;
    let permitted = match role == Role::Guest.as_str() {
        true => rules.guest_grants(&caller, &zone),
        false => rules.rules().grants(&caller, &zone),
    };
    if let Err(error) = permitted {
        warn!(node, %error, "stream refused");
        let reason = "not_permitted";
        let label = ReasonLabel { reason };
        metrics.streams_refused.get_or_create(&label).inc();
        return Err(Status::permission_denied(error.to_string()));
    }
    let (says, mut told) = mpsc::channel::<GrantorSays>(OUTGOING_MAX);
    let joined = authorities
        .join(holder, zone.clone(), node.clone(), says)
        .await;
    let gone = |gone: super::Gone| Status::unavailable(gone.to_string());
    let stream = joined.map_err(gone)?.map_err(|error| match error {
        JoinError::OtherZone { .. } => Status::failed_precondition(error.to_string()),
        JoinError::NoSession | JoinError::TermsDiffer => Status::unavailable(error.to_string()),
    })?;
    info!(node, %zone, role, "proxy requests grants");
    let mut keys = hop_keys.told_to(&caller, &zone, &role);
    let ended = loop {
        if let Some(keys) = keys.news() {
            let says = GrantorSays::HopKeys(keys);
            if out.send(Ok((&says).into())).await.is_err() {
                break Ok(());
            }
        }
        tokio::select! {
            () = keys.changed() => {}
            says = told.recv() => {
                // The engine has closed this stream, for a newer one or because it was slow.
                let Some(says) = says else {
                    break Err(Status::aborted("open another stream"));
                };
                if out.send(Ok((&says).into())).await.is_err() {
                    break Ok(());
                }
            }
            said = next(&mut incoming) => match said {
                Ok(Some(says)) => {
                    if let Err(error) = authorities.said(holder, stream, says).await {
                        break Err(gone(error));
                    }
                }
                Ok(None) => break Ok(()),
                Err(status) => break Err(status),
            },
        }
    };
    leave(&authorities, holder, stream, &node).await;
    ended
}

async fn leave(authorities: &Authorities, holder: HolderId, stream: u64, node: &str) {
    debug!(node, "a proxy's stream for grants has ended");
    authorities.left(holder, stream).await;
}

/// The next message; none when the proxy has ended the stream, or is gone.
async fn next(incoming: &mut Streaming<wire::HolderMessage>) -> Result<Option<HolderSays>, Status> {
    match incoming.next().await {
        Some(Ok(message)) => {
            let says = HolderSays::try_from(message);
            says.map(Some)
                .map_err(|error| Status::invalid_argument(error.to_string()))
        }
        Some(Err(status)) if status.code() == tonic::Code::OutOfRange => Err(status),
        Some(Err(_)) | None => Ok(None),
    }
}
