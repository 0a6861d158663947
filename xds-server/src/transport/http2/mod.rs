//! The server's side of HTTP/2, in as much as gRPC needs. See RFC 9113.
//!
//! `h2` would do, but for what it costs: with thousands of proxies that each are told of every change, its buffers are most of
//! a proxy's memory (20 of 36 KB), and its books a good part of the time for an update. Here a connection that is idle has no
//! buffer at all, and an update is one frame's head and the resources' shared bytes.
//!
//! [`protocol`] is pure: bytes go in, requests and bytes come out. [`handle`] is what those who answer hold of it. What is
//! left out because nobody needs it: pushes, priorities, a comparison of `content-length` with what comes.

mod frame;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod handle;
mod hpack;
mod protocol;
mod request;
mod stream;

pub(crate) use handle::Gone;
pub(super) use handle::{Link, Received, Responder};
pub(super) use protocol::{Lifeless, Protocol};

/// How many streams a client may have open on a connection. A proxy has one for each kind of resource at most, and a few.
pub(super) const STREAMS_MAX: usize = 100;
/// The longest list of fields that a request may have, as HPACK counts it, and in the frames that bring it.
const LIST_BYTES_MAX: usize = 16 * 1024;
/// What a client may send before it is read, on a stream and on all streams of a connection together.
const WINDOW_BYTES: u32 = 256 * 1024;
/// How many streams a client may break off, or open in vain, between two ticks.
pub(super) const RESETS_MAX: u32 = 1000;

#[cfg(test)]
mod tests;
