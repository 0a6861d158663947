//! `tidegate get proxies`.

use std::collections::BTreeMap;

use serde::Deserialize;

/// How much of a rejection a line shows.
const REFUSAL_CHARS_MAX: usize = 120;

/// A stream of a proxy.
#[derive(Deserialize)]
pub(super) struct Proxy {
    node: String,
    zone: String,
    role: String,
    variant: String,
    orphaned: bool,
    kinds: BTreeMap<String, Kind>,
    policy: Policy,
    guest: Option<Guest>,
}

/// The part of a guest's state that other proxies do not have.
#[derive(Deserialize)]
struct Guest {
    mode: String,
    no_grants: Option<String>,
    problems: Vec<String>,
}

#[derive(Deserialize)]
struct Kind {
    acked: usize,
    nack: Option<Refused>,
}

#[derive(Deserialize)]
struct Refused {
    message: String,
}

#[derive(Deserialize)]
struct Policy {
    state: String,
    wanted: Option<u64>,
    applied: Option<Applied>,
}

#[derive(Deserialize)]
struct Applied {
    age_s: u64,
    editions: Vec<Edition>,
    refused: Option<Refused>,
}

#[derive(Deserialize)]
struct Edition {
    version: u64,
    threads: u32,
}

impl super::Listed for Proxy {
    const KIND: &'static str = "proxy";
    const PATH: &'static str = "/v1/proxies";
    const HEADERS: &'static [&'static str] =
        &["NODE", "ZONE", "ROLE", "STREAM", "RESOURCES", "POLICY"];

    fn name(&self) -> String {
        self.node.clone()
    }

    fn row(&self) -> Vec<String> {
        let acked: usize = self.kinds.values().map(|kind| kind.acked).sum();
        let stream = match (self.orphaned, &self.guest) {
            (true, _) => format!("{} orphaned", self.variant),
            (false, Some(guest)) => format!("{} {}", self.variant, guest.mode),
            (false, None) => self.variant.clone(),
        };
        vec![
            self.node.clone(),
            self.zone.clone(),
            self.role.clone(),
            stream,
            acked.to_string(),
            self.policy.line(),
        ]
    }

    fn remarks(&self) -> Vec<String> {
        let kinds = self.kinds.iter();
        let kinds = kinds.filter_map(|(kind, status)| Some((kind.as_str(), status.nack.as_ref()?)));
        let policy = self.policy.applied.as_ref();
        let policy = policy.and_then(|applied| Some(("policy", applied.refused.as_ref()?)));
        let refusals = kinds.chain(policy);
        let guest = self.guest.iter();
        let of_guest = guest.flat_map(|guest| {
            let no_grants = guest
                .no_grants
                .iter()
                .map(|why| format!("no grants: {why}"));
            no_grants.chain(guest.problems.iter().cloned())
        });
        let of_guest = of_guest.map(|line| format!("{}: {}", self.node, line.escape_debug()));
        let line = |(what, refused): (&str, &Refused)| {
            let message: String = refused.message.chars().take(REFUSAL_CHARS_MAX).collect();
            // Text from a proxy must not move the operator's cursor.
            format!("{}: {what} rejected: {}", self.node, message.escape_debug())
        };
        refusals.map(line).chain(of_guest).collect()
    }
}

impl Policy {
    /// `applied 2fd0.. x2, 12 s ago`, and the wanted version if it differs.
    fn line(&self) -> String {
        let Some(applied) = &self.applied else {
            return self.state.clone();
        };
        let editions = applied.editions.iter();
        let editions: Vec<String> = editions
            .map(|edition| format!("{:012x} x{}", edition.version, edition.threads))
            .collect();
        let wanted = match (self.state.as_str(), self.wanted) {
            ("applied", _) | (_, None) => String::new(),
            (_, Some(wanted)) => format!(" (wanted {wanted:012x})"),
        };
        format!(
            "{} {}{wanted}, {} s ago",
            self.state,
            editions.join(" "),
            applied.age_s
        )
    }
}
