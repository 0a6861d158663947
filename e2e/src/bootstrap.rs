//! The bootstraps in `envoy-configs/` and the examples in `examples/`, with the values that a test
//! must change: addresses, paths, and the port of the admin interface. They are changed as
//! structures, never as text, and a missing field is an error: the tests start the shipped files.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::paths;

const ADMIN_PORT: &str = "/admin/address/socket_address/port_value";
const ADS_PROTOCOL: &str = "/dynamic_resources/ads_config/api_type";
const FIRST_ENDPOINT: &str =
    "/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address/socket_address";
const LOCALITIES: &str = "/load_assignment/endpoints";
const ENDPOINTS: &str = "/load_assignment/endpoints/0/lb_endpoints";
const FIRST_LISTENER: &str = "/static_resources/listeners/0/address/socket_address";
const FIRST_FILTERS: &str =
    "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config/http_filters";
const FILE: &str = "/typed_config/config/vm_config/code/local/filename";

const CONFIGURATION: &str = "/typed_config/config/configuration/value";
const NATIVE_CONFIGURATION: &str = "/typed_config/filter_config/value";
const GUEST: &str = "tidegate";

const TLS_SOCKET: &str = "transport_socket.yaml";
const SHIPPED_SECRETS: &str = "/etc/tidegate/tls";
const SHIPPED_CERTIFICATES: &str = "/etc/tidegate/proxy-certs";

/// How Envoy runs the filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// In the wasm virtual machine.
    Wasm,
    /// As a dynamic module.
    Native,
}

impl Flavour {
    pub const fn as_str(self) -> &'static str {
        match self {
            Flavour::Wasm => "wasm",
            Flavour::Native => "native",
        }
    }

    /// The filter's file.
    pub fn file(self) -> Result<PathBuf> {
        match self {
            Flavour::Wasm => paths::filter(),
            Flavour::Native => paths::module(),
        }
    }
}

/// A bootstrap under construction.
#[derive(Clone, Debug)]
pub struct Bootstrap(Value);

impl Bootstrap {
    /// Reads `envoy-configs/<name>`, and lets the kernel choose the admin port.
    pub fn read(name: &str) -> Result<Bootstrap> {
        Bootstrap(read(&format!("envoy-configs/{name}"))?).with(ADMIN_PORT, json!(0))
    }

    /// Any other bootstrap.
    pub fn of(content: Value) -> Bootstrap {
        Bootstrap(content)
    }

    /// Reads `examples/<name>`, the configuration of an Envoy that somebody else configures, with a
    /// guest in it of this flavour. Its listener and its admin port are the kernel's choice.
    pub fn example(name: &str, flavour: Flavour) -> Result<Bootstrap> {
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        let example = Bootstrap(read(&format!("examples/{name}"))?)
            .with(ADMIN_PORT, json!(0))?
            .with(FIRST_LISTENER, socket(any_port))?;
        let file = flavour.file()?;
        match flavour {
            Flavour::Wasm => example.filter_file(&file),
            Flavour::Native => example.with_module(&file),
        }
    }

    fn filter_file(mut self, filter: &Path) -> Result<Bootstrap> {
        let guest = self.filters()?.iter_mut().find(is_guest);
        let file = guest.and_then(|guest| guest.pointer_mut(FILE));
        *file.context("no file of the filter")? = json!(filter);
        Ok(self)
    }

    /// Replaces the guest in an example by a dynamic module with the same configuration.
    pub fn with_module(mut self, module: &Path) -> Result<Bootstrap> {
        let guest = self.filters()?.iter_mut().find(is_guest);
        let guest = guest.context("no filter named tidegate")?;
        let configuration = guest
            .pointer_mut("/typed_config/config/configuration")
            .context("no configuration")?
            .take();
        guest["typed_config"] = native_filter(module, configuration);
        Ok(self)
    }

    /// The configuration of the guest in an example.
    pub fn guest_configuration(&self) -> Result<Value> {
        let guest = self.guest_plugin()?;
        let text = guest.pointer(CONFIGURATION);
        let text = text.or_else(|| guest.pointer(NATIVE_CONFIGURATION));
        let text = text.and_then(Value::as_str).context("no configuration")?;
        Ok(serde_json::from_str(text)?)
    }

    /// Gives the guest in an example another configuration.
    pub fn guest(mut self, configuration: &Value) -> Result<Bootstrap> {
        let guest = self.filters()?.iter_mut().find(is_guest);
        let guest = guest.context("no filter named tidegate")?;
        let is_wasm = guest.pointer(CONFIGURATION).is_some();
        let place = if is_wasm {
            CONFIGURATION
        } else {
            NATIVE_CONFIGURATION
        };
        let value = guest.pointer_mut(place);
        *value.context("no configuration")? = json!(configuration.to_string());
        Ok(self)
    }

    /// Takes the guest out of an example.
    pub fn without_guest(mut self) -> Result<Bootstrap> {
        self.filters()?.retain(|filter| filter["name"] != GUEST);
        Ok(self)
    }

    /// Puts a filter of the host before all others.
    pub fn filter_first(mut self, filter: Value) -> Result<Bootstrap> {
        self.filters()?.insert(0, filter);
        Ok(self)
    }

    fn guest_plugin(&self) -> Result<&Value> {
        let filters = self.0.pointer(FIRST_FILTERS).and_then(Value::as_array);
        let guest = filters
            .into_iter()
            .flatten()
            .find(|filter| filter["name"] == GUEST);
        guest.context("no filter named tidegate")
    }

    fn filters(&mut self) -> Result<&mut Vec<Value>> {
        let filters = self.0.pointer_mut(FIRST_FILTERS);
        filters.and_then(Value::as_array_mut).context("no filters")
    }

    /// Sets the node of the Envoy, like `--config-yaml` in production.
    pub fn node(mut self, id: &str, region: &str, zone: &str) -> Result<Bootstrap> {
        let node = self.0["node"].as_object_mut().context("no node")?;
        node.insert("id".to_owned(), json!(id));
        node.insert(
            "locality".to_owned(),
            json!({ "region": region, "zone": zone }),
        );
        Ok(self)
    }

    /// Points a static cluster at an address.
    pub fn cluster_at(mut self, name: &str, address: SocketAddr) -> Result<Bootstrap> {
        let endpoint = self.cluster(name)?.pointer_mut(FIRST_ENDPOINT);
        *endpoint.with_context(|| format!("cluster {name} has no endpoint"))? = socket(address);
        Ok(self)
    }

    /// Adds an address to a static cluster: another replica.
    pub fn cluster_also_at(mut self, name: &str, address: SocketAddr) -> Result<Bootstrap> {
        let endpoints = self.cluster(name)?.pointer_mut(ENDPOINTS);
        let endpoints = endpoints.and_then(Value::as_array_mut);
        let endpoint = json!({ "endpoint": { "address": { "socket_address": socket(address) } } });
        endpoints
            .with_context(|| format!("cluster {name} has no endpoints"))?
            .push(endpoint);
        Ok(self)
    }

    /// Adds an address of a lower priority to a static cluster: it is used if no address of a
    /// higher priority is left.
    pub fn cluster_else_at(
        mut self,
        name: &str,
        priority: u32,
        address: SocketAddr,
    ) -> Result<Bootstrap> {
        let localities = self.cluster(name)?.pointer_mut(LOCALITIES);
        let localities = localities.and_then(Value::as_array_mut);
        let endpoint = json!({ "endpoint": { "address": { "socket_address": socket(address) } } });
        localities
            .with_context(|| format!("cluster {name} has no endpoints"))?
            .push(json!({ "priority": priority, "lb_endpoints": [endpoint] }));
        Ok(self)
    }

    fn cluster(&mut self, name: &str) -> Result<&mut Value> {
        let clusters = self.0.pointer_mut("/static_resources/clusters");
        let clusters = clusters.and_then(Value::as_array_mut);
        clusters
            .into_iter()
            .flatten()
            .find(|cluster| cluster["name"] == name)
            .with_context(|| format!("no cluster {name}"))
    }

    /// Connects to the control plane with TLS, as `envoy-configs/tls/` does. `secrets` is the
    /// directory for the files about certificates, `certificates` the directory with `tls.crt`,
    /// `tls.key` and `ca.crt`.
    pub fn tls(mut self, secrets: &Path, certificates: &Path) -> Result<Bootstrap> {
        let mut socket = read(&format!("envoy-configs/tls/{TLS_SOCKET}"))?;
        for name in ["client.yaml", "ca.yaml"] {
            let mut secret = read(&format!("envoy-configs/tls/{name}"))?;
            move_paths(&mut secret, SHIPPED_CERTIFICATES, certificates);
            fs::write(secrets.join(name), secret.to_string())?;
        }
        move_paths(&mut socket, SHIPPED_SECRETS, secrets);
        let cluster = self.cluster("tidegate")?;
        cluster["transport_socket"] = socket["transport_socket"].take();
        Ok(self)
    }

    /// Uses state of the world instead of delta.
    pub fn state_of_the_world(self) -> Result<Bootstrap> {
        self.with(ADS_PROTOCOL, json!("GRPC"))
    }

    /// The edge's own listener and filter file.
    pub fn edge(self, listen: SocketAddr, filter: &Path) -> Result<Bootstrap> {
        self.with(FIRST_LISTENER, socket(listen))?
            .with(&format!("{FIRST_FILTERS}/0{FILE}"), json!(filter))
    }

    /// Replaces the value at a JSON pointer.
    pub fn with(mut self, pointer: &str, value: Value) -> Result<Bootstrap> {
        let place = self.0.pointer_mut(pointer);
        *place.with_context(|| format!("the bootstrap has no {pointer}"))? = value;
        Ok(self)
    }

    /// Adds a field to the object at a JSON pointer.
    pub fn insert(mut self, pointer: &str, field: &str, value: Value) -> Result<Bootstrap> {
        let object = self.0.pointer_mut(pointer).and_then(Value::as_object_mut);
        let object = object.with_context(|| format!("the bootstrap has no object {pointer}"))?;
        object.insert(field.to_owned(), value);
        Ok(self)
    }

    /// Adds an element to the array at a JSON pointer.
    pub fn push(mut self, pointer: &str, value: Value) -> Result<Bootstrap> {
        let array = self.0.pointer_mut(pointer).and_then(Value::as_array_mut);
        let array = array.with_context(|| format!("the bootstrap has no array {pointer}"))?;
        array.push(value);
        Ok(self)
    }

    /// Writes it to a file for an Envoy. Envoy parses JSON fastest.
    pub fn write(&self, path: &Path) -> Result<()> {
        fs::write(path, serde_json::to_vec_pretty(&self.0)?)
            .with_context(|| path.display().to_string())
    }
}

/// The filter as a dynamic module, with a configuration as an `Any` of bytes or text.
pub fn native_filter(module: &Path, configuration: Value) -> Value {
    json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.dynamic_modules.v3.DynamicModuleFilter",
        "dynamic_module_config": {
            "module": { "local": { "filename": module } },
            "do_not_close": true,
            // The names of metrics stay the same.
            "metrics_namespace": "wasmcustom",
        },
        "filter_name": "tidegate",
        "filter_config": configuration,
    })
}

fn read(name: &str) -> Result<Value> {
    let path = paths::workspace().join(name);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    serde_saphyr::from_str(&text).with_context(|| path.display().to_string())
}

fn is_guest(filter: &&mut Value) -> bool {
    filter["name"] == GUEST
}

/// Moves all paths from one directory to another.
fn move_paths(value: &mut Value, from: &str, to: &Path) {
    match value {
        Value::String(text) => {
            let moved = Path::new(text).strip_prefix(from).map(|rest| to.join(rest));
            if let Ok(moved) = moved {
                // Without the separator that an empty remainder leaves.
                *text = moved.display().to_string().trim_end_matches('/').to_owned();
            }
        }
        Value::Array(all) => all.iter_mut().for_each(|value| move_paths(value, from, to)),
        Value::Object(all) => all
            .values_mut()
            .for_each(|value| move_paths(value, from, to)),
        _ => {}
    }
}

fn socket(address: SocketAddr) -> Value {
    json!({ "address": address.ip(), "port_value": address.port() })
}
