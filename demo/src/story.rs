//! The story of the demo, chapter by chapter.

use std::time::{Duration, Instant};

use anyhow::Result;
use e2e::wait::PATIENCE;
use tokio::time::sleep;

use crate::expect::{Expected, verdicts};
use crate::screen::Screen;
use crate::stage::{SERVICE, Stage};
use crate::table::render;
use crate::traffic::{Row, Traffic, add};

/// The interval between two samples of the traffic, and two drawings of the table.
const FRAME: Duration = Duration::from_millis(100);

/// The action of a chapter before it watches.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    Nothing,
    Down(&'static str),
    Up(&'static str),
}

const CHAPTERS: [(&str, Turn); 5] = [
    ("All zones are up", Turn::Nothing),
    (
        "shanghai-a goes down: its city takes over",
        Turn::Down("shanghai-a"),
    ),
    ("shanghai-a comes back", Turn::Up("shanghai-a")),
    (
        "beijing-c goes down, the only zone of its city: reads leave it, writes do not",
        Turn::Down("beijing-c"),
    ),
    ("beijing-c comes back", Turn::Up("beijing-c")),
];

impl Turn {
    fn down(self) -> Option<&'static str> {
        match self {
            Turn::Down(zone) => Some(zone),
            Turn::Nothing | Turn::Up(_) => None,
        }
    }

    fn zone(self) -> Option<&'static str> {
        match self {
            Turn::Down(zone) | Turn::Up(zone) => Some(zone),
            Turn::Nothing => None,
        }
    }
}

pub(crate) struct Story {
    stage: Stage,
    screen: Screen,
    /// How long the table is watched once traffic has settled.
    watch: Duration,
}

impl Story {
    pub(crate) fn new(stage: Stage, screen: Screen, watch: Duration) -> Story {
        Story {
            stage,
            screen,
            watch,
        }
    }

    /// The output.
    pub(crate) fn screen(&mut self) -> &mut Screen {
        &mut self.screen
    }

    /// Runs all chapters; returns the number of unmet expectations.
    pub(crate) async fn tell(&mut self) -> Result<u32> {
        let mut failed = 0;
        for (index, (title, turn)) in CHAPTERS.into_iter().enumerate() {
            let title = format!("{}/{}  {title}", index + 1, CHAPTERS.len());
            self.screen.chapter(&title);
            // Load is bounded in count and time; each chapter has its own.
            let mut traffic = Traffic::start(&self.stage.mesh)?;
            let turning = self.turn(turn, &mut traffic).await?;
            let watched = self.watch(&mut traffic).await;
            traffic.stop().await;
            self.screen.conclude(|| render(&watched));
            for verdict in verdicts(turn.down(), turn.zone(), &turning, &watched) {
                failed += u32::from(!verdict.passed);
                self.screen.verdict(verdict.passed, &verdict.text);
            }
        }
        Ok(failed)
    }

    /// Stops or starts the chapter's zone, under traffic, and waits until that has settled. Returns
    /// the outcome of the requests meanwhile.
    async fn turn(&mut self, turn: Turn, traffic: &mut Traffic) -> Result<Vec<Row>> {
        let begin = Instant::now();
        let (stage, screen) = (&mut self.stage, &mut self.screen);
        screen.say(&match turn {
            Turn::Nothing => "waiting until traffic flows".to_owned(),
            Turn::Down(zone) => format!("stopping the instances of {SERVICE} in {zone} (SIGTERM)"),
            Turn::Up(zone) => format!("starting the instances of {SERVICE} in {zone}"),
        });
        let mut act = std::pin::pin!(async {
            match turn {
                Turn::Nothing => Ok(()),
                Turn::Down(zone) => stage.take_down(zone).await,
                Turn::Up(zone) => stage.bring_up(zone).await,
            }
        });
        let mut acting = true;
        let mut rows = traffic.take();
        let mut last_answer = None;
        loop {
            tokio::select! {
                done = &mut act, if acting => {
                    done?;
                    acting = false;
                }
                () = sleep(FRAME) => {}
            }
            let frame = traffic.take();
            add(&mut rows, &frame);
            screen.refresh(|| render(&rows));
            if let Turn::Down(zone) = turn
                && frame.iter().any(|row| row.tally.zone(zone) > 0)
            {
                last_answer = Some(begin.elapsed());
            }
            let settled = Expected::settled(turn.down(), &frame);
            match settled {
                Ok(()) if !acting => break,
                Err(why) if begin.elapsed() > PATIENCE * 2 => {
                    return Err(why.context("traffic does not settle"));
                }
                _ => {}
            }
        }
        if let (Turn::Down(zone), Some(after)) = (turn, last_answer) {
            let ms = after.as_millis();
            screen.say(&format!("traffic had left {zone} within {ms} ms"));
        }
        Ok(rows)
    }

    async fn watch(&mut self, traffic: &mut Traffic) -> Vec<Row> {
        let seconds = self.watch.as_secs();
        self.screen
            .say(&format!("watching where requests go, for {seconds} s"));
        let begin = Instant::now();
        let mut rows = traffic.take();
        rows.iter_mut()
            .for_each(|row| row.tally = Default::default());
        while begin.elapsed() < self.watch {
            sleep(FRAME).await;
            add(&mut rows, &traffic.take());
            self.screen.refresh(|| render(&rows));
        }
        rows
    }
}
