//! `tidegate guest` and `tidegate check --guest`: the filter in an Envoy that somebody else
//! configures.
//!
//! [`print`] writes the pieces of configuration for a host, [`remove`] the order in which they
//! go. [`inspect`] reads the configuration of an Envoy, and finds everything that stands in the
//! way; it is pure, and [`source`] reads files and addresses for it.

mod args;
mod check;
mod inspect;
mod lists;
mod mesh;
mod print;
mod remove;
mod source;

pub(crate) use args::GuestArgs;
pub(crate) use check::CheckArgs;

#[cfg(test)]
mod examples;
