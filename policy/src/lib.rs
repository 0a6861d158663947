//! What Tidegate decides, and nothing else.
//!
//! The filter, the control plane and the command line all call this crate; none of them decides by itself.
//!
//! **Purity contract.** No I/O, no clock, no randomness, no logging, no `std`. Time, load and seeds are parameters. The same
//! input gives the same output on every replica and in every proxy, so a decision can be explained after the fact by running it again.
//!
//! The way through the modules: [`topology`] says where zones are; [`health`] and [`standing`] turn instance counts into
//! zone states; [`plan`] turns states and weights into what each home zone may use; [`service`] and [`rules`] hold what is configured;
//! [`facts`] reads a request; [`decide()`] puts them together; [`refusal`] and [`headers`] give the outcome its wire names.
//! [`fence`] says who may write at all, and how that moves; [`cells`] is what a proxy knows of it.

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

mod allocation;
pub mod cells;
pub mod decide;
pub mod facts;
pub mod fence;
pub mod headers;
pub mod health;
pub mod hop;
pub mod plan;
pub mod refusal;
pub mod rules;
pub mod service;
pub mod shard;
pub mod shared;
pub mod standing;
pub mod topology;

pub use cells::{Cell, CellId, Enforcement, Fencing, Forward, InvalidFencing};
pub use decide::{Decision, Outcome, Reason, Routed, Step, decide, explain};
pub use facts::{Facts, Headers, Home, Presented};
pub use health::{InstanceCounts, Thresholds, ZoneState};
pub use plan::{Demand, Plan, Plans, Target, Tier, WEIGHT_TOTAL, Weighting, ZoneLoad};
pub use refusal::Refusal;
pub use rules::{Explain, InvalidRules, Policy, Rules};
pub use service::{
    Class, ClassRule, KeySource, RegionRule, Route, RouteMatch, Service, ServiceId, TraceRule,
    Writes,
};
pub use standing::{
    Failback, Failover, Intent, Observed, Phase, Standing, Verdict, Why, ZoneMachine,
};
pub use topology::{InvalidTopology, Link, Place, RegionId, Topology, ZoneId};
