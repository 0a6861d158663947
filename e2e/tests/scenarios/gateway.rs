//! Common expectations of a gateway: only configured time-outs, upgrades, old and new protocols,
//! names with a final dot, limits, and a reason in each answer.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::client::{Client, Reply, Request, Version};
use e2e::config::ZONES;
use e2e::envoy::{Envoy, Options};
use e2e::mesh::{Builder, Mesh};
use e2e::registry::InstanceName;
use e2e::upstream::{Conduct, Server};
use e2e::wait::{PATIENCE, eventually};
use e2e::workdir::Workdir;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OnceCell;

use crate::http1::{Http1, register, say};
use crate::support::{on, run};

/// The zone of the gateway and of all instances.
const ZONE: &str = "shanghai-a";

/// A mesh of one gateway, and the instance of all its services.
struct Stage {
    mesh: Mesh,
    _instance: Http1,
}

async fn stage() -> Result<&'static Stage> {
    static STAGE: OnceCell<Stage> = OnceCell::const_new();
    STAGE.get_or_try_init(start).await
}

async fn start() -> Result<Stage> {
    let bounds = |path: &str, bounds: Value| {
        let mut route = json!({ "prefix": path, "timeout_ms": 0 });
        for (name, value) in bounds.as_object().into_iter().flatten() {
            route[name] = value.clone();
        }
        route
    };
    let services = [
        json!({ "name": "any", "routes": [{ "prefix": "/any" }], "hedging": { "delay_ms": 0 } }),
        json!({
            "name": "bounded",
            "timeout_ms": 300,
            "hedging": { "delay_ms": 0 },
            "routes": [
                { "prefix": "/bounded" },
                bounds("/bounded/stream", json!({ "max_stream_duration_ms": 300 })),
                bounds("/bounded/idle", json!({ "idle_timeout_ms": 300 })),
                bounds("/bounded/free", json!({})),
            ],
        }),
        json!({ "name": "sockets", "routes": [{ "prefix": "/sockets" }], "upgrades": ["websocket"] }),
        json!({ "name": "shop", "routes": [{ "host": "Shop.Example.", "prefix": "/shop" }] }),
        json!({
            "name": "kept",
            "routes": [{ "prefix": "/kept" }],
            "common_http_protocol_options": { "idle_timeout_ms": 200 },
        }),
        json!({ "name": "half", "routes": [{ "prefix": "/half" }] }),
        json!({ "name": "wrong", "routes": [{ "prefix": "/wrong" }] }),
    ];
    let builder = Builder::new(Workdir::kept("gateway")?)
        .listener(json!({
            "address": "::",
            "request_headers_timeout_ms": 2_000,
            "max_request_headers_kb": 16,
            "http_protocol_options": { "default_host_for_http_10": "shop.example" },
        }))
        .envoy(Options::gateway("shanghai", ZONE));
    let builder = services.into_iter().fold(builder, Builder::service);
    let mesh = builder.start().await?;
    let instance = Http1::start().await?;
    for service in ["any", "bounded", "sockets", "shop", "kept", "half"] {
        instance.register(&mesh, service, ZONE).await?;
    }
    for path in ["/any", "/bounded/free", "/sockets", "/kept", "/half"] {
        let there = |reply: &Reply| {
            ensure!(reply.status == 200, "{}", reply.status);
            Ok(())
        };
        mesh.eventually(ZONE, path, Request::get(path), there)
            .await?;
    }
    eventually(PATIENCE, "the shop", async || {
        let said = say(ipv4(&mesh)?, &get("/shop", "shop.example"), PATIENCE).await?;
        ensure!(said.status == 200, "{}", said.text);
        Ok(())
    })
    .await?;
    Ok(Stage {
        mesh,
        _instance: instance,
    })
}

/// The gateway's IPv4 address, although it listens on `::`.
fn ipv4(mesh: &Mesh) -> Result<SocketAddr> {
    Ok((Ipv4Addr::LOCALHOST, mesh.address(ZONE)?.port()).into())
}

fn get(path: &str, host: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")
}

/// Runs a scenario on the stage, and prints the logs after a failure.
fn staged(scenario: impl AsyncFnOnce(&'static Stage) -> Result<()>) {
    run(async {
        let stage = stage().await?;
        scenario(stage).await.with_context(|| stage.mesh.logs())
    });
}

#[test]
fn long_polls_streams_and_slow_writes_outlive_envoys_default_timeout() {
    staged(async |stage| {
        let to = ipv4(&stage.mesh)?;
        let ask = async |method: &str, what: &str| {
            let request = format!(
                "{method} /any/{what}/16000 HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            );
            let said = say(to, &request, Duration::from_secs(60)).await?;
            ensure!(said.status == 200, "{method} {what}: {}", said.text);
            Ok(said)
        };
        let all = tokio::try_join!(ask("GET", "slow"), ask("POST", "slow"), ask("GET", "quiet"));
        ensure!(all?.2.text.contains("last"), "the stream was cut");
        Ok(())
    });
}

#[test]
fn a_route_keeps_the_bounds_that_are_set_and_says_so() {
    staged(async |stage| {
        let to = ipv4(&stage.mesh)?;
        for (path, reason) in [
            ("/bounded/slow/9000", "response_timeout"),
            ("/bounded/stream/slow/9000", "max_duration_timeout"),
            ("/bounded/idle/slow/9000", "stream_idle_timeout"),
        ] {
            let said = say(to, &get(path, "a"), PATIENCE).await?;
            ensure!(said.status == 504, "{path}: {}", said.text);
            ensure!(said.reason()? == reason, "{path}: {}", said.text);
        }
        let said = say(to, &get("/bounded/free/slow/900", "a"), PATIENCE).await?;
        ensure!(said.status == 200, "{}", said.text);
        Ok(())
    });
}

/// Requests a WebSocket; returns the head of the answer, and the connection.
async fn handshake(to: SocketAddr, path: &str) -> Result<(String, BufReader<TcpStream>)> {
    let mut stream = BufReader::new(TcpStream::connect(to).await?);
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: WebSocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut head = String::new();
    let read = async {
        while !head.ends_with("\r\n\r\n") {
            ensure!(stream.read_line(&mut head).await? > 0, "{head}");
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, read)
        .await
        .context("no answer")??;
    Ok((head, stream))
}

/// Bytes go both ways.
async fn echoes(stream: &mut BufReader<TcpStream>) -> Result<()> {
    let mut back = [0; 5];
    stream.write_all(b"hello").await?;
    let read = stream.read_exact(&mut back);
    tokio::time::timeout(PATIENCE, read)
        .await
        .context("no echo")??;
    ensure!(&back == b"hello");
    Ok(())
}

#[test]
fn a_websocket_passes_to_a_service_that_takes_it_and_no_other() {
    staged(async |stage| {
        let to = ipv4(&stage.mesh)?;
        let (head, mut stream) = handshake(to, "/sockets").await?;
        ensure!(head.starts_with("HTTP/1.1 101 "), "{head}");
        echoes(&mut stream).await?;
        let (head, mut stream) = handshake(to, "/any").await?;
        ensure!(head.starts_with("HTTP/1.1 403 "), "{head}");
        let mut body = String::new();
        stream.read_to_string(&mut body).await?;
        ensure!(body.contains(r#""reason":"upgrade_refused""#), "{body}");
        // The first request of Java's client must not be rejected.
        let h2c = "GET /any HTTP/1.1\r\nhost: a\r\nconnection: close, upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n";
        let said = say(to, h2c, PATIENCE).await?;
        ensure!(said.status == 200, "{}", said.text);
        Ok(())
    });
}

#[test]
fn a_websocket_on_a_route_of_writes_is_fenced_as_a_write() {
    run(async {
        let mesh = Builder::new(Workdir::kept("fenced-sockets")?)
            .service(json!({
                "name": "chat",
                "routes": [{ "prefix": "/chat", "class": "write" }],
                "upgrades": ["websocket"],
            }))
            .authority(json!({
                "zones": ZONES.map(|(zone, _)| zone),
                "write_drain_ms": 1_000,
                "cells": [{ "name": "main", "owners": [ZONE], "standby": ["shanghai-b"] }],
            }))
            .envoy(Options::gateway("shanghai", ZONE))
            .envoy(Options::gateway("beijing", "beijing-c"))
            .start()
            .await?;
        let instance = Http1::start().await?;
        instance.register(&mesh, "chat", ZONE).await?;
        let scenario = async |mesh: &Mesh| {
            let owner = mesh.address(ZONE)?;
            let opened = eventually(PATIENCE, "a socket in the owner's zone", async || {
                let (head, stream) = handshake(owner, "/chat").await?;
                ensure!(head.starts_with("HTTP/1.1 101 "), "{head}");
                Ok(stream)
            });
            let mut stream = opened.await?;
            echoes(&mut stream).await?;
            // No write outlives its drain.
            let mut rest = Vec::new();
            let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
            end.context("it goes on")?.ok();
            let other = mesh.address("beijing-c")?;
            eventually(PATIENCE, "a refusal elsewhere", async || {
                let (head, _) = handshake(other, "/chat").await?;
                ensure!(head.starts_with("HTTP/1.1 421 "), "{head}");
                Ok(())
            })
            .await
        };
        on(&mesh, scenario).await
    });
}

#[test]
fn errors_about_a_request_empty_no_zone_and_those_of_the_instance_do() {
    staged(async |stage| {
        let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut servers = vec![];
        for instance in ["wrong-1", "wrong-2"] {
            let name = InstanceName::new("wrong", ZONE, instance);
            let server = Server::start(name, any_port).await?;
            register(&stage.mesh, "wrong", ZONE, instance, server.address()).await?;
            servers.push(server);
        }
        let ask = async || stage.mesh.send(ZONE, Request::get("/wrong")).await;
        let ejected = async || {
            let stat = "cluster.wrong/shanghai-a.outlier_detection.ejections_active";
            stage.mesh.gateway(ZONE)?.admin().stat(stat).await
        };
        eventually(PATIENCE, "both instances", async || {
            for server in &servers {
                ask().await?;
                ensure!(server.served() > 0);
            }
            Ok(())
        })
        .await?;
        servers.iter().for_each(|s| s.conduct(Conduct::Fails));
        for _ in 0..30 {
            let reply = ask().await?;
            ensure!(reply.status == 500, "{}", reply.status);
        }
        ensure!(ejected().await? == 0, "a status 500 ejects");
        servers.iter().for_each(|s| s.conduct(Conduct::Unavailable));
        eventually(PATIENCE, "both to be ejected", async || {
            ask().await?;
            let ejected = ejected().await?;
            ensure!(ejected == 2, "{ejected}");
            Ok(())
        })
        .await
    });
}

#[test]
fn a_trailing_dot_of_the_host_does_not_count_in_routes_and_filter_alike() {
    staged(async |stage| {
        let to = ipv4(&stage.mesh)?;
        for (host, status) in [
            ("shop.example", 200),
            ("shop.example.", 200),
            ("SHOP.Example.", 200),
            ("shop.example.:8080", 200),
            // One dot is stripped; this is another name.
            ("shop.example..", 404),
            (".", 404),
        ] {
            for method in ["GET", "POST"] {
                let request = format!(
                    "{method} /shop HTTP/1.1\r\nhost: {host}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                );
                let said = say(to, &request, PATIENCE).await?;
                ensure!(said.status == status, "{method} {host}: {}", said.text);
            }
            let explain = Request::post("/v1/explain")
                .json(&json!({ "zone": ZONE, "authority": host, "path": "/shop" }));
            let client = Client::new(Version::Http1);
            let reply = client
                .send(stage.mesh.control_plane.admin(), &explain)
                .await?;
            let outcome: Value = reply.json()?;
            let expected = if status == 200 { "route" } else { "pass" };
            ensure!(outcome["outcome"] == expected, "{host}: {outcome}");
        }
        Ok(())
    });
}

#[test]
fn http_1_0_is_taken_where_a_default_host_is_configured() {
    staged(async |stage| {
        let to = ipv4(&stage.mesh)?;
        for request in [
            "GET /shop HTTP/1.0\r\n\r\n",
            "GET /any HTTP/1.0\r\nhost: a\r\n\r\n",
        ] {
            let said = say(to, request, PATIENCE).await?;
            ensure!(said.status == 200, "{}", said.text);
        }
        let mesh = crate::shared::mesh().await?;
        let said = say(
            mesh.address(ZONE)?,
            "GET /orders HTTP/1.0\r\n\r\n",
            PATIENCE,
        )
        .await?;
        ensure!(said.status == 426, "{}", said.text);
        ensure!(said.reason()? == "low_version", "{}", said.text);
        Ok(())
    });
}

#[test]
fn a_listener_on_any_ipv6_address_takes_both_families() {
    staged(async |stage| {
        let port = stage.mesh.address(ZONE)?.port();
        for to in [
            SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
        ] {
            let said = say(to, &get("/any", "a"), PATIENCE).await?;
            ensure!(said.status == 200, "{to}: {}", said.text);
        }
        Ok(())
    });
}

#[test]
fn a_large_body_over_http_2_reaches_an_instance_that_speaks_http_1_1() {
    staged(async |stage| {
        let mut request = Request::post("/any");
        request.body = vec![b'x'; 1 << 20].into();
        let reply = stage.mesh.send_http2(ZONE, request).await?;
        let seen: Value = reply.json()?;
        ensure!(seen["length"] == 1 << 20, "{seen}");
        ensure!(seen["version"] == "HTTP/1.1", "{seen}");
        Ok(())
    });
}

#[test]
fn idle_connections_to_instances_are_closed_by_the_proxy_first() {
    staged(async |stage| {
        // Other services keep theirs for longer than this test may take.
        let instance = Http1::start().await?;
        register(&stage.mesh, "kept", ZONE, "kept-1", instance.address()).await?;
        let closed = eventually(PATIENCE, "a connection to come and go", async || {
            let reply = stage.mesh.send(ZONE, Request::post("/kept")).await?;
            ensure!(reply.status == 200, "{}", reply.status);
            ensure!(instance.connections() > 0, "not asked yet");
            Ok(())
        });
        closed.await?;
        eventually(PATIENCE, "no connection", async || {
            let open = instance.connections();
            ensure!(open == 0, "{open} are open");
            Ok(())
        })
        .await
    });
}

#[test]
fn a_write_that_was_not_sent_is_tried_elsewhere_whatever_its_size() {
    staged(async |stage| {
        // The port is closed again.
        let gone = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await?
            .local_addr()?;
        register(&stage.mesh, "half", ZONE, "gone", gone).await?;
        let failed = async || {
            let stat = "cluster.half/shanghai-a.upstream_cx_connect_fail";
            stage.mesh.gateway(ZONE)?.admin().stat(stat).await
        };
        eventually(
            PATIENCE,
            "an attempt at the instance that is gone",
            async || {
                let mut request = Request::post("/half");
                request.body = vec![b'x'; 200_000].into();
                let reply = stage.mesh.send(ZONE, request).await?;
                assert_eq!(reply.status, 200, "{}", reply.text());
                ensure!(failed().await? > 0, "none yet");
                Ok(())
            },
        )
        .await
    });
}

#[test]
fn limits_on_headers_end_requests_with_a_reason() {
    staged(async |stage| {
        let to = ipv4(&stage.mesh)?;
        let many: String = (0..120).map(|i| format!("x-{i}: 1\r\n")).collect();
        let long = format!("x-long: {}\r\n", "x".repeat(20_000));
        for headers in [many, long] {
            let request = format!("GET /any HTTP/1.1\r\nhost: a\r\n{headers}\r\n");
            let said = say(to, &request, PATIENCE).await?;
            ensure!(said.status == 431, "{}", said.text);
            said.reason()?;
        }
        let said = say(to, "GET /any HTTP/1.1\r\nhost: a\r\n", PATIENCE).await?;
        ensure!(said.status == 408, "{}", said.text);
        ensure!(said.reason()? == "request_header_timeout", "{}", said.text);
        Ok(())
    });
}

#[test]
fn answers_of_envoys_own_say_why_and_grpc_ones_stay_text() {
    staged(async |stage| {
        let reply = stage.mesh.send(ZONE, Request::get("/nowhere")).await?;
        ensure!(reply.status == 404 && reply.refusal()? == "route_not_found");
        let grpc = Request::post("/nowhere").header("content-type", "application/grpc");
        let reply = stage.mesh.send(ZONE, grpc).await?;
        let message = reply.header("grpc-message").unwrap_or_default();
        ensure!(reply.header("grpc-status").is_some(), "{:?}", reply.headers);
        ensure!(!message.contains("reason"), "{message}");
        Ok(())
    });
}

#[test]
fn the_access_log_goes_to_a_standard_output_that_is_a_socket() {
    run(async {
        let mesh = Builder::new(Workdir::kept("socket")?)
            .listener(json!({ "access_log": "/dev/stdout" }))
            .start()
            .await?;
        let scenario = async |mesh: &Mesh| {
            let output = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            let at = output.local_addr()?;
            let options = Options::gateway("shanghai", ZONE);
            let directory = mesh.workdir().path();
            let xds = mesh.control_plane.xds();
            let envoy = Envoy::start_with_socket(directory, &options, xds, at).await?;
            let (lines, _) = output.accept().await?;
            let ingress = envoy.ingress().await?;
            say(ingress, &get("/logged", "a"), PATIENCE).await?;
            let mut lines = BufReader::new(lines).lines();
            let line = tokio::time::timeout(PATIENCE, lines.next_line()).await;
            let line = line.context("no line")??.context("no line")?;
            let entry: Value = serde_json::from_str(&line).context(line)?;
            ensure!(entry["path"] == "/logged", "{entry}");
            Ok(())
        };
        on(&mesh, scenario).await
    });
}

#[test]
fn a_listener_whose_port_is_busy_is_tried_again_until_it_is_free() {
    run(async {
        let busy = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let mut mesh = Builder::new(Workdir::kept("busy")?)
            .listener(json!({ "port": busy.local_addr()?.port() }))
            .start()
            .await?;
        let options = Options::gateway("shanghai", ZONE);
        let envoy = mesh.start_envoy(&options).await?;
        eventually(PATIENCE, "the refusal", async || {
            let proxies = mesh.registry().proxies().await?;
            let nack = &proxies[0]["kinds"]["lds"]["nack"]["message"];
            let message = nack.as_str().context("nothing is refused")?;
            ensure!(message.contains("in use"), "{message}");
            Ok(())
        })
        .await?;
        drop(busy);
        mesh.admit_envoy(options, envoy).await?;
        eventually(PATIENCE, "no refusal", async || {
            let proxies = mesh.registry().proxies().await?;
            let nack = &proxies[0]["kinds"]["lds"]["nack"];
            ensure!(nack.is_null(), "{nack}");
            Ok(())
        })
        .await
    });
}
