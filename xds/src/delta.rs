//! Incremental xDS on the wire.

use envoy_types::pb::envoy::{
    config::core::v3::Node, service::discovery::v3::DeltaDiscoveryRequest,
};

use super::{
    emptied::Brought,
    request::{Wire, is_name, names, verdict},
    stream::{Answer, StaleNonce, Stream, Variant},
};
use crate::{
    resource::{Kind, Version},
    view::View,
};

pub(super) struct Delta;

impl Wire for Delta {
    type Request = DeltaDiscoveryRequest;
    const VARIANT: Variant = Variant::Delta;

    fn type_url(request: &Self::Request) -> &str {
        &request.type_url
    }

    fn brings(first: &Self::Request, kind: Kind, view: &View) -> Brought {
        let offered = view.of(kind);
        let is_same = |(name, version): (&String, &String)| {
            let resource = offered.get(name.as_str());
            resource.is_some_and(|resource| resource.version == Version::parse(version))
        };
        let brought = &first.initial_resource_versions;
        match brought.is_empty() {
            true => Brought::Nothing,
            false if brought.iter().all(is_same) => Brought::Same,
            false => Brought::Other,
        }
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
        // A delta request may change the subscription with any nonce.
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
