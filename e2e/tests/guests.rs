//! Guests: the filter in Envoys whose listeners, routes and clusters are somebody else's files, as
//! in `examples/envoy`.

#[path = "guests/cases.rs"]
mod cases;

use e2e::bootstrap::Flavour;

cases::all!(Flavour::Wasm);
