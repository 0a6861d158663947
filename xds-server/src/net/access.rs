//! Access rules, by the names in a client's certificate. Pure.
//!
//! A list of rules permits everything that any of its rules permits: their order does not matter,
//! and a rule never takes anything away. Without a list every certificate of the configured CA may
//! do all that the list is about.

mod pattern;
#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, fmt, sync::Arc};

use crate::snapshot::Role;

pub use pattern::{InvalidPattern, Pattern};

/// How many names of a certificate are repeated in messages, and how much of each.
const NAMES_SHOWN_MAX: usize = 8;
const NAME_CHARS_MAX: usize = 256;

/// The names of a client: the subject alternative names of its certificate. The subject itself is not looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Identity {
    /// A SPIFFE ID is one of these.
    pub uris: Vec<String>,
    pub dns: Vec<String>,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.uris.iter().chain(&self.dns);
        let shown: Vec<String> = all
            .clone()
            .take(NAMES_SHOWN_MAX)
            .map(|name| {
                format!(
                    "{:?}",
                    name.chars().take(NAME_CHARS_MAX).collect::<String>()
                )
            })
            .collect();
        match all.count().saturating_sub(shown.len()) {
            _ if shown.is_empty() => f.write_str("a certificate without URI and DNS names"),
            0 => write!(f, "the certificate of {}", shown.join(", ")),
            more => write!(f, "the certificate of {} and {more} more", shown.join(", ")),
        }
    }
}

/// The known identity of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// It speaks plain text, so it was not asked.
    Plain,
    /// It speaks TLS and showed no certificate, which only the admin port lets pass.
    Anonymous,
    /// It showed a certificate of the configured CA.
    Named(Arc<Identity>),
    /// It showed a certificate of the guests' CA, which proves no more than a guest.
    Guest(Arc<Identity>),
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Caller::Plain => f.write_str("a client that speaks plain text"),
            Caller::Anonymous => f.write_str("a client without a certificate"),
            Caller::Named(identity) | Caller::Guest(identity) => identity.fmt(f),
        }
    }
}

/// Permits the names that its pattern matches, within these zones and roles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub pattern: Pattern,
    /// None: all of them.
    pub zones: Option<Vec<String>>,
    /// None: all of them.
    pub roles: Option<Vec<Role>>,
}

impl Rule {
    fn permits(&self, identity: &Identity, zone: &str, role: Role) -> bool {
        let in_zones = (self.zones.as_ref()).is_none_or(|zones| zones.iter().any(|z| z == zone));
        let in_roles = (self.roles.as_ref()).is_none_or(|roles| roles.contains(&role));
        in_zones && in_roles && self.pattern.matches(identity, zone, role.as_str())
    }
}

/// The rules. Each list is about the matter that its name says; without a list all clients are
/// permitted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// The clients that may ask for the view of a zone and role, and for its grants.
    pub proxies: Option<Vec<Rule>>,
    /// The clients that may write instances of a zone, beside operators.
    pub registrars: Option<Vec<Rule>>,
    /// The clients that may write anything by the admin interface.
    pub operators: Option<Vec<Rule>>,
}

/// A request that a client may not make. The text names the client and the request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotPermitted {
    #[error(
        "{caller} may not ask for zone {zone:?}, role {role}: no rule of `access.proxies` permits it"
    )]
    View {
        caller: Caller,
        zone: String,
        role: &'static str,
    },
    #[error(
        "{caller} may not ask for grants of zone {zone:?}: no rule of `access.proxies` permits it"
    )]
    Grants { caller: Caller, zone: String },
    #[error(
        "a guest that speaks plain text gets no grants of zone {zone:?}: it needs a certificate where `listen.xds` is not loopback"
    )]
    PlainGuest { zone: String },
    #[error("{caller} may not follow policies: `access.proxies` demands a certificate")]
    Follow { caller: Caller },
    #[error(
        "{caller} may not register in zone {zone:?}: no rule of `access.registrars` or `access.operators` permits it"
    )]
    Register { caller: Caller, zone: String },
    #[error(
        "{caller} may not hold leases: no rule of `access.registrars` or `access.operators` permits it"
    )]
    Lease { caller: Caller },
    #[error("{caller} may only read: no rule of `access.operators` permits more")]
    Operate { caller: Caller },
    #[error("show a client certificate: without one only /healthz and /readyz answer")]
    Read,
}

impl Access {
    /// Whether `caller` may ask for the view of this zone and role.
    pub fn view(&self, caller: &Caller, zone: &str, role: Role) -> Result<(), NotPermitted> {
        let permits = |rule: &Rule, who: &Identity| rule.permits(who, zone, role);
        permitted(&self.proxies, caller, permits).map_err(|Refused| NotPermitted::View {
            caller: caller.clone(),
            zone: clip(zone),
            role: role.as_str(),
        })
    }

    /// Whether `caller` may hold grants of this zone, as any kind of proxy: gRPC clients admit no writes.
    pub fn grants(&self, caller: &Caller, zone: &str) -> Result<(), NotPermitted> {
        permitted(&self.proxies, caller, any_proxy(zone)).map_err(|Refused| NotPermitted::Grants {
            caller: caller.clone(),
            zone: clip(zone),
        })
    }

    /// Whether `caller` may hold grants of this zone as a guest. A certificate of the guests' CA
    /// needs a rule with the role `guest` and this zone alone. An identity that rules permit in
    /// several zones proves none.
    pub fn guest_grants(&self, caller: &Caller, zone: &str) -> Result<(), NotPermitted> {
        let permits = |rule: &Rule, who: &Identity| rule.permits(who, zone, Role::Guest);
        let permitted = match caller {
            Caller::Guest(identity) => self.proven_zone(identity) == Some(zone),
            Caller::Plain | Caller::Anonymous | Caller::Named(_) => {
                permitted(&self.proxies, caller, permits).is_ok()
            }
        };
        match permitted {
            true => Ok(()),
            false => Err(NotPermitted::Grants {
                caller: caller.clone(),
                zone: clip(zone),
            }),
        }
    }

    /// The zone of a guest's identity.
    fn proven_zone(&self, identity: &Identity) -> Option<&str> {
        let rules = self.proxies.iter().flatten();
        let of_guests = rules.filter(|rule| {
            let roles = rule.roles.as_deref().unwrap_or_default();
            roles.contains(&Role::Guest)
        });
        let zones = of_guests.flat_map(|rule| {
            let zones = rule.zones.as_deref().unwrap_or_default();
            let permitted = zones
                .iter()
                .filter(|zone| rule.permits(identity, zone, Role::Guest));
            permitted.map(String::as_str)
        });
        let zones: BTreeSet<&str> = zones.collect();
        let only = zones.len() == 1;
        zones.into_iter().next().filter(|_| only)
    }

    /// Whether `caller` may follow the policies of guests. Any certificate will do, since they hold
    /// no secret.
    pub fn follow(&self, caller: &Caller) -> Result<(), NotPermitted> {
        let is_guest = matches!(caller, Caller::Guest(_));
        match is_guest || permitted(&self.proxies, caller, |_, _| true).is_ok() {
            true => Ok(()),
            false => Err(NotPermitted::Follow {
                caller: caller.clone(),
            }),
        }
    }

    /// Whether `caller` may write instances of this zone.
    pub fn register(&self, caller: &Caller, zone: &str) -> Result<(), NotPermitted> {
        self.register_in(caller, [zone])
            .map_err(|Refused| NotPermitted::Register {
                caller: caller.clone(),
                zone: clip(zone),
            })
    }

    /// Whether `caller` may hold leases, which belong to no zone: a client that may register in any
    /// of `zones` may.
    pub fn lease<'z>(
        &self,
        caller: &Caller,
        zones: impl IntoIterator<Item = &'z str>,
    ) -> Result<(), NotPermitted> {
        self.register_in(caller, zones)
            .map_err(|Refused| NotPermitted::Lease {
                caller: caller.clone(),
            })
    }

    /// Whether `caller` may write everything that the admin interface writes.
    pub fn operate(&self, caller: &Caller) -> Result<(), NotPermitted> {
        self.operates(caller)
            .map_err(|Refused| NotPermitted::Operate {
                caller: caller.clone(),
            })
    }

    /// Whether the list of operators names `caller`. Without a list no caller is named.
    pub fn lists_operator(&self, caller: &Caller) -> bool {
        self.operators.is_some() && self.operates(caller).is_ok()
    }

    /// Whether `caller` may read the admin interface.
    pub fn read(&self, caller: &Caller) -> Result<(), NotPermitted> {
        match caller {
            Caller::Anonymous | Caller::Guest(_) => Err(NotPermitted::Read),
            Caller::Plain | Caller::Named(_) => Ok(()),
        }
    }

    fn register_in<'z>(
        &self,
        caller: &Caller,
        zones: impl IntoIterator<Item = &'z str>,
    ) -> Result<(), Refused> {
        // Only listed operators: a list that is left out is about its own matter alone.
        if self.lists_operator(caller) {
            return Ok(());
        }
        let mut zones = zones.into_iter();
        match zones.any(|zone| permitted(&self.registrars, caller, any_proxy(zone)).is_ok()) {
            true => Ok(()),
            false => Err(Refused),
        }
    }

    fn operates(&self, caller: &Caller) -> Result<(), Refused> {
        // Operators belong to no zone: the door takes no placeholders there.
        permitted(&self.operators, caller, any_proxy(""))
    }
}

struct Refused;

/// Whether the list permits it: a caller without a name is not listed either.
fn permitted(
    rules: &Option<Vec<Rule>>,
    caller: &Caller,
    permits: impl Fn(&Rule, &Identity) -> bool,
) -> Result<(), Refused> {
    let permitted = match (rules, caller) {
        (None, Caller::Plain | Caller::Named(_)) => true,
        (Some(rules), Caller::Named(identity)) => rules.iter().any(|rule| permits(rule, identity)),
        (Some(_), Caller::Plain) | (_, Caller::Anonymous | Caller::Guest(_)) => false,
    };
    if permitted { Ok(()) } else { Err(Refused) }
}

/// Lists that are not about proxies have no roles, so that any will do.
fn any_proxy(zone: &str) -> impl Fn(&Rule, &Identity) -> bool {
    move |rule, identity| (Role::PROXIES.iter()).any(|role| rule.permits(identity, zone, *role))
}

fn clip(text: &str) -> String {
    text.chars().take(NAME_CHARS_MAX).collect()
}
