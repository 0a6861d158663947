//! Changes of the agreed terms.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};
use xds_server::config::Mesh;

use super::{LIVENESS, World};
use crate::mesh::{NODES, TERMS, mesh};

impl World {
    /// The configuration that replicas should get, by the record.
    fn target(&self) -> Option<Arc<Mesh>> {
        let (_, agreement) = self.cluster.terms()?;
        let target = agreement.next.unwrap_or(agreement.current);
        let mut meshes = TERMS.into_iter().map(mesh);
        meshes.find(|mesh| target.is_kept_by(&mesh.agreed().unwrap()))
    }

    /// An operator begins a change of terms, or aborts one, or gives replicas the configuration
    /// that it waits for. Sometimes replicas that start later get another configuration.
    pub(crate) fn change_terms(&mut self) {
        let Some((seen, agreement)) = self.cluster.terms() else {
            return;
        };
        let to = TERMS[self.rng.below(TERMS.len() as u64) as usize];
        let after = match &agreement.next {
            Some(_) if self.rng.chance(20) => Some(agreement.back()),
            Some(_) => None,
            None => {
                let next = mesh(to).agreed().unwrap();
                let other = !agreement.current.is_kept_by(&next);
                other.then(|| agreement.widened(next))
            }
        };
        if let Some(after) = after {
            self.note(format!("terms: {:?}", after.next.as_ref().map(|_| to)));
            self.cluster.put_terms(seen, &after);
        }
        let Some(target) = self.target() else { return };
        for at in 0..NODES.len() {
            let gets = self.rng.chance(60);
            if let Some(node) = self.nodes[at].as_ref().filter(|_| gets) {
                node.mesh.send_replace(Arc::clone(&target));
            }
        }
        self.mesh = match self.rng.chance(20) {
            true => mesh(TERMS[self.rng.below(TERMS.len() as u64) as usize]),
            false => target,
        };
    }

    /// All replicas are configured as the record requires, and the change under way ends.
    pub(crate) async fn agree(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + LIVENESS;
        while Instant::now() < deadline {
            let Some(target) = self.target() else {
                return Err("there are no terms".to_owned());
            };
            for node in self.nodes.iter().flatten() {
                node.mesh.send_replace(Arc::clone(&target));
            }
            self.mesh = target;
            self.confirm().await;
            sleep(Duration::from_millis(500)).await;
            let terms = self.cluster.terms();
            if terms.is_some_and(|(_, agreement)| agreement.next.is_none()) {
                return Ok(());
            }
        }
        let terms = self.cluster.terms();
        Err(format!("the change does not end: {terms:#?}"))
    }
}
