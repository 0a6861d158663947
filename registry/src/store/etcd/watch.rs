//! A watch in etcd as a stream of whole revisions.
//!
//! etcd's behaviour, and its treatment here:
//! - etcd first sends `created` and then `canceled` for a watch that it rejects or whose start is
//!   compacted, never an error.
//! - A large answer arrives in fragments that may split a revision: the incomplete revision is held
//!   back until it is whole.
//! - A hung member is silent forever. HTTP/2 pings would detect it, but etcd closes a connection
//!   with more than one ping in 5 s while it sends nothing. So a silent watch sends progress
//!   requests instead. The answer only proves that the member is alive (a member without a leader
//!   answers too; `require_leader` ends that watch).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{
    EventType, WatchOptions, WatchRequestSender, WatchResponse, WatchResponseStream,
};
use futures::stream::{self, BoxStream, StreamExt};
use tokio::time::timeout;
use tonic::Code;

use super::members::{Failure, Members, refused_cause};
use super::{entry, utf8_key};
use crate::store::{Event, Revision, StoreError, WatchBatch, WatchError};

/// How long a member may be silent at first. It does not answer a progress request before a watch
/// from an old revision has caught up. That may take seconds if few events of a long history match.
const CATCH_UP_PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn watch(
    members: Arc<Members>,
    prefix: String,
    after: Revision,
) -> BoxStream<'static, Result<WatchBatch, WatchError>> {
    let watcher = Watcher {
        members,
        prefix,
        after,
        stage: Stage::Closed,
        batches: Batches::default(),
    };
    stream::unfold(watcher, |mut watcher| async move {
        let next = watcher.next().await?;
        Some((next, watcher))
    })
    .boxed()
}

struct Watcher {
    members: Arc<Members>,
    prefix: String,
    after: Revision,
    stage: Stage,
    batches: Batches,
}

enum Stage {
    Closed,
    Open(Box<Link>),
    Ended,
}

/// A watch at one member.
struct Link {
    member: usize,
    requests: WatchRequestSender,
    responses: WatchResponseStream,
    /// How long the member may be silent.
    patience: Duration,
}

impl Watcher {
    async fn next(&mut self) -> Option<Result<WatchBatch, WatchError>> {
        // Bounded: each turn waits for one message, with a deadline, or returns.
        loop {
            if let Some(batch) = self.batches.whole.pop_front() {
                return Some(Ok(batch));
            }
            let step = match &mut self.stage {
                Stage::Ended => return None,
                Stage::Closed => self.open().await,
                Stage::Open(link) => match link.receive(&self.members).await {
                    Ok(response) => self.take(&response),
                    Err(error) => {
                        self.members.abandon(link.member, &error);
                        Err(error.into())
                    }
                },
            };
            if let Err(error) = step {
                self.stage = Stage::Ended;
                return Some(Err(error));
            }
        }
    }

    /// Opens the watch at the first member that accepts it.
    async fn open(&mut self) -> Result<(), WatchError> {
        let after = self.members.options.request_timeout;
        let mut last = StoreError::Timeout { after };
        for member in self.members.order() {
            let opened = timeout(after, self.open_at(member)).await;
            match opened.unwrap_or(Err(Failure::Member {
                sent: true,
                error: StoreError::Timeout { after },
            })) {
                Ok((link, created)) => {
                    self.stage = Stage::Open(Box::new(link));
                    return self.take(&created);
                }
                Err(Failure::Member { error, .. }) => {
                    self.members.abandon(member, &error);
                    last = error;
                }
                Err(answer) => return Err(WatchError::Disconnected(answer.into())),
            }
        }
        Err(last.into())
    }

    async fn open_at(&self, member: usize) -> Result<(Link, WatchResponse), Failure> {
        let options = WatchOptions::new()
            .with_prefix()
            .with_start_revision(self.after.0 + 1)
            .with_fragment();
        let mut client = self.members.watch_client(member).await?;
        let opened = client.watch(self.prefix.as_str(), Some(options)).await?;
        let (mut requests, mut responses) = opened.split();
        let created = responses.message().await?;
        // A member that need not catch up answers at once, and the short patience applies from then
        // on.
        requests.request_progress().await?;
        let link = Link {
            member,
            requests,
            responses,
            patience: CATCH_UP_PATIENCE.max(self.members.options.keepalive_timeout),
        };
        Ok((link, created.ok_or_else(Failure::broken_stream)?))
    }

    fn take(&mut self, response: &WatchResponse) -> Result<(), WatchError> {
        self.members.check_header(response.header())?;
        if response.canceled() {
            return Err(match response.compact_revision() {
                0 => WatchError::Disconnected(StoreError::Refused {
                    cause: refused_cause(Code::Unknown, response.cancel_reason()),
                    detail: response.cancel_reason().to_owned(),
                }),
                compacted => WatchError::Compacted {
                    compacted: Revision(compacted),
                },
            });
        }
        for event in response.events() {
            let Some(kv) = event.kv() else { continue };
            let event = match event.event_type() {
                EventType::Put => entry(kv.clone()).map(Event::Put),
                EventType::Delete => utf8_key(kv.key().to_vec()).map(|key| Event::Delete {
                    key,
                    revision: Revision(kv.mod_revision()),
                }),
            };
            event.into_iter().for_each(|event| self.batches.push(event));
        }
        if !response.0.fragment {
            self.batches.finish();
        }
        Ok(())
    }
}

impl Link {
    /// The next message of any kind, or an error if the member is silent for too long.
    async fn receive(&mut self, members: &Members) -> Result<WatchResponse, StoreError> {
        let interval = members.options.keepalive_interval;
        let message = match timeout(interval, self.responses.message()).await {
            Ok(message) => message,
            Err(_) => {
                let asked = self.requests.request_progress().await;
                asked.map_err(Failure::from)?;
                let silent = |_| StoreError::Timeout {
                    after: interval + self.patience,
                };
                let message = timeout(self.patience, self.responses.message()).await;
                message.map_err(silent)?
            }
        };
        let message = message.map_err(Failure::from)?;
        // It has answered, so it has caught up.
        self.patience = members.options.keepalive_timeout;
        message.ok_or_else(|| Failure::broken_stream().into())
    }
}

/// Events grouped by revision. Bounded: one message of etcd, and one revision that it may have
/// split.
#[derive(Default)]
struct Batches {
    whole: VecDeque<WatchBatch>,
    /// The newest revision, which may be incomplete.
    growing: Option<WatchBatch>,
}

impl Batches {
    fn push(&mut self, event: Event) {
        let revision = event.revision();
        match &mut self.growing {
            Some(batch) if batch.revision == revision => batch.events.push(event),
            _ => {
                self.finish();
                self.growing = Some(WatchBatch {
                    revision,
                    events: vec![event],
                });
            }
        }
    }

    fn finish(&mut self) {
        self.whole.extend(self.growing.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delete(key: &str, revision: i64) -> Event {
        Event::Delete {
            key: key.to_owned(),
            revision: Revision(revision),
        }
    }

    #[test]
    fn a_revision_cut_by_a_fragment_stays_whole() {
        let mut batches = Batches::default();
        batches.push(delete("a", 1));
        batches.push(delete("b", 2));
        let revisions = |batches: &Batches| -> Vec<(i64, usize)> {
            let whole = batches.whole.iter();
            whole.map(|b| (b.revision.0, b.events.len())).collect()
        };
        assert_eq!(revisions(&batches), [(1, 1)]);
        batches.push(delete("c", 2));
        batches.finish();
        assert_eq!(revisions(&batches), [(1, 1), (2, 2)]);
    }
}
