//! Thousands of simulated proxies on one thread and one epoll: each has its own connection and
//! stream, subscribes to all endpoints by name, and acknowledges every response at once.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, socket};

use super::link::{Link, Security};
use super::wire::{
    self, Acknowledgement, DeltaRequest, Locality, Node, Reader, Resource, Response,
};
use crate::usage::thread_cpu;

/// At least one whole frame of the usual 16 KB.
const READ_BYTES: usize = 64 * 1024;
const EVENTS_MAX: usize = 1024;
/// How often a broken connection is reopened after a restart, on average.
const REDIALS_PER_PROXY_MAX: usize = 3;

/// The resources that each proxy should receive from when the goal was set.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Goal {
    pub(super) resources: u32,
    /// Names that are reported as missing.
    pub(super) removed: u32,
}

/// The nodes of the proxies, and their subscriptions.
pub(super) struct Interest {
    pub(super) node: &'static str,
    pub(super) region: String,
    pub(super) zone: String,
    pub(super) names: Vec<String>,
    /// The server may send a resource again without a change.
    pub(super) repeats: bool,
}

/// Whether a broken connection is an error, or one of those that a restart may cost.
#[derive(Clone, Copy, PartialEq)]
enum Breaks {
    Fatal,
    Counted,
}

pub(super) struct Fleet {
    interest: Interest,
    proxies: Vec<Proxy>,
    io: Io,
    goal: Goal,
    /// The counted resources; none: all of them.
    watched: Option<Vec<u8>>,
    /// Proxies that have not reached it.
    behind: usize,
    breaks: Breaks,
    tally: Tally,
}

/// The common state of all the proxies of a fleet while they read.
struct Io {
    server: SocketAddrV4,
    security: Security,
    epoll: Epoll,
    opening: Vec<u8>,
    acknowledgement: Acknowledgement,
    buffer: Vec<u8>,
    out: Vec<u8>,
    /// The versions of the resources, by name: all proxies get the same.
    versions: HashMap<Vec<u8>, Vec<u8>>,
}

/// The events since the fleet connected.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) responses: usize,
    pub(super) resources: usize,
    /// Encoded resources, without their wrapping.
    pub(super) bytes: usize,
    /// Connections that broke while [`Breaks::Counted`].
    pub(super) errors: usize,
    /// CPU time of the simulating thread.
    pub(super) cpu: Duration,
}

struct Proxy {
    link: Link,
    connected: bool,
    reader: Reader,
    has: Goal,
}

impl Fleet {
    pub(super) fn new(interest: Interest, security: Security) -> Result<Fleet> {
        Ok(Fleet {
            interest,
            proxies: Vec::new(),
            io: Io {
                server: SocketAddrV4::new([127, 0, 0, 1].into(), 0),
                security,
                epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
                opening: Vec::new(),
                acknowledgement: Acknowledgement::new(),
                buffer: vec![0; READ_BYTES],
                out: Vec::new(),
                versions: HashMap::new(),
            },
            goal: Goal::default(),
            watched: None,
            behind: 0,
            breaks: Breaks::Fatal,
            tally: Tally::default(),
        })
    }

    pub(super) fn tally(&self) -> Tally {
        self.tally
    }

    /// Connects this many proxies without resources; each should receive all that it subscribes to.
    pub(super) fn dial(&mut self, server: SocketAddr, streams: usize) -> Result<()> {
        self.breaks = Breaks::Fatal;
        let resources = self.interest.names.len() as u32;
        let names = self.interest.names.clone();
        self.connect(server, streams, names, HashMap::new())?;
        self.expect(Goal {
            resources,
            removed: 0,
        });
        Ok(())
    }

    /// Reconnects all proxies at once. They send their versions, and request one more name, which
    /// does not exist: the answer to that shows that a proxy is served.
    pub(super) fn redial(&mut self, server: SocketAddr, absent: &str) -> Result<()> {
        self.breaks = Breaks::Counted;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let versions = self.io.versions.iter();
        let versions = versions.map(|(name, version)| (text(name), text(version)));
        let versions = versions.collect();
        let mut names = self.interest.names.clone();
        names.push(absent.to_owned());
        let streams = self.proxies.len();
        self.proxies.clear();
        self.connect(server, streams, names, versions)?;
        self.expect(Goal {
            resources: 0,
            removed: 1,
        });
        Ok(())
    }

    fn connect(
        &mut self,
        server: SocketAddr,
        streams: usize,
        subscribe: Vec<String>,
        initial_versions: HashMap<String, String>,
    ) -> Result<()> {
        let SocketAddr::V4(server) = server else {
            bail!("{server} is not on IPv4");
        };
        let request = DeltaRequest {
            node: Some(Node {
                id: self.interest.node.to_owned(),
                cluster: "bench".to_owned(),
                locality: Some(Locality {
                    region: self.interest.region.clone(),
                    zone: self.interest.zone.clone(),
                }),
            }),
            type_url: wire::ENDPOINTS.to_owned(),
            subscribe,
            initial_versions,
        };
        self.io.server = server;
        self.io.opening = wire::opening(&server.to_string(), &request);
        for index in 0..streams {
            self.proxies.push(Proxy::dial(&self.io, index)?);
        }
        Ok(())
    }

    /// Sets what each proxy should receive from now on.
    pub(super) fn expect(&mut self, goal: Goal) {
        self.goal = goal;
        for proxy in &mut self.proxies {
            proxy.has = Goal::default();
        }
        self.behind = self.proxies.len();
    }

    /// From now on only resources of this name count; none: all of them.
    pub(super) fn watch(&mut self, name: Option<String>) {
        self.watched = name.map(String::into_bytes);
    }

    /// Reads and acknowledges until every proxy has received the expected resources; returns the
    /// time of the last one.
    pub(super) fn receive(&mut self, within: Duration) -> Result<Instant> {
        let deadline = Instant::now() + within;
        while self.behind > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(
                !left.is_zero(),
                "{} of {} proxies have not received {:?} within {within:?}",
                self.behind,
                self.proxies.len(),
                self.goal
            );
            if let Some(at) = self.turn(left)? {
                return Ok(at);
            }
        }
        Ok(Instant::now())
    }

    /// Answers incoming messages for this long.
    pub(super) fn idle(&mut self, pause: Duration) -> Result<()> {
        let deadline = Instant::now() + pause;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.turn(left)?;
        }
    }

    /// Waits for events and handles them; returns the time at which the last proxy reached the
    /// goal, if it did.
    fn turn(&mut self, wait: Duration) -> Result<Option<Instant>> {
        let before = thread_cpu()?;
        let mut events = [EpollEvent::empty(); EVENTS_MAX];
        // A millisecond more: a zero wait would spin.
        let wait = EpollTimeout::try_from(wait + Duration::from_millis(1))?;
        let count = match self.io.epoll.wait(&mut events, wait) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error).context("epoll"),
        };
        let mut reached = None;
        for event in &events[..count] {
            let index = event.data() as usize;
            if let Err(error) = self.progress(index, &mut reached) {
                self.broken(index, error)?;
            }
        }
        self.tally.cpu += thread_cpu()? - before;
        Ok(reached)
    }

    fn progress(&mut self, index: usize, reached: &mut Option<Instant>) -> Result<()> {
        let proxy = &mut self.proxies[index];
        let behind = proxy.lacks(&self.goal);
        proxy.progress(
            index,
            &mut self.io,
            &mut self.tally,
            self.watched.as_deref(),
        )?;
        if self.breaks == Breaks::Fatal && !self.interest.repeats {
            // No resource is sent twice, and none without a change.
            let (has, goal) = (proxy.has.resources, self.goal.resources);
            ensure!(
                has <= goal,
                "{has} resources where {goal} were to be received"
            );
        }
        if behind && !proxy.lacks(&self.goal) {
            self.behind -= 1;
            if self.behind == 0 {
                *reached = Some(Instant::now());
            }
        }
        Ok(())
    }

    fn broken(&mut self, index: usize, error: anyhow::Error) -> Result<()> {
        let proxies = self.proxies.len();
        let error = error.context(format!("proxy {index} of {proxies}"));
        if self.breaks == Breaks::Fatal {
            return Err(error);
        }
        self.tally.errors += 1;
        if self.tally.errors > REDIALS_PER_PROXY_MAX * proxies {
            return Err(error).context("connections break repeatedly");
        }
        if !self.proxies[index].lacks(&self.goal) {
            self.behind += 1;
        }
        self.proxies[index] = Proxy::dial(&self.io, index)?;
        Ok(())
    }

    /// From now on a broken connection is an error again.
    pub(super) fn must_hold(&mut self) {
        self.breaks = Breaks::Fatal;
    }
}

impl Proxy {
    /// Begins to connect.
    fn dial(io: &Io, index: usize) -> Result<Proxy> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None)
            .context("a socket: are too many files open?")?;
        match connect(fd.as_raw_fd(), &SockaddrIn::from(io.server)) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(error) => return Err(error).context("connect"),
        }
        let tcp = TcpStream::from(fd);
        tcp.set_nodelay(true)?;
        let writable = EpollEvent::new(EpollFlags::EPOLLOUT, index as u64);
        io.epoll.add(&tcp, writable)?;
        Ok(Proxy {
            link: Link::new(tcp, &io.security)?,
            connected: false,
            reader: Reader::default(),
            has: Goal::default(),
        })
    }

    fn lacks(&self, goal: &Goal) -> bool {
        self.has.resources < goal.resources || self.has.removed < goal.removed
    }

    fn progress(
        &mut self,
        index: usize,
        io: &mut Io,
        tally: &mut Tally,
        watched: Option<&[u8]>,
    ) -> Result<()> {
        if !self.connected {
            if let Some(error) = self.link.tcp().take_error()? {
                return Err(error).context("cannot connect");
            }
            self.connected = true;
            let mut readable = EpollEvent::new(EpollFlags::EPOLLIN, index as u64);
            io.epoll.modify(self.link.tcp(), &mut readable)?;
            return self.write(&io.opening);
        }
        while self.read(io, tally, watched)? && self.link.may_have_more() {}
        Ok(())
    }

    /// Whether anything was received.
    fn read(&mut self, io: &mut Io, tally: &mut Tally, watched: Option<&[u8]>) -> Result<bool> {
        let bytes = match self.link.read(&mut io.buffer) {
            Ok(0) => bail!("the server closed the connection"),
            Ok(count) => &io.buffer[..count],
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error).context("cannot read"),
        };
        io.out.clear();
        let (has, versions) = (&mut self.has, &mut io.versions);
        let acknowledgement = &io.acknowledgement;
        self.reader.read(bytes, &mut io.out, |message, out| {
            let response = Response::parse(message, |resource| {
                has.resources += u32::from(watched.is_none_or(|name| resource.name == name));
                tally.resources += 1;
                tally.bytes += resource.body_bytes;
                remember(versions, &resource);
                Ok(())
            })?;
            has.removed += response.removed;
            tally.responses += 1;
            acknowledgement.of(response.nonce, out)
        })?;
        self.write(&io.out)?;
        Ok(true)
    }

    /// A proxy writes little, and never before the server has read its previous bytes.
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let written = self.link.write(bytes).context("cannot write")?;
        ensure!(written == bytes.len(), "the server reads too slowly");
        Ok(())
    }
}

fn remember(versions: &mut HashMap<Vec<u8>, Vec<u8>>, resource: &Resource<'_>) {
    match versions.get_mut(resource.name) {
        Some(version) if version == resource.version => {}
        Some(version) => *version = resource.version.to_vec(),
        None => drop(versions.insert(resource.name.to_vec(), resource.version.to_vec())),
    }
}
