//! The tonic service that receives reports.

use protos::{status::AppliedReport, wire};
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use tracing::debug;

use super::Applied;
use crate::generated::status_server::{Status as StatusService, StatusServer};

/// The longest report, in bytes.
const MESSAGE_BYTES_MAX: usize = 4 * 1024;

/// The service for a tonic server.
pub fn service(applied: Applied) -> StatusServer<Applied> {
    StatusServer::new(applied).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

#[tonic::async_trait]
impl StatusService for Applied {
    async fn report(
        &self,
        request: Request<wire::AppliedReport>,
    ) -> Result<Response<wire::Noted>, Status> {
        let report = AppliedReport::try_from(request.into_inner())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        debug!(node = report.node, applied = ?report.applied, refused = ?report.refused, "reported");
        self.note(report, Instant::now())
            .map_err(|full| Status::resource_exhausted(full.to_string()))?;
        Ok(Response::new(wire::Noted {}))
    }
}
