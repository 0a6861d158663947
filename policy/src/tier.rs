//! The distance of a zone from a request's home.

use core::fmt;

/// The distance of a zone from a request's home. Ordered: nearer is less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// The home zone itself.
    Zone,
    /// Another zone of the home's region.
    Region,
    /// A zone of another region: reads only.
    Remote,
}

impl Tier {
    pub const ALL: [Tier; 3] = [Tier::Zone, Tier::Region, Tier::Remote];

    /// The name in headers and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Tier::Zone => "zone",
            Tier::Region => "region",
            Tier::Remote => "remote",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
