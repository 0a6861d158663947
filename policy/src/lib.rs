//! All decisions of Tidegate, and nothing else.
//!
//! The filter, the control plane and the command line all call this crate; none of them decides on
//! its own.
//!
//! **Purity contract.** No I/O, no clock, no randomness, no logging, no `std`. Time, load and seeds
//! are parameters. The same input gives the same output on every replica and in every proxy, so a
//! decision can be explained after the fact by computing it again.
//!
//! The modules:
//!
//! - [`topology`] has the zones and their links, [`tier`] the distance between two zones.
//! - [`health`] and [`standing`] turn instance counts into zone states.
//! - [`plan`] turns states, [loads](load) and [weights](weighting) into targets for each home zone,
//!   stage by stage in `allocation`.
//! - [`service`] and [`rules`] hold the configuration.
//! - [`facts`] reads a request, and [`decide()`] returns a [`decision`].
//! - [`reason`], [`refusal`] and [`headers`] have its names on the wire, [`mod@explain`] its steps
//!   in words.
//! - [`fence`] holds the authority to write and its moves; [`cells`] is the part of it that a proxy
//!   knows.
//! - [`guest`] decides in Envoys with foreign routes, and [`listed`] compares its lists with them.

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
pub mod class;
pub mod decide;
pub mod decision;
pub mod explain;
pub mod facts;
pub mod fence;
mod fenced;
pub mod guest;
pub mod headers;
pub mod health;
pub mod hop;
pub mod listed;
pub mod load;
mod path;
pub mod plan;
pub mod reason;
pub mod refusal;
pub mod rules;
pub mod service;
pub mod shard;
pub mod shared;
pub mod standing;
pub mod tier;
pub mod topology;
pub mod weighting;

pub use cells::{Cell, CellId, Enforcement, Fencing, Forward, InvalidFencing};
pub use class::Class;
pub use decide::{decide, explain};
pub use decision::{Decision, Outcome, Routed};
pub use explain::Step;
pub use facts::{Facts, Headers, Home, Presented};
pub use health::{InstanceCounts, Thresholds, ZoneState};
pub use load::{Demand, ZoneLoad};
pub use plan::{Plan, Plans, Target, WEIGHT_TOTAL};
pub use reason::Reason;
pub use refusal::Refusal;
pub use rules::{Explain, InvalidRules, Policy, Rules};
pub use service::{
    ClassRule, KeySource, RegionRule, Route, RouteMatch, Service, ServiceId, TraceRule, Writes,
};
pub use standing::{
    Failback, Failover, Observed, Phase, Why, ZoneAssessment, ZoneDirective, ZoneMachine,
    ZoneStanding,
};
pub use tier::Tier;
pub use topology::{InvalidTopology, Link, Place, RegionId, Topology, ZoneId};
pub use weighting::Weighting;
