//! A whole mesh on loopback: store, control plane, Envoys, upstreams.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::client::{Client, Reply, Request, Version};
use crate::config::{Config, StoreConfig, ZONES, region_of};
use crate::control_plane::ControlPlane;
use crate::envoy::{Envoy, Options, Role};
use crate::etcd::Etcd;
use crate::registry::{Instance, InstanceName, Registry};
use crate::upstream::Upstream;
use crate::wait::{PATIENCE, eventually};
use crate::workdir::Workdir;

/// The store of a mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    Embedded,
    /// With this many members.
    Etcd(usize),
}

/// The parts of a mesh.
pub struct Builder {
    workdir: Workdir,
    store: Store,
    services: Vec<Value>,
    links: Vec<Value>,
    guard: Option<Value>,
    authority: Option<Value>,
    bare: bool,
    on_demand: bool,
    ttl_s: Option<Value>,
    grpc: bool,
    listener: Option<Value>,
    envoys: Vec<Options>,
    upstreams: Vec<(String, usize)>,
}

impl Builder {
    /// A control plane alone, without services.
    pub fn new(workdir: Workdir) -> Builder {
        Builder {
            workdir,
            store: Store::Embedded,
            services: vec![],
            links: vec![],
            guard: None,
            authority: None,
            bare: false,
            on_demand: false,
            ttl_s: None,
            grpc: false,
            listener: None,
            envoys: vec![],
            upstreams: vec![],
        }
    }

    pub fn store(mut self, store: Store) -> Builder {
        self.store = store;
        self
    }

    /// Adds a service in the form of the configuration file.
    pub fn service(mut self, service: Value) -> Builder {
        self.services.push(service);
        self
    }

    /// Adds a link between zones in the form of the configuration file.
    pub fn link(mut self, link: Value) -> Builder {
        self.links.push(link);
        self
    }

    /// Sets the guard against implausible changes, in the form of the configuration file; without
    /// it all changes are accepted.
    pub fn guard(mut self, guard: Value) -> Builder {
        self.guard = Some(guard);
        self
    }

    /// Fences writes, in the form of the configuration file. The only control plane serves all
    /// zones; gateways are registered, so that writes can be forwarded to them.
    pub fn authority(mut self, authority: Value) -> Builder {
        self.authority = Some(authority);
        self
    }

    /// Without access log and explanations, for a measurement.
    pub fn bare(mut self) -> Builder {
        self.bare = true;
        self
    }

    /// Makes gateways use virtual hosts on demand.
    pub fn on_demand(mut self) -> Builder {
        self.on_demand = true;
        self
    }

    /// Sets times to live, in the form of the configuration file.
    pub fn ttl_s(mut self, ttl_s: Value) -> Builder {
        self.ttl_s = Some(ttl_s);
        self
    }

    /// Sets further fields of the proxies' listeners, in the form of the configuration file.
    pub fn listener(mut self, listener: Value) -> Builder {
        self.listener = Some(listener);
        self
    }

    /// Serves proxyless gRPC clients.
    pub fn grpc_clients(mut self) -> Builder {
        self.grpc = true;
        self
    }

    /// Adds a gateway Envoy in every zone.
    pub fn gateways(self) -> Builder {
        ZONES.iter().fold(self, |builder, (zone, region)| {
            builder.envoy(Options::gateway(region, zone))
        })
    }

    /// Adds an Envoy.
    pub fn envoy(mut self, options: Options) -> Builder {
        self.envoys.push(options);
        self
    }

    /// Adds this many instances of a service in every zone, each a server in this process.
    pub fn upstreams(mut self, service: &str, per_zone: usize) -> Builder {
        self.upstreams.push((service.to_owned(), per_zone));
        self
    }

    /// Starts everything, and waits until every Envoy has a listener and every instance is
    /// registered.
    pub async fn start(self) -> Result<Mesh> {
        let directory = self.workdir.path();
        let etcd = match self.store {
            Store::Embedded => None,
            Store::Etcd(members) => Some(Etcd::start(directory, members).await?),
        };
        let store = match &etcd {
            None => StoreConfig::Embedded,
            Some(etcd) => StoreConfig::Etcd {
                endpoints: etcd.endpoints(),
            },
        };
        let mut config = Config::new(store, self.services);
        config.links = self.links;
        if let Some(guard) = self.guard {
            config.guard = guard;
        }
        config.authority = self.authority;
        config.bare = self.bare;
        config.on_demand = self.on_demand;
        config.ttl_s = self.ttl_s;
        config.grpc = self.grpc;
        if let Some(listener) = self.listener {
            config.listener = listener;
        }
        let control_plane = ControlPlane::start(directory, config).await?;
        let mut mesh = Mesh {
            envoys: vec![],
            upstreams: vec![],
            control_plane,
            etcd,
            http1: Client::new(Version::Http1),
            http2: Client::new(Version::Http2),
            workdir: self.workdir,
        };
        for (service, per_zone) in &self.upstreams {
            for (zone, _) in ZONES {
                for index in 1..=*per_zone {
                    mesh.add_upstream(service, zone, &format!("{service}-{zone}-{index}"))
                        .await?;
                }
            }
        }
        let registered = mesh.upstreams.len() as f64;
        eventually(PATIENCE, "the instances to be taken in", async || {
            let known = mesh.registry().metric("tidegate_instances").await?;
            ensure!(known >= registered, "{known} of {registered}");
            Ok(())
        })
        .await?;
        for options in self.envoys {
            mesh.add_envoy(options).await?;
        }
        if mesh.control_plane.config().authority.is_some() {
            mesh.register_gateways().await?;
        }
        Ok(mesh)
    }
}

/// A running mesh. All its processes end with it; the fields are dropped in order, users before
/// their dependencies.
pub struct Mesh {
    envoys: Vec<(Options, Envoy, SocketAddr)>,
    upstreams: Vec<(InstanceName, Upstream)>,
    pub control_plane: ControlPlane,
    pub etcd: Option<Etcd>,
    http1: Client,
    http2: Client,
    workdir: Workdir,
}

impl Mesh {
    /// The directory of configurations and logs.
    pub fn workdir(&self) -> &Workdir {
        &self.workdir
    }

    pub fn registry(&self) -> &Registry {
        self.control_plane.registry()
    }

    /// The Envoy with this id.
    pub fn envoy(&self, id: &str) -> Result<&Envoy> {
        let (_, envoy, _) = self.find(id)?;
        Ok(envoy)
    }

    /// A zone's gateway.
    pub fn gateway(&self, zone: &str) -> Result<&Envoy> {
        self.envoy(&format!("gateway-{zone}"))
    }

    /// The address of a zone's gateway.
    pub fn address(&self, zone: &str) -> Result<SocketAddr> {
        self.ingress(&format!("gateway-{zone}"))
    }

    /// The ingress address of the Envoy with this id.
    pub fn ingress(&self, id: &str) -> Result<SocketAddr> {
        let (_, _, ingress) = self.find(id)?;
        Ok(*ingress)
    }

    /// Sends a request to a zone's gateway over HTTP/1.1.
    pub async fn send(&self, zone: &str, request: Request) -> Result<Reply> {
        self.http1.send(self.address(zone)?, &request).await
    }

    /// Sends a request to a zone's gateway over HTTP/2.
    pub async fn send_http2(&self, zone: &str, request: Request) -> Result<Reply> {
        self.http2.send(self.address(zone)?, &request).await
    }

    /// Starts an Envoy and waits for its listener.
    pub async fn add_envoy(&mut self, options: Options) -> Result<SocketAddr> {
        let envoy = self.start_envoy(&options).await?;
        self.admit_envoy(options, envoy).await
    }

    /// Starts an Envoy that may not get a listener yet.
    pub async fn start_envoy(&self, options: &Options) -> Result<Envoy> {
        Envoy::start(self.workdir.path(), options, self.control_plane.xds()).await
    }

    /// Waits for the listener of a running Envoy.
    pub async fn admit_envoy(&mut self, options: Options, envoy: Envoy) -> Result<SocketAddr> {
        let ingress = envoy.ingress().await?;
        self.envoys.push((options, envoy, ingress));
        Ok(ingress)
    }

    /// Registers the gateways, so that they know each other.
    async fn register_gateways(&self) -> Result<()> {
        let gateways = self.envoys.iter();
        for (options, _, ingress) in gateways.filter(|(o, ..)| o.role == Role::Gateway) {
            let name = InstanceName::new("gateway", &options.zone, &options.id);
            let record = Instance::at(*ingress);
            let put = self.registry().put(&name, &record, None).await?;
            ensure!(put.status.is_success(), "{}", put.text());
        }
        Ok(())
    }

    /// Starts an instance and waits until it is registered.
    pub async fn add_upstream(&mut self, service: &str, zone: &str, instance: &str) -> Result<()> {
        ensure!(!region_of(zone).is_empty(), "no zone {zone}");
        let name = InstanceName::new(service, zone, instance);
        let upstream = Upstream::start_registered(name.clone(), self.registry()).await?;
        self.upstreams.push((name, upstream));
        Ok(())
    }

    pub fn upstream(&self, instance: &str) -> Result<&Upstream> {
        let found = self
            .upstreams
            .iter()
            .find(|(name, _)| name.instance == instance);
        let (_, upstream) = found.with_context(|| format!("no instance {instance}"))?;
        Ok(upstream)
    }

    /// Removes an instance from the mesh, to drain it or to drop it like a crash.
    pub fn take_upstream(&mut self, instance: &str) -> Result<Upstream> {
        let at = self
            .upstreams
            .iter()
            .position(|(name, _)| name.instance == instance);
        let at = at.with_context(|| format!("no instance {instance}"))?;
        Ok(self.upstreams.remove(at).1)
    }

    /// Waits until a gateway answers a request as expected; `check` returns the difference.
    pub async fn eventually(
        &self,
        zone: &str,
        what: &str,
        request: Request,
        check: impl Fn(&Reply) -> Result<()>,
    ) -> Result<Reply> {
        let answered = eventually(PATIENCE, what, async || {
            let reply = self.send(zone, request.clone()).await?;
            check(&reply)?;
            Ok(reply)
        });
        answered.await
    }

    /// Removes an Envoy from the mesh; dropping it kills it.
    pub fn take_envoy(&mut self, id: &str) -> Result<(Options, Envoy)> {
        let at = self.envoys.iter().position(|(o, ..)| o.id == id);
        let at = at.with_context(|| format!("no Envoy {id}"))?;
        let (options, envoy, _) = self.envoys.remove(at);
        Ok((options, envoy))
    }

    /// The ends of all logs, and the paths of the others.
    pub fn logs(&self) -> String {
        let envoys = self
            .envoys
            .iter()
            .map(|(_, envoy, _)| envoy.process().tail());
        let tails: Vec<String> = [self.control_plane.process().tail()]
            .into_iter()
            .chain(envoys)
            .collect();
        format!(
            "{}\nall logs are in {}",
            tails.join("\n"),
            self.workdir.path().display()
        )
    }

    fn find(&self, id: &str) -> Result<&(Options, Envoy, SocketAddr)> {
        self.envoys
            .iter()
            .find(|(options, ..)| options.id == id)
            .with_context(|| format!("no Envoy {id}"))
    }
}
