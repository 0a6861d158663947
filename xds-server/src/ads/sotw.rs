//! State-of-the-world xDS on the wire.

use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};

use super::stream::{Answer, Outgoing, StaleNonce, Stream, Verdict};
use crate::resource::Kind;

/// Feeds a request into the stream's state.
pub(super) fn take(
    stream: &mut Stream,
    kind: Kind,
    request: &DiscoveryRequest,
) -> Result<Answer, StaleNonce> {
    let nonce = request.response_nonce.as_str();
    let verdict = match &request.error_detail {
        _ if nonce.is_empty() => Verdict::None,
        None => Verdict::Ack { nonce },
        Some(error) => Verdict::Nack {
            nonce,
            message: &error.message,
        },
    };
    let answer = match stream.settle(kind, &verdict) {
        // A change of the subscription alone repeats the nonce that was acknowledged already.
        Err(StaleNonce) if stream.last_answered(kind, nonce) => Answer::None,
        settled => settled?,
    };
    stream.subscribe_sotw(
        kind,
        request.resource_names.iter().map(String::as_str),
        &request.version_info,
    );
    Ok(answer)
}

/// The wire form of a response.
pub(super) fn response(outgoing: Outgoing) -> DiscoveryResponse {
    DiscoveryResponse {
        version_info: outgoing.version.to_string(),
        resources: outgoing.resources.iter().map(|r| r.body.clone()).collect(),
        type_url: outgoing.kind.type_url().to_owned(),
        nonce: outgoing.nonce.to_string(),
        ..DiscoveryResponse::default()
    }
}
