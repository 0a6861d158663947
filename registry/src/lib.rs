//! The registry: records of services' instances ([`record`]), directives of operators and standings
//! of zones ([`zone_records`]), and the stores of all records ([`store`]).
//!
//! The control plane and the agent share it.

pub mod authority;
pub mod backoff;
pub mod causes;
pub mod confirmation;
pub mod guest_record;

pub mod lease;
pub mod record;
pub mod store;
pub mod terms;
pub mod zone_records;
