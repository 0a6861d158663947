//! The guests of a configuration: their own configuration, and how they fail.

use data_encoding::BASE64;
use filter_core::guest::{
    Config,
    config::{ZoneSource, is_guest},
};
use policy::listed::{Clash, Lists};
use serde_json::Value;

use super::{
    Known,
    finding::Problem,
    json::{at, field, is_true, message, text, type_of},
    view::{Filter, Manager, View},
};
use crate::guest::lists;

const WASM: &str = ".http.wasm.v3.Wasm";

/// A guest in a connection manager.
#[derive(Debug)]
pub(super) struct Guest {
    /// Its position among the filters.
    pub(super) index: usize,
    /// Its configuration, if it is valid.
    pub(super) config: Result<Config, String>,
    /// The names of clusters as they are configured: templates.
    pub(super) templates: Vec<String>,
}

/// The first guest of a connection manager.
pub(super) fn of(manager: &Manager<'_>) -> Option<Guest> {
    let mut filters = manager.filters.iter().enumerate();
    filters.find_map(|(index, filter)| {
        let bytes = configuration(filter)?;
        let config = Config::read(&bytes).map_err(|error| error.to_string());
        let json: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let clusters = field(&json, "clusters").and_then(Value::as_object);
        let templates = clusters.into_iter().flat_map(|all| all.values());
        let templates = templates.filter_map(|name| name.as_str().map(str::to_owned));
        Some(Guest {
            index,
            config,
            templates: templates.collect(),
        })
    })
}

/// The configuration of a filter that is a guest. A policy, as an Envoy has it that Tidegate
/// configures, is none.
fn configuration(filter: &Filter<'_>) -> Option<Vec<u8>> {
    if !filter.is(WASM) {
        return None;
    }
    let plugin = field(filter.config, "config")?;
    let bytes = match field(plugin, "configuration") {
        Some(any) => bytes(any),
        None => vec![],
    };
    let is_named = |text: &str| text.contains("tidegate");
    let code = at(plugin, &["vm_config", "code"]).map(Value::to_string);
    let is_ours = is_named(filter.name)
        || is_named(text(plugin, "name"))
        || code.is_some_and(|code| is_named(&code));
    let says_control_plane = String::from_utf8_lossy(&bytes).contains("\"control_plane\"");
    let is_one = match is_guest(&bytes) {
        true => is_ours || says_control_plane,
        false => is_ours && bytes.trim_ascii().is_empty(),
    };
    is_one.then_some(bytes)
}

/// The bytes that a plugin's `configuration` hands to the filter.
fn bytes(any: &Value) -> Vec<u8> {
    let kind = type_of(any);
    let value = field(message(any), "value");
    match value {
        Some(Value::String(text)) if kind.ends_with(".BytesValue") => {
            BASE64.decode(text.as_bytes()).unwrap_or_default()
        }
        Some(Value::String(text)) => text.clone().into_bytes(),
        Some(object) => object.to_string().into_bytes(),
        None => vec![],
    }
}

/// The findings about a guest.
pub(super) fn check(
    manager: &Manager<'_>,
    guest: &Guest,
    has_net: bool,
    view: &View<'_>,
    known: &Known,
    found: &mut impl FnMut(Problem, &str),
) {
    let Some(filter) = manager.filters.get(guest.index) else {
        return;
    };
    let mut add = |problem| found(problem, &filter.place);
    if filter.is_optional {
        add(Problem::GuestOptional);
    }
    let plugin = field(filter.config, "config").unwrap_or(&Value::Null);
    match (text(plugin, "failure_policy"), is_true(plugin, "fail_open")) {
        ("FAIL_RELOAD", _) => {}
        ("FAIL_OPEN", _) | (_, true) => add(Problem::FailOpen { has_net }),
        _ => add(Problem::FailClosed),
    }
    if at(plugin, &["vm_config", "code", "remote"]).is_some() {
        add(Problem::FetchedModule);
    }
    let config = match &guest.config {
        Ok(config) => config,
        Err(error) => {
            let error = error.clone();
            return add(Problem::GuestConfiguration { error });
        }
    };
    if let Some(problem) = zone(config, view, known) {
        add(problem);
    }
    let unfenced = Lists {
        unfenced: config.unfenced.clone(),
        classes: vec![],
    };
    if let Some(Clash { listed, fenced }) = unfenced.clash(&known.routes) {
        let (listed, fenced) = (lists::text(listed), lists::text(fenced));
        add(Problem::UnfencedListsFenced { listed, fenced });
    }
    let reads = Lists {
        unfenced: vec![],
        classes: config.classes.clone(),
    };
    if let Some(Clash { listed, fenced }) = reads.clash(&known.routes) {
        let (listed, fenced) = (lists::text(listed), lists::text(fenced));
        add(Problem::ClassesListFenced { listed, fenced });
    }
    match (config.guest.drain_ms, known.write_drain_ms) {
        (None, _) => add(Problem::DrainUnsaid),
        (Some(drain_ms), Some(terms_ms)) if drain_ms > terms_ms => {
            add(Problem::DrainAboveTerms { drain_ms, terms_ms });
        }
        (Some(_), _) => {}
    }
}

fn zone(config: &Config, view: &View<'_>, known: &Known) -> Option<Problem> {
    let node = || view.node.unwrap_or(&Value::Null);
    let locality = || at(node(), &["locality", "zone"]).and_then(Value::as_str);
    let label = |name: &str| {
        let labels = at(node(), &["metadata", "LABELS"])?;
        labels.get(name).and_then(Value::as_str)
    };
    let zone = match &config.zone {
        ZoneSource::Named(zone) => Some(zone.as_str()),
        // The command line of Envoy can name the zone, too.
        _ if view.node.is_none() => return None,
        ZoneSource::Locality => locality(),
        ZoneSource::Istio => {
            let by_label =
                || label("topology.kubernetes.io/zone").or_else(|| label("istio-locality"));
            return match locality().or_else(by_label) {
                None => Some(Problem::ZoneMissing),
                // Only a locality is the zone as it stands there.
                Some(_) => locality().and_then(|zone| unknown(zone, known)),
            };
        }
        ZoneSource::Metadata(path) => {
            let metadata = node().get("metadata").unwrap_or(&Value::Null);
            let found = path
                .iter()
                .try_fold(metadata, |value, name| value.get(name));
            found.and_then(Value::as_str)
        }
    };
    match zone {
        None | Some("") => Some(Problem::ZoneMissing),
        Some(zone) => unknown(zone, known),
    }
}

fn unknown(zone: &str, known: &Known) -> Option<Problem> {
    let is_unknown = known.is_configured && !known.zones.iter().any(|name| name == zone);
    let zone = zone.to_owned();
    is_unknown.then_some(Problem::ZoneUnknown { zone })
}
