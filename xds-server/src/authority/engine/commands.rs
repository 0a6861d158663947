//! Commands from other parts of the process: streams of proxies, operators' requests, shutdown.

use std::collections::BTreeSet;

use policy::fence::{Cause, Input, Move, MoveRejected, Name, move_id};
use tracing::warn;

use super::Engine;
use crate::authority::{Command, MoveRequest};

impl Engine {
    pub(super) fn handle_command(&mut self, command: Command) {
        match command {
            Command::Join {
                holder,
                zone,
                node,
                says,
                joined,
            } => {
                // Before the first message of the stream, so that no message is lost.
                let number = self.join(holder, &zone, node, says);
                let is_joined = number.is_ok();
                let _ = joined.send(number);
                if is_joined {
                    self.handle(&zone, Input::Connected(holder));
                }
            }
            Command::Said {
                holder,
                stream,
                says,
            } => self.said(holder, stream, says),
            Command::Left { holder, stream } => {
                let open = self.streams.get(&holder);
                if open.is_some_and(|open| open.number == stream) {
                    self.leave(holder);
                }
            }
            Command::MoveRequest { wish, answer } => {
                let _ = answer.send(self.wish(&wish));
            }
            Command::HandOver { begun } => {
                let _ = begun.send(self.hand_over());
            }
            Command::Stop { stopped } => {
                self.stopping.push(stopped);
                self.broadcast(&Input::Stop);
            }
        }
    }

    /// Begins to move every cell for which no other replica of its zone grants: returns their
    /// names.
    pub(super) fn hand_over(&mut self) -> BTreeSet<String> {
        let now = self.now();
        let mut moves = Vec::new();
        for replica in self.replicas.values() {
            for (cell, _, authority, ..) in replica.cells() {
                let next = replica.successor(cell, now);
                let next = next.filter(|zone| !self.replicas.contains_key(zone));
                if let (Some(to), Some(authority)) = (next, authority) {
                    let next = Move {
                        id: move_id(cell, authority),
                        to: vec![to],
                        cause: Cause::Operator,
                        reason: Name::from("the only replica of its zone stops, and hands over"),
                        epoch_min: 0,
                        hold: 0,
                    };
                    moves.push((replica.id().zone.clone(), cell.clone(), next));
                }
            }
        }
        let mut begun = BTreeSet::new();
        for (zone, cell, next) in moves {
            let Some(replica) = self.replicas.get_mut(&zone) else {
                continue;
            };
            match replica.request_move(&cell, next, false, now) {
                Ok(effects) => {
                    begun.insert(cell.to_string());
                    self.carry_out(&zone, effects);
                }
                Err(error) => warn!(%cell, %error, "the cell is not handed over"),
            }
        }
        begun
    }

    pub(super) fn wish(&mut self, wish: &MoveRequest) -> Result<(), MoveRejected> {
        let now = self.now();
        let mut unwilling = MoveRejected::NoSession;
        let zones: Vec<Name> = self.replicas.keys().cloned().collect();
        for zone in zones {
            let Some(replica) = self.replicas.get_mut(&zone) else {
                continue;
            };
            let cells = replica.cells();
            let mut of_cell = cells.filter(|(name, ..)| **name == wish.cell);
            let authority = of_cell.next().and_then(|(_, _, authority, ..)| authority);
            let id = authority.map_or_else(
                || wish.cell.clone(),
                |authority| move_id(&wish.cell, authority),
            );
            drop(of_cell);
            let next = Move {
                id,
                to: wish.to.clone(),
                cause: wish.cause,
                reason: wish.reason.clone(),
                epoch_min: wish.epoch_min,
                hold: wish.hold,
            };
            match replica.request_move(&wish.cell, next, wish.accepted, now) {
                Ok(effects) => {
                    self.carry_out(&zone, effects);
                    return Ok(());
                }
                Err(error) => unwilling = error,
            }
        }
        Err(unwilling)
    }
}
