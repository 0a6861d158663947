//! What the requests of the two protocol variants do differently.

use envoy_types::pb::{envoy::config::core::v3::Node, google::rpc::Status};

use prost::Message;

use super::stream::{Answer, StaleNonce, Stream, Variant, Verdict};
use crate::resource::Kind;

/// A variant's requests, and their way into a stream's state.
pub(super) trait Wire: Send + 'static {
    type Request: Message + Default;
    const VARIANT: Variant;

    fn type_url(request: &Self::Request) -> &str;

    fn node(request: &Self::Request) -> Option<&Node>;

    /// Feeds a request into the stream's state.
    fn take(stream: &mut Stream, kind: Kind, request: &Self::Request)
    -> Result<Answer, StaleNonce>;
}

/// What a request's nonce and error say about the response with that nonce.
pub(super) fn verdict<'m>(nonce: &'m str, error: Option<&'m Status>) -> Verdict<'m> {
    match error {
        _ if nonce.is_empty() => Verdict::None,
        None => Verdict::Ack { nonce },
        Some(error) => Verdict::Nack {
            nonce,
            message: &error.message,
        },
    }
}
