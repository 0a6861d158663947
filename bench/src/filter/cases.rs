//! The requests, and the filter chains of the variants.

use super::listeners::{Chain, End};

/// Another zone's name, so that the filter has to stamp a home.
const FOREIGN: &str = "shanghai-b";

/// The kind of request.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ask {
    /// The filter stamps the home.
    ForeignRead,
    /// The filter stamps the class.
    Write,
    /// The route switches the filter off.
    LocalRead,
    /// The filter runs, and has nothing to do.
    Elsewhere,
}

impl Ask {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Ask::ForeignRead => "read of another home",
            Ask::Write => "write (POST)",
            Ask::LocalRead => "plain local read",
            Ask::Elsewhere => "read of no service",
        }
    }

    pub(super) const fn path(self) -> &'static str {
        match self {
            Ask::Elsewhere => "/elsewhere",
            _ => "/orders",
        }
    }

    /// The cluster that every variant must choose.
    pub(super) const fn answer(self) -> &'static str {
        match self {
            Ask::ForeignRead => "orders/shanghai-b/reads",
            Ask::LocalRead => "orders/shanghai-a/reads",
            Ask::Write => "orders/shanghai-a/writes",
            Ask::Elsewhere => "elsewhere",
        }
    }

    pub(super) fn region(self) -> Option<&'static str> {
        (self == Ask::ForeignRead).then_some(FOREIGN)
    }
}

/// One request through several chains; the first is the baseline of the others.
pub(super) struct Group {
    pub(super) ask: Ask,
    pub(super) end: End,
    pub(super) chains: &'static [Chain],
}

pub(super) const GROUPS: [Group; 7] = [
    Group {
        ask: Ask::ForeignRead,
        end: End::Direct,
        chains: &[
            Chain::None,
            Chain::Strip,
            Chain::Noop,
            Chain::Lua,
            Chain::Ours,
            Chain::Guest,
            Chain::Native,
        ],
    },
    Group {
        ask: Ask::Write,
        end: End::Direct,
        chains: &[
            Chain::None,
            Chain::Lua,
            Chain::Ours,
            Chain::Guest,
            Chain::Native,
        ],
    },
    Group {
        ask: Ask::LocalRead,
        end: End::Direct,
        chains: &[Chain::None, Chain::Strip, Chain::Ours],
    },
    Group {
        ask: Ask::Elsewhere,
        end: End::Direct,
        chains: &[Chain::None, Chain::Ours, Chain::Guest, Chain::Native],
    },
    Group {
        ask: Ask::ForeignRead,
        end: End::Proxied,
        chains: &[
            Chain::None,
            Chain::Strip,
            Chain::Headers,
            Chain::Lua,
            Chain::Ours,
            Chain::Guest,
            Chain::Native,
        ],
    },
    Group {
        ask: Ask::Write,
        end: End::Proxied,
        chains: &[
            Chain::None,
            Chain::Lua,
            Chain::Ours,
            Chain::Guest,
            Chain::Native,
        ],
    },
    Group {
        ask: Ask::LocalRead,
        end: End::Proxied,
        chains: &[Chain::None, Chain::Strip, Chain::Ours],
    },
];
