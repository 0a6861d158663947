//! State-of-the-world xDS on the wire.

use envoy_types::pb::envoy::{config::core::v3::Node, service::discovery::v3::DiscoveryRequest};

use super::{
    stream::{Answer, StaleNonce, Stream, Variant},
    wire::{Wire, names, verdict},
};
use crate::resource::Kind;

pub(super) struct Sotw;

impl Wire for Sotw {
    type Request = DiscoveryRequest;
    const VARIANT: Variant = Variant::StateOfTheWorld;

    fn type_url(request: &Self::Request) -> &str {
        &request.type_url
    }

    fn holds(first: &Self::Request) -> bool {
        !first.version_info.is_empty()
    }

    fn node(request: &Self::Request) -> Option<&Node> {
        request.node.as_ref()
    }

    fn take(
        stream: &mut Stream,
        kind: Kind,
        request: &Self::Request,
    ) -> Result<Answer, StaleNonce> {
        let nonce = request.response_nonce.as_str();
        let verdict = verdict(nonce, request.error_detail.as_ref());
        let answer = match stream.settle(kind, &verdict) {
            // A change of the subscription alone repeats the nonce that was acknowledged already.
            Err(StaleNonce) if stream.last_answered(kind, nonce) => Answer::None,
            settled => settled?,
        };
        stream.subscribe_sotw(kind, names(&request.resource_names), &request.version_info);
        Ok(answer)
    }
}
