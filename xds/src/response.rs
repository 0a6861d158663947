//! Responses as bytes: a separate head for each stream, and shared entries.
//!
//! `DiscoveryResponse` and `DeltaDiscoveryResponse` have the same numbers for their common fields.
//! So one encoder serves both, and only the set of fields differs.

use std::collections::VecDeque;

use bytes::Bytes;

use super::stream::{Outgoing, Variant};
use crate::{
    resource::{self, put},
    transport::{PREFIX_BYTES, Pieces},
};

/// The fields of `DeltaDiscoveryResponse`, which include those of `DiscoveryResponse`. The entries
/// of field 2, `resources`, are encoded by the resources.
mod field {
    pub(super) const VERSION: u32 = 1;
    pub(super) const TYPE_URL: u32 = 4;
    pub(super) const NONCE: u32 = 5;
    pub(super) const REMOVED: u32 = 6;
}

/// Enough for the head of a response without removals.
const HEAD_BYTES: usize = 160;

/// `response` as a gRPC message. Fails if it is longer than 4 GiB.
pub(super) fn encode(variant: Variant, response: &Outgoing) -> Result<Pieces, TooLong> {
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
    let mut pieces = VecDeque::with_capacity(1 + response.resources.len());
    // Filled in once the length is known.
    pieces.push_back(Bytes::new());
    let mut aliases = response.aliases.iter().peekable();
    for (at, resource) in response.resources.iter().enumerate() {
        let called = aliases.next_if(|(place, _)| *place == at);
        let called = called.map_or(&[][..], |(_, aliases)| aliases);
        let with_ttl = response.with_ttl && resource.ttl_s.is_some();
        match variant {
            Variant::Delta if called.is_empty() && with_ttl == resource.ttl_s.is_some() => {
                pieces.push_back(resource.delta_entry());
            }
            Variant::Delta => {
                pieces.extend([resource.delta_head(called), resource.sotw_entry()]);
            }
            Variant::StateOfTheWorld if with_ttl => {
                pieces.extend([resource.wrapped_head(), resource.contents()]);
            }
            Variant::StateOfTheWorld => pieces.push_back(resource.sotw_entry()),
        }
        pieces.extend(resource.rest().iter().cloned());
    }
    pieces.extend(response.renewed.iter().map(|resource| resource.heartbeat()));
    pieces.extend(response.unresolved.iter().map(resource::unresolved_entry));
    let entries_len: usize = pieces.iter().map(Bytes::len).sum();
    let message_len = head.len() - PREFIX_BYTES + entries_len;
    let message_len = u32::try_from(message_len).map_err(|_| TooLong)?;
    head[1..PREFIX_BYTES].copy_from_slice(&message_len.to_be_bytes());
    pieces[0] = Bytes::from(head);
    Ok(Pieces::from(pieces))
}

/// A response that does not fit into a gRPC message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLong;

#[cfg(test)]
mod tests {
    use std::{num::NonZeroU32, sync::Arc};

    use bytes::Buf;
    use envoy_types::pb::{
        envoy::{
            config::cluster::v3::Cluster,
            service::discovery::v3::{self, DeltaDiscoveryResponse, DiscoveryResponse},
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
            aliases: Vec::new(),
            unresolved: Vec::new(),
            renewed: Vec::new(),
            with_ttl: false,
        }
    }

    /// The message without the gRPC prefix, read in steps of `step` bytes.
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

    /// A response as a client of `variant` reads it.
    fn decoded<M: Message + Default>(variant: Variant, response: &Outgoing) -> M {
        let mut frame = encode(variant, response).expect("it is short");
        frame.advance(PREFIX_BYTES);
        M::decode(frame).expect("a response")
    }

    fn lasting() -> Outgoing {
        let ttl_s = NonZeroU32::new(60).expect("not zero");
        let response = response();
        let resources = response.resources.iter();
        Outgoing {
            resources: resources.map(|r| Arc::new(r.lasting(ttl_s))).collect(),
            with_ttl: true,
            ..response
        }
    }

    #[test]
    fn aliases_and_what_has_none_are_told() {
        let meant = Outgoing {
            aliases: vec![(1, vec![Arc::from("x"), Arc::from("y")])],
            unresolved: vec![Arc::from("z")],
            ..response()
        };
        let response: DeltaDiscoveryResponse = decoded(Variant::Delta, &meant);
        let [a, b, z] = &response.resources[..] else {
            panic!("{:?}", response.resources);
        };
        assert_eq!((a.name.as_str(), a.aliases.len()), ("a", 0));
        assert_eq!(
            (b.name.as_str(), &b.aliases[..]),
            ("b", &["x".to_owned(), "y".to_owned()][..])
        );
        assert_eq!(b.version, meant.resources[1].version.to_string());
        assert_eq!(b.resource, Some(any(&cluster("b"))));
        assert_eq!(
            (z.name.as_str(), &z.aliases[..]),
            ("z", &["z".to_owned()][..])
        );
        assert_eq!(z.resource, None);
    }

    #[test]
    fn times_to_live_are_for_those_who_know_them() {
        for with_ttl in [true, false] {
            let meant = Outgoing {
                with_ttl,
                ..lasting()
            };
            let response: DeltaDiscoveryResponse = decoded(Variant::Delta, &meant);
            for (entry, resource) in response.resources.iter().zip(&meant.resources) {
                let ttl = entry.ttl.as_ref().map(|ttl| ttl.seconds);
                assert_eq!(ttl, with_ttl.then_some(60));
                assert_eq!(entry.version, resource.version.to_string());
                assert_eq!(entry.resource, Some(any(&cluster(&resource.name))));
            }
            assert_eq!(response.resources.len(), 2);

            let response: DiscoveryResponse = decoded(Variant::StateOfTheWorld, &meant);
            for (entry, resource) in response.resources.iter().zip(&meant.resources) {
                let plain = any(&cluster(&resource.name));
                if !with_ttl {
                    assert_eq!(*entry, plain);
                    continue;
                }
                assert_eq!(
                    entry.type_url,
                    "type.googleapis.com/envoy.service.discovery.v3.Resource"
                );
                let wrapped = v3::Resource::decode(&entry.value[..]).expect("a resource");
                assert_eq!(wrapped.name, *resource.name);
                assert_eq!(wrapped.ttl.map(|ttl| ttl.seconds), Some(60));
                assert_eq!(wrapped.resource, Some(plain));
            }
            assert_eq!(response.resources.len(), 2);
        }
    }

    #[test]
    fn a_heartbeat_has_no_body() {
        let response = lasting();
        let meant = Outgoing {
            renewed: response.resources.clone(),
            resources: Vec::new(),
            ..response
        };
        let response: DeltaDiscoveryResponse = decoded(Variant::Delta, &meant);
        for (entry, resource) in response.resources.iter().zip(&meant.renewed) {
            assert_eq!(entry.name, *resource.name);
            assert_eq!(entry.version, resource.version.to_string());
            assert_eq!(entry.ttl.as_ref().map(|ttl| ttl.seconds), Some(60));
            assert_eq!(entry.resource, None);
        }
        assert_eq!(response.resources.len(), 2);
    }

    /// A time to live that is added, changed or removed must reach the clients that have the
    /// resource.
    #[test]
    fn a_time_to_live_is_part_of_the_version() {
        let plain = &response().resources[0];
        let ttl = |seconds| NonZeroU32::new(seconds).expect("not zero");
        let versions = [
            plain.version,
            plain.lasting(ttl(60)).version,
            plain.lasting(ttl(61)).version,
        ];
        assert!(
            versions[0] != versions[1] && versions[1] != versions[2] && versions[0] != versions[2]
        );
        assert_eq!(versions[1], plain.lasting(ttl(60)).version);
        assert_eq!(plain.lasting(ttl(60)).message(), plain.message());
    }
}
