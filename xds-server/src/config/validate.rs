//! From [`RawConfig`] to [`Config`]: its meaning, and its validation.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt,
    num::NonZeroU32,
    ops::RangeInclusive,
    sync::Arc,
    time::Duration,
};

use agent::etcd_access::EtcdAccess;
use policy::{
    ClassRule, Explain, Failover, InvalidRules, InvalidTopology, Link, Route, RouteMatch, Rules,
    Thresholds, Topology, Weighting,
};
use serde_saphyr::Spanned;

use super::{
    Config, ConfigError, FilterConfig, Guard, Mesh, Resilience, ServiceConfig, StoreConfig, Ttls,
    XdsConfig, failover, resilience,
    schema::{
        RawCompaction, RawConfig, RawLink, RawOperatorWeights, RawRoute, RawService, RawStore,
        RawTtls, RawWeights, RawXds, RawZone,
    },
};
use xds::resource::Kind;

/// Times to live that are possible, in seconds. They are renewed after a third; a shorter one would not outlive a pause of the control
/// plane, and one of more than a day means nothing.
const TTL_S: RangeInclusive<u32> = 3..=86_400;

/// For how long etcd's history can be kept, in seconds. A shorter history would have replicas list
/// anew after each break of a watch, and one of more than a month is of no use.
const KEEP_HISTORY_S: RangeInclusive<u64> = 10..=2_592_000;

/// The most routes of a service.
const ROUTES_MAX: usize = 10_000;

/// Turns the raw configuration into the domain's types, and knows the file for its errors.
pub(super) struct Validator<'f> {
    pub(super) file: &'f str,
    warnings: RefCell<Vec<ConfigError>>,
}

impl<'f> Validator<'f> {
    pub(super) fn of(file: &'f str) -> Validator<'f> {
        Validator {
            file,
            warnings: RefCell::default(),
        }
    }
}

impl Validator<'_> {
    pub(super) fn error<T>(
        &self,
        at: &Spanned<T>,
        field: &str,
        message: impl fmt::Display,
    ) -> ConfigError {
        ConfigError {
            file: self.file.to_owned(),
            line: at.referenced.line(),
            field: field.to_owned(),
            message: message.to_string(),
        }
    }

    /// Notes that a field of `parent` stands under its former name, which still works. An error beside the
    /// present one.
    pub(super) fn former<T>(
        &self,
        parent: &str,
        former: &str,
        at: &Spanned<T>,
        now: &str,
        both: bool,
    ) -> Result<(), ConfigError> {
        let field = format!("{parent}.{former}");
        if both {
            let message = format!("`{now}` says the same: leave this out");
            return Err(self.error(at, &field, message));
        }
        let message = format!("is called `{now}` now; the former name still works");
        let warning = self.error(at, &field, message);
        self.warnings.borrow_mut().push(warning);
        Ok(())
    }

    /// The one of two names under which a field of `parent` stands.
    fn renamed<'r, T>(
        &self,
        parent: &str,
        former: (&str, &'r Option<Spanned<T>>),
        now: (&str, &'r Option<Spanned<T>>),
    ) -> Result<Option<&'r Spanned<T>>, ConfigError> {
        if let Some(at) = former.1 {
            self.former(parent, former.0, at, now.0, now.1.is_some())?;
        }
        Ok(former.1.as_ref().or(now.1.as_ref()))
    }

    pub(super) fn config(&self, raw: RawConfig) -> Result<Config, ConfigError> {
        let topology = self.topology(&raw.zones, &raw.links)?;
        let authority = self.authority(raw.authority.as_ref(), &topology)?;
        let fences = authority.is_some();
        let forward_tls = authority.as_ref().and_then(|a| a.forward_tls.clone());
        let mut services = raw
            .services
            .value
            .iter()
            .enumerate()
            .map(|(index, service)| self.service(&topology, fences, index, service))
            .collect::<Result<Vec<_>, _>>()?;
        if raw.filter.path.value.is_empty() {
            let message = "empty: name the file as the Envoys see it";
            return Err(self.error(&raw.filter.path, "filter.path", message));
        }
        let explain = raw.explain.as_ref().map(|e| Explain {
            header: e.value.header.to_ascii_lowercase(),
            token: e.value.token.clone(),
        });
        self.check_rules(&topology, &services, &raw)?;
        refuse_foreign_upgrades(&mut services);
        let istio = self.istio(raw.istio.as_ref(), &topology, &services)?;
        services.extend(fences.then(|| ServiceConfig::gateways(forward_tls)));
        if let Some(at) = &raw.explain {
            Rules::new(
                topology.clone(),
                first_zone(&topology),
                vec![],
                explain.clone(),
            )
            .map_err(|error| self.error(at, "explain", error))?;
        }
        let state = raw.state.map(|state| state.path);
        if let Some(path) = state
            .as_ref()
            .filter(|path| path.value.file_name().is_none())
        {
            let message = "no file: name one in a directory that exists";
            return Err(self.error(path, "state.path", message));
        }
        let listen = self.listen(&raw.listen)?;
        let access = self.access(raw.access.as_ref(), &topology, &listen)?;
        let is_loopback = listen.xds.address.ip().to_canonical().is_loopback();
        Ok(Config {
            listen,
            xds: self.xds(raw.xds.as_ref())?,
            store: self.store(raw.store)?,
            state: state.map(|path| path.value),
            warnings: self.warnings.take(),
            mesh: Mesh {
                topology,
                services,
                authority,
                filter: FilterConfig {
                    path: raw.filter.path.value,
                    generation: raw.filter.generation,
                },
                listeners: self.listeners(&raw.listeners)?,
                ttls: self.ttls(raw.xds.as_ref().and_then(|xds| xds.value.ttl_s.as_ref()))?,
                explain,
                guard: self.guard(raw.guard.as_ref(), is_loopback)?,
                istio,
                access: Arc::new(access),
                // Of the text, which is not here.
                digest: 0,
            },
        })
    }

    fn ttls(&self, raw: Option<&Spanned<RawTtls>>) -> Result<Ttls, ConfigError> {
        let Some(raw) = raw else {
            return Ok(Ttls::default());
        };
        let of = |kind: Kind| match kind {
            Kind::Cluster => raw.value.cds,
            Kind::Endpoints => raw.value.eds,
            Kind::Listener => raw.value.lds,
            Kind::Routes => raw.value.rds,
            Kind::VirtualHosts | Kind::Secret => None,
            Kind::FilterConfig => raw.value.ecds,
        };
        let mut ttls = Ttls::default();
        for kind in Kind::ALL {
            let Some(ttl_s) = of(kind) else { continue };
            if !TTL_S.contains(&ttl_s) {
                let (from, to) = (TTL_S.start(), TTL_S.end());
                let field = format!("xds.ttl_s.{}", kind.as_str());
                let message = format!("{ttl_s}: {from} to {to} are possible");
                return Err(self.error(raw, &field, message));
            }
            ttls.0[kind.index()] = NonZeroU32::new(ttl_s);
        }
        Ok(ttls)
    }

    /// Where `listen.xds` is a loopback address, all proxies run on this machine.
    fn guard(
        &self,
        raw: Option<&Spanned<failover::RawGuard>>,
        is_loopback: bool,
    ) -> Result<Guard, ConfigError> {
        let Some(at) = raw else {
            return Ok(Guard {
                vanish_percent: failover::half(),
                loopback_instances: is_loopback,
            });
        };
        match at.value.vanish_percent {
            vanish_percent @ 1..=100 => Ok(Guard {
                vanish_percent,
                loopback_instances: at.value.loopback_instances.unwrap_or(is_loopback),
            }),
            other => {
                let message = format!("{other}: 1 to 100 are possible; 100 accepts every change");
                Err(self.error(at, "guard.vanish_percent", message))
            }
        }
    }

    fn xds(&self, raw: Option<&Spanned<RawXds>>) -> Result<XdsConfig, ConfigError> {
        let seconds = match raw {
            None => 10,
            Some(at) => match at.value.load_report_interval_s {
                seconds @ 1..=3_600 => seconds,
                other => {
                    let message = format!("{other}: 1 to 3600 are possible");
                    return Err(self.error(at, "xds.load_report_interval_s", message));
                }
            },
        };
        Ok(XdsConfig {
            load_report_interval: Duration::from_secs(seconds.into()),
        })
    }

    fn store(&self, raw: RawStore) -> Result<StoreConfig, ConfigError> {
        match raw {
            RawStore::Embedded { path } => Ok(StoreConfig::Embedded { path }),
            RawStore::Etcd(raw) => {
                let access = EtcdAccess {
                    endpoints: raw.endpoints.value.clone(),
                    tls: raw.tls,
                    user: raw.user,
                };
                access.check().map_err(|(field, message)| {
                    self.error(&raw.endpoints, &format!("store.etcd.{field}"), message)
                })?;
                let keep_history = raw.compaction.map(|raw| self.keep_history(&raw));
                Ok(StoreConfig::Etcd {
                    access,
                    keep_history: keep_history.transpose()?,
                })
            }
        }
    }

    fn keep_history(&self, raw: &RawCompaction) -> Result<Duration, ConfigError> {
        match raw.keep_s.value {
            seconds if KEEP_HISTORY_S.contains(&seconds) => Ok(Duration::from_secs(seconds)),
            seconds => Err(self.error(
                &raw.keep_s,
                "store.etcd.compaction.keep_s",
                format!(
                    "{seconds}: {} to {} are possible",
                    KEEP_HISTORY_S.start(),
                    KEEP_HISTORY_S.end()
                ),
            )),
        }
    }

    fn topology(
        &self,
        zones: &Spanned<Vec<Spanned<RawZone>>>,
        links: &[Spanned<RawLink>],
    ) -> Result<Topology, ConfigError> {
        let names = || {
            let zones = zones.value.iter().map(|zone| &zone.value);
            zones.map(|zone| (zone.name.as_str(), zone.region.as_str()))
        };
        // One by one, so that an error has its line: the shortest list that is refused ends with the culprit.
        for (index, zone) in zones.value.iter().enumerate() {
            Topology::new(names().take(index + 1), [])
                .map_err(|error| self.error(zone, &format!("zones[{index}]"), error))?;
        }
        let mut known = Vec::new();
        let mut pairs = BTreeSet::new();
        for (index, at) in links.iter().enumerate() {
            let raw = &at.value;
            let (a, b) = (&raw.between.0, &raw.between.1);
            if !pairs.insert((a.min(b), a.max(b))) {
                let message = format!("the link {a:?} - {b:?} stands twice");
                return Err(self.error(at, &format!("links[{index}]"), message));
            }
            let link = Link {
                rtt_ms: raw.rtt_ms,
                cost: raw.cost,
            };
            known.push((raw.between.0.as_str(), raw.between.1.as_str(), link));
            Topology::new(names(), known.iter().copied())
                .map_err(|error| self.error(at, &format!("links[{index}]"), error))?;
        }
        Topology::new(names(), known)
            .map_err(|error: InvalidTopology| self.error(zones, "zones", error))
    }

    /// Finds the service that makes the rules invalid, so that the error has its line.
    fn check_rules(
        &self,
        topology: &Topology,
        services: &[ServiceConfig],
        raw: &RawConfig,
    ) -> Result<(), ConfigError> {
        let rules = |services: &[ServiceConfig]| {
            let services = services.iter().map(|s| s.unplanned());
            Rules::new(
                topology.clone(),
                first_zone(topology),
                services.collect(),
                None,
            )
        };
        let Err(error) = rules(services) else {
            return Ok(());
        };
        let position: BTreeMap<&str, usize> = services
            .iter()
            .enumerate()
            .map(|(index, service)| (service.name.as_str(), index))
            .collect();
        let index = match &error {
            // The one that stands later is at fault; the map holds the later of twins.
            InvalidRules::DuplicateService(name)
            | InvalidRules::DuplicateRoute { second: name, .. } => position.get(name.as_str()),
            InvalidRules::Name { service, .. }
            | InvalidRules::NoRoutes { service }
            | InvalidRules::Host { service, .. }
            | InvalidRules::Prefix { service, .. }
            | InvalidRules::GrpcName { service, .. }
            | InvalidRules::ReadsWithoutGrpc { service } => position.get(service.as_str()),
            InvalidRules::Header(_) | InvalidRules::Cookie(_) | InvalidRules::EmptyToken => None,
        };
        let index = index.copied();
        match index.and_then(|index| Some((index, raw.services.value.get(index)?))) {
            Some((index, at)) => Err(self.error(at, &format!("services[{index}]"), error)),
            None => Err(self.error(&raw.services, "services", error)),
        }
    }

    fn service(
        &self,
        topology: &Topology,
        fences: bool,
        index: usize,
        at: &Spanned<RawService>,
    ) -> Result<ServiceConfig, ConfigError> {
        let raw = &at.value;
        let field = |name: &str| format!("services[{index}].{name}");
        let count = raw.routes.len();
        if count > ROUTES_MAX {
            let message = format!(
                "{count} routes: at most {ROUTES_MAX} are possible. Each becomes a dozen routes in every proxy: a prefix takes all paths below it, or make several services of it"
            );
            return Err(self.error(at, &field("routes"), message));
        }
        let routes = raw
            .routes
            .iter()
            .enumerate()
            .map(|(n, route)| self.route(&field(&format!("routes[{n}]")), route))
            .collect::<Result<Vec<_>, _>>()?;
        let thresholds = match &raw.thresholds {
            None => Thresholds::default(),
            Some(at) => Thresholds::new(at.value.down_below_percent, at.value.up_from_percent)
                .map_err(|error| self.error(at, &field("thresholds"), error))?,
        };
        let failover = match &raw.failover {
            None => Failover {
                thresholds,
                ..Failover::default()
            },
            Some(at) => at.value.read(thresholds).map_err(|(part, message)| {
                self.error(at, &field(&format!("failover.{part}")), message)
            })?,
        };
        let demands = match &raw.demand {
            None => Vec::new(),
            Some(at) => failover::demands(&at.value, topology)
                .map_err(|message| self.error(at, &field("demand"), message))?,
        };
        let affinity = self.renamed(
            &format!("services[{index}]"),
            ("affinity", &raw.affinity),
            ("zone_affinity", &raw.zone_affinity),
        )?;
        let resilience = self.resilience(index, raw, &routes)?;
        Ok(ServiceConfig {
            name: raw.name.clone(),
            protocol: raw.protocol,
            routes,
            region_missing: raw.region.missing,
            region_unknown: raw.region.unknown,
            trace_missing: raw.trace.missing,
            weighting: self.weighting(&field("weights"), raw.weights.as_ref())?,
            failover,
            demands,
            zone_affinity: affinity.map(|at| at.value.source()),
            writes: self.writes(raw, at, &resilience, fences, field)?,
            resilience,
            tls: (raw.tls.as_ref())
                .map(|at| self.upstream_tls(&field("tls"), at))
                .transpose()?,
        })
    }

    fn resilience(
        &self,
        index: usize,
        raw: &RawService,
        routes: &[Route],
    ) -> Result<Resilience, ConfigError> {
        let parent = format!("services[{index}]");
        if let Some(at) = &raw.outlier {
            let both = raw.outlier_detection.is_some();
            self.former(&parent, "outlier", at, "outlier_detection", both)?;
        }
        let fields = resilience::Raw {
            strategy: raw.strategy.as_ref(),
            sessions: self.renamed(
                &parent,
                ("sessions", &raw.sessions),
                ("stateful_session", &raw.stateful_session),
            )?,
            outlier_detection: raw.outlier_detection.as_ref(),
            outlier: raw.outlier.as_ref(),
            circuit_breakers: self.renamed(
                &parent,
                ("circuit", &raw.circuit),
                ("circuit_breakers", &raw.circuit_breakers),
            )?,
            weighs: raw.weights.is_some() || raw.zone_affinity.is_some() || raw.affinity.is_some(),
        };
        let resilience = fields.read().map_err(|(line, name, message)| ConfigError {
            file: self.file.to_owned(),
            line,
            field: format!("{parent}.{name}"),
            message,
        })?;
        Ok(Resilience {
            routes: self.routes_options(index, raw, routes)?,
            upgrades: self.upgrades(index, raw)?,
            upstream_idle_timeout_ms: self.upstream_idle_timeout(index, raw)?,
            ..resilience
        })
    }

    fn weighting(
        &self,
        field: &str,
        raw: Option<&Spanned<RawWeights>>,
    ) -> Result<Weighting, ConfigError> {
        match raw {
            None => Ok(Weighting::default()),
            Some(at) => match &at.value {
                RawWeights::Computed => Ok(Weighting::Computed),
                RawWeights::Operator(RawOperatorWeights { zone: 0, region: 0 }) => {
                    Err(self.error(at, field, "both shares are 0: no zone would get anything"))
                }
                RawWeights::Operator(RawOperatorWeights { zone, region }) => {
                    Ok(Weighting::Operator {
                        zone: *zone,
                        region: *region,
                    })
                }
            },
        }
    }

    fn route(&self, field: &str, at: &Spanned<RawRoute>) -> Result<Route, ConfigError> {
        let raw = &at.value;
        let refuse = |message: &str| Err(self.error(at, field, message));
        let matches = match (&raw.prefix, &raw.grpc) {
            (Some(prefix), None) => RouteMatch::Prefix(prefix.clone()),
            (None, Some(name)) => RouteMatch::Grpc(name.clone()),
            (None, None) => return refuse("name a `prefix` or a `grpc` service"),
            (Some(_), Some(_)) => {
                return refuse("`prefix` and `grpc` exclude each other: make two routes");
            }
        };
        let class = match (raw.class, &raw.reads, &raw.grpc) {
            (Some(_), Some(_), _) => {
                return refuse("`class` and `reads` exclude each other: use one");
            }
            (None, Some(_), None) => return refuse("`reads` lists gRPC methods: it needs `grpc`"),
            (None, Some(reads), Some(_)) => ClassRule::GrpcReads(reads.clone()),
            (None, None, Some(_)) => ClassRule::GrpcReads(Vec::new()),
            (Some(class), None, _) => ClassRule::Always(class),
            (None, None, None) => ClassRule::ByMethod,
        };
        // A fully qualified name may end with a dot; proxies strip it from requests.
        let host = raw.host.strip_suffix('.').unwrap_or(&raw.host);
        Ok(Route {
            host: host.to_ascii_lowercase(),
            matches,
            class,
        })
    }
}

/// A topology that was built has a zone; any of them does for a check that does not depend on the viewer.
fn first_zone(topology: &Topology) -> policy::ZoneId {
    topology
        .zones()
        .next()
        .unwrap_or_else(|| unreachable!("a topology has at least one zone"))
}

/// The listeners let in every upgrade that any service takes.
fn refuse_foreign_upgrades(services: &mut [ServiceConfig]) {
    let all = services
        .iter()
        .flat_map(|service| &service.resilience.upgrades.taken);
    let all: BTreeSet<String> = all.cloned().collect();
    for service in services {
        let upgrades = &mut service.resilience.upgrades;
        upgrades.refused = all.difference(&upgrades.taken).cloned().collect();
    }
}
