//! Holding grants: the part of a proxy process in the write fence.
//!
//! The machines are `policy::fence`'s; here they get a place in a process of several workers, each
//! of which runs this code for itself. Their common state stands in the proxy's shared data, which
//! they change by compare-and-swap ([`process`]): a ledger for each cell ([`ledger`]), and the
//! elected worker ([`election`]). [`permits`] admits writes and releases permissions;
//! [`control_stream`] keeps the stream to the control plane; [`worker`] puts them together.
//!
//! None of it knows the proxy. It never panics, and every failure means no permission: a write that
//! cannot be checked is refused, and a fence that cannot be checked is not acknowledged, so that
//! the control plane waits for it to run out.

pub mod cluster;
pub mod control_stream;
pub mod election;
pub mod ending;
pub mod hop_keys;
pub mod ledger;
pub mod permits;
pub mod process;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub mod worker;
