//! A model checker for the write fence.
//!
//! It explores the state machines of [`policy::fence`], the very ones that the processes run,
//! breadth first: a store that answers late or not at all, replicas that crash, proxies that lose a
//! worker, messages that are lost or come twice, clocks that drift. Whatever happens, a write may
//! be admitted only while none of another epoch is in flight ([`Broken`]).
//!
//! A [`Scenario`] says who there is and what may go wrong. Scenarios are small on purpose: a fault
//! in the rules shows with few zones and few ticks, and everything within a small scope is looked
//! at. Each rule is taken away once ([`policy::fence::Clause`]), and a scenario must then find a
//! violation; so it is known what the exploration can see.
//!
//! Two cells hang on one session, or belong to two zones of which each ends the other's session.
//! Besides safety these scenarios see that no cell moves which nobody moved.
//!
//! Not covered: three zones, two granting replicas in a zone; clocks that gain; a proxy that is
//! stopped between admission and sending; forwarding, retries;
//! [`Cause::Unfit`](policy::fence::Cause) and cool-downs; liveness after a restore.

mod actions;
mod change;
mod mutation;
mod proxy;
mod scenario;
pub mod scenarios;
mod state;
mod store;

pub use actions::{Action, Found, explore};
pub use mutation::Mutation;
pub use proxy::{InFlight, Offered, Policy, Proxy};
pub use scenario::{Budget, CELLS, Clock, Lines, Net, Scenario, Speed, ZONES, terms};
pub use state::{Broken, Host, Incarnation, Message, Request, State};
pub use store::Store;
