//! Admitted writes that the filter ends by itself, where the host's routes may not: no write lives
//! longer than the fence waits for it.

use std::collections::VecDeque;

use policy::{Refusal, refusal::PROBLEM_JSON};

use crate::refusals::{Kept, RequestId};

/// One worker's admitted writes, in the order of their admission.
#[derive(Debug, Default)]
pub struct Deadlines(VecDeque<Admitted>);

#[derive(Clone, Copy, Debug)]
struct Admitted {
    request: RequestId,
    at_us: u64,
    grpc: bool,
}

impl Deadlines {
    pub const fn new() -> Deadlines {
        Deadlines(VecDeque::new())
    }

    /// A write was admitted then.
    pub fn admitted(&mut self, request: RequestId, at_us: u64, grpc: bool) {
        let write = Admitted {
            request,
            at_us,
            grpc,
        };
        self.0.push_back(write);
    }

    /// The request is over.
    pub fn forget(&mut self, request: RequestId) {
        self.0.retain(|write| write.request != request);
    }

    /// Takes the writes that have lived for `drain_us`, with the answer to each. Without a clock
    /// (`now_us` is none) that is all of them.
    pub fn due(&mut self, now_us: Option<u64>, drain_us: u64) -> Vec<(RequestId, Kept)> {
        let is_due = |write: &Admitted| {
            now_us.is_none_or(|now_us| now_us.saturating_sub(write.at_us) >= drain_us)
        };
        let mut due = Vec::new();
        while let Some(write) = self.0.pop_front_if(|write| is_due(write)) {
            due.push((write.request, answer(write.grpc)));
        }
        due
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn answer(grpc: bool) -> Kept {
    let refusal = Refusal::WRITE_TIMEOUT;
    let json = ("content-type".to_owned(), PROBLEM_JSON.to_owned());
    Kept {
        status: refusal.status,
        grpc_status: refusal.grpc_status,
        details: format!("tidegate_{}", refusal.reason.as_str()),
        headers: if grpc { vec![] } else { vec![json] },
        body: match grpc {
            true => refusal.detail.to_owned(),
            false => refusal.problem(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_due_once_they_have_lived_for_the_drain() {
        let mut deadlines = Deadlines::new();
        for (id, at_us) in [(1, 100), (2, 200), (3, 300)] {
            deadlines.admitted(RequestId(id), at_us, id == 2);
        }
        deadlines.forget(RequestId(1));
        assert!(deadlines.due(Some(1_199), 1_000).is_empty());
        let due = deadlines.due(Some(1_200), 1_000);
        let [(RequestId(2), answer)] = &due[..] else {
            panic!("{due:?}");
        };
        assert_eq!((answer.grpc_status, answer.headers.len()), (4, 0));
        let due = deadlines.due(None, 1_000);
        let [(RequestId(3), answer)] = &due[..] else {
            panic!("{due:?}");
        };
        assert_eq!((answer.status, answer.headers.len()), (408, 1));
        assert!(deadlines.is_empty());
    }
}
