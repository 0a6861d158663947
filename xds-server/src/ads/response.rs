//! Responses as bytes: a head of its own for each stream, and shared entries.
//!
//! `DiscoveryResponse` and `DeltaDiscoveryResponse` have the same numbers for the fields that both have, so one encoder does
//! for both; which fields there are is all that differs.

use std::collections::VecDeque;

use bytes::Bytes;

use super::stream::{Outgoing, Variant};
use crate::{
    resource::put,
    transport::{Frame, PREFIX_BYTES},
};

/// The fields of `DeltaDiscoveryResponse`, those of `DiscoveryResponse` among them. The entries of field 2, `resources`, are
/// the resources' own.
mod field {
    pub(super) const VERSION: u32 = 1;
    pub(super) const TYPE_URL: u32 = 4;
    pub(super) const NONCE: u32 = 5;
    pub(super) const REMOVED: u32 = 6;
}

/// Enough for the head of a response that removes nothing.
const HEAD_BYTES: usize = 160;

/// `response` as a gRPC message. Errors: it is longer than 4 GiB.
pub(super) fn encode(variant: Variant, response: &Outgoing) -> Result<Frame, TooLong> {
    let mut head = Vec::with_capacity(HEAD_BYTES);
    head.resize(PREFIX_BYTES, 0);
    let version = response.version.to_string();
    put(&mut head, field::VERSION, version.as_bytes());
    let type_url = response.kind.type_url();
    put(&mut head, field::TYPE_URL, type_url.as_bytes());
    put(
        &mut head,
        field::NONCE,
        response.nonce.to_string().as_bytes(),
    );
    if variant == Variant::Delta {
        for name in &response.removed {
            put(&mut head, field::REMOVED, name.as_bytes());
        }
    }
    let entries = response.resources.iter().flat_map(|resource| {
        let begin = match variant {
            Variant::Delta => resource.delta_entry(),
            Variant::StateOfTheWorld => resource.sotw_entry(),
        };
        [begin].into_iter().chain(resource.rest().iter().cloned())
    });
    let mut pieces = VecDeque::with_capacity(1 + response.resources.len());
    // Its bytes come once their number is known.
    pieces.push_back(Bytes::new());
    pieces.extend(entries);
    let entries_len: usize = pieces.iter().map(Bytes::len).sum();
    let message_len = head.len() - PREFIX_BYTES + entries_len;
    let message_len = u32::try_from(message_len).map_err(|_| TooLong)?;
    head[1..PREFIX_BYTES].copy_from_slice(&message_len.to_be_bytes());
    pieces[0] = Bytes::from(head);
    Ok(Frame::from(pieces))
}

/// A response that does not fit into a gRPC message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLong;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Buf;
    use envoy_types::pb::{
        envoy::{
            config::cluster::v3::Cluster,
            service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse},
        },
        google::protobuf::Any,
    };
    use prost::Message;

    use super::*;
    use crate::resource::{Kind, Resource, any};

    fn cluster(name: &str) -> Cluster {
        Cluster {
            name: name.to_owned(),
            ..Cluster::default()
        }
    }

    fn response() -> Outgoing {
        let resources = ["a", "b"].map(|name| Arc::new(Resource::encode(name, &cluster(name))));
        Outgoing {
            kind: Kind::Cluster,
            nonce: 7,
            version: resources[0].version,
            resources: resources.to_vec(),
            removed: vec![Arc::from("c")],
        }
    }

    /// The message without the gRPC prefix, taken out in steps of `step` bytes.
    fn message(variant: Variant, step: usize) -> Vec<u8> {
        let mut frame = encode(variant, &response()).expect("it is short");
        let mut bytes = Vec::new();
        while frame.has_remaining() {
            let len = frame.chunk().len().min(step);
            bytes.extend_from_slice(&frame.chunk()[..len]);
            frame.advance(len);
        }
        assert_eq!(bytes[0], 0, "not compressed");
        let len = u32::from_be_bytes(bytes[1..5].try_into().expect("four bytes"));
        assert_eq!(len as usize, bytes.len() - 5);
        bytes.split_off(5)
    }

    #[test]
    fn a_delta_response_decodes_to_what_was_meant() {
        for step in [1, 3, usize::MAX] {
            let decoded = DeltaDiscoveryResponse::decode(&message(Variant::Delta, step)[..]);
            let decoded = decoded.expect("a response");
            let meant = response();
            assert_eq!(decoded.system_version_info, meant.version.to_string());
            assert_eq!(decoded.type_url, Kind::Cluster.type_url());
            assert_eq!(decoded.nonce, "7");
            assert_eq!(decoded.removed_resources, ["c"]);
            for (entry, resource) in decoded.resources.iter().zip(&meant.resources) {
                assert_eq!(entry.name, *resource.name);
                assert_eq!(entry.version, resource.version.to_string());
                assert_eq!(entry.resource, Some(any(&cluster(&resource.name))));
            }
            assert_eq!(decoded.resources.len(), 2);
        }
    }

    #[test]
    fn a_response_of_the_state_of_the_world_decodes_to_what_was_meant() {
        let decoded = DiscoveryResponse::decode(&message(Variant::StateOfTheWorld, 2)[..]);
        let decoded = decoded.expect("a response");
        assert_eq!(decoded.version_info, response().version.to_string());
        assert_eq!(decoded.nonce, "7");
        assert_eq!(decoded.type_url, Kind::Cluster.type_url());
        let meant: Vec<Any> = ["a", "b"].map(|name| any(&cluster(name))).into();
        assert_eq!(decoded.resources, meant);
    }
}
