//! The discovery services, delta and state of the world.
//!
//! [`stream`] is the protocol memory of one stream, plain data without sockets; [`delta`] and [`sotw`] read its requests,
//! [`response`] makes its responses; [`session`] runs it; [`proxies`] is what operators see of all of them,
//! [`client_status`] and [`csds`] the same as a service.

mod client_status;
pub mod csds;
mod delta;
mod emptied;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod grace;
mod large_requests;
pub(crate) mod node;
pub mod proxies;
mod renewals;
mod request;
mod response;
mod retries;
pub mod service;
mod session;
mod sotw;
pub mod stream;
