//! The registry: what services' instances say of themselves ([`record`]), and the stores that keep it ([`store`]).
//!
//! The control plane and the agent share it; neither knows the other.

pub mod record;
pub mod store;
