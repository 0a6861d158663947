//! A client's state as CSDS reports it. See `envoy.service.status.v3`.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::{
    admin::v3::{ClientResourceStatus, UpdateFailureState},
    config::core::v3::Node,
    service::status::v3::{ClientConfig, ConfigStatus, client_config::GenericXdsConfig},
    r#type::matcher::v3::{NodeMatcher, StringMatcher, string_matcher::MatchPattern},
};

use crate::{
    clients::{Clients, Connected, MESSAGE_CHARS_MAX},
    discovery::Key,
    resource::Kind,
    stream::Stream,
};

/// The most resources in one answer: about 30 MB.
const RESOURCES_MAX: usize = 200_000;

/// Why a request is rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unanswerable {
    #[error("node_matchers: node_metadatas are not supported, use node_id")]
    Metadata,
    #[error("node_matchers.node_id: {0} is not supported, use exact, prefix, suffix or contains")]
    Pattern(&'static str),
    #[error("more than {RESOURCES_MAX} resources: select fewer clients by node_matchers")]
    TooMuch,
}

/// The clients that a request selects.
#[derive(Debug, Default)]
pub(super) struct Matchers(Vec<Matcher>);

#[derive(Debug)]
enum Matcher {
    Any,
    Id { part: Part, ignore_case: bool },
}

#[derive(Debug)]
enum Part {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Contains(String),
}

impl Matchers {
    pub(super) fn read(matchers: Vec<NodeMatcher>) -> Result<Matchers, Unanswerable> {
        let matchers = matchers.into_iter().map(Matcher::read);
        Ok(Matchers(matchers.collect::<Result<_, _>>()?))
    }

    /// One match suffices; without matchers all clients match.
    fn match_id(&self, id: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|matcher| matcher.matches(id))
    }
}

impl Matcher {
    fn read(matcher: NodeMatcher) -> Result<Matcher, Unanswerable> {
        if !matcher.node_metadatas.is_empty() {
            return Err(Unanswerable::Metadata);
        }
        let Some(StringMatcher {
            ignore_case,
            match_pattern,
        }) = matcher.node_id
        else {
            return Ok(Matcher::Any);
        };
        let part = match match_pattern {
            Some(MatchPattern::Exact(id)) => Part::Exact(id),
            Some(MatchPattern::Prefix(id)) => Part::Prefix(id),
            Some(MatchPattern::Suffix(id)) => Part::Suffix(id),
            Some(MatchPattern::Contains(id)) => Part::Contains(id),
            Some(MatchPattern::SafeRegex(_)) => return Err(Unanswerable::Pattern("safe_regex")),
            Some(MatchPattern::Custom(_)) => return Err(Unanswerable::Pattern("custom")),
            None => return Err(Unanswerable::Pattern("no pattern")),
        };
        let part = match ignore_case {
            true => part.map(|text| text.to_ascii_lowercase()),
            false => part,
        };
        Ok(Matcher::Id { part, ignore_case })
    }

    fn matches(&self, id: &str) -> bool {
        match self {
            Matcher::Any => true,
            Matcher::Id {
                part,
                ignore_case: true,
            } => part.matches(&id.to_ascii_lowercase()),
            Matcher::Id { part, .. } => part.matches(id),
        }
    }
}

impl Part {
    fn map(self, change: impl Fn(String) -> String) -> Part {
        match self {
            Part::Exact(text) => Part::Exact(change(text)),
            Part::Prefix(text) => Part::Prefix(change(text)),
            Part::Suffix(text) => Part::Suffix(change(text)),
            Part::Contains(text) => Part::Contains(change(text)),
        }
    }

    fn matches(&self, id: &str) -> bool {
        match self {
            Part::Exact(text) => id == text,
            Part::Prefix(text) => id.starts_with(text),
            Part::Suffix(text) => id.ends_with(text),
            Part::Contains(text) => id.contains(text),
        }
    }
}

impl<K: Key> Clients<K> {
    /// The selected clients, with all their streams.
    pub(super) fn client_configs(
        &self,
        matchers: &Matchers,
    ) -> Result<Vec<ClientConfig>, Unanswerable> {
        let mut by_client: BTreeMap<(String, K), ClientConfig> = BTreeMap::new();
        let mut resources = 0;
        for connected in self.connected() {
            let client = &connected.client;
            if !matchers.match_id(&client.node_id) {
                continue;
            }
            let configs = configs(&connected);
            resources += configs.len();
            if resources > RESOURCES_MAX {
                return Err(Unanswerable::TooMuch);
            }
            let key = (client.node_id.clone(), client.key.clone());
            let config = by_client.entry(key).or_insert_with(|| ClientConfig {
                node: Some(Node {
                    id: client.node_id.clone(),
                    ..client.key.node()
                }),
                ..ClientConfig::default()
            });
            config.generic_xds_configs.extend(configs);
        }
        Ok(by_client.into_values().collect())
    }
}

fn configs<K: Key>(connected: &Connected<K>) -> Vec<GenericXdsConfig> {
    let stream = connected.stream();
    let kinds = Kind::ALL.into_iter();
    let kinds = kinds.filter(|kind| stream.is_subscribed(*kind));
    kinds.flat_map(|kind| of_kind(&stream, kind)).collect()
}

/// The resources of a kind that a stream's client has, rejected or requested. Without contents.
pub(super) fn of_kind(stream: &Stream, kind: Kind) -> Vec<GenericXdsConfig> {
    let offered = stream.view().of(kind);
    let mut all: BTreeMap<&str, GenericXdsConfig> = BTreeMap::new();
    let entry = |name: &str, version: String, config, client| GenericXdsConfig {
        type_url: kind.type_url().to_owned(),
        name: name.to_owned(),
        version_info: version,
        config_status: i32::from(config),
        client_status: i32::from(client),
        ..GenericXdsConfig::default()
    };
    for (name, exists) in stream.missing(kind) {
        let client = match exists {
            true => ClientResourceStatus::Requested,
            false => ClientResourceStatus::DoesNotExist,
        };
        let waiting = entry(name, String::new(), ConfigStatus::NotSent, client);
        all.insert(name, waiting);
    }
    for (name, version, acked) in stream.held(kind) {
        let is_offered = offered.get(name).is_some_and(|r| r.version == version);
        let (config, client) = match (acked, is_offered) {
            (false, _) => (ConfigStatus::Stale, ClientResourceStatus::Requested),
            (true, true) => (ConfigStatus::Synced, ClientResourceStatus::Acked),
            // The current version waits for other resources, or for the answer to another response.
            (true, false) => (ConfigStatus::NotSent, ClientResourceStatus::Acked),
        };
        all.insert(name, entry(name, version.to_string(), config, client));
    }
    let refusal = stream.refusal(kind).map_or("", |r| r.message.as_str());
    for (name, version) in stream.rejected(kind) {
        let config = all.entry(name).or_insert_with(|| {
            // The client has no resource of that name.
            entry(
                name,
                String::new(),
                ConfigStatus::Error,
                ClientResourceStatus::Nacked,
            )
        });
        config.config_status = ConfigStatus::Error.into();
        config.client_status = ClientResourceStatus::Nacked.into();
        config.error_state = Some(UpdateFailureState {
            details: refusal.chars().take(MESSAGE_CHARS_MAX).collect(),
            version_info: version.to_string(),
            ..UpdateFailureState::default()
        });
    }
    all.into_values().collect()
}

#[cfg(test)]
mod tests;
