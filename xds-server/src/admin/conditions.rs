//! The conditions that hold now and may need action.

use axum::{Json, extract::State};
use registry::authority::StateName;

use super::Admin;
use crate::{
    applied::PolicyState,
    authority::CellStatus,
    conditions::{
        Condition,
        report::{
            CellReport, CertificateReport, ConfigReport, ProxiesReport, Report, SessionReport,
        },
    },
    metrics::{FileLabel, ResultLabel},
    replicas,
    wall_clock::unix_ms,
};

pub(super) async fn list(State(admin): State<Admin>) -> Json<Vec<Condition>> {
    Json(admin.counts.conditions.list())
}

pub(super) async fn status(State(admin): State<Admin>) -> Json<Report> {
    let store_health = admin.store_health.status();
    let cells = admin.authorities.cells();
    Json(Report {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ready: admin.is_ready(),
        mode: store_health.level.as_str().to_owned(),
        mode_since_s: store_health.since.elapsed().as_secs(),
        stale: store_health.stale,
        detail: store_health.reason,
        config: admin.config(),
        sessions: sessions(&cells),
        cells: cells.iter().map(cell).collect(),
        proxies: admin.proxies_report(),
        certificates: admin.certificates(),
        conditions: admin.counts.conditions.list(),
    })
}

impl Admin {
    pub(super) fn config(&self) -> ConfigReport {
        let digest = u64::try_from(self.counts.config_digest.get());
        ConfigReport {
            digest: replicas::hex(digest.unwrap_or(0)),
            current: self.counts.config_current.get() == 1,
        }
    }

    /// The counts of the last check.
    fn proxies_report(&self) -> ProxiesReport {
        let of = |state: PolicyState| {
            let result = state.as_str();
            let gauge = self.counts.proxy_policies.get(&ResultLabel { result });
            gauge.map_or(0, |gauge| usize::try_from(gauge.get()).unwrap_or(0))
        };
        ProxiesReport {
            connected: self.proxies.clients().count(),
            refusing: usize::try_from(self.counts.proxies_refusing.get()).unwrap_or(0),
            policy_refused: of(PolicyState::Refused),
            policy_behind: of(PolicyState::Behind),
            policy_unknown: of(PolicyState::Unknown),
        }
    }

    fn certificates(&self) -> Vec<CertificateReport> {
        let now_s = i64::try_from(unix_ms() / 1_000).unwrap_or(i64::MAX);
        let files = ["cert", "client_ca"].into_iter();
        let ends = files.filter_map(|file| {
            let ends_s = self.counts.tls_not_after.get(&FileLabel { file })?.get();
            Some(CertificateReport {
                file: format!("listen.tls.{file}"),
                ends_in_s: ends_s.saturating_sub(now_s),
            })
        });
        ends.collect()
    }
}

fn sessions(cells: &[CellStatus]) -> Vec<SessionReport> {
    let here = cells.iter().flat_map(|cell| &cell.here);
    let sessions = here.map(|here| SessionReport {
        zone: here.zone.clone(),
        incarnation: here.incarnation.clone(),
        alive: here.session,
    });
    let mut sessions: Vec<SessionReport> = sessions.collect();
    sessions.sort();
    sessions.dedup();
    sessions
}

fn cell(status: &CellStatus) -> CellReport {
    let state = match status.state {
        Some(StateName::Active) => "active",
        Some(StateName::Fencing) => "fencing",
        Some(StateName::Settling) => "settling",
        None if status.revision == 0 => "unknown",
        None => "of another store",
    };
    CellReport {
        cell: status.cell.clone(),
        owners: status.owners.clone(),
        epoch: status.epoch,
        state: state.to_owned(),
        granting: status.here.iter().any(|here| here.granting && here.session),
    }
}
