//! HTTP for people, probes and rolling restarts.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use prometheus_client::registry::Registry;
use registry::record::{Health, Instance, InstanceKey};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::health::ProbeVerdict;
use crate::instances::Instances;
use crate::registrar::{Mode, Status, Target};

/// How long a drain waits for the registry before it answers that it is on its way.
const WRITTEN_WITHIN: Duration = Duration::from_secs(2);

/// The state of the handlers.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) zone: Arc<str>,
    pub(crate) instances: Instances,
    pub(crate) target: Arc<dyn Target>,
    pub(crate) status: watch::Receiver<Status>,
    pub(crate) metrics: Arc<Registry>,
}

impl Server {
    /// All routes.
    pub(crate) fn router(self) -> Router {
        Router::new()
            .route("/healthz", get(async || "alive\n"))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics))
            .route("/v1/instances", get(instances))
            .route(
                "/v1/drain/{service}/{instance}",
                post(drain).delete(undrain),
            )
            .with_state(self)
    }
}

/// Ready: every instance has a verdict, and the registry holds them all as they are.
async fn ready(State(server): State<Server>) -> (StatusCode, String) {
    let table = server.instances.snapshot();
    let status = server.status.borrow().clone();
    let unknown = table
        .values()
        .filter(|known| known.verdict.is_none())
        .count();
    let why = if status.mode == Mode::ProbeOnly {
        "writes to the registry time out: only probing".to_owned()
    } else if status.mode == Mode::Retrying {
        status.error.unwrap_or_default()
    } else if !status.has_lease {
        "no lease yet".to_owned()
    } else if unknown > 0 {
        format!("no verdict yet about {unknown} instances")
    } else if !table.keys().all(|key| status.registered.contains_key(key)) {
        "not everything is registered yet".to_owned()
    } else {
        return (StatusCode::OK, "ready\n".to_owned());
    };
    (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"))
}

async fn metrics(State(server): State<Server>) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &server.metrics) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[derive(Serialize)]
struct Listed {
    service: String,
    instance: String,
    /// `healthy` or `unhealthy`; none before the first verdict.
    verdict: Option<&'static str>,
    /// Why it became unhealthy.
    reason: Option<String>,
    draining: bool,
    /// The record that the registry acknowledged last.
    registered: Option<Instance>,
}

async fn instances(State(server): State<Server>) -> Json<Vec<Listed>> {
    let status = server.status.borrow().clone();
    let table = server.instances.snapshot().into_iter();
    let listed = table.map(|(key, known)| Listed {
        verdict: known.verdict.map(|verdict| match verdict {
            ProbeVerdict::Healthy => "healthy",
            ProbeVerdict::Unhealthy => "unhealthy",
        }),
        reason: known.reason,
        draining: known.draining,
        registered: status.registered.get(&key).cloned(),
        service: key.service,
        instance: key.instance,
    });
    Json(listed.collect())
}

#[derive(Serialize)]
struct Drained {
    draining: bool,
    /// The record in the registry now; none where it holds none of this instance.
    registered: Option<Health>,
    /// A warning for the operator.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

async fn drain(State(server): State<Server>, Path(path): Path<(String, String)>) -> Response {
    server.set_draining(path, true).await
}

async fn undrain(State(server): State<Server>, Path(path): Path<(String, String)>) -> Response {
    server.set_draining(path, false).await
}

impl Server {
    /// 200 once the registry holds it, 202 while it does not yet.
    async fn set_draining(self, (service, instance): (String, String), draining: bool) -> Response {
        let key = InstanceKey {
            service,
            zone: self.zone.to_string(),
            instance,
        };
        let warning = match draining {
            true => self.last_of_its_zone(&key).await,
            false => None,
        };
        let found = self
            .instances
            .update(&key, |known| known.draining = draining);
        if !found {
            let InstanceKey {
                service, instance, ..
            } = key;
            let text = format!("no instance {service}/{instance}: GET /v1/instances lists them\n");
            return (StatusCode::NOT_FOUND, text).into_response();
        }
        let mut status = self.status.clone();
        let written = timeout(
            WRITTEN_WITHIN,
            status.wait_for(|status| {
                let registered = status.registered.get(&key).map(|record| record.health);
                registered.map(|health| health == Health::Draining) == Some(draining)
            }),
        );
        let code = match written.await {
            Ok(Ok(_)) => StatusCode::OK,
            _ => StatusCode::ACCEPTED,
        };
        let registered = self
            .status
            .borrow()
            .registered
            .get(&key)
            .map(|record| record.health);
        let answer = Drained {
            draining,
            registered,
            warnings: warning.into_iter().collect(),
        };
        (code, Json(answer)).into_response()
    }

    /// A warning where the zone has no other healthy instance of the service, or that cannot be
    /// found out.
    async fn last_of_its_zone(&self, key: &InstanceKey) -> Option<String> {
        let InstanceKey {
            service,
            zone,
            instance,
        } = key;
        let healthy = self.target.healthy(service, zone);
        match timeout(WRITTEN_WITHIN, healthy).await {
            Ok(Ok(healthy)) if healthy.iter().any(|other| other != key) => None,
            Ok(Ok(_)) => Some(format!(
                "{zone} has no other healthy instance of {service}: until {instance} is back its requests go to other zones, and writes that may not are rejected"
            )),
            Ok(Err(_)) | Err(_) => Some(format!(
                "the registry does not say whether {zone} has another healthy instance of {service}"
            )),
        }
    }
}
