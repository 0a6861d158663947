//! What the two protocol variants do differently.

use envoy_types::pb::{envoy::config::core::v3::Node, google::rpc::Status};

use super::stream::{Answer, Outgoing, StaleNonce, Stream, Variant, Verdict};
use crate::resource::Kind;

/// A variant's messages, and their way into and out of a stream's state.
pub(super) trait Wire: Send + 'static {
    type Request: Send;
    type Response: Send;
    const VARIANT: Variant;

    fn type_url(request: &Self::Request) -> &str;

    fn node(request: &Self::Request) -> Option<&Node>;

    /// Feeds a request into the stream's state.
    fn take(stream: &mut Stream, kind: Kind, request: &Self::Request)
    -> Result<Answer, StaleNonce>;

    /// The wire form of a response.
    fn response(outgoing: Outgoing) -> Self::Response;
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
