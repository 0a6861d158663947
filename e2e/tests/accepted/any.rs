//! Random configurations: values that each field could have, some of them invalid.

use std::path::{Path, PathBuf};

use anyhow::Result;
use e2e::certificates::{CERTIFICATE, Ca, KEY, TRUSTED};
use e2e::dice::Dice;
use serde_json::{Map, Value, json};

/// The zone and region of all proxies: every configuration has them.
pub(crate) const ZONE: &str = "shanghai-a";
pub(crate) const REGION: &str = "shanghai";
/// A route table that gRPC clients have in every configuration.
pub(crate) const TABLE: &str = "tidegate/*";

/// Directories with a certificate, its key, and the trusted CA.
pub(crate) struct Files([PathBuf; 3]);

impl Files {
    /// Creates them below `directory`.
    pub(crate) fn make(directory: &Path) -> Result<Files> {
        let ca = Ca::new("accepted")?;
        let directories = ["one", "two", "three"].map(|name| directory.join(name));
        for (directory, name) in directories.iter().zip(["one", "two", "three"]) {
            ca.issue(directory, name, &[&ca])?;
        }
        Ok(Files(directories))
    }

    fn certificate(&self, dice: &mut Dice) -> Value {
        let [one, two, _] = &self.0;
        let of = |directory: &Path| json!({ "cert": directory.join(CERTIFICATE), "key": directory.join(KEY) });
        let split = json!({ "cert": one.join(CERTIFICATE), "key": two.join(KEY) });
        let bad = [
            json!({ "cert": one.join(CERTIFICATE) }),
            json!({ "cert": CERTIFICATE, "key": KEY }),
            json!({}),
            split,
        ];
        let good: Vec<Value> = self.0.iter().map(|directory| of(directory)).collect();
        one_of(dice, &good, &bad)
    }

    fn trusted_ca(&self, dice: &mut Dice) -> Value {
        let of = |directory: &PathBuf| json!({ "file": directory.join(TRUSTED) });
        let good: Vec<Value> = self.0.iter().map(of).collect();
        one_of(dice, &good, &[json!({ "file": TRUSTED }), json!({})])
    }
}

/// One of this many values is invalid.
const BAD: u64 = 60;

/// One of `good`, rarely one of the possibly invalid `bad`.
fn one_of(dice: &mut Dice, good: &[Value], bad: &[Value]) -> Value {
    match !bad.is_empty() && dice.once_in(BAD) {
        true => dice.pick(bad).clone(),
        false => dice.pick(good).clone(),
    }
}

/// Sometimes adds a field.
fn maybe(dice: &mut Dice, to: &mut Map<String, Value>, name: &str, good: &[Value], bad: &[Value]) {
    if dice.once_in(2) {
        to.insert(name.to_owned(), one_of(dice, good, bad));
    }
}

fn values<T: Into<Value> + Clone>(all: &[T]) -> Vec<Value> {
    all.iter().cloned().map(Into::into).collect()
}

macro_rules! fields {
    ($dice:expr, $to:expr, $($name:literal: $good:expr, $bad:expr;)+) => {{
        $(maybe($dice, $to, $name, &values(&$good), &values(&$bad));)+
    }};
}

pub(crate) fn config(dice: &mut Dice, files: &Files) -> Value {
    let zones = zones(dice);
    let names: Vec<String> = zones.iter().map(|zone| text(&zone["name"])).collect();
    let mut all = Map::new();
    all.insert("store".into(), json!({ "embedded": { "path": "t.redb" } }));
    all.insert("filter".into(), json!({ "path": "/f.wasm" }));
    all.insert("zones".into(), json!(zones));
    if names.len() > 1 && dice.once_in(2) {
        let rtt = *dice.pick(&[0.0, 1.5, 60_000.0]);
        let cost = *dice.pick(&[0.001, 1.0, 1_000.0]);
        let between = [&names[0], &names[1]];
        all.insert(
            "links".into(),
            json!([{ "between": between, "rtt_ms": rtt, "cost": cost }]),
        );
    }
    let (gateway, sidecar) = (listener(dice, files), listener(dice, files));
    let listeners = json!({ "gateway": gateway, "sidecar": sidecar, "grpc": true });
    all.insert("listeners".into(), listeners);
    if dice.once_in(3) {
        let headers = [
            "x-explain",
            "X-Explain",
            "authorization",
            "cookie",
            "te",
            "accept",
        ];
        let header = one_of(
            dice,
            &values(&headers),
            &values(&["host", "x-tidegate-a", "a b", ""]),
        );
        let token = one_of(
            dice,
            &values(&["let-me-see", "a b", "%REQ(x)%", "é"]),
            &values(&[""]),
        );
        all.insert(
            "explain".into(),
            json!({ "header": header, "token": token }),
        );
    }
    if dice.once_in(3) {
        // Shorter ones expire while worlds are swapped, and Envoy rejects a heartbeat for an
        // expired resource.
        let ttls = values(&[60, 600, 86_400]);
        let mut ttl_s = Map::new();
        for kind in ["cds", "eds", "lds", "rds", "ecds"] {
            maybe(dice, &mut ttl_s, kind, &ttls, &values(&[2]));
        }
        all.insert("xds".into(), json!({ "ttl_s": ttl_s }));
    }
    let fenced = dice.once_in(2);
    if fenced {
        all.insert("authority".into(), authority(dice, &names));
    }
    let count = dice.between(1, 6) as usize;
    let services: Vec<Value> = (0..count)
        .map(|index| service(dice, index, &names, fenced, files))
        .collect();
    all.insert("services".into(), json!(services));
    Value::Object(all)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn zones(dice: &mut Dice) -> Vec<Value> {
    let others = [
        ("shanghai-b", REGION),
        ("beijing-c", "beijing"),
        ("z.3_x", "r-3"),
    ];
    let mut zones = vec![json!({ "name": ZONE, "region": REGION })];
    for (name, region) in others.into_iter().take(dice.between(0, 4) as usize) {
        zones.push(json!({ "name": name, "region": region }));
    }
    zones
}

/// Valid addresses are those of any machine, so that Envoy can listen there.
fn address(dice: &mut Dice) -> Value {
    let good = ["127.0.0.1", "0.0.0.0", "127.0.0.3", "::1", "::", "0:0::0"];
    let bad = [
        "localhost",
        "[::]",
        "*",
        "",
        "127.0.0.1:80",
        "::ffff:127.0.0.1",
        "224.0.0.1",
        "ff02::1",
        "fe80::1",
        "fe80::1%lo",
        "255.255.255.255",
        "127.1",
        "0x7f000001",
        "127.0.0.1/8",
    ];
    one_of(dice, &values(&good), &values(&bad))
}

fn listener(dice: &mut Dice, files: &Files) -> Value {
    let mut at = Map::new();
    at.insert("address".into(), address(dice));
    at.insert("port".into(), json!(0));
    let times = [0, 1, 5_000, 86_400_000];
    fields!(dice, &mut at,
        "access_log": ["", "/dev/stdout", "/dev/stderr", "/dev/null", "access.log"], ["/tmp/"];
        "escaped_slashes": ["reject", "keep"], [] as [&str; 0];
        "per_connection_buffer_limit_bytes": [4_096, 32_768, 1 << 30], [0, 4_095];
        "request_headers_timeout_ms": times, [86_400_001];
        "stream_idle_timeout_ms": times, [86_400_001];
        "max_request_headers_kb": [1, 60, 8_192], [0, 8_193];
        "xff_num_trusted_hops": [0, 1, 7], [] as [i32; 0];
        "proxy_protocol": [true, false], [] as [bool; 0];
    );
    if dice.once_in(4) {
        let more: Vec<Value> = (0..dice.between(1, 3))
            .map(|_| json!({ "address": address(dice), "port": 0 }))
            .collect();
        at.insert("additional_addresses".into(), json!(more));
    }
    if dice.once_in(BAD / 4) {
        at.insert("ipv4_compat".into(), json!(dice.once_in(2)));
    }
    if dice.once_in(8) {
        at.insert("on_demand".into(), json!(true));
    }
    if dice.once_in(3) {
        at.insert("tls".into(), downstream_tls(dice, files));
    }
    let mut common = Map::new();
    fields!(dice, &mut common,
        "idle_timeout_ms": times, [86_400_001];
        "max_connection_duration_ms": times, [86_400_001];
        "max_headers_count": [1, 100, 10_000], [0, 10_001];
    );
    at.insert("common_http_protocol_options".into(), common.into());
    let mut http2 = Map::new();
    let windows = [65_535, 65_536, 2_147_483_647];
    fields!(dice, &mut http2,
        "max_concurrent_streams": [1, 100, 2_147_483_647], [0];
        "initial_stream_window_size": windows, [65_534];
        "initial_connection_window_size": windows, [0];
    );
    at.insert("http2_protocol_options".into(), http2.into());
    let mut http1 = Map::new();
    fields!(dice, &mut http1,
        "default_host_for_http_10": ["shop.example", "Shop", "10.0.0.1"], ["a b", "", "a:80"];
    );
    at.insert("http_protocol_options".into(), http1.into());
    Value::Object(at)
}

fn downstream_tls(dice: &mut Dice, files: &Files) -> Value {
    let mut certificates = Vec::new();
    let hosts = [
        json!(["shop.example"]),
        json!(["*.example", "a.b"]),
        json!(["Shop.Test", "xn--bcher-kva.x"]),
    ];
    for hosts in hosts.iter().take(dice.between(0, 4) as usize) {
        let mut certificate = files.certificate(dice);
        let bad = [json!(["*"]), json!(["a b"]), json!(["shop.example", "a.b"])];
        certificate["hosts"] = one_of(dice, std::slice::from_ref(hosts), &bad);
        certificates.push(certificate);
    }
    if certificates.is_empty() || dice.once_in(2) {
        certificates.push(files.certificate(dice));
    }
    let mut tls = Map::new();
    tls.insert("certificates".into(), json!(certificates));
    if dice.once_in(2) {
        tls.insert("trusted_ca".into(), files.trusted_ca(dice));
        fields!(dice, &mut tls, "require_client_certificate": [true, false], [] as [bool; 0];);
    }
    Value::Object(tls)
}

fn upstream_tls(dice: &mut Dice, files: &Files) -> Value {
    let mut tls = Map::new();
    tls.insert("trusted_ca".into(), files.trusted_ca(dice));
    let names = [
        json!(["orders.internal"]),
        json!(["spiffe://x/orders", "orders.internal"]),
        json!(["spiffe://x/orders"]),
    ];
    let names = one_of(dice, &names, &[json!([]), json!(["a b"])]);
    tls.insert("subject_alt_names".into(), names);
    fields!(dice, &mut tls, "sni": ["orders.internal", "Orders.Internal"], ["", "a b", "10.0.0.1/8"];);
    if dice.once_in(2) {
        tls.insert("certificate".into(), files.certificate(dice));
    }
    Value::Object(tls)
}

fn authority(dice: &mut Dice, zones: &[String]) -> Value {
    let mut authority = Map::new();
    fields!(dice, &mut authority,
        "enforcement": ["enforce", "observe"], [] as [&str; 0];
        "write_drain_ms": [500, 1_500, 60_000], [0, 600_000];
        "forward_token": ["0123456789abcdef", "a_b-c_d-e_f-g_h-i_j"], ["0123456789abcd%f", ""];
    );
    if dice.once_in(2) {
        let forward = dice.pick(&["never", "region", "any"]);
        let owners = [dice.pick(zones)];
        let main = json!({ "name": "main", "owners": owners, "forward": forward });
        let more = json!({ "name": "b.2_x", "shards": 7 });
        let cells = if dice.once_in(2) {
            vec![main, more]
        } else {
            vec![main]
        };
        authority.insert("cells".into(), json!(cells));
    }
    Value::Object(authority)
}

fn key(dice: &mut Dice) -> Value {
    match dice.between(0, 3) {
        0 => {
            json!({ "header": one_of(dice, &values(&["x-user-id", "X-User", "cookie"]), &values(&["", "host", "x_y", "a b", ":path"])) })
        }
        1 => {
            json!({ "cookie": one_of(dice, &values(&["user", "__Host-id", "$a", "a.b", "!#%&'*+^`|~"]), &values(&["", "a b", "a=b", "ü", "a;"])) })
        }
        _ => json!({ "path_segment": dice.pick(&[0, 1, 16]) }),
    }
}

fn service(dice: &mut Dice, index: usize, zones: &[String], fenced: bool, files: &Files) -> Value {
    let mut service = Map::new();
    let name = dice.pick(&["orders", "a.b_c-d", "0"]);
    service.insert("name".into(), json!(format!("{name}{index}")));
    let mut routes: Vec<Value> = (0..dice.between(1, 4))
        .map(|at| route(dice, &format!("{index}-{at}")))
        .collect();
    if index == 0 {
        routes.push(json!({ "prefix": "/always" }));
    }
    service.insert("routes".into(), json!(routes));
    times(dice, &mut service);
    fields!(dice, &mut service,
        "protocol": ["auto", "http1", "http2", "downstream"], [] as [&str; 0];
        "upgrades": [json!([]), json!(["websocket"]), json!(["WebSocket", "spdy/3.1"])],
            [json!(["connect"]), json!(["h2c"]), json!(["a b"]), json!([""])];
        "region": [json!({ "missing": "reject" }), json!({ "unknown": "reject" })], [] as [Value; 0];
        "trace": [json!({ "missing": "reject" }), json!({ "missing": "generate" })], [] as [Value; 0];
        "common_http_protocol_options": [json!({}), json!({ "idle_timeout_ms": 0 }), json!({ "idle_timeout_ms": 86_400_000 })],
            [json!({ "idle_timeout_ms": 86_400_001 })];
        "demand": [json!({ zones[0].clone(): { "reads": 7 } })], [json!({ "mars": { "reads": 1 } })];
        "thresholds": [json!({ "down_below_percent": 1, "up_from_percent": 1 }), json!({ "down_below_percent": 100, "up_from_percent": 100 })],
            [json!({ "down_below_percent": 60, "up_from_percent": 30 })];
    );
    if dice.once_in(3) {
        service.insert("strategy".into(), json!({ "region_first_hash": key(dice) }));
        if dice.once_in(2) {
            let cookie = one_of(dice, &values(&["tide", "a.b-c_d"]), &values(&["", "a b"]));
            let ttl_s = one_of(dice, &values(&[0, 60, 86_400_000]), &values(&[86_400_001]));
            service.insert(
                "stateful_session".into(),
                json!({ "cookie": cookie, "ttl_s": ttl_s }),
            );
        }
    } else {
        maybe(
            dice,
            &mut service,
            "weights",
            &[
                json!("computed"),
                json!({ "zone": 80, "region": 20 }),
                json!({ "zone": 0, "region": 4_294_967_295_u32 }),
            ],
            &[json!({ "zone": 0, "region": 0 })],
        );
        if dice.once_in(3) {
            service.insert("zone_affinity".into(), key(dice));
        }
    }
    if fenced && dice.once_in(3) && !service.contains_key("strategy") {
        service.insert("cell_key".into(), key(dice));
    } else if fenced && dice.once_in(2) {
        service.insert("fenced".into(), json!(false));
    }
    if dice.once_in(4) {
        service.insert("tls".into(), upstream_tls(dice, files));
    }
    breakers(dice, &mut service);
    Value::Object(service)
}

fn breakers(dice: &mut Dice, service: &mut Map<String, Value>) {
    let most = u32::MAX;
    let mut limits = Map::new();
    fields!(dice, &mut limits,
        "max_connections": [1, 4_096, most], [0];
        "max_pending_requests": [1, most], [0];
        "max_requests": [1, most], [0];
    );
    service.insert("circuit_breakers".into(), limits.into());
    let mut ejection = Map::new();
    let name = *dice.pick(&["outlier_detection", "outlier"]);
    match name {
        "outlier" => fields!(dice, &mut ejection,
            "consecutive_errors": [1, most], [0];
            "error_percent": [1, 100], [0, 101];
            "window_s": [1, 60], [0, 86_401];
            "ejection_s": [1, 30], [0, 301];
            "ejection_max_s": [300, 86_400], [0];
        ),
        _ => fields!(dice, &mut ejection,
            "consecutive_gateway_failure": [1, most], [0];
            "consecutive_5xx": [1, most], [0];
            "failure_percentage_threshold": [1, 100], [0, 101];
            "failure_percentage_request_volume": [1, most], [0];
            "interval_ms": [1, 86_400_000], [0, 86_400_001];
            "base_ejection_time_ms": [1, 30_000], [0, 300_001];
            "max_ejection_time_ms": [300_000, 86_400_000], [0];
        ),
    }
    service.insert(name.into(), ejection.into());
}

/// At most one of the two, which exclude each other, except for a rare mistake.
fn times(dice: &mut Dice, to: &mut Map<String, Value>) {
    let times = [0_u32, 1, 15_000, 86_400_000];
    let bad = [86_400_001, u32::MAX];
    fields!(dice, to,
        "idle_timeout_ms": times, bad;
    );
    if dice.once_in(2) {
        let delay_ms = one_of(dice, &values(&times), &values(&bad));
        to.insert("hedging".to_owned(), json!({ "delay_ms": delay_ms }));
    }
    let (bound, other) = match dice.once_in(2) {
        true => ("timeout_ms", "max_stream_duration_ms"),
        false => ("max_stream_duration_ms", "timeout_ms"),
    };
    if dice.once_in(2) {
        to.insert(
            bound.to_owned(),
            one_of(dice, &values(&times), &values(&bad)),
        );
        to.insert(other.to_owned(), one_of(dice, &[json!(0)], &[json!(5)]));
    }
}

fn route(dice: &mut Dice, unique: &str) -> Value {
    let mut route = Map::new();
    let hosts = [
        "*",
        "shop.example",
        "Shop.Example.",
        "*.example",
        "*.a.b",
        "xn--bcher-kva.x",
        "10.0.0.1",
        "-a_b",
    ];
    let odd = [
        "", "*x", "a b", "a:80", "http://a", "[::1]", "a..", ".", "*.", "*.*", "ü",
    ];
    fields!(dice, &mut route, "host": hosts, odd;);
    let grpc = dice.once_in(4);
    if grpc {
        let name = one_of(
            dice,
            &values(&["shop.v1.Orders", "A_b"]),
            &values(&["a/b", "a b"]),
        );
        route.insert(
            "grpc".into(),
            json!(format!("{}{}", text(&name), unique.replace('-', "_"))),
        );
        fields!(dice, &mut route,
            "reads": [json!([]), json!(["Get", "Get"])], [] as [Value; 0];
        );
    } else {
        let prefixes = [
            "/a",
            "/a/b",
            "/a.b",
            "/ä",
            "/%41",
            "/a b",
            "//",
            "/a//b",
            "/a/../b",
            "/.",
            "/*",
            "/{x}",
            "/$(x)\\",
            "/a\tb",
            "/%REQ(x)%",
        ];
        let bad = ["a", "/a?", "", "/a#"];
        let prefix = text(&one_of(dice, &values(&prefixes), &values(&bad)));
        let prefix = match dice.once_in(8) {
            true => prefix,
            false => format!("{prefix}{unique}"),
        };
        route.insert("prefix".into(), json!(prefix));
    }
    if !route.contains_key("reads") {
        fields!(dice, &mut route, "class": ["read", "write"], [] as [&str; 0];);
    }
    times(dice, &mut route);
    Value::Object(route)
}
