//! Refusals that wait for the request's body.
//!
//! A proxy that answers before it has read a whole request closes the client's HTTP/1.1 connection.
//! Where the body is small the answer waits until it is there, so that the connection can be used
//! again. The proxy keeps the body meanwhile, so the bodies that are waited for at a time are
//! bounded, and so is the wait; beyond that a refusal is given at once.

use crate::apply::Reply;

/// All bodies that one worker waits for, in bytes.
const BYTES_MAX: u64 = 16 * 1024 * 1024;
/// The longest time that a refusal waits.
const WAIT_MAX_US: u64 = 1_000_000;

/// A request, as the proxy numbers it within one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId(pub u32);

/// A refusal that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    pub status: u16,
    pub grpc_status: u8,
    pub details: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Kept {
    pub fn of(reply: &Reply<'_>) -> Kept {
        let text = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Kept {
            status: reply.status,
            grpc_status: reply.grpc_status,
            details: reply.details.to_owned(),
            headers: reply.headers.iter().map(text).collect(),
            body: reply.body.to_owned(),
        }
    }

    /// Gives it to the sender of answers.
    pub fn with<T>(&self, give: impl FnOnce(&Reply<'_>) -> T) -> T {
        let headers = self.headers.iter();
        let headers: Vec<(&str, &str)> = headers.map(|(n, v)| (n.as_str(), v.as_str())).collect();
        give(&Reply {
            status: self.status,
            grpc_status: self.grpc_status,
            details: &self.details,
            headers: &headers,
            body: &self.body,
            awaited_body: None,
        })
    }
}

#[derive(Clone, Debug)]
struct Waiting {
    request: RequestId,
    refusal: Kept,
    /// It is there when so many bytes of the request have come.
    complete_at: u64,
    body: u32,
    since_us: u64,
}

/// One worker's refusals that wait.
#[derive(Debug, Default)]
pub struct Refusals {
    waiting: Vec<Waiting>,
    bytes: u64,
}

impl Refusals {
    pub const fn new() -> Refusals {
        Refusals {
            waiting: Vec::new(),
            bytes: 0,
        }
    }

    /// Keeps a refusal of a request of which `came` bytes have come, its headers. False where it
    /// should be given at once.
    pub fn keep(&mut self, request: RequestId, reply: &Reply<'_>, came: u64, now_us: u64) -> bool {
        let Some(body) = reply.awaited_body else {
            return false;
        };
        let bytes = self.bytes.saturating_add(body.into());
        if bytes > BYTES_MAX {
            return false;
        }
        self.bytes = bytes;
        self.waiting.push(Waiting {
            request,
            refusal: Kept::of(reply),
            complete_at: came.saturating_add(body.into()),
            body,
            since_us: now_us,
        });
        true
    }

    /// Takes those that are due: the body is there, as `came` says of each request, or has been
    /// waited for long enough.
    pub fn due(
        &mut self,
        now_us: u64,
        mut came: impl FnMut(RequestId) -> Option<u64>,
    ) -> Vec<(RequestId, Kept)> {
        let mut due = Vec::new();
        self.take(|waiting| {
            let over = now_us.saturating_sub(waiting.since_us) >= WAIT_MAX_US;
            let take = over || came(waiting.request).is_none_or(|came| came >= waiting.complete_at);
            if take {
                due.push((waiting.request, waiting.refusal.clone()));
            }
            take
        });
        due
    }

    /// The request is over.
    pub fn forget(&mut self, request: RequestId) {
        self.take(|waiting| waiting.request == request);
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn take(&mut self, mut which: impl FnMut(&Waiting) -> bool) {
        let bytes = &mut self.bytes;
        self.waiting.retain(|waiting| {
            let taken = which(waiting);
            if taken {
                *bytes = bytes.saturating_sub(waiting.body.into());
            }
            !taken
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(awaited_body: Option<u32>) -> Reply<'static> {
        Reply {
            status: 421,
            grpc_status: 9,
            details: "tidegate_not_owner",
            headers: &[("x-tidegate-owner", "b")],
            body: "{}",
            awaited_body,
        }
    }

    #[test]
    fn a_refusal_is_due_when_the_body_is_there_or_the_wait_is_over() {
        let mut refusals = Refusals::new();
        let (one, two) = (RequestId(1), RequestId(2));
        assert!(refusals.keep(one, &reply(Some(100)), 300, 0));
        assert!(refusals.keep(two, &reply(Some(7)), 300, 5));
        assert!(
            !refusals.keep(RequestId(3), &reply(None), 300, 0),
            "nothing to wait for"
        );
        let came = |ones: u64| move |request| Some(if request == one { ones } else { 300 });
        assert_eq!(refusals.due(10, came(399)), []);
        let due = refusals.due(20, came(400));
        assert_eq!(due, [(one, Kept::of(&reply(None)))]);
        due[0].1.with(|given| assert_eq!(*given, reply(None)));
        assert_eq!(refusals.due(WAIT_MAX_US + 4, came(0)), []);
        assert_eq!(refusals.due(WAIT_MAX_US + 5, came(0)).len(), 1);
        assert!(refusals.is_empty());
        assert_eq!(refusals.bytes, 0);
    }

    #[test]
    fn waiting_refusals_are_bounded_and_answered_ones_are_forgotten() {
        let mut refusals = Refusals::new();
        let fit = (BYTES_MAX / 16_384) as u32;
        for request in 0..fit {
            assert!(refusals.keep(RequestId(request), &reply(Some(16_384)), 0, 0));
        }
        assert!(!refusals.keep(RequestId(fit), &reply(Some(1)), 0, 0));
        refusals.forget(RequestId(3));
        assert!(refusals.keep(RequestId(fit), &reply(Some(1)), 0, 0));
        // No refusal waits where the proxy does not tell how much has come.
        assert_eq!(refusals.due(0, |_| None).len(), fit as usize);
        assert_eq!(refusals.bytes, 0);
    }
}
