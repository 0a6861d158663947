//! What Tidegate is measured beside.

use clap::ValueEnum;

/// The other server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Against {
    #[default]
    GoControlPlane,
    /// Needs `cargo xtask setup --istio`.
    Istio,
}

impl Against {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Against::GoControlPlane => "go-control-plane",
            Against::Istio => "istiod",
        }
    }
}
