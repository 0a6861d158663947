//! The members of the cluster: which of them is asked, and what an error of one means.

use std::error::Error as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, ResponseHeader};
use tonic::Code;

use super::EtcdOptions;
use crate::store::{ClusterId, Head, RefusedCause, Revision, StoreError};

/// Whether a request may be sent to a second member when the first one failed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// It changes nothing, or making it twice does no harm.
    Safe,
    /// Only if the first member surely never saw it.
    OnlyUnsent,
}

/// The failure of one request.
pub(super) enum Failure {
    /// The member is at fault, another one may do better.
    Member { sent: bool, error: StoreError },
    /// The member did not answer the connection's keepalive: it hangs.
    Silent,
    /// Compacted, or more than a client decodes.
    OutOfRange { detail: String },
    /// The cluster's answer; every member would give it.
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
        let detail = error.to_string();
        let etcd_client::Error::GRpcStatus(status) = error else {
            return Failure::Member {
                sent: true,
                error: StoreError::Unavailable { detail },
            };
        };
        match status.code() {
            Code::OutOfRange => Failure::OutOfRange { detail },
            // The only thing that etcd's keys and leases can miss.
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
            // Unavailable, and whatever a broken connection looks like: Unknown, Internal,
            // Cancelled.
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

/// The cause of a refusal. Codes alone do not tell: etcd gives one code for a full store and for
/// too many requests.
pub(super) fn refused_cause(code: Code, message: &str) -> RefusedCause {
    // etcd's texts (api/v3/v3rpc/rpctypes/error.go), by which its own clients tell errors apart,
    // too.
    let says = |text: &str| message.contains(text);
    match code {
        Code::DataLoss => RefusedCause::CorruptData,
        Code::PermissionDenied | Code::Unauthenticated => RefusedCause::Forbidden,
        _ if says("database space exceeded") => RefusedCause::Full,
        _ if says("too many requests") => RefusedCause::Busy,
        _ if says("corrupt cluster") => RefusedCause::CorruptData,
        _ if says("permission denied") || says("invalid auth token") => RefusedCause::Forbidden,
        _ if says("user name is empty") || says("invalid user ID or password") => {
            RefusedCause::Forbidden
        }
        _ => RefusedCause::Other,
    }
}

/// Whether the request failed because there was no connection to send it on.
fn never_connected(status: &tonic::Status) -> bool {
    causes(status).any(|error| error.is::<tonic::ConnectError>())
}

/// Whether the connection was given up because its keepalive was not answered.
fn silent(status: &tonic::Status) -> bool {
    let timed_out = |error: &hyper::Error| error.is_timeout();
    causes(status).any(|error| error.downcast_ref().is_some_and(timed_out))
}

fn causes(status: &tonic::Status) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(status.source(), |error| (*error).source())
}

/// One client per member, and the memory of which one is good.
pub(super) struct Members {
    pub(super) options: EtcdOptions,
    clients: Vec<Client>,
    /// Index of the member to ask first. It moves on when that one fails and stays where it works:
    /// going back early would pay the time-out of a hung member again.
    preferred: AtomicUsize,
    /// The cluster that is trusted: the one that answered first, or that an operator accepted. Its
    /// id is in every answer, and no answer of another one is believed.
    cluster: Mutex<Option<ClusterId>>,
}

impl Members {
    pub(super) async fn new(options: EtcdOptions) -> Result<Self, StoreError> {
        // Keepalive only while a request is open: etcd allows an idle connection no pings at all,
        // and would close it.
        let connect = connect_options(&options)
            .with_keep_alive(options.keepalive_interval, options.keepalive_timeout)
            .with_keep_alive_while_idle(false);
        let mut clients = Vec::with_capacity(options.endpoints.len());
        for endpoint in &options.endpoints {
            clients.push(client(endpoint, connect.clone()).await?);
        }
        if clients.is_empty() {
            return Err(StoreError::Invalid {
                reason: "etcd has no endpoint",
            });
        }
        Ok(Members {
            options,
            clients,
            preferred: AtomicUsize::new(0),
            cluster: Mutex::new(None),
        })
    }

    /// The members in the order to ask them, each once.
    pub(super) fn order(&self) -> impl Iterator<Item = usize> + use<> {
        let count = self.clients.len();
        let first = self.preferred.load(Ordering::Relaxed);
        (0..count).map(move |offset| (first + offset) % count)
    }

    /// Notes that a member failed. Of several callers that saw the same failure only the first
    /// moves the preference.
    pub(super) fn abandon(&self, member: usize, error: &StoreError) {
        let next = (member + 1) % self.clients.len();
        if next == member {
            // There is no other; the caller has the error.
            return;
        }
        let moved =
            self.preferred
                .compare_exchange(member, next, Ordering::Relaxed, Ordering::Relaxed);
        if moved.is_ok() {
            let endpoint = self.endpoint(member);
            tracing::warn!(endpoint, %error, "an etcd member failed; the next one is asked first");
        }
    }

    fn endpoint(&self, member: usize) -> &str {
        self.options
            .endpoints
            .get(member)
            .map_or("", String::as_str)
    }

    /// A connection of its own to a member, for a watch: behind a reader that is slow, a shared
    /// connection's flow-control window would fill and hold up everything else. No HTTP/2 keepalive
    /// on it: see `watch.rs`.
    pub(super) async fn watch_client(&self, member: usize) -> Result<Client, StoreError> {
        client(self.endpoint(member), connect_options(&self.options)).await
    }

    /// Makes a request of one member after the other until one answers, each within `after`. Where
    /// none does, the error is that of the last one that was connected to: it says more than a
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
            let Some(client) = self.clients.get(member) else {
                break;
            };
            let answer = tokio::time::timeout(after, request(client.clone())).await;
            outcome = match answer {
                // The keepalive may be quicker than the request's own time-out; it is the same
                // finding.
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

    /// The revision in an answer's header, if it comes from the cluster that has answered before.
    pub(super) fn check_header(
        &self,
        header: Option<&ResponseHeader>,
    ) -> Result<Revision, StoreError> {
        let head = read_header(header)?;
        self.check_cluster(head.cluster)?;
        Ok(head.revision)
    }

    /// Whether an answer of this cluster may be believed.
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
    // A member without a leader would keep a watch open and silent, and answer nothing else.
    ConnectOptions::new()
        .with_require_leader(true)
        .with_connect_timeout(options.connect_timeout)
}

/// Does not wait for the connection: it is made by the first request.
async fn client(endpoint: &str, options: ConnectOptions) -> Result<Client, StoreError> {
    Client::connect([endpoint], Some(options))
        .await
        .map_err(|error| {
            tracing::error!(endpoint, %error, "not the address of an etcd member");
            StoreError::Invalid {
                reason: "an etcd endpoint is not of the form http://host:port",
            }
        })
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
