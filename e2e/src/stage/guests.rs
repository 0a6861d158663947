//! Gateways that somebody else configures, with the filter as a guest: `examples/envoy/route.yaml`
//! with the retries of Istio's defaults and without any bound on a write. Guests prove their zones
//! by certificates of a CA of their own.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::{GATEWAY_PORT, GATEWAYS, Plan, SERVICE, XDS_PORT, address, instance, name, zones};
use crate::bootstrap::{Bootstrap, Flavour};
use crate::certificates::{self, Ca, TRUSTED};
use crate::config::ZONES;

/// The name in the certificates of control planes, which `envoy-configs/tls` expects.
const CONTROL_PLANE: &str = "tidegate";

/// Below a zone's directory: the certificates of its control plane and of its gateway.
const SERVER: &str = "server";
const GUEST: &str = "guest";

const ROUTES: &str = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config/route_config/virtual_hosts/0/routes";

fn identity(zone: u8) -> String {
    format!("spiffe://torture/gateway-{}", name(zone))
}

/// Issues the certificates of all zones.
pub(super) fn issue(directory: &Path) -> Result<()> {
    let (ca, mesh) = (Ca::new("tidegate")?, Ca::new("mesh")?);
    for zone in zones() {
        let of_zone = directory.join(name(zone));
        ca.issue(&of_zone.join(SERVER), CONTROL_PLANE, &[&ca])?;
        mesh.issue(&of_zone.join(SERVER).join("guests"), "unused", &[&mesh])?;
        mesh.issue(&of_zone.join(GUEST), &identity(zone), &[&ca])?;
    }
    Ok(())
}

/// Has a control plane know its guests by certificates.
pub(super) fn configure(config: &mut Value, directory: &Path) {
    let server = directory.join(SERVER);
    let tls = certificates::listen(&server, &["admin"]);
    for (field, value) in tls.as_object().into_iter().flatten() {
        config["listen"][field] = value.clone();
    }
    config["listen"]["tls"]["guest_ca"] = json!(server.join("guests").join(TRUSTED));
    config["listen"]["advertise_name"] = json!(CONTROL_PLANE);
    let rules = zones()
        .map(|zone| json!({ "match": identity(zone), "zones": [name(zone)], "roles": ["guest"] }));
    config["access"] = json!({ "proxies": rules.collect::<Vec<_>>() });
}

/// The gateway of a zone.
pub(super) fn bootstrap(directory: &Path, at: u8, plan: &Plan) -> Result<Bootstrap> {
    let (zone, region) = ZONES[usize::from(at)];
    let everywhere = json!({ "address": "0.0.0.0", "port_value": GATEWAY_PORT });
    let mut bootstrap = Bootstrap::example("envoy/route.yaml", Flavour::Wasm)?
        .node(&format!("gateway-{zone}"), region, zone)?
        .with(
            "/static_resources/listeners/0/address/socket_address",
            everywhere,
        )?
        .cluster_at("tidegate", address(at, XDS_PORT))?
        .with(ROUTES, routes(at))?;
    for of in zones() {
        let cluster = format!("{SERVICE}-{}", name(of));
        bootstrap = bootstrap.cluster_at(&cluster, instance(of, 0))?;
        for more in 1..plan.instances {
            bootstrap = bootstrap.cluster_also_at(&cluster, instance(of, more))?;
        }
        let gateway = json!(cluster_of(of));
        bootstrap = bootstrap.push("/static_resources/clusters", gateway)?;
    }
    let mut guest = bootstrap.guest_configuration()?;
    guest["clusters"][GATEWAYS] = json!("gateway-{zone}");
    // The host does not say how long its routes let a write live.
    guest["drain_ms"].take();
    let secrets = directory.join("secrets");
    fs::create_dir_all(&secrets)?;
    bootstrap
        .guest(&guest)?
        .tls(&secrets, &directory.join(GUEST))
}

/// The gateway of a zone, for forwarded writes.
fn cluster_of(zone: u8) -> Value {
    let at: SocketAddr = address(zone, GATEWAY_PORT);
    let cluster = format!("gateway-{}", name(zone));
    let socket = json!({ "address": at.ip(), "port_value": at.port() });
    let endpoint = json!({ "endpoint": { "address": { "socket_address": socket } } });
    json!({
        "name": cluster,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": { "cluster_name": cluster, "endpoints": [{ "lb_endpoints": [endpoint] }] },
    })
}

/// As a mesh has them that knows nothing of Tidegate: by the stamp, else to the own zone.
fn routes(at: u8) -> Value {
    // The defaults of Istio 1.30, which resend more than the fence's own routes do.
    let retries = json!({
        "retry_on": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
        "retriable_status_codes": [503],
        "num_retries": 2,
        "retry_host_predicate": [{
            "name": "envoy.retry_host_predicates.previous_hosts",
            "typed_config": { "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate" },
        }],
        "host_selection_retry_max_attempts": 5,
    });
    let mut action = json!({ "timeout": "0s", "retry_policy": retries });
    let mut stamped = action.clone();
    stamped["cluster_header"] = json!("x-tidegate-to");
    action["cluster"] = json!(format!("{SERVICE}-{}", name(at)));
    let present = json!([{ "name": "x-tidegate-to", "present_match": true }]);
    json!([
        { "match": { "prefix": "/orders", "headers": present }, "route": stamped },
        { "match": { "prefix": "/orders" }, "route": action },
    ])
}
