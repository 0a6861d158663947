//! The command line of `tidegate guest`.

use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use policy::{
    Enforcement, Route,
    guest::Mode,
    listed::{Clash, Lists},
};
use serde_json::{Value, json};

use super::{
    lists::{self, Classes},
    mesh::Mesh,
    print::{self, Context, Delivery, Kind, Place, Spec},
    remove,
};

/// The bound of writes without a configuration: the default of `authority.write_drain_ms`.
const DRAIN_MS: u64 = 1_500;
/// Larger modules do not fit into an object of Kubernetes.
const INLINE_BYTES_MAX: usize = 1 << 20;

#[derive(Args)]
pub(crate) struct GuestArgs {
    /// What carries the guest.
    #[arg(long, value_enum)]
    kind: Kind,
    /// Print the order in which filter, net and objects go, with the commands.
    #[arg(long)]
    remove: bool,
    #[command(flatten)]
    of: PrintArgs,
}

#[derive(Args)]
struct PrintArgs {
    /// `fence` admits and rejects writes; `route` also decides where each request goes.
    #[arg(long, value_name = "MODE", default_value = "fence", value_parser = mode)]
    mode: Mode,
    /// The zone's name, or where the guest finds it: `locality`, `istio`, `metadata:PATH`. By
    /// default `istio` for Istio and Higress, otherwise `locality`.
    #[arg(long, value_name = "ZONE")]
    zone: Option<String>,
    /// The name of the host's cluster that leads to the control plane.
    #[arg(long, value_name = "CLUSTER", default_value = "tidegate")]
    control_plane: String,
    /// Where the control plane listens for proxies. By default tidegate:18000, with Kubernetes
    /// tidegate.tidegate.svc.cluster.local:18000.
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
    /// The longest life of a write on the host's routes. By default `authority.write_drain_ms` of
    /// the configuration, which is also its limit.
    #[arg(long, value_name = "MS")]
    drain_ms: Option<u64>,
    /// A route that takes writes while the guest has no policy: `[HOST]/PREFIX`, or
    /// `[HOST/]grpc:SERVICE`. Repeatable.
    #[arg(long, value_name = "ROUTE", value_parser = lists::parse_unfenced)]
    unfenced: Vec<Route>,
    /// The class of a route: `read=ROUTE`, `write=ROUTE`, `read=grpc:SERVICE/METHOD,...`.
    /// Repeatable.
    #[arg(long, value_name = "CLASS=ROUTE", value_parser = lists::parse_class)]
    class: Vec<Route>,
    /// With mode `route`: the names of the host's clusters for a service, with `{service}`,
    /// `{zone}`, `{region}` and `{namespace}`; `*` for all others. Repeatable.
    #[arg(long, value_name = "SERVICE=TEMPLATE", value_parser = template)]
    cluster: Vec<(String, String)>,
    /// The text for `{namespace}` in these names.
    #[arg(long, value_name = "TEXT")]
    template_namespace: Option<String>,
    /// Tidegate's configuration: its routes of fenced services, their classes, `write_drain_ms` and
    /// `enforcement`.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How the module comes to the proxies. By default `file`; for Envoy Gateway and Higress
    /// `plugin`.
    #[arg(long, value_enum)]
    delivery: Option<Delivery>,
    /// The filter: its path on the proxies' machines, its address (`http://`, `oci://`, `file://`),
    /// or with `--delivery inline` the file to put in.
    #[arg(long, value_name = "PATH")]
    module: Option<String>,
    /// The SHA-256 of a fetched filter.
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,
    /// The namespace of the objects. By default istio-system, default, or higress-system.
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// Istio: the proxies in which the guest stands.
    #[arg(long, value_enum, default_value = "gateway")]
    context: Context,
    /// Labels of the pods. By default those of the gateway that the installation brings.
    #[arg(long, value_name = "LABEL=VALUE", value_parser = template)]
    selector: Vec<(String, String)>,
    /// The `Gateway` of the Gateway API: Envoy Gateway's, or a waypoint of Istio.
    #[arg(long, value_name = "NAME")]
    gateway: Option<String>,
    /// Envoy Gateway: its listeners, by the names of its xDS. By default NAMESPACE/GATEWAY/http.
    /// Repeatable.
    #[arg(long, value_name = "NAME")]
    listener: Vec<String>,
    /// Istio: the virtual hosts with routes of fenced services, like shop.example:80. By default
    /// those with the hosts of the configuration. Repeatable.
    #[arg(long, value_name = "NAME")]
    virtual_host: Vec<String>,
}

fn mode(text: &str) -> Result<Mode, String> {
    match text {
        "fence" => Ok(Mode::Fence),
        "route" => Ok(Mode::Route),
        _ => Err("use fence or route".to_owned()),
    }
}

fn template(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("use NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

impl GuestArgs {
    /// Prints the pieces, or the order of their removal.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        print!("{}", self.text()?);
        Ok(())
    }

    pub(super) fn text(&self) -> anyhow::Result<String> {
        let spec = self.of.spec(self.kind)?;
        Ok(match self.remove {
            true => remove::print(self.kind, &spec),
            false => print::print(self.kind, &spec),
        })
    }
}

impl PrintArgs {
    fn spec(&self, kind: Kind) -> anyhow::Result<Spec> {
        let mesh = Mesh::read(self.config.as_deref())?;
        let delivery = self.delivery.unwrap_or(match kind {
            Kind::Envoy | Kind::Istio => Delivery::File,
            Kind::EnvoyGateway | Kind::Higress => Delivery::Plugin,
        });
        let module = self.module(kind, delivery);
        let (host, port) = self.address(kind)?;
        let spec = Spec {
            mode: self.mode,
            zone: self.zone(kind),
            control_plane: self.control_plane.clone(),
            host,
            port,
            drain_ms: self.drain_ms(&mesh)?,
            unfenced: self.unfenced.clone(),
            classes: self.classes(&mesh)?,
            clusters: self.cluster.iter().cloned().collect(),
            template_namespace: self.template_namespace.clone(),
            is_shadow: mesh.enforcement == Enforcement::Observe,
            fenced: mesh.fenced().cloned().collect(),
            inline: inline(delivery, &module)?,
            module,
            sha256: self.sha256.clone(),
            place: self.place(kind, delivery),
        };
        // The filter's own reader: what it would reject is not printed.
        filter_core::guest::Config::read(spec.configuration().as_bytes())
            .context("the guest would reject this configuration")?;
        Ok(spec)
    }

    fn zone(&self, kind: Kind) -> Value {
        let default = match kind {
            Kind::Envoy | Kind::EnvoyGateway => "locality",
            Kind::Istio | Kind::Higress => "istio",
        };
        let zone = self.zone.as_deref().unwrap_or(default);
        match zone == "locality" || zone == "istio" || zone.starts_with("metadata:") {
            true => json!({ "from": zone }),
            false => json!(zone),
        }
    }

    fn address(&self, kind: Kind) -> anyhow::Result<(String, u16)> {
        let default = match kind {
            Kind::Envoy => "tidegate:18000",
            _ => "tidegate.tidegate.svc.cluster.local:18000",
        };
        let text = self.address.as_deref().unwrap_or(default);
        let read = text.rsplit_once(':').and_then(|(host, port)| {
            let host = host.trim_start_matches('[').trim_end_matches(']');
            Some((host.to_owned(), port.parse().ok()?))
        });
        read.filter(|(host, _)| !host.is_empty())
            .with_context(|| format!("--address: {text:?} is no HOST:PORT"))
    }

    fn drain_ms(&self, mesh: &Mesh) -> anyhow::Result<u64> {
        let drain_ms = self.drain_ms.or(mesh.write_drain_ms).unwrap_or(DRAIN_MS);
        if let Some(limit) = mesh.write_drain_ms {
            ensure!(
                drain_ms <= limit,
                "--drain-ms: {drain_ms} is above authority.write_drain_ms, {limit}: the guest would admit nothing"
            );
        }
        Ok(drain_ms)
    }

    fn classes(&self, mesh: &Mesh) -> anyhow::Result<Classes> {
        let unfenced = Lists {
            unfenced: self.unfenced.clone(),
            classes: vec![],
        };
        if let Some(Clash { listed, fenced }) = unfenced.clash(&mesh.routes) {
            bail!(
                "--unfenced {}: it would take writes of a fenced service, {}, while the guest has no policy",
                lists::text(listed),
                lists::text(fenced)
            );
        }
        let reads = Lists {
            unfenced: vec![],
            classes: self.class.clone(),
        };
        if let Some(Clash { listed, fenced }) = reads.clash(&mesh.routes) {
            bail!(
                "--class {}: it would take writes of a fenced service, {}, as reads while the guest has no policy. Give the route this class in Tidegate's configuration",
                lists::text(listed),
                lists::text(fenced)
            );
        }
        let said = |route: &Route| {
            self.class
                .iter()
                .any(|said| said.host == route.host && said.matches == route.matches)
        };
        let others = mesh
            .routes
            .iter()
            .map(|(route, _)| route)
            .filter(|route| !said(route));
        let all: Vec<_> = others.chain(&self.class).cloned().collect();
        Ok(Classes::of(&all))
    }

    fn module(&self, kind: Kind, delivery: Delivery) -> String {
        let default = match (kind, delivery) {
            (Kind::Envoy, _) | (Kind::Istio, Delivery::File | Delivery::Inline) => {
                "/etc/tidegate/tidegate_filter.wasm"
            }
            (Kind::EnvoyGateway, _) => "REGISTRY/tidegate-filter:VERSION",
            (Kind::Istio | Kind::Higress, _) => "oci://REGISTRY/tidegate-filter:VERSION",
        };
        self.module.clone().unwrap_or_else(|| default.to_owned())
    }

    fn place(&self, kind: Kind, delivery: Delivery) -> Place {
        let (namespace, label) = match kind {
            Kind::Envoy | Kind::Istio => ("istio-system", ("istio", "ingressgateway")),
            Kind::EnvoyGateway => ("default", ("", "")),
            Kind::Higress => ("higress-system", ("app", "higress-gateway")),
        };
        let namespace = self.namespace.as_deref().unwrap_or(namespace).to_owned();
        let selector = match self.selector.is_empty() {
            true => vec![(label.0.to_owned(), label.1.to_owned())],
            false => self.selector.clone(),
        };
        let gateway = self.gateway.clone().unwrap_or_else(|| match kind {
            Kind::EnvoyGateway => "eg".to_owned(),
            _ => "waypoint".to_owned(),
        });
        let listeners = match self.listener.is_empty() {
            true => vec![format!("{namespace}/{gateway}/http")],
            false => self.listener.clone(),
        };
        Place {
            namespace,
            context: self.context,
            selector,
            gateway,
            listeners,
            virtual_hosts: self.virtual_host.clone(),
            delivery,
        }
    }
}

/// The module, where it stands in the configuration.
fn inline(delivery: Delivery, module: &str) -> anyhow::Result<Option<Vec<u8>>> {
    if delivery != Delivery::Inline {
        return Ok(None);
    }
    let bytes = std::fs::read(module).with_context(|| format!("--module: cannot read {module}"))?;
    ensure!(
        bytes.len() <= INLINE_BYTES_MAX,
        "--module: {module} has {} bytes: an object of Kubernetes holds no more than {INLINE_BYTES_MAX}",
        bytes.len()
    );
    Ok(Some(bytes))
}
