//! The one door between reports of filters and the domain. Any bytes give a
//! report or an error.

use alloc::{string::String, vec::Vec};

use prost::Message;

use crate::{fence::NODE_BYTES_MAX, wire};

/// The most editions in one report: two are usual while one replaces another.
pub const EDITIONS_MAX: usize = 8;
/// The longest reason of a refusal, in bytes.
pub const REASON_BYTES_MAX: usize = 1_024;

/// The policies that the workers of one proxy have applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppliedReport {
    /// The proxy's name.
    pub node: String,
    /// No two of one version and generation.
    pub applied: Vec<Applied>,
    /// The policy that was rejected after all of these were applied.
    pub refused: Option<Refused>,
}

/// An edition of the policy, and how many threads of the proxy decide by it: its workers, and its
/// main thread, which keeps a copy of the filter as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    pub version: u64,
    pub generation: u64,
    pub threads: u32,
}

/// An edition that is no policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// 0 where it could not be read.
    pub version: u64,
    pub generation: u64,
    /// For people.
    pub message: String,
}

/// Why a message is no report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidReport {
    #[error("node: missing")]
    NoNode,
    #[error("node: longer than {NODE_BYTES_MAX} bytes")]
    Node,
    #[error("applied: {0} editions, where {EDITIONS_MAX} are possible")]
    Editions(usize),
    #[error("refused.message: longer than {REASON_BYTES_MAX} bytes")]
    Reason,
}

impl AppliedReport {
    /// The bytes of the report. A longer one is cut.
    pub fn encode(&self) -> Vec<u8> {
        let applied = self.applied.iter().take(EDITIONS_MAX);
        wire::AppliedReport {
            node: cut(&self.node, NODE_BYTES_MAX).into(),
            applied: applied
                .map(|edition| wire::AppliedEdition {
                    version: edition.version,
                    generation: edition.generation,
                    threads: edition.threads,
                })
                .collect(),
            refused: self.refused.as_ref().map(|refused| wire::RefusedEdition {
                version: refused.version,
                generation: refused.generation,
                message: cut(&refused.message, REASON_BYTES_MAX).into(),
            }),
        }
        .encode_to_vec()
    }
}

impl TryFrom<wire::AppliedReport> for AppliedReport {
    type Error = InvalidReport;

    fn try_from(report: wire::AppliedReport) -> Result<Self, InvalidReport> {
        if report.node.is_empty() {
            return Err(InvalidReport::NoNode);
        }
        if report.node.len() > NODE_BYTES_MAX {
            return Err(InvalidReport::Node);
        }
        if report.applied.len() > EDITIONS_MAX {
            return Err(InvalidReport::Editions(report.applied.len()));
        }
        let refused = report.refused.map(|refused| Refused {
            version: refused.version,
            generation: refused.generation,
            message: refused.message,
        });
        if (refused.as_ref()).is_some_and(|refused| refused.message.len() > REASON_BYTES_MAX) {
            return Err(InvalidReport::Reason);
        }
        let applied = report.applied.into_iter().map(|edition| Applied {
            version: edition.version,
            generation: edition.generation,
            threads: edition.threads,
        });
        Ok(AppliedReport {
            node: report.node,
            applied: applied.collect(),
            refused,
        })
    }
}

/// The version and generation of an edition that may be none, as far as they can be read; else 0.
pub fn edition_of(bytes: &[u8]) -> (u64, u64) {
    /// The beginning of `Policy`.
    #[derive(prost::Message)]
    struct Head {
        #[prost(uint64, tag = "1")]
        version: u64,
        #[prost(uint64, tag = "2")]
        generation: u64,
    }
    let head = Head::decode(bytes).unwrap_or_default();
    (head.version, head.generation)
}

/// The longest beginning of `text` that has at most `bytes_max` bytes.
pub fn cut(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}
