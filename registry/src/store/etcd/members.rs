//! The members of the cluster: the choice of a member, and the meaning of its errors.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, ResponseHeader};
use tonic::Code;

use super::link::Link;
use super::{EtcdCredentials, EtcdOptions};
use crate::causes::{chain, in_one_line};
use crate::store::{ClusterId, Head, RefusedCause, Revision, StoreError};

/// Whether a request may be retried at a second member after the first one failed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// It changes nothing, or is idempotent.
    Safe,
    /// Only if the first member certainly did not receive it.
    OnlyUnsent,
}

/// The failure of one request.
pub(super) enum Failure {
    /// The member failed; another one may succeed.
    Member { sent: bool, error: StoreError },
    /// The member did not answer the connection's keepalive: it hangs.
    Silent,
    /// Compacted, or over the client's decoding limit.
    OutOfRange { detail: String },
    /// The member does not know the client's token, or wants one. It has done nothing.
    SignedOut { detail: String },
    /// The cluster's answer; every member would give the same.
    Answer(StoreError),
}

impl Failure {
    pub(super) fn broken_stream() -> Self {
        Failure::Member {
            sent: true,
            error: StoreError::Unavailable {
                detail: "the member closed the stream".to_owned(),
            },
        }
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Member { error, .. } | Failure::Answer(error) => error,
            Failure::OutOfRange { detail } => StoreError::Unavailable { detail },
            Failure::SignedOut { detail } => StoreError::Refused {
                cause: RefusedCause::Forbidden,
                detail,
            },
            Failure::Silent => StoreError::Unavailable {
                detail: "the member does not answer the connection's keepalive".to_owned(),
            },
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Failure::Answer(error)
    }
}

impl From<etcd_client::Error> for Failure {
    fn from(error: etcd_client::Error) -> Self {
        let detail = in_one_line(&error);
        let etcd_client::Error::GRpcStatus(status) = error else {
            return Failure::Member {
                sent: true,
                error: StoreError::Unavailable { detail },
            };
        };
        match status.code() {
            Code::OutOfRange => Failure::OutOfRange { detail },
            _ if is_signed_out(status.message()) => Failure::SignedOut { detail },
            // Of etcd's objects only a lease can be missing here.
            Code::NotFound => Failure::Answer(StoreError::LeaseNotFound),
            Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::ResourceExhausted
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::DataLoss
            | Code::Unimplemented => Failure::Answer(StoreError::Refused {
                cause: refused_cause(status.code(), status.message()),
                detail,
            }),
            // Unavailable, and the codes of a broken connection: Unknown, Internal, Cancelled.
            _ if silent(&status) => Failure::Silent,
            _ if never_connected(&status) => Failure::Member {
                sent: false,
                error: StoreError::Unreachable { detail },
            },
            _ => Failure::Member {
                sent: true,
                error: StoreError::Unavailable { detail },
            },
        }
    }
}

/// The cause of a rejection. Codes alone are ambiguous: etcd has one code for a full store and for
/// too many requests.
pub(super) fn refused_cause(code: Code, message: &str) -> RefusedCause {
    // etcd's texts (api/v3/v3rpc/rpctypes/error.go). etcd's own clients match them too.
    let says = |text: &str| message.contains(text);
    match code {
        Code::DataLoss => RefusedCause::CorruptData,
        Code::PermissionDenied | Code::Unauthenticated => RefusedCause::Forbidden,
        _ if says("database space exceeded") => RefusedCause::Full,
        _ if says("too many requests") => RefusedCause::Busy,
        _ if says("corrupt cluster") => RefusedCause::CorruptData,
        _ if says("permission denied") || says("invalid user ID or password") => {
            RefusedCause::Forbidden
        }
        _ if is_signed_out(message) => RefusedCause::Forbidden,
        _ => RefusedCause::Other,
    }
}

/// Whether another token may help: the member forgot it, it ended, etcd's users or their rights
/// changed, or authentication was switched on. The texts are etcd's, as above.
fn is_signed_out(message: &str) -> bool {
    [
        "invalid auth token",
        "revision of auth store is old",
        "user name is empty",
    ]
    .iter()
    .any(|text| message.contains(text))
}

/// Whether the request failed because there was no connection to send it on.
fn never_connected(status: &tonic::Status) -> bool {
    chain(status).any(|error| error.is::<tonic::ConnectError>())
}

/// Whether the connection was closed because its keepalive was not answered.
fn silent(status: &tonic::Status) -> bool {
    let timed_out = |error: &hyper::Error| error.is_timeout();
    chain(status).any(|error| error.downcast_ref().is_some_and(timed_out))
}

/// One connection per member, and the preferred member.
pub(super) struct Members {
    pub(super) options: EtcdOptions,
    /// Of each endpoint.
    links: Vec<Mutex<Arc<Link>>>,
    /// The index of the member to try first. It moves on when that member fails and then stays:
    /// going back early would cost the time-out of a hung member again.
    preferred: AtomicUsize,
    /// The trusted cluster: the first one that answered, or the one that an operator accepted. Its
    /// id is in every answer, and answers of other clusters are rejected.
    cluster: Mutex<Option<ClusterId>>,
}

impl Members {
    pub(super) async fn new(options: EtcdOptions) -> Result<Self, StoreError> {
        let credentials = options.credentials.borrow().clone();
        let mut links = Vec::with_capacity(options.endpoints.len());
        for endpoint in &options.endpoints {
            let link = Link::new(endpoint, request_options(&options), &credentials).await?;
            links.push(Mutex::new(Arc::new(link)));
        }
        if links.is_empty() {
            return Err(StoreError::Invalid {
                reason: "etcd has no endpoint",
            });
        }
        Ok(Members {
            options,
            links,
            preferred: AtomicUsize::new(0),
            cluster: Mutex::new(None),
        })
    }

    /// All members, each once, in the order of preference.
    pub(super) fn order(&self) -> impl Iterator<Item = usize> + use<> {
        let count = self.links.len();
        let first = self.preferred.load(Ordering::Relaxed);
        (0..count).map(move |offset| (first + offset) % count)
    }

    /// Records that a member failed. Of several callers with the same failure only the first moves
    /// the preference.
    pub(super) fn abandon(&self, member: usize, error: &StoreError) {
        let next = (member + 1) % self.links.len();
        if next == member {
            // There is no other member, and the caller has the error.
            return;
        }
        let moved =
            self.preferred
                .compare_exchange(member, next, Ordering::Relaxed, Ordering::Relaxed);
        if moved.is_ok() {
            let endpoint = self.endpoint(member);
            tracing::warn!(endpoint, %error, "an etcd member failed; the next one is now preferred");
        }
    }

    fn endpoint(&self, member: usize) -> &str {
        self.options
            .endpoints
            .get(member)
            .map_or("", String::as_str)
    }

    /// A separate connection to a member, for a watch: behind a slow reader, a shared connection's
    /// flow-control window would fill and block all other streams. No HTTP/2 keepalive on it: see
    /// `watch.rs`.
    pub(super) async fn watch_client(&self, member: usize) -> Result<Client, Failure> {
        let credentials = self.options.credentials.borrow().clone();
        let options = connect_options(&self.options);
        let link = Link::new(self.endpoint(member), options, &credentials).await?;
        link.signed_in().await
    }

    /// The connection to a member; a new one where the credentials were renewed since.
    async fn link(&self, member: usize) -> Result<Arc<Link>, Failure> {
        let Some(slot) = self.links.get(member) else {
            return Err(Failure::broken_stream());
        };
        let lock = || slot.lock().unwrap_or_else(PoisonError::into_inner);
        let credentials: Arc<EtcdCredentials> = self.options.credentials.borrow().clone();
        let present = Arc::clone(&lock());
        if present.has(&credentials) {
            return Ok(present);
        }
        let options = request_options(&self.options);
        let renewed = Link::new(self.endpoint(member), options, &credentials).await?;
        let renewed = Arc::new(renewed);
        *lock() = Arc::clone(&renewed);
        Ok(renewed)
    }

    /// Sends a request to one member after the other until one answers, each within `after`. If
    /// none does, the error is that of the last member with a connection: it says more than a
    /// refused connection.
    pub(super) async fn call<T, R, F>(
        &self,
        after: Duration,
        repeat: Repeat,
        request: R,
    ) -> Result<T, Failure>
    where
        R: Fn(Client) -> F,
        F: Future<Output = Result<T, Failure>>,
    {
        let mut outcome: Result<T, Failure> = Err(Failure::broken_stream());
        let mut told = None;
        for member in self.order() {
            let answer = async { self.link(member).await?.call(&request).await };
            let answer = tokio::time::timeout(after, answer).await;
            outcome = match answer {
                // The keepalive may be quicker than the request's own time-out; both mean the same.
                Err(_) | Ok(Err(Failure::Silent)) => Err(Failure::Member {
                    sent: true,
                    error: StoreError::Timeout { after },
                }),
                Ok(outcome) => outcome,
            };
            let Err(Failure::Member { sent, error }) = &outcome else {
                return outcome;
            };
            self.abandon(member, error);
            if *sent {
                if repeat == Repeat::OnlyUnsent {
                    return outcome;
                }
                told = Some(outcome);
                outcome = Err(Failure::broken_stream());
            }
        }
        told.unwrap_or(outcome)
    }

    /// The revision in an answer's header, if it comes from the trusted cluster.
    pub(super) fn check_header(
        &self,
        header: Option<&ResponseHeader>,
    ) -> Result<Revision, StoreError> {
        let head = read_header(header)?;
        self.check_cluster(head.cluster)?;
        Ok(head.revision)
    }

    /// Checks that an answer comes from the trusted cluster.
    pub(super) fn check_cluster(&self, is: ClusterId) -> Result<(), StoreError> {
        let mut trusted = self.cluster.lock().unwrap_or_else(PoisonError::into_inner);
        let was = *trusted.get_or_insert(is);
        if was != is {
            return Err(StoreError::ClusterChanged { was, is });
        }
        Ok(())
    }

    pub(super) fn trust(&self, cluster: ClusterId) {
        let mut trusted = self.cluster.lock().unwrap_or_else(PoisonError::into_inner);
        *trusted = Some(cluster);
    }
}

/// The content of an answer's header, from any member.
pub(super) fn read_header(header: Option<&ResponseHeader>) -> Result<Head, StoreError> {
    let header = header.ok_or_else(|| StoreError::Unavailable {
        detail: "an answer of etcd has no header".to_owned(),
    })?;
    Ok(Head {
        cluster: ClusterId(header.cluster_id()),
        revision: Revision(header.revision()),
    })
}

fn connect_options(options: &EtcdOptions) -> ConnectOptions {
    // Without a leader a member would keep a watch open but silent, and answer no other request.
    ConnectOptions::new()
        .with_require_leader(true)
        .with_connect_timeout(options.connect_timeout)
}

fn request_options(options: &EtcdOptions) -> ConnectOptions {
    // Keepalive only while a request is open: etcd closes an idle connection that sends pings.
    connect_options(options)
        .with_keep_alive(options.keepalive_interval, options.keepalive_timeout)
        .with_keep_alive_while_idle(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_an_operator_has_to_do() {
        for (status, cause) in [
            (
                tonic::Status::resource_exhausted("etcdserver: mvcc: database space exceeded"),
                RefusedCause::Full,
            ),
            (
                tonic::Status::resource_exhausted("etcdserver: too many requests"),
                RefusedCause::Busy,
            ),
            (
                tonic::Status::data_loss("etcdserver: corrupt cluster"),
                RefusedCause::CorruptData,
            ),
            (
                tonic::Status::permission_denied("etcdserver: permission denied"),
                RefusedCause::Forbidden,
            ),
            (
                tonic::Status::unauthenticated("etcdserver: invalid auth token"),
                RefusedCause::Forbidden,
            ),
            (
                tonic::Status::invalid_argument("etcdserver: user name is empty"),
                RefusedCause::Forbidden,
            ),
            (
                tonic::Status::invalid_argument("etcdserver: request is too large"),
                RefusedCause::Other,
            ),
        ] {
            let told = status.to_string();
            let failure = Failure::from(etcd_client::Error::GRpcStatus(status));
            match StoreError::from(failure) {
                StoreError::Refused { cause: is, .. } => assert_eq!(is, cause, "{told}"),
                other => panic!("{told}: {other}"),
            }
        }
    }
}
