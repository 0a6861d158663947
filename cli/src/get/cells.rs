//! `tidegate get cells`.

use registry::authority::StateName;
use serde::Deserialize;
use serde_json::Value;
use xds_server::authority::CellStatus;

/// A cell, in the view of a replica.
#[derive(Deserialize)]
#[serde(transparent)]
pub(super) struct Cell(CellStatus);

impl super::Listed for Cell {
    const KIND: &'static str = "cell";
    const PATH: &'static str = "/v1/cells";
    const HEADERS: &'static [&'static str] = &[
        "CELL",
        "EPOCH",
        "STATE",
        "OWNERS",
        "STANDBY",
        "PROXIES",
        "GRANTED BY",
    ];

    fn remark(answer: &Value) -> Option<String> {
        let mut cells = answer.as_array()?.iter();
        let stale = cells.find_map(|cell| cell.get("stale")?.as_str())?;
        Some(format!("STALE, as last seen: {stale}"))
    }

    fn name(&self) -> String {
        self.0.cell.clone()
    }

    fn row(&self) -> Vec<String> {
        let cell = &self.0;
        let stale = if cell.stale.is_some() { "?" } else { "" };
        vec![
            cell.cell.clone(),
            cell.epoch.to_string(),
            format!("{}{stale}", state_of(cell)),
            cell.owners.join(","),
            cell.standby.join(","),
            proxies_of(cell),
            cell.grantors.join(","),
        ]
    }
}

/// A cell's state in a few words.
pub(crate) fn state_of(cell: &CellStatus) -> String {
    match (cell.state, &cell.moving) {
        (_, Some(moving)) => format!("fencing -> {}", moving.to.join(",")),
        (Some(StateName::Active), _) => "active".to_owned(),
        (Some(StateName::Settling), _) => "settling".to_owned(),
        (Some(StateName::Fencing), None) => "fencing".to_owned(),
        (None, _) if cell.revision == 0 => "unknown".to_owned(),
        (None, _) => "of another store".to_owned(),
    }
}

/// How many proxies could hold grants in each zone that may own the cell.
fn proxies_of(cell: &CellStatus) -> String {
    let each = cell.owners.iter().chain(&cell.standby).map(|zone| {
        match cell.zones.get(zone).map(|speakers| speakers.proxies) {
            None => format!("{zone}:-"),
            Some(None) => format!("{zone}:?"),
            Some(Some(proxies)) => format!("{zone}:{proxies}"),
        }
    });
    each.collect::<Vec<_>>().join(" ")
}
