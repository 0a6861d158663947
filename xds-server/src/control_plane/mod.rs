//! The control plane as one object: [`ControlPlane::build`] connects its parts,
//! [`ControlPlane::run`] runs them.

mod ports;
mod services;
mod stores;

use std::{ffi::OsString, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use axum::Router;
use prometheus_client::collector::Collector;
use registry::store::Store;
use tokio::{sync::mpsc, time::timeout};
use tracing::info;

use xds::transport::{Drain, Services};

use crate::{
    access_rules::AccessRules,
    admin::{self, FilterModule},
    authority::{
        self, Agreements, Authorities, Boottime, HopKeys,
        peers::{Network, Peers, Reach},
    },
    compaction::Compactor,
    config::{Config, StoreConfig},
    discovery::{ZoneViews, proxies::Proxies},
    feed::{self, Sources},
    guests::GuestLists,
    istio,
    last_good::Keeper,
    memory,
    metrics::Metrics,
    net::connections::Listener,
    net::tls::Dialer,
    proxy_port, reload,
    replicas::Replicas,
    start::Start,
    store_health::StoreHealth,
};
use ports::Ports;
use services::Shared;

/// The options of a control plane besides its file.
pub struct Options {
    /// The YAML file. Changes to it take effect while running.
    pub config: PathBuf,
    /// The zone that it serves, in place of `authority.zones`.
    pub zone: Option<String>,
    /// The state directory that systemd assigns.
    pub state_directory: Option<OsString>,
    /// The filter that it serves at `/filter.wasm`; none: no filter is served.
    pub filter: Option<PathBuf>,
    /// Metrics of the process around it.
    pub collectors: Vec<Box<dyn Collector>>,
}

/// The treatment of the cells at shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// They stay, for as long as a session lasts.
    ToComeBack,
    /// They move to another zone first.
    HandingOver,
}

/// A control plane that is about to run.
pub struct ControlPlane {
    xds: Listener,
    admin: Listener,
    addresses: (SocketAddr, SocketAddr),
    services: Services<xds::Server<ZoneViews>>,
    router: Router,
    fence: Option<Fence>,
    keeper: Keeper,
}

/// The write authority of a control plane that has some.
struct Fence {
    configured: policy::fence::Terms,
    agreements: Agreements,
    authorities: Authorities,
}

impl ControlPlane {
    /// Opens store, state and ports, and begins to follow store and file. Needs a multi-threaded
    /// runtime.
    ///
    /// # Errors
    ///
    /// The file is not valid, or something that it names cannot be opened; the text names it and
    /// the remedy.
    pub async fn build(options: Options) -> anyhow::Result<ControlPlane> {
        ports::allow_many_files();
        let (config, text) = reload::read(&options.config)?;
        let state_directory = options.state_directory.as_deref();
        let Start { zones, state } = Start::of(&config, options.zone.as_deref(), state_directory)?;
        let filter = options.filter.as_deref().map(FilterModule::read);
        let filter = filter.transpose().context("--filter")?;
        let metrics = Metrics::default();
        let opened = stores::open(&config.store, &metrics).await?;
        let ports = Ports::open(&config.listen, &metrics)?;
        let addresses = ports.addresses()?;
        let (keeper, last_good) = stores::open_state(state.as_deref(), &metrics)?;
        let store_health = watch_store(&opened.shared, &metrics);
        let (peers, network) = start_peers(&config, addresses.0, ports.dialer, metrics.clone());
        let is_shared = matches!(config.store, StoreConfig::Etcd { .. });
        let compactor = stores::compacts(&config.store).zip(opened.etcd.clone());
        let (xds_config, xds_port) = (config.xds, config.listen.xds);
        let terms = config.mesh.authority.as_ref().map(|a| a.terms.clone());

        let agreements = Agreements::default();
        if terms.is_some() {
            tokio::spawn(authority::slew::watch(agreements.clone(), metrics.clone()));
        }
        let agreed = agreements.clone();
        let lists = GuestLists::default();
        lists.keep(Arc::clone(&opened.shared), metrics.conditions.clone());
        let meshes = {
            let (lists, metrics) = (lists.clone(), metrics.clone());
            reload::follow(options.config, config, text, agreed, lists, metrics)
        };
        let rules = AccessRules::new(meshes.clone()).on(addresses.0);
        let hop_keys = HopKeys::new(meshes.clone(), rules.clone());
        tokio::spawn(authority::watch_guard(
            meshes.clone(),
            xds_port,
            metrics.conditions.clone(),
        ));
        if is_shared {
            let (store, store_health) = (Arc::clone(&opened.shared), store_health.clone());
            let replicas = Replicas::new(store, process_name(), draw(), store_health, &metrics);
            tokio::spawn(replicas.run(meshes.clone()));
        }
        let agreed = authority::follow(meshes.clone(), authority::remembered(last_good.as_ref()));
        let (facts, told) = mpsc::channel(authority::FACTS_MAX);
        let feed = feed::start(Sources {
            store: Arc::clone(&opened.shared),
            meshes: meshes.clone(),
            facts: terms.is_some().then_some(facts),
            last_good,
            keeper: keeper.clone(),
            store_health: store_health.clone(),
            metrics: metrics.clone(),
        });
        let istio = istio::start(istio::Sources {
            meshes,
            snapshots: feed.snapshots.clone(),
            followed: feed.followed.clone(),
            metrics: metrics.clone(),
        });
        if let Some((keep, etcd)) = compactor {
            let (store_health, metrics) = (store_health.clone(), metrics.clone());
            let compactor = Compactor::new(etcd, keep, process_name(), store_health, metrics);
            tokio::spawn(compactor.run(feed.followed.clone()));
        }
        let proxies = Proxies::default();
        let fence = terms.map(|configured| Fence {
            authorities: authority::start(authority::Sources {
                store: {
                    let opened = opened.clone();
                    Box::new(move |request_timeout| opened.within(request_timeout))
                },
                peers,
                facts: told,
                zones,
                terms: configured.clone(),
                agreements: agreements.clone(),
                rules: agreed,
                overviews: feed.overviews.clone(),
                refusals: {
                    let clients = proxies.clients().clone();
                    Box::new(move |node| clients.refusal_of(node))
                },
                clock: Arc::new(Boottime),
                draw: Box::new(draw),
                process: process_name(),
                store_health: store_health.clone(),
                metrics: metrics.clone(),
            }),
            configured,
            agreements: agreements.clone(),
        });
        let authorities = fence.as_ref().map(|fence| fence.authorities.clone());
        let authorities = authorities.unwrap_or_else(Authorities::none);
        let shared = Shared {
            store: opened.shared,
            store_health,
            authorities,
            agreements,
            feed,
            proxies,
            rules,
            lists,
            hop_keys,
            network,
            istio,
            filter,
            load_report_interval: xds_config.load_report_interval,
            collectors: options.collectors,
            metrics,
        };
        let (services, router) = shared.services();
        Ok(ControlPlane {
            xds: ports.xds,
            admin: ports.admin,
            addresses,
            services,
            router,
            fence,
            keeper,
        })
    }

    /// The addresses of the ports for proxies and for operators.
    pub fn addresses(&self) -> (SocketAddr, SocketAddr) {
        self.addresses
    }

    /// Serves until `shutdown` completes. It then returns its grants, which takes as long as a
    /// grant lasts, or until `shutdown` completes a second time.
    ///
    /// # Errors
    ///
    /// A port is no longer served.
    pub async fn run(
        self,
        leaving: Leaving,
        mut shutdown: mpsc::Receiver<()>,
    ) -> anyhow::Result<()> {
        let drain = self.services.drain();
        let xds_server = proxy_port::serve(self.xds, self.services);
        let admin_server = admin::serve(self.admin, self.router);
        let (xds, admin) = self.addresses;
        info!(%xds, %admin, "listening");
        let servers = async {
            tokio::select! {
                () = xds_server => Err(anyhow::anyhow!("the xDS server ended")),
                () = admin_server => Err(anyhow::anyhow!("the admin server ended")),
            }
        };
        tokio::pin!(servers);
        let ended = tokio::select! {
            ended = &mut servers => ended,
            _ = shutdown.recv() => Ok(()),
        };
        info!("stopping: the proxies keep their configuration");
        if let Some(fence) = self.fence.filter(|_| ended.is_ok()) {
            tokio::select! {
                () = fence.leave(leaving, &drain) => {}
                _ = &mut servers => {}
                _ = shutdown.recv() => {}
            }
        }
        // Streams to proxies never end on their own, so there is nothing else to wait for.
        self.keeper.stop().await;
        ended
    }
}

impl Fence {
    /// Waits until no grant of this process is in use any more, so that no other zone has to wait
    /// for it. Proxies are sent to another replica of the zone, and may have to reach it at the same
    /// address.
    async fn leave(self, leaving: Leaving, drain: &Drain) {
        let terms = self.agreements.terms(&self.configured);
        let enough = terms.stretch(terms.grant_ttl + terms.write_drain_waited);
        let enough = Duration::from_micros(enough) + Duration::from_secs(1);
        if leaving == Leaving::HandingOver {
            // Authority that has not moved by then stays, and is taken over later.
            let _ = timeout(enough, self.authorities.hand_over()).await;
        }
        drain.begin();
        let _ = timeout(enough, self.authorities.stop()).await;
    }
}

/// The health of the store, watched from now on.
fn watch_store(store: &Arc<dyn Store>, metrics: &Metrics) -> StoreHealth {
    let store_health = StoreHealth::new(metrics.clone());
    tokio::spawn(store_health.clone().probe_writes(Arc::clone(store)));
    tokio::spawn(store_health.clone().watch_alarms(Arc::clone(store)));
    tokio::spawn(memory::give_back());
    store_health
}

/// The connections to other replicas. A process with an embedded store is the only one.
fn start_peers(
    config: &Config,
    xds_address: SocketAddr,
    dialer: Dialer,
    metrics: Metrics,
) -> (Peers, Network) {
    let StoreConfig::Etcd { access, .. } = &config.store else {
        return (Peers::none(), Network::none());
    };
    if config.mesh.authority.is_none() {
        return (Peers::none(), Network::none());
    }
    let listen = &config.listen;
    let (advertise, name) = (
        listen.advertise.as_deref(),
        listen.advertise_name.as_deref(),
    );
    let mut reach = Reach::of(xds_address, advertise, name, &access.endpoints);
    if name.is_none() {
        reach.server_name = dialer.own_name(&reach.server_name);
    }
    info!(
        address = reach.address,
        server_name = reach.server_name,
        "other replicas reach this one here"
    );
    Peers::start(reach, dialer, metrics)
}

/// A number that no other incarnation has.
fn draw() -> u64 {
    // Without randomness two incarnations could get the same number, and that is worse than a
    // failed start.
    #[allow(
        clippy::expect_used,
        reason = "the system's randomness is there from the boot on"
    )]
    getrandom::u64().expect("the system gives random numbers")
}

/// `host:process id`, for operators.
fn process_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}:{}", host.trim(), std::process::id())
}
