//! The HTTP port for operators, probes, and the registration of instances.

mod authorize;
mod cells;
mod conditions;
mod guests;
mod instances;
mod istio_objects;
mod leases;
mod module;
mod objections;
mod proxies;
mod terms;
mod zones;

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, State},
    http::{StatusCode, header},
    middleware::{from_fn, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{delete, get, post, put},
};
use policy::{Class, Facts, Headers, Outcome, Plan, Policy, Presented, Reason, Rules, hop::Signer};
use prometheus_client::registry::Registry;
use registry::store::{Store, StoreError};
use serde::{Deserialize, Serialize};

use crate::{
    access_rules::AccessRules,
    applied::Applied,
    authority::{Agreements, Authorities},
    conditions::{Kind, Summary, report::ConfigReport},
    discovery::proxies::Proxies,
    feed::Feed,
    guests::Guests,
    istio,
    metrics::Metrics,
    snapshot::{Role, View, ViewKey},
    store_health::StoreHealth,
};

/// The state of the handlers.
#[derive(Clone)]
pub struct Admin {
    pub store: Arc<dyn Store>,
    pub store_health: StoreHealth,
    pub authorities: Authorities,
    pub agreements: Agreements,
    pub feed: Feed,
    pub proxies: Proxies,
    pub guests: Guests,
    pub applied: Applied,
    pub counts: Metrics,
    /// The same metrics, as `/metrics` shows them.
    pub metrics: Arc<Registry>,
    pub rules: AccessRules,
    pub istio: istio::Objects,
    /// The filter that is served to all; none: no filter is.
    pub filter: Option<FilterModule>,
    /// The owners of recently used leases.
    pub owners: LeaseOwners,
}

pub(crate) use authorize::guarded;
pub use authorize::serve;
pub use leases::LeaseOwners;
pub use module::{FilterModule, FilterModuleError};

impl Admin {
    /// All routes, each with the access check of its readers or operators. The routes of probes, and
    /// those of the filter, are open to all clients.
    pub fn router(self) -> Router {
        let shown = Router::new()
            .route("/metrics", get(metrics))
            .route("/v1/proxies", get(proxies::list))
            .route("/v1/views/{zone}", get(view))
            // Changes nothing, despite its method.
            .route("/v1/explain", post(explain))
            .route("/v1/zones", get(zones::list))
            .route("/v1/intents", get(zones::intents))
            .route("/v1/cells", get(cells::list))
            .route("/v1/terms", get(terms::show))
            .route("/v1/conditions", get(conditions::list))
            .route("/v1/status", get(conditions::status))
            .route("/v1/operations", get(cells::operations))
            .route("/v1/instances", get(instances::list))
            .route("/v1/istio/objects", get(istio_objects::list))
            .route_layer(from_fn_with_state(self.clone(), authorize::readers));
        let operated = Router::new()
            .route(
                "/v1/intents/{zone}",
                put(zones::want).delete(zones::release),
            )
            .route("/v1/failback/{zone}", post(zones::fail_back))
            .route("/v1/cells/{cell}/move", post(cells::shift))
            .route("/v1/terms/change", post(terms::change))
            .route("/v1/terms/next", delete(terms::cancel))
            .route("/v1/cells/{cell}/override", post(cells::force))
            .route("/v1/confirm", post(zones::confirm))
            .route("/v1/guests/forget", post(guests::forget))
            .route_layer(from_fn_with_state(self.clone(), authorize::operators));
        let registered = Router::new()
            .route(
                "/v1/instances/{service}/{zone}/{instance}",
                put(instances::register).delete(instances::deregister),
            )
            .route("/v1/leases", post(leases::grant))
            .route("/v1/leases/{lease}", delete(leases::revoke))
            .route("/v1/leases/{lease}/keepalive", post(leases::keep_alive))
            .route_layer(from_fn_with_state(self.clone(), authorize::registrars));
        Router::new()
            .route("/healthz", get(async || "alive\n"))
            .route("/readyz", get(ready))
            .route("/filter.wasm", get(module::module))
            .route("/filter.wasm.sha256", get(module::checksum))
            .merge(shown)
            .merge(operated)
            .merge(registered)
            .layer(from_fn(authorize::receive))
            .layer(from_fn(authorize::own_pages))
            .with_state(self)
    }

    /// Whether writes to the store are allowed at present.
    fn writing(&self) -> Result<(), Problem> {
        match self.store_health.writes_refused() {
            None => Ok(()),
            Some(detail) => Err(Problem::unavailable(detail)),
        }
    }

    /// Writes, and reports the outcome to the store's health.
    async fn write<T>(
        &self,
        write: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, Problem> {
        self.writing()?;
        let begun = tokio::time::Instant::now();
        let outcome = write.await;
        self.store_health.wrote_in(&outcome, begun.elapsed());
        outcome.map_err(Problem::of_write)
    }

    /// Whether there is a state to serve, and no condition forbids to serve it.
    fn is_ready(&self) -> bool {
        let summaries = self.counts.conditions.summaries();
        let unready = |summary: &Summary| summary.code.kind() == Kind::NotReady;
        self.feed.snapshots.borrow().is_some() && !summaries.iter().any(unready)
    }

    fn view(&self, zone: &str) -> Result<Arc<View>, Problem> {
        let snapshots = self.feed.snapshots.borrow();
        let unlisted = || Problem::unavailable("the store has not been listed yet");
        let snapshot = snapshots.as_ref().ok_or_else(unlisted)?;
        let key = ViewKey {
            zone: Arc::from(zone),
            role: Role::Gateway,
        };
        snapshot.view(&key).cloned().ok_or_else(|| {
            let known = snapshot.zones().collect::<Vec<_>>().join(", ");
            Problem::not_found(format!(
                "zone {zone:?} is not configured; configured zones: {known}"
            ))
        })
    }
}

/// An error response.
struct Problem {
    status: StatusCode,
    detail: String,
    /// A short stable name, if programs have to distinguish problems with one status.
    reason: Option<&'static str>,
}

impl Problem {
    fn new(status: StatusCode, detail: impl ToString) -> Problem {
        Problem {
            status,
            detail: detail.to_string(),
            reason: None,
        }
    }

    fn bad_request(detail: impl ToString) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, detail)
    }

    fn conflict(detail: impl ToString) -> Problem {
        Problem::new(StatusCode::CONFLICT, detail)
    }

    fn not_found(detail: impl ToString) -> Problem {
        Problem::new(StatusCode::NOT_FOUND, detail)
    }

    fn unavailable(detail: impl ToString) -> Problem {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail)
    }

    fn because(self, reason: &'static str) -> Problem {
        Problem {
            reason: Some(reason),
            ..self
        }
    }
}

impl Problem {
    /// Why a write failed. If the outcome is unknown, the status expresses that.
    fn of_write(error: StoreError) -> Problem {
        match error {
            StoreError::Timeout { .. } | StoreError::Unavailable { .. } => Problem {
                status: StatusCode::GATEWAY_TIMEOUT,
                reason: None,
                detail: format!("{error}; whether it took effect is unknown"),
            },
            error => error.into(),
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Problem {
        let status = match error {
            StoreError::LeaseNotFound => {
                return Problem::not_found(error).because(leases::NOT_FOUND);
            }
            StoreError::TooManyOperations { .. }
            | StoreError::TooLarge { .. }
            | StoreError::Invalid { .. } => StatusCode::BAD_REQUEST,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Problem::new(status, error)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut body = serde_json::json!({
            "title": self.status.canonical_reason(),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        if let Some(reason) = self.reason {
            body["reason"] = reason.into();
        }
        let kind = [(header::CONTENT_TYPE, policy::refusal::PROBLEM_JSON)];
        (self.status, kind, body.to_string()).into_response()
    }
}

fn parse_json<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(Problem::bad_request)
}

/// How many names a message lists.
const NAMES_MAX: usize = 20;

/// The names, shortened if there are many.
fn some_of<'n>(names: impl Iterator<Item = &'n str> + Clone) -> String {
    let more = names.clone().count().saturating_sub(NAMES_MAX);
    let shown: Vec<&str> = names.take(NAMES_MAX).collect();
    match more {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

const NOTHING_TO_SERVE: &str =
    "nothing to serve: the store has not been listed yet, and there is no last good state on disk";

#[derive(Serialize)]
struct Readiness {
    /// Whether there is a state to serve, however old.
    ready: bool,
    mode: &'static str,
    /// How long this mode has lasted.
    since_s: u64,
    /// The store has not confirmed the served state.
    stale: bool,
    /// An operator has to confirm the store's state.
    confirm: bool,
    detail: String,
    /// The configuration in force.
    config: ConfigReport,
    /// The codes that hold, without details: this endpoint is open to all clients.
    conditions: Vec<Summary>,
}

async fn ready(State(admin): State<Admin>) -> (StatusCode, Json<Readiness>) {
    let nothing = admin.feed.snapshots.borrow().is_none();
    let status = admin.store_health.status();
    let detail = match (nothing, status.reason.as_str()) {
        (false, reason) => reason.to_owned(),
        (true, "") => NOTHING_TO_SERVE.to_owned(),
        (true, reason) => format!("{NOTHING_TO_SERVE}; {reason}"),
    };
    let ready = admin.is_ready();
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
        config: admin.config(),
        conditions: admin.counts.conditions.summaries(),
    };
    (code, Json(readiness))
}

async fn metrics(State(admin): State<Admin>) -> Result<Response, Problem> {
    admin.store_health.measure();
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &admin.metrics)
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

#[derive(Serialize)]
struct ViewSummary {
    zone: String,
    /// The number that filters report as a metric.
    policy_version: u64,
    /// The same number in the format of the filters' log.
    policy_version_hex: String,
    services: BTreeMap<String, Vec<PlanSummary>>,
}

#[derive(Serialize)]
struct PlanSummary {
    home: String,
    class: &'static str,
    /// None if no zone can serve.
    tier: Option<&'static str>,
    reason: &'static str,
    /// By zone, in per mille.
    weights: BTreeMap<String, u32>,
    /// Per mille of the requests that are rejected because they exceed the capacity.
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
                Plan::Closed { .. } => None,
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

/// A request to explain, as a proxy of `zone` would receive it.
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
    /// The HTTP status of a rejection.
    status: Option<u16>,
    steps: Vec<String>,
}

async fn explain(State(admin): State<Admin>, body: Bytes) -> Result<Json<Explanation>, Problem> {
    let mut request: ExplainRequest = parse_json(&body)?;
    request.authority = without_final_dot(&request.authority);
    let view = admin.view(&request.zone)?;
    let mut facts = Facts::gather(view.policy(), &request);
    // A healthy proxy of that zone would hold a grant.
    facts.granted = would_be_granted(view.policy(), &facts);
    facts.signer = would_sign(view.policy());
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
        steps: (steps.iter().map(ToString::to_string))
            .chain(admin.causes(view.policy(), &facts, decision.reason))
            .collect(),
    }))
}

/// Removes a dot at the end of the host, before its port, as listeners do
/// (`strip_trailing_host_dot`).
fn without_final_dot(authority: &str) -> String {
    let (host, port) = match authority.rfind([':', ']']) {
        Some(at) if authority[at..].starts_with(':') => authority.split_at(at),
        _ => (authority, ""),
    };
    format!("{}{port}", host.strip_suffix('.').unwrap_or(host))
}

impl Admin {
    /// Why no zone accepts a request: the state of its service in each zone.
    fn causes(&self, policy: &Policy, facts: &Facts, reason: Reason) -> Vec<String> {
        let (Policy::Serving(rules), Some(service), Reason::NoCapacity) =
            (policy, facts.service, reason)
        else {
            return Vec::new();
        };
        let Some(service) = rules.service(service) else {
            return Vec::new();
        };
        let overview = self.feed.overviews.borrow();
        let of_service = (overview.statuses.iter())
            .filter(|((name, _), _)| **name == *service.name)
            .map(|((_, zone), status)| {
                let why = status.verdict.why.as_str();
                let (well, ill) = (status.counts.healthy, status.counts.unhealthy);
                format!(
                    "{zone}: {why}, {well} of {} instances are healthy",
                    well + ill
                )
            });
        of_service.collect()
    }
}

/// The epoch for which a proxy of the local zone may admit the write, to the control plane's
/// knowledge.
fn would_be_granted(policy: &Policy, facts: &Facts) -> Option<u64> {
    let Policy::Serving(rules) = policy else {
        return None;
    };
    let cell = rules.fencing()?.cell(facts.cell?)?;
    cell.owners.contains(&rules.viewer()).then_some(cell.epoch)
}

/// Whether a gateway of the local zone signs hops.
fn would_sign(policy: &Policy) -> Signer {
    let fencing = match policy {
        Policy::Serving(rules) => rules.fencing(),
        Policy::Fallback => None,
    };
    match fencing.is_some_and(|fencing| fencing.forwarding) {
        true => Signer::Holds,
        false => Signer::Withheld,
    }
}
