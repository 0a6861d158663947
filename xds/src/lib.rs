#![doc = include_str!("../README.md")]
#![warn(missing_docs)]

mod client_status;
pub mod clients;
pub mod csds;
mod delta;
pub mod discovery;
mod emptied;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod grace;
mod large_requests;
mod renewals;
mod request;
pub mod resource;
mod response;
mod retries;
#[cfg(any(test, feature = "fuzzing"))]
mod script;
pub mod server;
mod session;
mod sotw;
pub mod stream;
pub mod transport;
pub mod view;

pub use discovery::{Discovery, Events, Key, Snapshots};
pub use resource::{Kind, Resource, Resources};
pub use server::Server;
pub use view::View;
