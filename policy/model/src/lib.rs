//! A model checker for the write fence.
//!
//! It explores the state machines of [`policy::fence`], the same ones that the processes run,
//! breadth first: a store that answers late or not at all, replicas that crash, proxies that lose a
//! worker, messages that are lost or repeated, clocks that drift. In every state, a write may be
//! admitted only while no write of another epoch is in flight ([`Broken`]).
//!
//! A [`Scenario`] lists the processes and their possible faults. Scenarios are small on purpose: a
//! fault in the rules shows with few zones and few ticks, and a small scope can be explored
//! completely. Each rule is disabled once ([`policy::fence::Clause`]), and a scenario must then
//! find a violation. This shows which faults the exploration can detect.
//!
//! In some scenarios two cells share one session, or belong to two zones that end each other's
//! sessions. Besides safety these scenarios check that no cell moves without cause.
//!
//! Not covered: three zones, two granting replicas in a zone; clocks that gain; a proxy that is
//! stopped between admission and sending; forwarding, retries;
//! [`Cause::Unfit`](policy::fence::Cause) and cool-downs; liveness after a restore.

mod actions;
mod change;
mod exploration;
mod initial_state;
mod mutation;
mod proxy;
mod scenario;
pub mod scenarios;
mod state;
mod store;
mod transitions;

pub use actions::Action;
pub use exploration::{Found, explore};
pub use mutation::Mutation;
pub use proxy::{InFlight, Offered, Policy, Proxy};
pub use scenario::{Budget, CELLS, Clock, Lines, Net, Scenario, Speed, ZONES, terms};
pub use state::{Broken, Host, Incarnation, Message, Request, State};
pub use store::Store;
