//! The wire forms of the policy, of grants, of guests and of filters' reports, and the one door between them
//! and the domain types.
//!
//! [`decode`] takes untrusted bytes: whatever they are, it gives a policy that is valid by
//! construction or an error that names the field. [`encode`] is its inverse.

#![no_std]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

extern crate alloc;

mod decode;
mod decoder;
mod encode;
pub mod fence;
pub mod guest;
pub mod peers;
pub mod status;

pub use decode::{InvalidPolicy, decode};
pub use decoder::Decoder;
pub use encode::{Encoded, Encoder, VERSION_BITS, encode};

use alloc::string::String;

use policy::Policy;

/// The generated messages.
#[allow(clippy::all, reason = "generated code")]
pub mod wire {
    include!(concat!(env!("OUT_DIR"), "/tidegate.v1.rs"));
}

/// The configuration of the filter: a policy, its version and generation.
#[derive(Clone, Debug, PartialEq)]
pub struct PluginConfig {
    /// Digest of the policy, of [`VERSION_BITS`] bits: the same for the same policy on every
    /// replica.
    pub version: u64,
    /// Raised by the operator to have the same policy tried again.
    pub generation: u64,
    pub policy: Policy,
    /// The proxy's cluster for reports to the control plane; empty: no reports are wanted.
    pub control_plane: String,
}
