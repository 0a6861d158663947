//! Reads and writes.

/// Whether a request may change data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum Class {
    Read,
    Write,
}

impl Class {
    pub const ALL: [Class; 2] = [Class::Read, Class::Write];

    /// The name in headers and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Class::Read => "read",
            Class::Write => "write",
        }
    }

    /// The position in [`Class::ALL`].
    pub const fn index(self) -> usize {
        match self {
            Class::Read => 0,
            Class::Write => 1,
        }
    }

    /// The class of an HTTP method: GET, HEAD, OPTIONS and TRACE read (the safe methods of RFC
    /// 9110, 9.2.1); every other method, unknown ones included, writes.
    pub fn of_method(method: &[u8]) -> Class {
        match method {
            b"GET" | b"HEAD" | b"OPTIONS" | b"TRACE" => Class::Read,
            _ => Class::Write,
        }
    }
}
