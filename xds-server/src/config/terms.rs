//! The terms that all replicas have to agree on: those of a configuration, and a mesh under those
//! that are agreed on.

use policy::{
    Writes,
    fence::{Agreed, Agreement, Layout, Name},
};
use registry::terms::{key_text, parse_key};

use super::{Authority, CellConfig, Mesh, ServiceConfig};

impl Mesh {
    /// The terms of this configuration; none where nothing is fenced.
    pub fn agreed(&self) -> Option<Agreed> {
        let authority = self.authority.as_ref()?;
        let cells = authority.cells.iter();
        let cells = cells.map(|cell| (Name::from(cell.name.as_str()), cell.shards.get()));
        let layout = Layout {
            cells: cells.collect(),
            keys: match authority.cells.len() {
                // No key matters.
                0 | 1 => Default::default(),
                _ => self.services.iter().filter_map(key_of).collect(),
            },
        };
        Some(Agreed::of(&authority.terms, layout))
    }

    /// The same mesh by the terms that are agreed on, whatever is configured: its proxies belong to a zone in which other
    /// replicas may grant. None where that changes nothing.
    ///
    /// Where there are several cells, a service whose key is not agreed on yet has no routes: two zones could find two cells
    /// for one write.
    pub fn under(&self, agreement: &Agreement) -> Option<Mesh> {
        let authority = self.authority.as_ref()?;
        let layout = &agreement.current.layout;
        let mut mesh = self.clone();
        mesh.authority = Some(Authority {
            terms: agreement.terms(&authority.terms),
            cells: authority.cells_of(layout),
            ..authority.clone()
        });
        if layout.cells.len() > 1 {
            for service in &mut mesh.services {
                service.follow(layout);
            }
        }
        (mesh != *self).then_some(mesh)
    }
}

/// A service whose writes are fenced, and where their key stands.
fn key_of(service: &ServiceConfig) -> Option<(Name, Name)> {
    match &service.writes {
        Writes::Fenced { key } => {
            let name = Name::from(service.name.as_str());
            Some((name, key_text(key.as_ref())))
        }
        Writes::Free => None,
    }
}

impl ServiceConfig {
    fn follow(&mut self, layout: &Layout) {
        let Writes::Fenced { key } = &mut self.writes else {
            return;
        };
        match layout
            .keys
            .get(self.name.as_str())
            .map(|text| parse_key(text))
        {
            Some(Ok(agreed)) => *key = agreed,
            // The record was checked, so there is none.
            Some(Err(())) | None => self.routes.clear(),
        }
    }
}

impl Authority {
    /// The cells of the layout, as they are configured here where they are.
    fn cells_of(&self, layout: &Layout) -> Vec<CellConfig> {
        let cells = layout.cells.iter();
        let cells = cells.filter_map(|(name, shards)| {
            let shards = std::num::NonZeroU32::new(*shards)?;
            let configured = self.cells.iter().find(|cell| *cell.name == **name);
            Some(match configured {
                Some(cell) => CellConfig {
                    shards,
                    ..cell.clone()
                },
                None => CellConfig {
                    name: name.to_string(),
                    shards,
                    owners: Vec::new(),
                    standby: Vec::new(),
                    forward: Default::default(),
                    automatic: false,
                    cool_down: std::time::Duration::ZERO,
                },
            })
        });
        cells.collect()
    }
}
