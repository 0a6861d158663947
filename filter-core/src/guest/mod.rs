//! A guest: the filter in an Envoy that somebody else configures.
//!
//! Its configuration is small and static ([`config`]). The policy comes over a stream of its own
//! ([`follower`]): the elected worker of the process keeps it, and shares the policy with the
//! others ([`pieces`]). A guest may name clusters as its host does ([`templates`]).
//!
//! A guest's configuration is never rejected: Envoy ends where a static listener has a filter that
//! rejects its configuration. With one that is not valid the filter is the fallback: reads pass,
//! writes are rejected.

pub mod config;
pub mod follower;
pub mod pieces;
pub mod templates;

use std::sync::Arc;

use policy::{
    Policy,
    fence::{HolderId, Name},
    guest::{Guest, Mode},
    topology::check_name,
};
use protos::{Decoder, InvalidPolicy, PluginConfig};

use self::{
    config::ZoneSource,
    follower::{Follower, GuestHost, Identity},
    pieces::{Assembly, Look, Place},
};
use crate::{applied, metrics::Metric, stream::ContextId};

pub use self::config::{Config, InvalidConfig};

/// One guest in one worker: its configuration, and the policy as far as it was read.
#[derive(Debug)]
pub struct Plugin {
    /// The part that decides.
    pub guest: Arc<Guest>,
    /// None for a configuration that does not even name a control plane.
    following: Option<Following>,
}

#[derive(Debug)]
struct Following {
    config: Config,
    /// Empty where it is not known.
    zone: Name,
    /// Why it is the fallback for good. The control plane is told, and sends no policy.
    problem: Option<String>,
    place: Place,
    assembly: Assembly,
    /// Looks in a row at a policy that was not whole.
    torn: u32,
    names: Option<Names>,
    /// The process follows another policy, and the log says so.
    is_left_out: bool,
}

/// The names of clusters, for the rules that have those of Tidegate.
#[derive(Debug)]
struct Names {
    of: Arc<[String]>,
    clusters: Arc<[String]>,
    gateways: Arc<[String]>,
}

/// A policy that was half written for so many looks is not completed any more.
const TORN_MAX: u32 = 100;

/// Why a guest is the fallback for good, until its configuration changes.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    #[error("{0}")]
    Config(#[from] InvalidConfig),
    #[error(
        "zone: nothing was found where the configuration says to look: set it, or name the zone"
    )]
    NoZone,
    #[error("zone: {0:?} is no name of a zone")]
    Zone(String),
}

impl Plugin {
    /// Takes a configuration in. One that is not valid gives the fallback, and the reason.
    pub fn configured(
        configuration: &[u8],
        host: &mut impl GuestHost,
    ) -> (Plugin, Result<(), Unusable>) {
        match Following::start(configuration, host) {
            Ok(following) => {
                let plugin = Plugin {
                    guest: Arc::new(following.config.guest.clone()),
                    following: Some(following),
                };
                (plugin, Ok(()))
            }
            Err(why) => {
                let plugin = Plugin {
                    guest: Arc::new(Guest::fallback()),
                    following: Following::only_tell(configuration, &why),
                };
                (plugin, Err(why))
            }
        }
    }

    /// Follows the policy, if this worker is elected for the process (`elected` is the process's id),
    /// and reads it.
    ///
    /// # Errors
    ///
    /// [`InvalidPolicy`] for a policy that is not valid: the one before stays, and the reports to the
    /// control plane name the rejected one.
    pub fn tick(
        &mut self,
        context: ContextId,
        elected: Option<HolderId>,
        follower: &mut Follower,
        decoder: &mut Decoder,
        host: &mut impl GuestHost,
    ) -> Result<Option<PluginConfig>, InvalidPolicy> {
        let Some(following) = self.following.as_mut() else {
            return Ok(None);
        };
        following.follow(context, elected, follower, host);
        following.read(follower, decoder, host)
    }

    /// A message has come on the stream of the follower.
    pub fn on_message(
        &mut self,
        message: &[u8],
        follower: &mut Follower,
        host: &mut impl GuestHost,
    ) {
        if let Some(following) = &self.following {
            follower.on_message(message, &following.place, host);
        }
    }

    /// Whether there is a control plane to follow, or to tell what is wrong.
    pub fn has_control_plane(&self) -> bool {
        self.following.is_some()
    }

    /// One line for the proxy's log.
    pub fn describe(&self) -> String {
        let following = self.following.as_ref();
        match following.filter(|following| following.problem.is_none()) {
            Some(Following { config, zone, .. }) => format!(
                "guest of zone {zone}, mode {}, control plane {:?}: until a policy arrives reads pass and writes are rejected",
                match config.guest.mode {
                    Mode::Fence => "fence",
                    Mode::Route => "route",
                },
                config.control_plane,
            ),
            None => "guest without a valid configuration: reads pass, writes are rejected".into(),
        }
    }
}

impl Following {
    fn start(configuration: &[u8], host: &mut impl GuestHost) -> Result<Following, Unusable> {
        let config = Config::read(configuration)?;
        let zone = find_zone(&config.zone, host).ok_or(Unusable::NoZone)?;
        if check_name(&zone).is_err() {
            return Err(Unusable::Zone(zone));
        }
        Ok(Following {
            place: Place::new(&config.control_plane, &zone),
            zone: Name::from(zone),
            problem: None,
            config,
            assembly: Assembly::default(),
            torn: 0,
            names: None,
            is_left_out: false,
        })
    }

    /// A guest that is the fallback tells its control plane why, where its configuration names one.
    fn only_tell(configuration: &[u8], why: &Unusable) -> Option<Following> {
        let config = Config::of_control_plane(configuration)?;
        Some(Following {
            place: Place::new(&config.control_plane, ""),
            zone: Name::from(""),
            problem: Some(why.to_string()),
            config,
            assembly: Assembly::default(),
            torn: 0,
            names: None,
            is_left_out: false,
        })
    }

    fn follow(
        &mut self,
        context: ContextId,
        elected: Option<HolderId>,
        follower: &mut Follower,
        host: &mut impl GuestHost,
    ) {
        let elsewhere = follower.owner().is_some_and(|owner| owner != context);
        if elsewhere && !follower.follows(&self.place) && !self.is_left_out {
            self.is_left_out = true;
            let zone = &self.zone;
            host.note(&format!(
                "guest of zone {zone} gets no policy: another guest of this process follows another control plane or zone, and one process follows one: until all name the same, this one lets reads pass and rejects writes"
            ));
            host.count(Metric::PolicyRejected, 1);
        }
        match elected {
            // Only the context that opened a stream can use it; it ends the stream when it goes.
            _ if elsewhere => {}
            Some(holder) => {
                let identity = Identity {
                    context,
                    holder,
                    zone: &self.zone,
                    problem: self.problem.as_deref(),
                    config: &self.config,
                    place: &self.place,
                };
                follower.drive(&identity, host);
            }
            None => follower.leave(host),
        }
    }

    fn read(
        &mut self,
        follower: &mut Follower,
        decoder: &mut Decoder,
        host: &mut impl GuestHost,
    ) -> Result<Option<PluginConfig>, InvalidPolicy> {
        let bytes = match self.assembly.read(&self.place, host) {
            Look::Nothing => {
                self.torn = 0;
                return Ok(None);
            }
            Look::Torn => {
                self.torn += 1;
                if self.torn >= TORN_MAX {
                    self.torn = 0;
                    follower.refetch(host);
                }
                return Ok(None);
            }
            Look::Fresh(bytes) => bytes,
        };
        self.torn = 0;
        match decoder.decode(&bytes) {
            Ok(config) => Ok(Some(self.at_home(config))),
            Err(error) => {
                applied::refused(&bytes, &error, host);
                Err(error)
            }
        }
    }

    /// The policy with the host's names.
    fn at_home(&mut self, config: PluginConfig) -> PluginConfig {
        let policy = match config.policy {
            Policy::Fallback => Policy::Fallback,
            Policy::Serving(rules) => {
                let known = self.names.take();
                let names = match known.filter(|names| Arc::ptr_eq(&names.of, rules.clusters())) {
                    Some(names) => names,
                    None => Names {
                        of: Arc::clone(rules.clusters()),
                        clusters: self.config.clusters.clusters(&rules),
                        gateways: self.config.clusters.gateways(&rules),
                    },
                };
                let (clusters, gateways) = (&names.clusters, &names.gateways);
                let rules = rules.in_host(
                    Arc::clone(clusters),
                    Arc::clone(gateways),
                    &self.config.control_plane,
                );
                self.names = Some(names);
                Policy::Serving(Box::new(rules))
            }
        };
        PluginConfig {
            policy,
            control_plane: self.config.control_plane.clone(),
            ..config
        }
    }
}

/// The labels by which Istio and Kubernetes name a zone.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// Istio's label of a whole locality: `region.zone.subzone`.
const LOCALITY_LABEL: &str = "istio-locality";

fn find_zone(source: &ZoneSource, host: &mut impl GuestHost) -> Option<String> {
    let found = match source {
        ZoneSource::Named(name) => Some(name.clone()),
        ZoneSource::Locality => locality(host),
        ZoneSource::Istio => locality(host).or_else(|| istio_label(host)),
        ZoneSource::Metadata(path) => {
            let path = ["metadata"]
                .into_iter()
                .chain(path.iter().map(String::as_str));
            host.node_text(&path.collect::<Vec<_>>())
        }
    };
    found.filter(|zone| !zone.is_empty())
}

fn locality(host: &mut impl GuestHost) -> Option<String> {
    let zone = host.node_text(&["locality", "zone"]);
    zone.filter(|zone| !zone.is_empty())
}

fn istio_label(host: &mut impl GuestHost) -> Option<String> {
    let zone = host.node_text(&["metadata", "LABELS", ZONE_LABEL]);
    zone.or_else(|| {
        let locality = host.node_text(&["metadata", "LABELS", LOCALITY_LABEL])?;
        let separator = if locality.contains('/') { '/' } else { '.' };
        locality.split(separator).nth(1).map(str::to_owned)
    })
}

#[cfg(test)]
mod tests;
