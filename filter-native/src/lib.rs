//! The filter as an Envoy dynamic module: the host of [`filter_core`] in Envoy's own process.
//!
//! `abi` has Envoy's hooks and callbacks; `module` is a configuration of the filter, `requests` a
//! request. `version` refuses an Envoy of another ABI.
//!
//! **Threads.** Envoy's main thread runs the life of a configuration: its ticks, its streams, its
//! policies. Its workers run requests. All of them are one worker of the core, whose memory stands
//! behind locks (`memory`). What the workers of other hosts share in the proxy's shared data stands
//! in `shared`.
//!
//! **What the ABI lacks.** It has no timer for a filter, so a thread of the module asks Envoy for each
//! tick (`ticker`). It has no gRPC, so `grpc` frames the messages on an HTTP stream of Envoy's. It
//! does not show the proxy's node, so `node` reads it where Envoy does.
//!
//! **No panic crosses the ABI.** Each hook catches it: the request is answered with 503, and a
//! configuration that panicked is not woken any more, so its grants run out.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

mod abi;
mod clock;
mod grpc;
mod host;
mod memory;
mod module;
mod node;
mod requests;
mod shared;
mod ticker;
mod version;
