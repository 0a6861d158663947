//! The generated services that filters and other replicas call.
#![allow(
    unreachable_pub,
    clippy::all,
    reason = "generated code keeps its own style"
)]

include!(concat!(env!("OUT_DIR"), "/tidegate.v1.rs"));
include!(concat!(env!("OUT_DIR"), "/peers/tidegate.v1.rs"));
