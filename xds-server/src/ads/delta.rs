//! Incremental xDS on the wire.

use envoy_types::pb::envoy::{
    config::core::v3::Node, service::discovery::v3::DeltaDiscoveryRequest,
};

use super::{
    stream::{Answer, StaleNonce, Stream, Variant},
    wire::{Wire, is_name, names, verdict},
};
use crate::resource::{Kind, Version};

pub(super) struct Delta;

impl Wire for Delta {
    type Request = DeltaDiscoveryRequest;
    const VARIANT: Variant = Variant::Delta;

    fn type_url(request: &Self::Request) -> &str {
        &request.type_url
    }

    fn holds(first: &Self::Request) -> bool {
        !first.initial_resource_versions.is_empty()
    }

    fn node(request: &Self::Request) -> Option<&Node> {
        request.node.as_ref()
    }

    fn take(
        stream: &mut Stream,
        kind: Kind,
        request: &Self::Request,
    ) -> Result<Answer, StaleNonce> {
        let verdict = verdict(&request.response_nonce, request.error_detail.as_ref());
        let settled = stream.settle(kind, &verdict);
        // A delta request may change the subscription whatever its nonce says.
        stream.subscribe_delta(
            kind,
            names(&request.resource_names_subscribe),
            names(&request.resource_names_unsubscribe),
            request
                .initial_resource_versions
                .iter()
                .filter(|(name, _)| is_name(name))
                .map(|(name, version)| (name.as_str(), Version::parse(version))),
        );
        settled
    }
}
