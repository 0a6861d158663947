//! gRPC's standard health service, `grpc.health.v1.Health/Check`.
//!
//! Every look has a connection of its own, for the reason that `http.rs` gives.

use std::io;
use std::net::SocketAddr;

use async_trait::async_trait;
use registry::causes::in_one_line;
use tonic::Code;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::{Probe, ProbeError, cause};

/// The longest answer: a status is a few bytes.
const ANSWER_BYTES_MAX: usize = 4 * 1024;

/// The server of a probe, and the service in question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrpcOptions {
    pub address: SocketAddr,
    /// The service's full name; empty asks about the server as a whole.
    pub service: String,
}

/// Asks whether a service serves.
pub struct GrpcProbe {
    options: GrpcOptions,
}

impl GrpcProbe {
    pub fn new(options: GrpcOptions) -> GrpcProbe {
        GrpcProbe { options }
    }
}

#[async_trait]
impl Probe for GrpcProbe {
    fn kind(&self) -> &'static str {
        "grpc"
    }

    async fn look(&self) -> Result<(), ProbeError> {
        let bad_address =
            |error: tonic::transport::Error| ProbeError::Unreachable(in_one_line(&error));
        let endpoint = Endpoint::from_shared(format!("http://{}", self.options.address))
            .map_err(bad_address)?;
        let channel =
            endpoint
                .connect()
                .await
                .map_err(|error| match cause::<io::Error>(&error) {
                    Some(error) => ProbeError::connecting(error),
                    None => ProbeError::Unreachable(in_one_line(&error)),
                })?;
        let mut client = HealthClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
        let request = HealthCheckRequest {
            service: self.options.service.clone(),
        };
        let answer = client
            .check(request)
            .await
            .map_err(|status| self.refusal(&status))?;
        match answer.into_inner().status() {
            ServingStatus::Serving => Ok(()),
            other => Err(ProbeError::NotServing(other.as_str_name().to_owned())),
        }
    }
}

impl GrpcProbe {
    fn refusal(&self, status: &tonic::Status) -> ProbeError {
        match status.code() {
            Code::NotFound => ProbeError::NotServing(format!(
                "the health service does not know {:?}",
                self.options.service
            )),
            Code::Unimplemented => {
                ProbeError::NotServing("the server has no gRPC health service".to_owned())
            }
            _ => ProbeError::BadAnswer(in_one_line(status)),
        }
    }
}
