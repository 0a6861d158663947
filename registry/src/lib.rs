//! The registry: what services' instances say of themselves ([`record`]), what operators want and replicas agree on
//! ([`desired`]), and the stores that keep it all ([`store`]).
//!
//! The control plane and the agent share it; neither knows the other.

pub mod authority;
pub mod backoff;
pub mod confirmation;
pub mod desired;
pub mod lease;
pub mod record;
pub mod store;
pub mod terms;
