//! `tidegate proxies`.

use std::collections::BTreeMap;

use anyhow::Context;
use bytes::Bytes;
use hyper::Method;
use serde::Deserialize;

use super::OperatorArgs;

/// How much of a refusal a line shows.
const REFUSAL_CHARS_MAX: usize = 120;

#[derive(Deserialize)]
struct Proxy {
    node: String,
    zone: String,
    role: String,
    variant: String,
    orphaned: bool,
    kinds: BTreeMap<String, Kind>,
    policy: Policy,
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

impl OperatorArgs {
    /// A table of the connected proxies.
    pub(super) async fn proxies(&self) -> anyhow::Result<String> {
        let answer = self.ask(Method::GET, "/v1/proxies", Bytes::new()).await?;
        let proxies = serde_json::from_slice(&answer).context("an answer of another version")?;
        Ok(table(proxies))
    }
}

fn table(proxies: Vec<Proxy>) -> String {
    let mut table = row("NODE", "ZONE", "ROLE", "STREAM", "RESOURCES", "POLICY");
    for proxy in proxies {
        let acked: usize = proxy.kinds.values().map(|kind| kind.acked).sum();
        let stream = match proxy.orphaned {
            true => format!("{} orphaned", proxy.variant),
            false => proxy.variant,
        };
        table += &row(
            &proxy.node,
            &proxy.zone,
            &proxy.role,
            &stream,
            &acked.to_string(),
            &proxy.policy.line(),
        );
        let refusals = proxy
            .kinds
            .into_iter()
            .filter_map(|(kind, status)| Some((kind, status.nack?)));
        let policy = proxy.policy.applied.and_then(|applied| applied.refused);
        let policy = policy.map(|refused| ("policy".to_owned(), refused));
        for (what, refused) in refusals.chain(policy) {
            let message: String = refused.message.chars().take(REFUSAL_CHARS_MAX).collect();
            // What a proxy says must not move the operator's cursor.
            table += &format!("  {what} refused: {}\n", message.escape_debug());
        }
    }
    table
}

impl Policy {
    /// `applied 2fd0.. x2, 12 s ago`, and what it should be where it is not that.
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

fn row(a: &str, b: &str, c: &str, d: &str, e: &str, f: &str) -> String {
    let line = format!("{a:<28} {b:<16} {c:<8} {d:<14} {e:>9}  {f}");
    format!("{}\n", line.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_a_proxy_is_and_what_it_refused() {
        let proxies = serde_json::json!([
            {
                "node": "gw-1", "zone": "sh-a", "role": "gateway", "variant": "delta", "orphaned": false,
                "kinds": {"cds": {"acked": 3, "versions": {}, "nack": null}, "ecds": {"acked": 1, "versions": {}, "nack": {"resources": [], "message": "bad\u{1b}[2J"}}},
                "policy": {"state": "behind", "wanted": 66, "applied": {"age_s": 4, "editions": [{"version": 65, "generation": 1, "threads": 2}], "refused": null}},
            },
            {
                "node": "gw-2", "zone": "sh-a", "role": "gateway", "variant": "sotw", "orphaned": true,
                "kinds": {}, "policy": {"state": "unknown", "wanted": null, "applied": null},
            },
        ]);
        let table = table(serde_json::from_value(proxies).unwrap());
        let lines: Vec<_> = table.lines().skip(1).collect();
        assert_eq!(
            lines,
            [
                "gw-1                         sh-a             gateway  delta                  4  behind 000000000041 x2 (wanted 000000000042), 4 s ago",
                "  ecds refused: bad\\u{1b}[2J",
                "gw-2                         sh-a             gateway  sotw orphaned          0  unknown",
            ]
        );
    }
}
