//! State-of-the-world xDS on the wire.

use std::{collections::BTreeSet, sync::Arc};

use envoy_types::pb::envoy::{config::core::v3::Node, service::discovery::v3::DiscoveryRequest};

use super::{
    emptied::Brought,
    request::{Wire, names, verdict},
    stream::{Answer, StaleNonce, Stream, Variant},
};
use crate::{
    resource::{Digest, Kind, Resource},
    view::View,
};

pub(super) struct Sotw;

/// The digest of a set of resources.
fn digest<'r>(resources: impl Iterator<Item = &'r Arc<Resource>>) -> Digest {
    resources.fold(Digest::default(), |digest, resource| {
        digest.plus(resource.digest())
    })
}

impl Wire for Sotw {
    type Request = DiscoveryRequest;
    const VARIANT: Variant = Variant::StateOfTheWorld;

    fn type_url(request: &Self::Request) -> &str {
        &request.type_url
    }

    fn brings(first: &Self::Request, kind: Kind, view: &View) -> Brought {
        if first.version_info.is_empty() {
            return Brought::Nothing;
        }
        let offered = view.of(kind);
        let named = &first.resource_names;
        let all = named.is_empty() && kind.full_state() || named.iter().any(|name| name == "*");
        // A name may be listed twice.
        let named: BTreeSet<&str> = names(named).collect();
        let named = named.into_iter().filter_map(|name| offered.get(name));
        let would_be = match all {
            true => digest(offered.values()),
            false => digest(named),
        };
        match would_be.version().to_string() == first.version_info {
            true => Brought::Same,
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
