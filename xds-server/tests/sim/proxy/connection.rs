//! The connection between a proxy and a replica.

use std::sync::{Arc, Mutex};

use filter_core::stream::Token;
use protos::fence::{GrantorSays, HolderSays};
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};
use xds_server::authority::Authorities;

use super::{Heard, Seat};
use crate::{rng::Rng, store::Doors};

/// A connection between the proxy and a replica: ordered, late, and broken when it is cut.
pub(super) struct Wire {
    pub(super) worker: usize,
    pub(super) token: Token,
    pub(super) cut: watch::Sender<bool>,
    pub(super) rng: Arc<Mutex<Rng>>,
    pub(super) heard: mpsc::UnboundedSender<Heard>,
}

impl Wire {
    pub(super) async fn run(
        self,
        replica: Option<Seat>,
        said: mpsc::UnboundedReceiver<HolderSays>,
    ) {
        if let Some(Seat {
            authorities, doors, ..
        }) = replica
        {
            self.speak(&authorities, &doors, said).await;
        }
        self.latency().await;
        // A process that has ended receives nothing.
        let _ = self.heard.send(Heard::Closed(self.worker, self.token));
    }

    async fn latency(&self) {
        let delay = {
            let mut rng = self.rng.lock().unwrap();
            // Sometimes a message is delayed for long: a packet was lost.
            let (from, to) = if rng.chance(3) { (50, 400) } else { (0, 3) };
            rng.millis(from, to)
        };
        sleep(delay).await;
    }

    async fn speak(
        &self,
        authorities: &Authorities,
        doors: &Doors,
        mut said: mpsc::UnboundedReceiver<HolderSays>,
    ) -> Option<()> {
        let (says, mut told) = mpsc::channel::<GrantorSays>(256);
        let mut cut = self.cut.subscribe();
        let mut dead = doors.dead.subscribe();
        let Some(HolderSays::Hello {
            holder, zone, node, ..
        }) = said.recv().await
        else {
            return None;
        };
        self.latency().await;
        if *cut.borrow() || *dead.borrow() {
            return None;
        }
        doors.running().await;
        let joined = authorities.join(holder, zone, node, says).await;
        let stream = joined.ok()?.ok()?;
        let upwards = async {
            while let Some(says) = said.recv().await {
                self.latency().await;
                doors.running().await;
                if authorities.said(holder, stream, says).await.is_err() {
                    return;
                }
            }
        };
        let downwards = async {
            while let Some(says) = told.recv().await {
                doors.running().await;
                self.latency().await;
                if *self.cut.borrow() {
                    return;
                }
                let message = Heard::Message(self.worker, self.token, says.encode());
                if self.heard.send(message).is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            _ = cut.wait_for(|cut| *cut) => {}
            _ = dead.wait_for(|dead| *dead) => {}
            () = upwards => {}
            () = downwards => {}
        }
        authorities.left(holder, stream).await;
        Some(())
    }
}
