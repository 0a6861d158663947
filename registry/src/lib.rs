//! The registry: what services' instances say of themselves ([`record`]), what operators want and replicas agree on
//! ([`zone_records`]), and the stores that keep it all ([`store`]).
//!
//! The control plane and the agent share it; neither knows the other.

pub mod authority;
pub mod backoff;
pub mod confirmation;

pub mod lease;
pub mod record;
pub mod store;
pub mod terms;
pub mod zone_records;
