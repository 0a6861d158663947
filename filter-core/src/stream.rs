//! A stream to a control plane that is opened again after it has failed: its life, without what
//! is said on it.

use policy::fence::HolderId;

/// The wait after a stream has failed. It doubles with each failure in a row.
const BACKOFF_MIN_US: u64 = 50_000;
const BACKOFF_MAX_US: u64 = 1_000_000;

/// A stream, as the proxy numbers it within one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token(pub u32);

/// A root context of the filter: there is a new one for each plugin configuration. A stream belongs
/// to the one that opened it, and dies with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContextId(pub u32);

/// An open stream, and on whose behalf it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stream {
    pub(crate) token: Token,
    pub(crate) context: ContextId,
    pub(crate) holder: HolderId,
}

/// The open stream, or the wait until the next one.
#[derive(Debug)]
pub(crate) struct Link {
    state: State,
    backoff_us: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Down { again_us: u64 },
    Up(Stream),
}

impl Default for Link {
    fn default() -> Link {
        Link {
            state: State::Down { again_us: 0 },
            backoff_us: BACKOFF_MIN_US,
        }
    }
}

impl Link {
    pub(crate) fn open(&self) -> Option<Stream> {
        match self.state {
            State::Up(stream) => Some(stream),
            State::Down { .. } => None,
        }
    }

    /// The root context that the open stream belongs to.
    pub(crate) fn owner(&self) -> Option<ContextId> {
        self.open().map(|stream| stream.context)
    }

    /// Whether this is the token of the open stream.
    pub(crate) fn owns(&self, token: Token) -> bool {
        self.open().is_some_and(|stream| stream.token == token)
    }

    /// Whether a stream is open on behalf of somebody else.
    pub(crate) fn is_of_another(&self, context: ContextId, holder: HolderId) -> bool {
        self.open()
            .is_some_and(|stream| (stream.context, stream.holder) != (context, holder))
    }

    /// Whether to open a stream now.
    pub(crate) fn is_due(&self, now_us: u64) -> bool {
        matches!(self.state, State::Down { again_us } if again_us <= now_us)
    }

    pub(crate) fn opened(&mut self, stream: Stream) {
        self.state = State::Up(stream);
    }

    /// The peer has answered sensibly: the next failure is the first in its row.
    pub(crate) fn works(&mut self) {
        self.backoff_us = BACKOFF_MIN_US;
    }

    /// The stream has ended without a failure: the next one is due at once.
    pub(crate) fn ended(&mut self) {
        self.state = State::Down { again_us: 0 };
    }

    pub(crate) fn failed(&mut self, now_us: u64) {
        let again_us = now_us.saturating_add(self.backoff_us);
        self.state = State::Down { again_us };
        self.backoff_us = self.backoff_us.saturating_mul(2).min(BACKOFF_MAX_US);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: Stream = Stream {
        token: Token(7),
        context: ContextId(1),
        holder: HolderId(1),
    };

    #[test]
    fn failures_in_a_row_wait_longer_until_the_peer_works() {
        let mut link = Link::default();
        assert!(link.is_due(0));
        let mut waits = vec![];
        for _ in 0..7 {
            link.failed(0);
            let wait = (0..).step_by(1_000).find(|at| link.is_due(*at));
            waits.extend(wait.map(|us| us / 1_000));
        }
        assert_eq!(waits, [50, 100, 200, 400, 800, 1_000, 1_000]);
        link.opened(STREAM);
        link.works();
        link.failed(0);
        assert!(!link.is_due(49_999) && link.is_due(50_000));
    }

    #[test]
    fn a_stream_belongs_to_its_context_and_its_process() {
        let mut link = Link::default();
        link.opened(STREAM);
        assert!(link.owns(Token(7)) && !link.owns(Token(8)));
        assert_eq!(link.owner(), Some(ContextId(1)));
        assert!(!link.is_of_another(STREAM.context, STREAM.holder));
        assert!(link.is_of_another(ContextId(2), STREAM.holder));
        assert!(link.is_of_another(STREAM.context, HolderId(2)));
        assert!(!link.is_due(u64::MAX));
        link.ended();
        assert!(link.is_due(0) && link.open().is_none());
    }
}
