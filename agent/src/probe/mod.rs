//! Looks at an instance. [`Probe`] is the seam: the prober knows nothing else. A later kind is a
//! module here, a variant of [`ProbeKind`](crate::config::ProbeKind), a line in [`build`], and its
//! fields in `config/schema.rs` and `config/validate.rs`.

mod grpc;
mod http;
mod tcp;

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

pub use grpc::{GrpcOptions, GrpcProbe};
pub use http::{HttpOptions, HttpProbe};
pub use tcp::TcpProbe;

use registry::causes::chain;

use crate::config::ProbeKind;

/// A way to look at one instance.
#[async_trait]
pub trait Probe: Send + Sync + 'static {
    /// A short stable name, for metrics.
    fn kind(&self) -> &'static str;

    /// Looks once. It needs no deadline of its own: the prober drops the future when the time is
    /// over, so a kind cannot forget it. Dropping must end whatever the look began.
    async fn look(&self) -> Result<(), ProbeError>;
}

/// Why a probe failed. Operators read the text in the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    #[error("connection refused")]
    Refused,
    #[error("no answer within {} ms", after.as_millis())]
    Timeout { after: Duration },
    #[error("cannot connect: {0}")]
    Unreachable(String),
    /// The connection opened, and then broke or carried something else than the protocol.
    #[error("malformed answer: {0}")]
    BadAnswer(String),
    #[error("status {0}")]
    Status(u16),
    /// The instance answered that it does not serve.
    #[error("{0}")]
    NotServing(String),
}

impl ProbeError {
    /// A short stable name, for metrics.
    pub fn code(&self) -> &'static str {
        match self {
            ProbeError::Refused => "refused",
            ProbeError::Timeout { .. } => "timeout",
            ProbeError::Unreachable(_) => "unreachable",
            ProbeError::BadAnswer(_) => "bad_answer",
            ProbeError::Status(_) => "status",
            ProbeError::NotServing(_) => "not_serving",
        }
    }

    /// The meaning of an error while connecting.
    fn connecting(error: &io::Error) -> ProbeError {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => ProbeError::Refused,
            _ => ProbeError::Unreachable(error.to_string()),
        }
    }
}

/// The probe that the configuration names.
pub fn build(kind: &ProbeKind) -> Arc<dyn Probe> {
    match kind {
        ProbeKind::Http(options) => Arc::new(HttpProbe::new(options.clone())),
        ProbeKind::Grpc(options) => Arc::new(GrpcProbe::new(options.clone())),
        ProbeKind::Tcp(address) => Arc::new(TcpProbe::new(*address)),
    }
}

/// The first cause of this type, the error itself included.
fn cause<'e, T: Error + 'static>(error: &'e (dyn Error + 'static)) -> Option<&'e T> {
    chain(error).find_map(|error| error.downcast_ref())
}
