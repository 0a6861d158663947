//! The calls that a certificate of the guests' CA opens.

use axum::{
    extract::Request,
    middleware::{self, Next},
    response::Response,
};
use tonic::{Status, service::Routes};

use crate::net::{access::Caller, tls::Peer};

/// The calls of a guest's filter. Discovery and all other services are not among them.
const CALLS: [&str; 3] = [
    "/tidegate.v1.Guest/Follow",
    "/tidegate.v1.Fence/Hold",
    "/tidegate.v1.Status/Report",
];

/// The same services, of which guests reach their own calls alone.
pub fn confined(services: Routes) -> Routes {
    services
        .into_axum_router()
        .layer(middleware::from_fn(confine))
        .into()
}

async fn confine(request: Request, next: Next) -> Response {
    let caller = Peer::of(request.extensions());
    let path = request.uri().path();
    if matches!(caller, Caller::Guest(_)) && !CALLS.contains(&path) {
        let error = format!("{caller} may only call what guests call, which {path} is not");
        return Status::permission_denied(error).into_http();
    }
    next.run(request).await
}
