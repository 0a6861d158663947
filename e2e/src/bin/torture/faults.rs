//! The faults of three zones.

use std::fmt;

use clap::ValueEnum;
use e2e::config::ZONES;
use e2e::dice::Dice;
use e2e::stage::name;
use e2e::stage::witness::CELLS;

/// The most seconds by which a wall clock is stepped.
const STEP_MAX_S: u64 = 7_200;
/// How many of ten faults are short: shorter than any session lives.
const SHORT_IN_TEN: u64 = 3;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// A zone's link goes down
    CutZone,
    /// A zone's packets to the others are lost
    MuteZone,
    /// The others' packets to a zone are lost
    DeafenZone,
    /// A zone's packets to one other are lost
    LosePair,
    /// kill -9 of a gateway
    KillGateway,
    /// A gateway hangs (SIGSTOP), and continues
    StopGateway,
    /// kill -9 of a zone's control plane
    KillControl,
    /// A zone's control plane hangs (SIGSTOP), and continues
    StopControl,
    /// kill -9 of an etcd member
    KillMember,
    /// An etcd member hangs (SIGSTOP), and continues
    StopMember,
    /// The wall clocks of a zone's gateway and control plane jump
    StepClock,
    /// etcd is restored from an older snapshot, under traffic
    Restore,
    /// A zone's control plane is asked to shut down (SIGTERM), and restarted
    RestartControl,
    /// A zone's control plane is asked to shut down, and restarted with other terms; later with the
    /// right ones
    OtherTerms,
    /// No fault: an operator moves a cell
    Move,
    /// No fault: an operator overrides a cell, possibly to its present owner
    Override,
    /// No fault: an operator overrides every cell to one zone
    OverrideAll,
}

/// One fault.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    /// The affected zone.
    pub(crate) zone: u8,
    /// The other affected zone.
    pub(crate) other: u8,
    /// The duration.
    pub(crate) ms: u64,
    /// How far clocks are stepped.
    pub(crate) step_s: i64,
    /// The cell to move, by its position in [`CELLS`].
    pub(crate) cell: usize,
    /// An operator moves it to this zone meanwhile.
    pub(crate) moved_to: Option<u8>,
}

impl Fault {
    /// Any fault of these kinds. A long one lasts `long_ms` and up to a second longer.
    pub(crate) fn any(dice: &mut Dice, kinds: &[Kind], long_ms: u64) -> Fault {
        let count = ZONES.len() as u64;
        let kind = *dice.pick(kinds);
        let zone = dice.between(0, count) as u8;
        let other = (zone + dice.between(1, count) as u8) % count as u8;
        let short = dice.between(0, 10) < SHORT_IN_TEN;
        let ms = match short {
            true => dice.between(50, long_ms / 2),
            false => dice.between(long_ms, long_ms + 1_000),
        };
        let step_s = dice.between(1, STEP_MAX_S) as i64;
        let moved_to = dice.once_in(3).then(|| dice.between(0, count) as u8);
        Fault {
            kind,
            zone,
            other,
            ms,
            step_s: if dice.once_in(2) { step_s } else { -step_s },
            cell: dice.between(0, CELLS.len() as u64) as usize,
            moved_to: moved_to.filter(|_| kind.fails()),
        }
    }

    /// The name of the cell to move.
    pub(crate) fn cell(&self) -> &'static str {
        CELLS[self.cell].0
    }
}

impl Kind {
    /// Whether something fails for a while; otherwise an operator acts.
    fn fails(self) -> bool {
        use Kind::{Move, Override, OverrideAll, Restore};
        !matches!(self, Restore | Move | Override | OverrideAll)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (zone, other) = (name(self.zone), name(self.other));
        match self.kind {
            Kind::CutZone => write!(out, "cut {zone} off")?,
            Kind::MuteZone => write!(out, "drop all packets from {zone}")?,
            Kind::DeafenZone => write!(out, "drop all packets to {zone}")?,
            Kind::LosePair => write!(out, "drop the packets from {zone} to {other}")?,
            Kind::KillGateway => write!(out, "kill the gateway of {zone}")?,
            Kind::StopGateway => write!(out, "stop the gateway of {zone}")?,
            Kind::KillControl => write!(out, "kill the control plane of {zone}")?,
            Kind::StopControl => write!(out, "stop the control plane of {zone}")?,
            Kind::KillMember => write!(out, "kill the etcd member of {zone}")?,
            Kind::StopMember => write!(out, "stop the etcd member of {zone}")?,
            Kind::StepClock => write!(out, "step the clocks of {zone} by {} s", self.step_s)?,
            Kind::Restore => write!(out, "restore an older etcd, then override to {zone}")?,
            Kind::RestartControl => write!(out, "restart the control plane of {zone}")?,
            Kind::OtherTerms => {
                let terms = if self.step_s < 0 { "shorter" } else { "longer" };
                write!(
                    out,
                    "restart the control plane of {zone} with {terms} terms"
                )?;
            }
            Kind::Move => write!(out, "move {} to {zone}", self.cell())?,
            Kind::Override => write!(out, "override {} to {zone}", self.cell())?,
            Kind::OverrideAll => write!(out, "override every cell to {zone}")?,
        }
        if self.kind.fails() {
            write!(out, " for {} ms", self.ms)?;
        }
        match self.moved_to {
            Some(to) => write!(out, ", and move {} to {}", self.cell(), name(to)),
            None => Ok(()),
        }
    }
}
