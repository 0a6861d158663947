//! The second act: write authority. It uses a real etcd, and a replica of the control plane in
//! every zone. One of the replicas loses etcd, and so its zone loses the right to write, while the
//! replica, its gateway and its instances live on.

mod stage;
mod traffic;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use e2e::stage::witness::CELLS;
use e2e::wait::PATIENCE;
use tokio::time::sleep;

use crate::screen::Screen;
use stage::{SPANS, Stage};
use traffic::{Expected, Plan, Row, Traffic, Writes, add, render, settled, verdicts};

/// The interval between two samples of the traffic, and two drawings of the table.
const FRAME: Duration = Duration::from_millis(100);
/// How long traffic may take to reach the expected state.
const SETTLES_WITHIN: Duration = PATIENCE.saturating_mul(2);

/// The begin of a chapter.
#[derive(Clone, Copy)]
enum Turn {
    Nothing,
    /// shanghai-a's replica loses etcd; the chapter shows the time until another zone takes over.
    Cut,
    /// The chapter shows the time afterwards.
    Wait,
    Join,
    Move,
    /// An operator forces one cell to another zone; the chapter shows the other cells.
    Override,
}

struct Chapter {
    title: &'static str,
    turn: Turn,
    /// The destinations of writes to each cell, by the gateways in their order.
    writes: Plan,
    /// Whether each cell's epoch rises; none: not known yet.
    epochs_rise: Option<[bool; CELLS.len()]>,
}

use Writes::{Refused, Taken};

const A: &str = "shanghai-a";
const B: &str = "shanghai-b";

const MOVED: &str = CELLS[0].0;
const FORCED: &str = CELLS[1].0;

/// Writes to a cell of this city's zone.
const fn of(zone: &'static str) -> [Writes; 3] {
    [Taken(zone), Taken(zone), Refused("not_owner")]
}

/// Writes to a cell whose owner cannot grant any more, and which others take over or have taken
/// over.
const FENCED: [Writes; 3] = [Refused("fenced"), Writes::Any, Writes::Any];
const TAKEN_OVER: [Writes; 3] = [Refused("fenced"), Taken(B), Refused("not_owner")];

/// The cells `main` and `east` belong to shanghai-a at first, `west` to shanghai-b.
const CHAPTERS: [Chapter; 6] = [
    Chapter {
        title: "each cell has an owner, which alone receives its city's writes",
        turn: Turn::Nothing,
        writes: [of(A), of(A), of(B)],
        epochs_rise: Some([false, false, false]),
    },
    Chapter {
        title: "shanghai-a's control plane loses etcd: the zone fences itself",
        turn: Turn::Cut,
        writes: [FENCED, FENCED, of(B)],
        epochs_rise: None,
    },
    Chapter {
        title: "shanghai-b takes over, after every grant and write of shanghai-a has expired",
        turn: Turn::Wait,
        writes: [TAKEN_OVER, TAKEN_OVER, of(B)],
        epochs_rise: Some([true, true, false]),
    },
    Chapter {
        title: "shanghai-a reaches etcd again: it learns that shanghai-b writes, and forwards",
        turn: Turn::Join,
        writes: [of(B), of(B), of(B)],
        epochs_rise: Some([false, false, false]),
    },
    Chapter {
        title: "an operator moves one cell back to shanghai-a; the others stay",
        turn: Turn::Move,
        writes: [of(A), of(B), of(B)],
        epochs_rise: Some([true, false, false]),
    },
    Chapter {
        title: "an operator forces another cell without shanghai-b's consent; shanghai-b keeps the rest",
        turn: Turn::Override,
        writes: [of(A), of(A), of(B)],
        epochs_rise: Some([false, true, false]),
    },
];

/// Runs the act. Returns the number of unmet expectations.
pub(crate) async fn tell(screen: &mut Screen, watch: Duration) -> Result<u32> {
    screen.chapter("Second act: write authority");
    let mut stage = Stage::set(screen).await?;
    let told = act(&mut stage, screen, watch).await;
    told.with_context(|| stage.logs())
}

async fn act(stage: &mut Stage, screen: &mut Screen, watch: Duration) -> Result<u32> {
    let mut failed = 0;
    let mut epochs = stage.epochs().await?;
    for (index, chapter) in CHAPTERS.iter().enumerate() {
        let title = format!("{}/{}  {}", index + 1, CHAPTERS.len(), chapter.title);
        screen.chapter(&title);
        let mut traffic = Traffic::start(stage)?;
        turn(stage, screen, chapter.turn).await?;
        let turning = until_settled(screen, &mut traffic, &chapter.writes).await?;
        // The next event has to be seen from its beginning.
        let watch = match chapter.turn {
            Turn::Cut => FRAME * 5,
            _ => watch,
        };
        let watched = self::watch(screen, &mut traffic, watch).await;
        traffic.stop().await;
        screen.conclude(|| render(&watched));
        let now = stage.epochs().await?;
        let expected = Expected {
            writes: &chapter.writes,
            epochs_rise: chapter.epochs_rise,
            epochs: [epochs, now],
        };
        // During the takeover the next epoch is stored before any zone may write with it.
        if chapter.epochs_rise.is_some() {
            epochs = now;
        }
        let mut all = verdicts(&expected, &turning, &watched);
        all.push(stage.judge().await?);
        for verdict in all {
            failed += u32::from(!verdict.passed);
            screen.verdict(verdict.passed, &verdict.text);
        }
    }
    Ok(failed)
}

async fn turn(stage: &mut Stage, screen: &mut Screen, turn: Turn) -> Result<()> {
    match turn {
        Turn::Nothing => screen.say("waiting until traffic flows"),
        Turn::Cut => {
            screen.say("cutting the way from shanghai-a's control plane to etcd");
            stage.cut(true);
        }
        Turn::Wait => screen.say(&format!(
            "waiting: a session lasts {} ms, and a write at most {} ms longer",
            SPANS.session_ttl_ms, SPANS.write_drain_ms
        )),
        Turn::Join => {
            screen.say("joining shanghai-a's control plane and etcd again");
            stage.cut(false);
        }
        Turn::Move => {
            screen.say("tidegate move main --to shanghai-a");
            stage.move_to(MOVED, A).await?;
        }
        Turn::Override => {
            screen.say("tidegate override east --to shanghai-a --reason 'the demo'");
            stage.override_to(FORCED, A).await?;
        }
    }
    Ok(())
}

/// Waits until a short sample of the traffic shows the expected state. Returns the outcome of the
/// requests meanwhile.
async fn until_settled(
    screen: &mut Screen,
    traffic: &mut Traffic,
    writes: &Plan,
) -> Result<Vec<Row>> {
    let begin = Instant::now();
    let mut rows = traffic.take();
    loop {
        sleep(FRAME).await;
        let frame = traffic.take();
        add(&mut rows, &frame);
        screen.refresh(|| render(&rows));
        match settled(writes, &frame) {
            Ok(()) => break,
            Err(why) if begin.elapsed() > SETTLES_WITHIN => {
                return Err(why.context("traffic does not settle"));
            }
            Err(_) => {}
        }
    }
    let ms = begin.elapsed().as_millis();
    screen.say(&format!("so it is, after {ms} ms"));
    Ok(rows)
}

async fn watch(screen: &mut Screen, traffic: &mut Traffic, time: Duration) -> Vec<Row> {
    screen.say(&format!("watching, for {:.1} s", time.as_secs_f64()));
    let begin = Instant::now();
    let mut rows = traffic.take();
    rows.iter_mut()
        .for_each(|row| row.tally = Default::default());
    while begin.elapsed() < time {
        sleep(FRAME).await;
        add(&mut rows, &traffic.take());
        screen.refresh(|| render(&rows));
    }
    rows
}
