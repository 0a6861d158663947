//! The services of both ports.

use std::{sync::Arc, time::Duration};

use axum::Router;
use prometheus_client::{collector::Collector, registry::Registry};
use registry::store::Store;
use tonic::service::Routes;
use xds::{csds, transport::Services};

use crate::{
    access_rules::AccessRules,
    admin::{Admin, FilterModule, LeaseOwners},
    applied::{self, Applied},
    authority::{
        self, Agreements, Authorities, HopKeys,
        peers::{self, Network},
    },
    discovery::{self, ZoneViews, proxies::Proxies},
    feed::Feed,
    guests::{self, GuestLists, Guests},
    istio,
    load_reports::{LoadReports, Loads},
    metrics::Metrics,
    store_health::StoreHealth,
};

/// The parts that the services use.
pub(super) struct Shared {
    pub(super) store: Arc<dyn Store>,
    pub(super) store_health: StoreHealth,
    pub(super) authorities: Authorities,
    pub(super) agreements: Agreements,
    pub(super) feed: Feed,
    pub(super) proxies: Proxies,
    pub(super) rules: AccessRules,
    pub(super) lists: GuestLists,
    pub(super) hop_keys: HopKeys,
    pub(super) network: Network,
    pub(super) istio: istio::Objects,
    pub(super) filter: Option<FilterModule>,
    pub(super) load_report_interval: Duration,
    pub(super) metrics: Metrics,
    /// Metrics of the process around it.
    pub(super) collectors: Vec<Box<dyn Collector>>,
}

impl Shared {
    /// The services of the port for proxies, and of the admin port.
    pub(super) fn services(self) -> (Services<xds::Server<ZoneViews>>, Router) {
        let (applied, loads) = (Applied::default(), Loads::default());
        let guests = self.guests();
        tokio::spawn(guests.clone().watch());
        tokio::spawn(discovery::conditions::watch(
            self.proxies.clone(),
            {
                let guests = guests.clone();
                move || guests.expected()
            },
            applied.clone(),
            self.feed.snapshots.clone(),
            self.metrics.clone(),
        ));
        let services = self.for_proxies(guests.clone(), &applied, &loads);
        let admin = Admin {
            metrics: Arc::new(registry(&self.metrics, loads, self.collectors)),
            store: self.store,
            store_health: self.store_health,
            authorities: self.authorities,
            agreements: self.agreements,
            feed: self.feed,
            proxies: self.proxies,
            guests,
            applied,
            counts: self.metrics,
            rules: self.rules,
            istio: self.istio,
            filter: self.filter,
            owners: LeaseOwners::default(),
        };
        (services, admin.router())
    }

    fn guests(&self) -> Guests {
        Guests::new(
            self.feed.snapshots.clone(),
            self.authorities.homes().clone(),
            self.rules.clone(),
            self.lists.clone(),
            self.metrics.clone(),
        )
    }

    fn for_proxies(
        &self,
        guests: Guests,
        applied: &Applied,
        loads: &Loads,
    ) -> Services<xds::Server<ZoneViews>> {
        let snapshots = || self.feed.snapshots.clone();
        let homes = || self.authorities.homes().clone();
        let rules = || self.rules.clone();
        let metrics = || self.metrics.clone();
        let views = ZoneViews::new(snapshots(), self.proxies.clone(), metrics());
        let views = views.among(homes()).behind(rules());
        let load_reports = LoadReports::new(snapshots(), loads.clone(), self.load_report_interval);
        let load_reports = load_reports.among(homes()).behind(rules());
        let (authorities, hop_keys) = (self.authorities.clone(), self.hop_keys.clone());
        let fence = authority::service(authorities, rules(), hop_keys, metrics());
        let others = Routes::new(fence)
            .add_service(guests::service(guests))
            .add_service(load_reports.into_service())
            .add_service(peers::service(self.network.clone()))
            .add_service(applied::service(applied.clone()))
            .add_service(csds::service(self.proxies.clients().clone()));
        let others = guests::confined(others);
        Services::new(views.into_server(), others)
    }
}

fn registry(metrics: &Metrics, loads: Loads, more: Vec<Box<dyn Collector>>) -> Registry {
    let mut registry = metrics.registry();
    registry.register_collector(Box::new(loads));
    for collector in more {
        registry.register_collector(collector);
    }
    registry
}
