//! Weights and instances for an Istio mesh, as objects of Istio in a Kubernetes cluster. istiod
//! stays in charge of the proxies.
//!
//! [`objects`] computes the objects of each snapshot; [`cluster`] watches and applies them by
//! server-side apply; [`foreign`] finds those of others, which are never touched; [`reconciler`]
//! brings both together.
//!
//! Every replica does that: the objects follow from the store, so replicas agree on them, and the
//! first one that sees a change applies it. A replica that does not follow its store changes
//! nothing.

mod cluster;
mod foreign;
pub mod objects;
mod reconciler;

use std::{sync::Arc, time::Duration};

use registry::store::Head;
use tokio::sync::watch;
use tracing::info;

use self::{
    cluster::Cluster,
    reconciler::{Reconciler, Report},
};
use crate::{
    conditions::{Code, Conditions},
    config::{Istio, Mesh},
    discovery::Snapshots,
    metrics::Metrics,
};

pub use reconciler::{Shown, State};

/// Between two attempts, and the longest until an object that others have changed is as it should
/// be.
const RECHECK: Duration = Duration::from_secs(2);

/// What the objects follow from.
#[derive(Clone)]
pub struct Sources {
    pub meshes: watch::Receiver<Arc<Mesh>>,
    pub snapshots: Snapshots,
    /// None while no store is followed.
    pub followed: watch::Receiver<Option<Head>>,
    pub metrics: Metrics,
}

/// The objects with their states, for operators. Cheap to clone.
#[derive(Clone)]
pub struct Objects(watch::Receiver<Arc<Report>>);

impl Objects {
    /// Those of a control plane that keeps none.
    pub fn none() -> Objects {
        Objects(watch::channel(Arc::default()).1)
    }

    /// In the order in which they are applied.
    pub fn list(&self) -> Vec<Shown> {
        self.0.borrow().shown.clone()
    }
}

/// Keeps the objects as they should be from now on, where the configuration asks for it.
pub fn start(sources: Sources) -> Objects {
    let (report, reports) = watch::channel(Arc::default());
    tokio::spawn(run(sources, report));
    Objects(reports)
}

async fn run(mut sources: Sources, report: watch::Sender<Arc<Report>>) {
    loop {
        let istio = sources.meshes.borrow_and_update().istio.clone();
        let Some(istio) = istio else {
            report.send_replace(Arc::default());
            clear(&sources.metrics.conditions);
            if sources.meshes.changed().await.is_err() {
                return;
            }
            continue;
        };
        if follow(&mut sources, &istio, &report).await.is_err() {
            return;
        }
    }
}

/// Nothing is applied, so nothing stands in the way.
fn clear(conditions: &Conditions) {
    for code in [
        Code::IstioUnreachable,
        Code::IstioForeignObject,
        Code::IstioObjectFailed,
    ] {
        conditions.replace(code, []);
    }
}

/// The control plane ends.
struct Ended;

/// Follows one configuration's cluster, until another one is configured.
async fn follow(
    sources: &mut Sources,
    istio: &Istio,
    report: &watch::Sender<Arc<Report>>,
) -> Result<(), Ended> {
    let cluster = match istio.apply {
        false => {
            clear(&sources.metrics.conditions);
            None
        }
        true => {
            let connected = tokio::select! {
                connected = Cluster::connect(istio.kubeconfig.as_deref()) => connected,
                changed = sources.meshes.changed() => return changed.map_err(|_| Ended),
            };
            match connected {
                Ok(cluster) => {
                    info!("Istio's objects are followed");
                    Some(cluster)
                }
                Err(error) => {
                    let conditions = &sources.metrics.conditions;
                    conditions.raise(Code::IstioUnreachable, "", format!("{error:#}"));
                    return pause(sources).await;
                }
            }
        }
    };
    let mut reconciler = Reconciler::new(cluster, sources.metrics.clone());
    loop {
        let mesh = Arc::clone(&sources.meshes.borrow_and_update());
        let same = |now: &Istio| (now.apply, &now.kubeconfig) == (istio.apply, &istio.kubeconfig);
        let Some(istio) = mesh.istio.as_ref().filter(|now| same(now)) else {
            return Ok(());
        };
        let snapshot = sources.snapshots.borrow_and_update().clone();
        let is_following = sources.followed.borrow().is_some();
        if let Some(snapshot) = snapshot.filter(|_| is_following) {
            let wanted = objects::objects(istio, &mesh.services, &snapshot);
            if let Some(wanted) = wanted {
                let shown = reconciler.reconcile(istio, wanted).await;
                report.send_replace(Arc::new(shown));
            }
        }
        tokio::select! {
            changed = sources.meshes.changed() => changed.map_err(|_| Ended)?,
            changed = sources.snapshots.changed() => changed.map_err(|_| Ended)?,
            () = reconciler.until_due() => {}
        }
    }
}

/// Waits before the next attempt, or for another configuration.
async fn pause(sources: &mut Sources) -> Result<(), Ended> {
    tokio::select! {
        () = tokio::time::sleep(RECHECK) => Ok(()),
        changed = sources.meshes.changed() => changed.map_err(|_| Ended),
    }
}
