//! The options of a service's routes beside destinations: how long requests may take, and the
//! upgrades that they may ask for.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use policy::{Route, RouteMatch};
use serde::Deserialize;
use serde_saphyr::Spanned;

use super::{
    ConfigError,
    schema::{RawHedging, RawRoute, RawService},
    validate::Validator,
};

/// A day.
const TIME_MS_MAX: u32 = 86_400_000;

/// Of one route. Times are in milliseconds; 0: no bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteOptions {
    /// From the end of the request to the end of the answer. Not beside `max_stream_duration_ms`: Envoy then ignores it.
    pub timeout_ms: u32,
    /// How long neither side may say anything.
    pub idle_timeout_ms: u32,
    /// From the beginning of the request to the end of the answer.
    pub max_stream_duration_ms: u32,
    /// When a read that is not answered is asked again elsewhere, while the first goes on; 0: never.
    pub hedge_after_ms: u32,
}

impl Default for RouteOptions {
    /// No bounds: requests that take long on purpose (streams, long polls, uploads) look like
    /// hanging ones. Hedging comes later than healthy reads take: a slower read counts as an error
    /// of its instance, and costs a second read.
    fn default() -> Self {
        RouteOptions {
            timeout_ms: 0,
            idle_timeout_ms: 0,
            max_stream_duration_ms: 0,
            hedge_after_ms: 1_000,
        }
    }
}

impl RouteOptions {
    /// The shortest of the bounds on the whole of a request, where there is one.
    pub(crate) fn shortest_ms(&self) -> Option<u32> {
        let bounds = [self.timeout_ms, self.max_stream_duration_ms].into_iter();
        bounds.filter(|ms| *ms > 0).min()
    }
}

/// The options of a service's routes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoutesOptions {
    service: RouteOptions,
    /// Those of the routes that say something by themselves, by path and host.
    own: Arc<BTreeMap<RouteMatch, BTreeMap<String, RouteOptions>>>,
}

impl RoutesOptions {
    pub fn of(&self, route: &Route) -> RouteOptions {
        let own = self.own.get(&route.matches);
        let own = own.and_then(|hosts| hosts.get(&route.host));
        own.copied().unwrap_or(self.service)
    }
}

/// Protocols to which a connection may be upgraded (`Upgrade: websocket`), in lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Upgrades {
    /// The service takes these.
    pub taken: BTreeSet<String>,
    /// Some other service does, so that the listener lets them in: the service's routes have to refuse them.
    pub refused: BTreeSet<String>,
}

/// The fields of a route or of a service that are about this.
#[derive(Clone, Copy)]
struct Times<'r> {
    timeout_ms: Option<&'r Spanned<u32>>,
    idle_timeout_ms: Option<&'r Spanned<u32>>,
    max_stream_duration_ms: Option<&'r Spanned<u32>>,
    hedging: Option<&'r Spanned<RawHedging>>,
    hedge_after_ms: Option<&'r Spanned<u32>>,
}

/// A service's options for its connections to instances.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawUpstreamOptions {
    idle_timeout_ms: Option<u32>,
}

impl Validator<'_> {
    pub(super) fn routes_options(
        &self,
        index: usize,
        raw: &RawService,
        routes: &[Route],
    ) -> Result<RoutesOptions, ConfigError> {
        let field = format!("services[{index}]");
        let times = Times {
            timeout_ms: raw.timeout_ms.as_ref(),
            idle_timeout_ms: raw.idle_timeout_ms.as_ref(),
            max_stream_duration_ms: raw.max_stream_duration_ms.as_ref(),
            hedging: raw.hedging.as_ref(),
            hedge_after_ms: raw.hedge_after_ms.as_ref(),
        };
        let service = self.times(&field, times, RouteOptions::default())?;
        let mut own: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for (at, (raw, route)) in raw.routes.iter().zip(routes).enumerate() {
            let field = format!("{field}.routes[{at}]");
            let options = self.times(&field, Times::of(&raw.value), service)?;
            if options != service {
                let hosts = own.entry(route.matches.clone()).or_default();
                hosts.insert(route.host.clone(), options);
            }
        }
        Ok(RoutesOptions {
            service,
            own: Arc::new(own),
        })
    }

    /// `inherited`, with the values of these fields in its place.
    fn times(
        &self,
        field: &str,
        times: Times<'_>,
        inherited: RouteOptions,
    ) -> Result<RouteOptions, ConfigError> {
        let read = |name: &str, at: Option<&Spanned<u32>>, inherited: u32| match at {
            None => Ok(inherited),
            Some(at) => self.time(at, at.value, &format!("{field}.{name}")),
        };
        let options = RouteOptions {
            timeout_ms: read("timeout_ms", times.timeout_ms, inherited.timeout_ms)?,
            idle_timeout_ms: read(
                "idle_timeout_ms",
                times.idle_timeout_ms,
                inherited.idle_timeout_ms,
            )?,
            max_stream_duration_ms: read(
                "max_stream_duration_ms",
                times.max_stream_duration_ms,
                inherited.max_stream_duration_ms,
            )?,
            hedge_after_ms: self.hedge_after(field, times, inherited)?,
        };
        let both = options.timeout_ms > 0 && options.max_stream_duration_ms > 0;
        match times.timeout_ms.or(times.max_stream_duration_ms) {
            Some(at) if both => {
                let message = "Envoy ignores it beside `max_stream_duration_ms`: set one of the two to 0, or leave it out";
                Err(self.error(at, &format!("{field}.timeout_ms"), message))
            }
            _ => Ok(options),
        }
    }

    fn time<T>(&self, at: &Spanned<T>, ms: u32, field: &str) -> Result<u32, ConfigError> {
        if ms <= TIME_MS_MAX {
            return Ok(ms);
        }
        let message = format!("{ms}: 0 to {TIME_MS_MAX} are possible; 0: no bound");
        Err(self.error(at, field, message))
    }

    fn hedge_after(
        &self,
        field: &str,
        times: Times<'_>,
        inherited: RouteOptions,
    ) -> Result<u32, ConfigError> {
        let name = "hedging.delay_ms";
        if let Some(at) = times.hedge_after_ms {
            self.former(field, "hedge_after_ms", at, name, times.hedging.is_some())?;
            return self.time(at, at.value, &format!("{field}.hedge_after_ms"));
        }
        match times.hedging {
            None => Ok(inherited.hedge_after_ms),
            Some(at) => self.time(at, at.value.delay_ms, &format!("{field}.{name}")),
        }
    }

    pub(super) fn upgrades(&self, index: usize, raw: &RawService) -> Result<Upgrades, ConfigError> {
        let mut taken = BTreeSet::new();
        for (at, name) in raw.upgrades.iter().enumerate() {
            let lower = name.value.to_ascii_lowercase();
            let token = |b: u8| b.is_ascii_alphanumeric() || b"-_./".contains(&b);
            let is_token = !lower.is_empty() && lower.bytes().all(token);
            let field = format!("services[{index}].upgrades[{at}]");
            if !is_token {
                let message = format!("{:?}: the name of a protocol, like websocket", name.value);
                return Err(self.error(name, &field, message));
            }
            if matches!(
                lower.as_str(),
                "connect" | "connect-udp" | "connect-ip" | "h2c"
            ) {
                let message = format!("{lower} is no upgrade that a service could take");
                return Err(self.error(name, &field, message));
            }
            taken.insert(lower);
        }
        Ok(Upgrades {
            taken,
            refused: BTreeSet::new(),
        })
    }

    /// How long a connection to an instance may be idle.
    pub(super) fn upstream_idle_timeout(
        &self,
        index: usize,
        raw: &RawService,
    ) -> Result<Option<u32>, ConfigError> {
        let Some(at) = &raw.common_http_protocol_options else {
            return Ok(None);
        };
        match at.value.idle_timeout_ms {
            Some(ms) if ms > TIME_MS_MAX => {
                let field =
                    format!("services[{index}].common_http_protocol_options.idle_timeout_ms");
                let message = format!("{ms}: 0 to {TIME_MS_MAX} are possible; 0: no bound");
                Err(self.error(at, &field, message))
            }
            ms => Ok(ms),
        }
    }
}

impl<'r> Times<'r> {
    fn of(raw: &'r RawRoute) -> Times<'r> {
        Times {
            timeout_ms: raw.timeout_ms.as_ref(),
            idle_timeout_ms: raw.idle_timeout_ms.as_ref(),
            max_stream_duration_ms: raw.max_stream_duration_ms.as_ref(),
            hedging: raw.hedging.as_ref(),
            hedge_after_ms: raw.hedge_after_ms.as_ref(),
        }
    }
}
