//! The differences between the requests of the two protocol variants.

use envoy_types::pb::{envoy::config::core::v3::Node, google::rpc::Status};

use prost::{
    Message,
    encoding::{DecodeContext, decode_key, skip_field},
};

use super::{
    emptied::Brought,
    stream::{Answer, StaleNonce, Stream, Variant, Verdict},
};
use crate::{resource::Kind, view::View};

/// A variant's requests, and how they change a stream's state.
pub(super) trait Wire: Send + 'static {
    type Request: Message + Default;
    const VARIANT: Variant;

    fn type_url(request: &Self::Request) -> &str;

    fn node(request: &Self::Request) -> Option<&Node>;

    /// The client's resources of `kind` in the first request of that kind, compared with `view`.
    fn brings(first: &Self::Request, kind: Kind, view: &View) -> Brought;

    /// Applies a request to the stream's state.
    fn take(stream: &mut Stream, kind: Kind, request: &Self::Request)
    -> Result<Answer, StaleNonce>;
}

/// The longest accepted name of a resource, in bytes. Names may come from any request to a proxy
/// (hosts, clusters on demand), and there may be many. Longer names are ignored: no resource has
/// one.
const NAME_BYTES_MAX: usize = 1024;
/// How much of a rejection's message is read.
const MESSAGE_BYTES_MAX: usize = 4 * 1024;

/// The names of a request that a resource could have.
pub(super) fn names(names: &[String]) -> impl Iterator<Item = &str> {
    names
        .iter()
        .map(String::as_str)
        .filter(|name| is_name(name))
}

pub(super) fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
}

fn beginning(message: &str) -> &str {
    let longest = MESSAGE_BYTES_MAX.min(message.len());
    let mut ends = (0..=longest).rev();
    let end = ends.find(|end| message.is_char_boundary(*end));
    &message[..end.unwrap_or_default()]
}

/// Counts the names in an encoded request of either variant, up to the first malformed byte.
/// Decoded names take many times their encoded bytes.
pub(super) fn count_names(request: &[u8]) -> usize {
    /// `resource_names` or `resource_names_subscribe`, `resource_names_unsubscribe`,
    /// `initial_resource_versions`.
    const NAMES: std::ops::RangeInclusive<u32> = 3..=5;
    let mut rest = request;
    let mut count = 0;
    while let Ok((tag, wire_type)) = decode_key(&mut rest) {
        count += usize::from(NAMES.contains(&tag));
        if skip_field(wire_type, tag, &mut rest, DecodeContext::default()).is_err() {
            break;
        }
    }
    count
}

/// The verdict of a request on the response with its nonce.
pub(super) fn verdict<'m>(nonce: &'m str, error: Option<&'m Status>) -> Verdict<'m> {
    match error {
        _ if nonce.is_empty() => Verdict::None,
        None => Verdict::Ack { nonce },
        Some(error) => Verdict::Nack {
            nonce,
            message: beginning(&error.message),
        },
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};

    use super::*;

    #[test]
    fn names_are_counted_before_they_are_decoded() {
        let names = |count| vec!["x".to_owned(); count];
        let delta = DeltaDiscoveryRequest {
            node: Some(Node::default()),
            type_url: "type".to_owned(),
            resource_names_subscribe: names(3),
            resource_names_unsubscribe: names(2),
            initial_resource_versions: [("y".to_owned(), "1".to_owned())].into(),
            ..DeltaDiscoveryRequest::default()
        };
        assert_eq!(count_names(&delta.encode_to_vec()), 6);
        let sotw = DiscoveryRequest {
            version_info: "1".to_owned(),
            resource_names: names(4),
            ..DiscoveryRequest::default()
        };
        assert_eq!(count_names(&sotw.encode_to_vec()), 4);
        // Malformed bytes fail later, in the decoder.
        assert_eq!(count_names(&[0x1a, 0xff]), 1);
    }

    #[test]
    fn of_names_and_messages_no_more_is_taken_than_is_of_use() {
        let given = [
            "",
            "a",
            &"b".repeat(NAME_BYTES_MAX),
            &"c".repeat(NAME_BYTES_MAX + 1),
        ];
        let given = given.map(str::to_owned);
        let taken: Vec<&str> = names(&given).collect();
        assert_eq!(taken, [&given[1], &given[2]]);
        let long = format!("{}ü", "x".repeat(MESSAGE_BYTES_MAX - 1));
        assert_eq!(beginning(&long).len(), MESSAGE_BYTES_MAX - 1);
        assert_eq!(beginning("short"), "short");
    }
}
