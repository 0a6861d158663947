//! Tidegate on this machine: a control plane, three zones with a gateway Envoy each, and a service
//! that registers. Under traffic, a zone's instances stop and return, and a table shows the
//! destinations of requests and the reasons. In the second act a zone loses the right to write, and
//! another zone gets it.

#![allow(
    clippy::disallowed_methods,
    reason = "a program of the harness: it uses the terminal and the clock"
)]

mod expect;
mod fence;
mod screen;
mod stage;
mod story;
mod table;
mod traffic;

use std::io::{IsTerminal, stdout};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use screen::Screen;
use stage::Stage;
use story::Story;

/// Three zones, a failing data centre, and the destinations of requests meanwhile.
#[derive(Parser)]
#[command(name = "demo")]
struct Arguments {
    /// The store of the control plane
    #[arg(long, value_enum, default_value_t = Store::Embedded)]
    store: Store,
    /// Run the story once, check every step, and exit with code 0 only if all expectations are met
    #[arg(long)]
    once: bool,
    /// The duration of each chapter of the story
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=20))]
    seconds: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Store {
    /// One process, one file
    Embedded,
    /// A real etcd
    Etcd,
}

/// The exit code of a program that Ctrl-C ended, as a shell reports it.
const INTERRUPTED: u8 = 130;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Dropping the unfinished run drops every child and file.
    let ended = tokio::select! {
        told = tell(&arguments) => told.map(Some),
        interrupted = interrupted() => interrupted.map(|()| None),
    };
    match ended {
        Ok(Some(true)) => ExitCode::SUCCESS,
        Ok(Some(false)) => ExitCode::FAILURE,
        Ok(None) => {
            println!("interrupted; everything is stopped and removed");
            ExitCode::from(INTERRUPTED)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all expectations were met. Without `--once` it runs until it is interrupted.
async fn tell(arguments: &Arguments) -> Result<bool> {
    let chapter = Duration::from_secs(arguments.seconds.unwrap_or(4));
    let mut screen = Screen::lines();
    let stage = Stage::set(arguments.store, &mut screen).await?;
    if !arguments.once && stdout().is_terminal() {
        screen = Screen::terminal();
    }
    let mut story = Story::new(stage, screen, chapter);
    loop {
        let mut failed = story.tell().await?;
        failed += fence::tell(story.screen(), chapter).await?;
        let summary = match failed {
            0 => "all expectations were met".to_owned(),
            failed => format!("{failed} expectations were not met"),
        };
        story.screen().verdict(failed == 0, &summary);
        if arguments.once {
            return Ok(failed == 0);
        }
    }
}

/// Ready on Ctrl-C, on SIGTERM, and when the terminal is closed.
async fn interrupted() -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    Ok(())
}
