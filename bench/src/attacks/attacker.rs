//! Clients that run an attack, on their own thread: they share the machine with the server, and use
//! at most one processor.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::catalogue::Attack;
use super::frames::{Heard, code_name, hear, preface};

/// The time to read the final bytes of a server that accepts no more.
const LAST_WORDS_TIME_MAX: Duration = Duration::from_millis(500);
/// The pause before a retry after a connection that the server did not accept.
const REFUSED_PAUSE: Duration = Duration::from_millis(10);

/// The outcome of an attack.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Outcome {
    pub(super) sent_bytes: u64,
    /// How connections ended, and the number of each.
    pub(super) endings: BTreeMap<Ending, usize>,
    /// Streams that the server reset.
    pub(super) streams_reset: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ending {
    /// The server sent the reason, before it closed.
    GoAway(u32),
    /// Without a message, or the message was lost with the bytes that the client had not read.
    Closed,
    /// The server read no more bytes.
    Stalled,
    /// Ended with the attack, not by the server.
    Open,
    /// The connection was not accepted.
    Refused,
}

impl Outcome {
    /// Connections that the server ended.
    pub(super) fn ended(&self) -> usize {
        let by_server = self.endings.iter().filter(|(ending, _)| match ending {
            Ending::GoAway(_) | Ending::Closed => true,
            Ending::Stalled | Ending::Open | Ending::Refused => false,
        });
        by_server.map(|(_, count)| count).sum()
    }

    /// `12 GOAWAY ENHANCE_YOUR_CALM, 4 open`.
    pub(super) fn text(&self) -> String {
        let mut parts: Vec<String> = self
            .endings
            .iter()
            .map(|(ending, count)| match ending {
                Ending::GoAway(code) => format!("{count} GOAWAY {}", code_name(*code)),
                Ending::Closed => format!("{count} closed"),
                Ending::Stalled => format!("{count} not read"),
                Ending::Open => format!("{count} open"),
                Ending::Refused => format!("{count} refused"),
            })
            .collect();
        if self.streams_reset > 0 {
            parts.push(format!("{} streams reset", self.streams_reset));
        }
        match parts.as_slice() {
            [] => "-".to_owned(),
            some => some.join(", "),
        }
    }
}

/// Attacks for this time.
pub(super) async fn attack(
    attack: &'static Attack,
    server: SocketAddr,
    time: Duration,
) -> Result<Outcome> {
    let (done, outcome) = oneshot::channel();
    thread::spawn(move || {
        // The program ends if no caller waits any more.
        let _ = done.send(run(attack, server, time));
    });
    outcome.await.context("the attackers have gone")?
}

fn run(attack: &'static Attack, server: SocketAddr, time: Duration) -> Result<Outcome> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let outcome = Rc::new(RefCell::new(Outcome::default()));
    let attackers = LocalSet::new();
    runtime.block_on(attackers.run_until(async {
        let end = Instant::now() + time;
        let clients = (0..attack.connections).map(|_| {
            let client = again_and_again(attack, server, end, Rc::clone(&outcome));
            tokio::task::spawn_local(client)
        });
        for client in clients.collect::<Vec<_>>() {
            client.await?;
        }
        sleep_until(end).await;
        anyhow::Ok(())
    }))?;
    Ok(outcome.take())
}

/// One client, with one connection after the other.
async fn again_and_again(
    attack: &Attack,
    server: SocketAddr,
    end: Instant,
    outcome: Rc<RefCell<Outcome>>,
) {
    while Instant::now() < end {
        let ending = match timeout_at(end, TcpStream::connect(server)).await {
            Ok(Ok(tcp)) => {
                // Without it small writes are only delayed.
                let _ = tcp.set_nodelay(true);
                once(attack, tcp, end, &outcome).await
            }
            Ok(Err(_)) => {
                sleep(REFUSED_PAUSE).await;
                Ending::Refused
            }
            Err(_) => Ending::Refused,
        };
        *outcome.borrow_mut().endings.entry(ending).or_default() += 1;
    }
}

/// One connection.
async fn once(
    attack: &Attack,
    connection: impl AsyncRead + AsyncWrite + Unpin,
    end: Instant,
    outcome: &RefCell<Outcome>,
) -> Ending {
    let (from, mut to) = tokio::io::split(connection);
    let mut from = BufReader::new(from);
    let is_writing = Cell::new(false);
    let mut listening = pin!(listen(&mut from, outcome));
    let speaking = pin!(speak(attack, &mut to, outcome, &is_writing));
    tokio::select! {
        ending = &mut listening, if !attack.is_deaf => return ending,
        _refused = speaking => {}
        () = sleep_until(end) => {
            // A client that reads may wait for its turn. A deaf one waits for no input.
            let is_stalled = attack.is_deaf && is_writing.get();
            return if is_stalled { Ending::Stalled } else { Ending::Open };
        }
    }
    let last_words = timeout(LAST_WORDS_TIME_MAX, listening).await;
    last_words.unwrap_or(Ending::Closed)
}

/// Until the server reads no more.
async fn speak(
    attack: &Attack,
    to: &mut (impl AsyncWrite + Unpin),
    outcome: &RefCell<Outcome>,
    is_writing: &Cell<bool>,
) -> io::Result<()> {
    let begin = [preface(), (attack.first)()].concat();
    to.write_all(&begin).await?;
    outcome.borrow_mut().sent_bytes += begin.len() as u64;
    for n in 0.. {
        let bytes = (attack.next)(n);
        is_writing.set(true);
        to.write_all(&bytes).await?;
        is_writing.set(false);
        outcome.borrow_mut().sent_bytes += bytes.len() as u64;
        match attack.pause {
            // The other clients of this thread get their turn.
            Duration::ZERO => tokio::task::yield_now().await,
            pause => sleep(pause).await,
        }
    }
    Ok(())
}

/// Until the server ends the connection.
async fn listen(from: &mut (impl AsyncRead + Unpin), outcome: &RefCell<Outcome>) -> Ending {
    let mut why = Ending::Closed;
    loop {
        match hear(from).await {
            Ok(Heard::GoAway(code)) => why = Ending::GoAway(code),
            Ok(Heard::StreamReset(_)) => outcome.borrow_mut().streams_reset += 1,
            Ok(Heard::Other) => {}
            Err(_) => return why,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::super::catalogue::{ATTACKS, IDLE};
    use super::super::frames::{GOAWAY, RST_STREAM, frame};
    use super::*;

    fn named(name: &str) -> &'static Attack {
        let found = ATTACKS.iter().find(|attack| attack.name == name);
        found.expect(name)
    }

    #[tokio::test(start_paused = true)]
    async fn the_server_says_why_it_ends_a_connection() {
        let (ours, mut server) = duplex(64 * 1024);
        let calm = frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 11]);
        let refused = frame(RST_STREAM, 0, 1, &[0, 0, 0, 7]);
        let said = [refused, calm].concat();
        server.write_all(&said).await.expect("room");
        drop(server);
        let outcome = RefCell::default();
        let end = Instant::now() + Duration::from_secs(5);
        let ending = once(named("ping"), ours, end, &outcome).await;
        assert_eq!(ending, Ending::GoAway(11));
        assert_eq!(outcome.take().streams_reset, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_read_is_told_from_one_that_listens() {
        for (attack, expected) in [
            (named("ping_deaf"), Ending::Stalled),
            (named("silent"), Ending::Open),
        ] {
            let (ours, _server) = duplex(64 * 1024);
            let end = Instant::now() + Duration::from_secs(5);
            let ending = once(attack, ours, end, &RefCell::default()).await;
            assert_eq!(ending, expected, "{}", attack.name);
        }
    }

    #[test]
    fn an_outcome_names_each_kind_of_end() {
        assert_eq!(Outcome::default().text(), "-");
        let outcome = Outcome {
            sent_bytes: 1,
            endings: [(Ending::GoAway(11), 12), (Ending::Open, 4)].into(),
            streams_reset: 3,
        };
        let text = "12 GOAWAY ENHANCE_YOUR_CALM, 4 open, 3 streams reset";
        assert_eq!(outcome.text(), text);
        assert_eq!(outcome.ended(), 12);
        assert_eq!(IDLE.connections, 0);
    }
}
