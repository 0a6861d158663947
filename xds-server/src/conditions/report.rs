//! The content of `tidegate status`, as `GET /v1/status` returns it.

use serde::{Deserialize, Serialize};

use super::{Condition, Severity};

/// The state of a replica.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    pub version: String,
    pub ready: bool,
    /// `normal`, `L1`, `L2` or `L3`.
    pub mode: String,
    pub mode_since_s: u64,
    /// The store has not confirmed the served state.
    pub stale: bool,
    /// Why the mode is not normal, or why it is stale.
    pub detail: String,
    pub config: ConfigReport,
    /// The zones that the replica serves; empty if no writes are fenced.
    pub sessions: Vec<SessionReport>,
    pub cells: Vec<CellReport>,
    pub proxies: ProxiesReport,
    /// The certificates of the replica's own ports; empty without TLS.
    pub certificates: Vec<CertificateReport>,
    pub conditions: Vec<Condition>,
}

/// The configuration in force.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConfigReport {
    /// Equal on replicas that serve their proxies the same.
    pub digest: String,
    /// Whether it is the file's present content.
    pub current: bool,
}

/// A zone that the replica serves.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SessionReport {
    pub zone: String,
    pub incarnation: String,
    pub alive: bool,
}

/// A cell.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CellReport {
    pub cell: String,
    pub owners: Vec<String>,
    pub epoch: u64,
    pub state: String,
    /// Whether this replica grants writes for it.
    pub granting: bool,
}

/// The connected proxies.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct ProxiesReport {
    pub connected: usize,
    /// Proxies that reject a resource.
    pub refusing: usize,
    pub policy_refused: usize,
    pub policy_behind: usize,
    pub policy_unknown: usize,
}

/// A certificate in force.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CertificateReport {
    pub file: String,
    pub ends_in_s: i64,
}

impl Report {
    /// The worst severity that holds.
    pub fn worst(&self) -> Option<Severity> {
        self.conditions.iter().map(|c| c.severity).max()
    }

    /// The text for a terminal.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| text += &format!("{name:<13} {value}\n");
        line("version", self.version.clone());
        line("ready", yes(self.ready));
        line("store", self.store());
        let current = if self.config.current {
            ""
        } else {
            ", not the file's"
        };
        line("configuration", format!("{}{current}", self.config.digest));
        line("terms", self.terms());
        for session in &self.sessions {
            let alive = if session.alive { "alive" } else { "none" };
            line("session", format!("{} {alive}", session.zone));
        }
        for cell in &self.cells {
            let CellReport {
                cell,
                owners,
                epoch,
                state,
                granting,
            } = cell;
            let (owners, granting) = (owners.join(","), yes(*granting));
            let told =
                format!("{cell} {state} owner {owners} epoch {epoch} granted here: {granting}");
            line("cell", told);
        }
        let p = &self.proxies;
        line(
            "proxies",
            format!(
                "{} connected, {} reject a resource; policy: {} rejected, {} behind, {} unknown",
                p.connected, p.refusing, p.policy_refused, p.policy_behind, p.policy_unknown
            ),
        );
        for CertificateReport { file, ends_in_s } in &self.certificates {
            let days = ends_in_s / 86_400;
            let ends = if *ends_in_s < 0 {
                "ended".to_owned()
            } else {
                format!("ends in {days} d")
            };
            line("certificate", format!("{file} {ends}"));
        }
        if self.conditions.is_empty() {
            line("conditions", "none".to_owned());
        }
        for condition in &self.conditions {
            text += &in_lines(condition);
        }
        text
    }

    fn store(&self) -> String {
        let mode = match self.mode.as_str() {
            "normal" => "normal".to_owned(),
            level => format!("{level} for {} s: {}", self.mode_since_s, self.detail),
        };
        format!("{mode}{}", if self.stale { " (stale)" } else { "" })
    }

    fn terms(&self) -> String {
        let differ = |c: &Condition| c.code == super::Code::TermsDiffer;
        match self.conditions.iter().any(differ) {
            _ if self.sessions.is_empty() => "none: no writes are fenced".to_owned(),
            true => "differ from the others'".to_owned(),
            false => "as agreed".to_owned(),
        }
    }
}

fn in_lines(condition: &Condition) -> String {
    let Condition {
        code,
        name,
        subject,
        detail,
        since,
        since_s,
        ..
    } = condition;
    let severity = condition.severity.as_str();
    let of = if subject.is_empty() {
        String::new()
    } else {
        format!(" {}", subject.escape_debug())
    };
    // Text from proxies and files must not move the cursor.
    let detail = match detail.as_str() {
        "" => String::new(),
        detail => format!("\n  {}", detail.escape_debug()),
    };
    let (meaning, to_do) = (&condition.meaning, &condition.what_to_do);
    format!(
        "\n{code} {name}{of} ({severity}, since {since}, {since_s} s)\n  {meaning}{detail}\n  To do: {to_do}\n"
    )
}

fn yes(is: bool) -> String {
    if is { "yes" } else { "no" }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conditions::{Code, Conditions};

    fn report(conditions: &Conditions) -> Report {
        Report {
            version: "1.2.3".to_owned(),
            ready: true,
            mode: "normal".to_owned(),
            mode_since_s: 5,
            stale: false,
            detail: String::new(),
            config: ConfigReport {
                digest: "00ab".to_owned(),
                current: true,
            },
            sessions: vec![SessionReport {
                zone: "sh-a".to_owned(),
                incarnation: "sh-a-1".to_owned(),
                alive: true,
            }],
            cells: vec![],
            proxies: ProxiesReport::default(),
            certificates: vec![],
            conditions: conditions.list(),
        }
    }

    #[test]
    fn a_report_says_what_holds_and_what_to_do_about_it() {
        let conditions = Conditions::new();
        let well = report(&conditions);
        assert_eq!(well.worst(), None);
        assert!(
            well.text().contains("conditions    none\n"),
            "{}",
            well.text()
        );
        conditions.raise(Code::ConfigNeedsRestart, "", "");
        assert_eq!(report(&conditions).worst(), Some(Severity::Warning));
        conditions.raise(Code::StoreFull, "", "bad\u{1b}[2J");
        conditions.raise(Code::TermsDiffer, "", "");
        let ill = report(&conditions);
        assert_eq!(ill.worst(), Some(Severity::Error));
        let text = ill.text();
        assert!(
            text.contains("terms         differ from the others'"),
            "{text}"
        );
        assert!(text.contains("TG2004 store_full (error, since "), "{text}");
        assert!(text.contains("To do: Compact and defragment"), "{text}");
        assert!(text.contains("bad\\u{1b}[2J"), "{text}");
        let again: Report = serde_json::from_slice(&serde_json::to_vec(&ill).unwrap()).unwrap();
        assert_eq!(again.text(), text);
    }
}
