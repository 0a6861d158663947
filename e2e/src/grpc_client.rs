//! Proxyless gRPC clients with xDS, each a process: Python's grpcio, and @grpc/grpc-js with
//! @grpc/grpc-js-xds on Node.js. The programs are in `e2e/clients/`.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::paths;
use crate::process::Process;
use crate::wait::PATIENCE;

/// The library of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// Python's grpcio, on the C core that Ruby, PHP, C++ and others share.
    Grpcio,
    /// @grpc/grpc-js-xds, in pure JavaScript.
    GrpcJs,
}

/// Calls to make, one after another.
#[derive(Clone, Debug, Serialize)]
pub struct Order {
    /// Like `xds:///shop.example`.
    pub target: String,
    /// Like `/shop.v1.Orders/GetOrder`.
    pub method: String,
    pub metadata: BTreeMap<String, String>,
    pub calls: u32,
    /// How long each call may take, in seconds.
    pub timeout_s: u32,
}

/// The outcomes of calls.
#[derive(Clone, Debug, Deserialize)]
pub struct Outcome {
    /// Answers, by instance.
    pub instances: BTreeMap<String, u32>,
    /// Calls that failed, by status.
    pub statuses: BTreeMap<String, u32>,
    /// The text of the last failure.
    pub message: String,
}

/// A running client.
pub struct GrpcClient {
    process: Process,
    orders: BufReader<TcpStream>,
}

impl GrpcClient {
    /// Starts a client in `zone` that connects to the control plane at `xds`. Its metadata names no
    /// role, like the metadata of a user who does not know roles.
    pub async fn start(
        directory: &Path,
        library: Library,
        zone: &str,
        xds: SocketAddr,
    ) -> Result<GrpcClient> {
        let name = format!("{library:?}-{zone}").to_lowercase();
        let bootstrap = directory.join(format!("{name}.json"));
        fs::write(&bootstrap, format!("{:#}", bootstrap_of(&name, zone, xds)))?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let (environment, program, script) = parts(library)?;
        let arguments = [
            format!("GRPC_XDS_BOOTSTRAP={}", bootstrap.display()),
            environment,
            // A proxy is for the internet, not for loopback.
            "no_grpc_proxy=127.0.0.1".to_owned(),
            program.display().to_string(),
            script.display().to_string(),
            port.to_string(),
        ];
        let process = Process::start(directory, &name, Path::new("env"), &arguments)?;
        let connected = async {
            let accepted = tokio::time::timeout(PATIENCE, listener.accept()).await;
            Ok(accepted.context("it did not connect in time")??.0)
        };
        let stream = process.unless_it_ends(connected).await?;
        Ok(GrpcClient {
            process,
            orders: BufReader::new(stream),
        })
    }

    /// The process, with its output.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Makes the calls, and waits for the last one.
    pub async fn carry_out(&mut self, order: &Order) -> Result<Outcome> {
        let orders = &mut self.orders;
        let answered = async {
            let line = format!("{}\n", serde_json::to_string(order)?);
            orders.write_all(line.as_bytes()).await?;
            let mut answer = String::new();
            let read = orders.read_line(&mut answer).await?;
            ensure!(read > 0, "it hung up");
            serde_json::from_str(&answer).context(answer)
        };
        self.process.unless_it_ends(answered).await
    }
}

fn bootstrap_of(id: &str, zone: &str, xds: SocketAddr) -> Value {
    json!({
        "xds_servers": [{
            "server_uri": xds.to_string(),
            "channel_creds": [{ "type": "insecure" }],
            "server_features": ["xds_v3"],
        }],
        "node": { "id": id, "locality": { "zone": zone } },
    })
}

/// An environment variable, the interpreter and the script.
fn parts(library: Library) -> Result<(String, PathBuf, PathBuf)> {
    let clients = paths::workspace().join("e2e/clients");
    Ok(match library {
        Library::Grpcio => (
            format!("PYTHONPATH={}", paths::grpcio()?.display()),
            PathBuf::from("python3"),
            clients.join("python/client.py"),
        ),
        Library::GrpcJs => (
            format!("NODE_PATH={}", paths::grpc_js()?.display()),
            paths::node()?,
            clients.join("node/client.js"),
        ),
    })
}
