//! Incremental xDS on the wire.

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as WireResource,
};

use super::stream::{Answer, Outgoing, StaleNonce, Stream, Verdict};
use crate::resource::{Kind, Version};

/// Feeds a request into the stream's state.
pub(super) fn take(
    stream: &mut Stream,
    kind: Kind,
    request: &DeltaDiscoveryRequest,
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
    let settled = stream.settle(kind, &verdict);
    // A delta request may change the subscription whatever its nonce says.
    stream.subscribe_delta(
        kind,
        request.resource_names_subscribe.iter().map(String::as_str),
        request
            .resource_names_unsubscribe
            .iter()
            .map(String::as_str),
        request
            .initial_resource_versions
            .iter()
            .map(|(name, version)| (name.as_str(), Version::parse(version))),
    );
    settled
}

/// The wire form of a response.
pub(super) fn response(outgoing: Outgoing) -> DeltaDiscoveryResponse {
    let resources = outgoing.resources.iter().map(|resource| WireResource {
        name: resource.name.to_string(),
        version: resource.version.to_string(),
        resource: Some(resource.body.clone()),
        ..WireResource::default()
    });
    DeltaDiscoveryResponse {
        system_version_info: outgoing.version.to_string(),
        type_url: outgoing.kind.type_url().to_owned(),
        nonce: outgoing.nonce.to_string(),
        resources: resources.collect(),
        removed_resources: outgoing.removed.iter().map(ToString::to_string).collect(),
        ..DeltaDiscoveryResponse::default()
    }
}
