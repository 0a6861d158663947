//! One connection with continuous requests. It uses no HTTP library: so a request costs the client
//! next to nothing, which leaves the processors to the measured programs.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::client::Echo;

/// Only a lost change takes so long.
const TIME_MAX: Duration = Duration::from_secs(10);
const HEAD_END: &[u8] = b"\r\n\r\n";

pub(crate) struct Prober {
    stream: TcpStream,
    request: Vec<u8>,
    buffer: Vec<u8>,
    asked: u32,
    asking: Duration,
}

/// The first expected answer.
pub(crate) struct Seen {
    pub(crate) at: Instant,
    pub(crate) probes: u32,
    pub(crate) failed: u32,
    /// The longest time between two answers.
    pub(crate) gap: Duration,
}

impl Prober {
    /// Requests `path` of `host`.
    pub(crate) fn connect(to: SocketAddr, host: &str, path: &str) -> Result<Prober> {
        let stream = TcpStream::connect(to)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIME_MAX))?;
        Ok(Prober {
            stream,
            request: format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n").into_bytes(),
            buffer: vec![],
            asked: 0,
            asking: Duration::ZERO,
        })
    }

    /// Sends requests until the instance `expected` answers.
    pub(crate) fn until(&mut self, expected: &str) -> Result<Seen> {
        let begin = Instant::now();
        let (mut probes, mut failed) = (0, 0);
        let (mut last, mut gap) = (begin, Duration::ZERO);
        loop {
            let answered = self.ask()?;
            let at = Instant::now();
            gap = gap.max(at - last);
            last = at;
            probes += 1;
            match &answered {
                Some(instance) if instance == expected => {
                    self.asked += probes;
                    self.asking += at - begin;
                    return Ok(Seen {
                        at,
                        probes,
                        failed,
                        gap,
                    });
                }
                Some(_) => {}
                None => failed += 1,
            }
            ensure!(
                at - begin < TIME_MAX,
                "{expected} has not answered within {TIME_MAX:?}, but {answered:?}"
            );
        }
    }

    /// Sends requests for this time; returns the longest time between two answers.
    pub(crate) fn for_a_while(&mut self, time: Duration) -> Result<Duration> {
        let begin = Instant::now();
        let (mut last, mut gap) = (begin, Duration::ZERO);
        while last - begin < time {
            self.ask()?;
            let at = Instant::now();
            gap = gap.max(at - last);
            last = at;
        }
        Ok(gap)
    }

    /// The mean time from one request to the next.
    pub(crate) fn interval_ms(&self) -> f64 {
        self.asking.as_secs_f64() * 1e3 / f64::from(self.asked)
    }

    /// The name of the instance that answers; none for anything but a success.
    fn ask(&mut self) -> Result<Option<String>> {
        self.stream.write_all(&self.request)?;
        self.buffer.clear();
        loop {
            let mut chunk = [0; 4096];
            let count = self.stream.read(&mut chunk)?;
            ensure!(count > 0, "the gateway closed the connection");
            self.buffer.extend_from_slice(&chunk[..count]);
            if let Some((head, body)) = split(&self.buffer)? {
                if !head.starts_with("HTTP/1.1 200") {
                    return Ok(None);
                }
                let echo: Echo = serde_json::from_slice(body)?;
                return Ok(Some(echo.instance));
            }
        }
    }
}

/// Head and body of a complete answer.
fn split(answer: &[u8]) -> Result<Option<(&str, &[u8])>> {
    let end = answer.windows(HEAD_END.len()).position(|w| w == HEAD_END);
    let Some(end) = end else {
        return Ok(None);
    };
    let head = str::from_utf8(&answer[..end])?;
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .with_context(|| format!("an answer without a length: {head}"))?;
    let body = &answer[end + HEAD_END.len()..];
    Ok((body.len() == length.parse::<usize>()?).then_some((head, body)))
}
