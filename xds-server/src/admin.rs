//! HTTP for people, probes, and instances that register.

mod cells;
mod conditions;
mod doors;
mod objections;
mod proxies;
mod zones;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, Query, State},
    http::{StatusCode, header},
    middleware::{from_fn, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use policy::{Class, Facts, Headers, Outcome, Plan, Policy, Presented, Rules};
use prometheus_client::registry::Registry;
use registry::record::{INSTANCES_PREFIX, Instance, InstanceKey};
use registry::store::{LeaseId, Store, StoreError};
use serde::{Deserialize, Serialize};

use crate::{
    access::Gate,
    ads::proxies::Proxies,
    applied::Applied,
    authority::Authorities,
    conditions::{Conditions, Kind, Summary},
    feed::Feed,
    mode::Mode,
    snapshot::{Role, View, ViewKey},
};

/// What the handlers work with.
#[derive(Clone)]
pub struct Admin {
    pub store: Arc<dyn Store>,
    pub mode: Mode,
    pub authorities: Authorities,
    pub feed: Feed,
    pub proxies: Proxies,
    pub applied: Applied,
    pub conditions: Conditions,
    pub metrics: Arc<Registry>,
    pub gate: Gate,
}

pub use doors::serve;

impl Admin {
    /// All routes, behind the doors of those whom they are for. What probes ask is open to everybody.
    pub fn router(self) -> Router {
        let shown = Router::new()
            .route("/metrics", get(metrics))
            .route("/v1/proxies", get(proxies::list))
            .route("/v1/views/{zone}", get(view))
            // It changes nothing.
            .route("/v1/explain", post(explain))
            .route("/v1/zones", get(zones::list))
            .route("/v1/intents", get(zones::intents))
            .route("/v1/cells", get(cells::list))
            .route("/v1/conditions", get(conditions::list))
            .route("/v1/operations", get(cells::operations))
            .route("/v1/instances", get(instances))
            .route_layer(from_fn_with_state(self.clone(), doors::readers));
        let operated = Router::new()
            .route(
                "/v1/intents/{zone}",
                put(zones::want).delete(zones::release),
            )
            .route("/v1/failback/{zone}", post(zones::fail_back))
            .route("/v1/cells/{cell}/move", post(cells::shift))
            .route("/v1/cells/{cell}/override", post(cells::force))
            .route("/v1/confirm", post(zones::confirm))
            .route_layer(from_fn_with_state(self.clone(), doors::operators));
        let registered = Router::new()
            .route(
                "/v1/instances/{service}/{zone}/{instance}",
                put(register).delete(deregister),
            )
            .route("/v1/leases", post(grant))
            .route("/v1/leases/{lease}", axum::routing::delete(revoke))
            .route("/v1/leases/{lease}/keepalive", post(keep_alive))
            .route_layer(from_fn_with_state(self.clone(), doors::registrars));
        Router::new()
            .route("/healthz", get(async || "alive\n"))
            .route("/readyz", get(ready))
            .merge(shown)
            .merge(operated)
            .merge(registered)
            .layer(from_fn(doors::receive))
            .with_state(self)
    }

    /// Whether the store is written to at present.
    fn writing(&self) -> Result<(), Problem> {
        match self.mode.writes_refused() {
            None => Ok(()),
            Some(detail) => Err(Problem {
                status: StatusCode::SERVICE_UNAVAILABLE,
                detail,
            }),
        }
    }

    /// Makes a write, and tells the mode what became of it.
    async fn write<T>(
        &self,
        write: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, Problem> {
        self.writing()?;
        let outcome = write.await;
        self.mode.wrote(&outcome);
        Ok(outcome?)
    }

    fn view(&self, zone: &str) -> Result<Arc<View>, Problem> {
        let snapshots = self.feed.snapshots.borrow();
        let snapshot = snapshots.as_ref().ok_or(Problem {
            status: StatusCode::SERVICE_UNAVAILABLE,
            detail: "the store has not been listed yet".to_owned(),
        })?;
        let key = ViewKey {
            zone: Arc::from(zone),
            role: Role::Gateway,
        };
        snapshot.view(&key).cloned().ok_or_else(|| {
            let known = snapshot.zones().collect::<Vec<_>>().join(", ");
            Problem::not_found(format!("no zone {zone:?}; these are configured: {known}"))
        })
    }
}

/// An error answer.
struct Problem {
    status: StatusCode,
    detail: String,
}

impl Problem {
    fn bad_request(detail: impl ToString) -> Problem {
        Problem {
            status: StatusCode::BAD_REQUEST,
            detail: detail.to_string(),
        }
    }

    fn conflict(detail: impl ToString) -> Problem {
        Problem {
            status: StatusCode::CONFLICT,
            detail: detail.to_string(),
        }
    }

    fn not_found(detail: impl ToString) -> Problem {
        Problem {
            status: StatusCode::NOT_FOUND,
            detail: detail.to_string(),
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Problem {
        let status = match error {
            StoreError::LeaseNotFound => StatusCode::NOT_FOUND,
            StoreError::TooManyOperations { .. }
            | StoreError::TooLarge { .. }
            | StoreError::Invalid { .. } => StatusCode::BAD_REQUEST,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Problem {
            status,
            detail: error.to_string(),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::json!({
            "title": self.status.canonical_reason(),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        let kind = [(header::CONTENT_TYPE, policy::refusal::PROBLEM_JSON)];
        (self.status, kind, body.to_string()).into_response()
    }
}

/// Whatever the content type says: who writes to these paths means JSON.
fn parse_json<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(Problem::bad_request)
}

const NOTHING_TO_SERVE: &str =
    "nothing to serve: the store has not been listed yet, and there is no last good state on disk";

#[derive(Serialize)]
struct Readiness {
    /// Whether there is something to serve, however old.
    ready: bool,
    mode: &'static str,
    /// How long it has been in that mode.
    since_s: u64,
    /// The store has not confirmed what is served.
    stale: bool,
    /// An operator has to confirm what the store says.
    confirm: bool,
    detail: String,
    /// The codes that hold, without details: this is open to everybody.
    conditions: Vec<Summary>,
}

async fn ready(State(admin): State<Admin>) -> (StatusCode, Json<Readiness>) {
    let nothing = admin.feed.snapshots.borrow().is_none();
    let status = admin.mode.status();
    let detail = match (nothing, status.reason.as_str()) {
        (false, reason) => reason.to_owned(),
        (true, "") => NOTHING_TO_SERVE.to_owned(),
        (true, reason) => format!("{NOTHING_TO_SERVE}; {reason}"),
    };
    let conditions = admin.conditions.summaries();
    let unready = |summary: &Summary| summary.code.kind() == Kind::NotReady;
    let ready = !nothing && !conditions.iter().any(unready);
    let code = match ready {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    let readiness = Readiness {
        ready,
        mode: status.level.as_str(),
        since_s: status.since.elapsed().as_secs(),
        stale: status.stale,
        confirm: status.confirm,
        detail,
        conditions,
    };
    (code, Json(readiness))
}

async fn metrics(State(admin): State<Admin>) -> Result<Response, Problem> {
    admin.mode.measure();
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &admin.metrics).map_err(|error| {
        Problem {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            detail: error.to_string(),
        }
    })?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

#[derive(Serialize)]
struct ViewSummary {
    zone: String,
    /// The number that filters report as a metric.
    policy_version: u64,
    /// The same as filters log it.
    policy_version_hex: String,
    services: BTreeMap<String, Vec<PlanSummary>>,
}

#[derive(Serialize)]
struct PlanSummary {
    home: String,
    class: &'static str,
    /// None where no zone can serve.
    tier: Option<&'static str>,
    reason: &'static str,
    /// By zone, in per mille.
    weights: BTreeMap<String, u32>,
    /// Per mille of the requests that are refused, since they fit nowhere.
    shed: u32,
}

async fn view(
    State(admin): State<Admin>,
    Path(zone): Path<String>,
) -> Result<Json<ViewSummary>, Problem> {
    let view = admin.view(&zone)?;
    let services = match &**view.policy() {
        Policy::Fallback => BTreeMap::new(),
        Policy::Serving(rules) => rules
            .services()
            .iter()
            .map(|service| (service.name.clone(), plan_summaries(rules, service)))
            .collect(),
    };
    Ok(Json(ViewSummary {
        zone,
        policy_version: view.policy_version(),
        policy_version_hex: format!("{:012x}", view.policy_version()),
        services,
    }))
}

fn plan_summaries(rules: &Rules, service: &policy::Service) -> Vec<PlanSummary> {
    let topology = rules.topology();
    let homes = topology
        .zones()
        .flat_map(|home| Class::ALL.map(|class| (home, class)));
    homes
        .map(|(home, class)| {
            let plan = service.plans.get(home, class);
            let tier = match plan {
                Plan::Open { tier, .. } => Some(*tier),
                Plan::Closed => None,
            };
            PlanSummary {
                home: topology.zone_name(home).to_owned(),
                class: class.as_str(),
                tier: tier.map(policy::Tier::as_str),
                reason: tier
                    .map_or(policy::Reason::NoCapacity, policy::Reason::of_tier)
                    .as_str(),
                weights: plan
                    .targets()
                    .iter()
                    .map(|t| (topology.zone_name(t.zone).to_owned(), t.weight))
                    .collect(),
                shed: plan.shed(),
            }
        })
        .collect()
}

/// A request to explain, as a proxy of `zone` would see it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExplainRequest {
    zone: String,
    #[serde(default = "get_method")]
    method: String,
    authority: String,
    path: String,
    /// By name, in lower case.
    #[serde(default)]
    headers: BTreeMap<String, String>,
}

fn get_method() -> String {
    "GET".to_owned()
}

impl Headers for ExplainRequest {
    fn get(&self, name: &str) -> Presented<'_> {
        let value = match name {
            ":method" => Some(&self.method),
            ":authority" => Some(&self.authority),
            ":path" => Some(&self.path),
            _ => self.headers.get(name),
        };
        value.map_or(Presented::Absent, |value| Presented::Once(value.as_bytes()))
    }
}

#[derive(Serialize)]
struct Explanation {
    reason: &'static str,
    class: &'static str,
    /// `route`, `refuse` or `pass`.
    outcome: &'static str,
    /// HTTP status of a refusal.
    status: Option<u16>,
    steps: Vec<String>,
}

async fn explain(State(admin): State<Admin>, body: Bytes) -> Result<Json<Explanation>, Problem> {
    let request: ExplainRequest = parse_json(&body)?;
    let view = admin.view(&request.zone)?;
    let mut facts = Facts::gather(view.policy(), &request);
    // As a proxy of that zone would hold a grant, if all is well.
    facts.granted = would_be_granted(view.policy(), &facts);
    let (decision, steps) = policy::explain(view.policy(), &facts);
    let (outcome, status) = match decision.outcome {
        Outcome::Pass => ("pass", None),
        Outcome::Route(_) => ("route", None),
        Outcome::Refuse(refusal) => ("refuse", Some(refusal.status)),
    };
    Ok(Json(Explanation {
        reason: decision.reason.as_str(),
        class: facts.class.as_str(),
        outcome,
        status,
        steps: steps.iter().map(ToString::to_string).collect(),
    }))
}

/// The epoch for which a proxy of the viewing zone may admit the write, as far as the control plane knows.
fn would_be_granted(policy: &Policy, facts: &Facts) -> Option<u64> {
    let Policy::Serving(rules) = policy else {
        return None;
    };
    let cell = rules.fencing()?.cell(facts.cell?)?;
    cell.owners.contains(&rules.viewer()).then_some(cell.epoch)
}

#[derive(Serialize)]
struct Listed {
    key: String,
    /// None where the record cannot be read.
    record: Option<Instance>,
    /// Why the record is not used.
    error: Option<String>,
}

async fn instances(State(admin): State<Admin>) -> Result<Json<Vec<Listed>>, Problem> {
    let listing = admin.store.list(INSTANCES_PREFIX).await?;
    let snapshot = admin.feed.snapshots.borrow().clone();
    let entries = listing.entries.into_iter().map(|entry| {
        let record = Instance::parse(&entry.value);
        let known = InstanceKey::parse(&entry.key).and_then(|at| {
            snapshot
                .as_ref()
                .map_or(Ok(()), |snapshot| snapshot.knows(&at))
        });
        let error = known.err().or_else(|| record.as_ref().err().cloned());
        Listed {
            key: entry.key,
            error: error.map(|error| error.to_string()),
            record: record.ok(),
        }
    });
    Ok(Json(entries.collect()))
}

#[derive(Deserialize)]
struct RegisterOptions {
    lease: Option<String>,
}

async fn register(
    State(admin): State<Admin>,
    Path((service, zone, instance)): Path<(String, String, String)>,
    Query(options): Query<RegisterOptions>,
    body: Bytes,
) -> Result<StatusCode, Problem> {
    let key = store_key(service, zone, instance)?;
    let record = Instance::parse(&body).map_err(Problem::bad_request)?;
    let lease = options.lease.as_deref().map(parse_lease).transpose()?;
    let put = admin.store.put(&key, record.to_json().into(), lease);
    admin.write(put).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn deregister(
    State(admin): State<Admin>,
    Path((service, zone, instance)): Path<(String, String, String)>,
) -> Result<StatusCode, Problem> {
    let key = store_key(service, zone, instance)?;
    admin.write(admin.store.delete(&key)).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn store_key(service: String, zone: String, instance: String) -> Result<String, Problem> {
    let key = InstanceKey {
        service,
        zone,
        instance,
    }
    .store_key();
    // Through the door that the feed uses: what is taken here is read there.
    InstanceKey::parse(&key).map_err(Problem::bad_request)?;
    Ok(key)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GrantRequest {
    ttl_s: u32,
}

#[derive(Serialize)]
struct Granted {
    lease: String,
    ttl_s: u32,
}

async fn grant(State(admin): State<Admin>, body: Bytes) -> Result<Json<Granted>, Problem> {
    let request: GrantRequest = parse_json(&body)?;
    if request.ttl_s == 0 {
        return Err(Problem::bad_request("ttl_s: at least 1"));
    }
    let ttl = Duration::from_secs(u64::from(request.ttl_s));
    let lease = admin.write(admin.store.lease_grant(ttl)).await?;
    Ok(Json(Granted {
        lease: format!("{:x}", lease.0),
        ttl_s: request.ttl_s,
    }))
}

async fn keep_alive(
    State(admin): State<Admin>,
    Path(lease): Path<String>,
) -> Result<StatusCode, Problem> {
    let lease = parse_lease(&lease)?;
    // Not written down by the store, so its outcome says nothing about writes.
    admin.writing()?;
    admin.store.lease_keep_alive(lease).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn revoke(
    State(admin): State<Admin>,
    Path(lease): Path<String>,
) -> Result<StatusCode, Problem> {
    let lease = parse_lease(&lease)?;
    admin.write(admin.store.lease_revoke(lease)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Leases are 64-bit numbers, which JSON readers round: they travel as hexadecimal text.
fn parse_lease(text: &str) -> Result<LeaseId, Problem> {
    i64::from_str_radix(text, 16)
        .ok()
        // 0 means no lease to a store.
        .filter(|lease| *lease > 0)
        .map(LeaseId)
        .ok_or_else(|| Problem::bad_request("lease: the text that POST /v1/leases gave"))
}
