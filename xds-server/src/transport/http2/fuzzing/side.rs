//! The server's side: a connection and those who answer.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
};

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue, Response};

use super::super::{Link, Protocol, Received, Responder, protocol::Holds};
use crate::transport::Pieces;

/// What somebody who answers does on a stream.
#[derive(Clone, Copy, Debug)]
pub(super) enum Act {
    Read(u32),
    StopReading(u32),
    Respond(u32),
    Send(u32, usize),
    AwaitRoom(u32, usize),
    AwaitGone(u32),
    Finish(u32, Ending),
    StopWriting(u32),
    Tick,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Ending {
    Plain,
    NoTrailers,
    Trailers,
}

/// It could not be done, and why: compared, and for people.
type Undone = String;

#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

impl Flag {
    fn take(&self) -> bool {
        self.0.swap(false, SeqCst)
    }
}

/// Those who answer one request.
struct Handles {
    received: Option<Received>,
    reader: Arc<Flag>,
    is_reading: bool,
    responder: Option<Responder>,
    writer: Arc<Flag>,
    awaits_room: Option<usize>,
    awaits_gone: bool,
    has_begun: bool,
}

pub(super) struct Side {
    link: Arc<Link>,
    connection: Arc<Flag>,
    streams: BTreeMap<u32, Handles>,
}

impl Side {
    pub(super) fn new() -> Side {
        let connection = Arc::new(Flag(AtomicBool::new(true)));
        let waker = Waker::from(Arc::clone(&connection));
        Side {
            link: Link::new(Protocol::new(), waker),
            connection,
            streams: BTreeMap::new(),
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.link.protocol().is_over()
    }

    pub(super) fn wants_more(&self) -> bool {
        self.link.protocol().wants_more()
    }

    pub(super) fn holds(&self) -> Holds {
        self.link.protocol().holds()
    }

    pub(super) fn close(&self) {
        self.link.protocol().close();
    }

    /// Takes in what the client says. The requests that come of it.
    pub(super) fn receive<'b>(&mut self, pieces: impl IntoIterator<Item = &'b [u8]>) -> Vec<u32> {
        let mut ids = Vec::new();
        for piece in pieces {
            let mut protocol = self.link.protocol();
            protocol.receive(piece);
            let requests = protocol.requests();
            ids.extend(requests.into_iter().map(|(id, _)| id));
        }
        for id in &ids {
            let (received, responder) = self.link.stream(*id);
            let handles = Handles {
                received: Some(received),
                reader: Arc::default(),
                is_reading: false,
                responder: Some(responder),
                writer: Arc::default(),
                awaits_room: None,
                awaits_gone: false,
                has_begun: false,
            };
            let before = self.streams.insert(*id, handles);
            assert!(before.is_none(), "a stream was opened twice");
        }
        // The connection looks at once whether it has to answer.
        self.connection.0.store(true, SeqCst);
        ids
    }

    /// All that is sent until there is nothing more.
    pub(super) fn send(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut out = Pieces::default();
        loop {
            self.link.protocol().fill(&mut out);
            if !out.has_remaining() {
                break;
            }
            bytes.extend_from_slice(&out.copy_to_bytes(out.remaining()));
        }
        let was_woken = self.connection.take();
        assert!(was_woken || bytes.is_empty(), "the connection sleeps");
        bytes
    }

    pub(super) fn act(&mut self, act: Act) -> Result<(), Undone> {
        let gone = |_| "gone".to_owned();
        match act {
            Act::Tick => {
                self.connection.0.store(true, SeqCst);
                let ticked = self.link.protocol().tick();
                return ticked.map_err(|_| "lifeless".to_owned());
            }
            Act::Read(id) => return self.handles(id)?.read(),
            Act::StopReading(id) => {
                let handles = self.handles(id)?;
                handles.is_reading = false;
                handles.received = None;
            }
            Act::Respond(id) => {
                let handles = self.handles(id)?;
                if handles.has_begun {
                    return Err("it has begun".to_owned());
                }
                let responder = handles.stop_writing().ok_or("nobody answers")?;
                responder.respond(&Response::new(())).map_err(gone)?;
            }
            Act::Send(id, len) => {
                let handles = self.handles(id)?;
                let data = Pieces::from(Bytes::from(vec![7; len]));
                handles.begin()?.send(data).map_err(gone)?;
            }
            Act::AwaitRoom(id, bytes_max) => self.handles(id)?.awaits_room = Some(bytes_max),
            Act::AwaitGone(id) => self.handles(id)?.awaits_gone = true,
            Act::Finish(id, ending) => {
                let handles = self.handles(id)?;
                handles.begin()?;
                let responder = handles.stop_writing().ok_or("nobody answers")?;
                let trailers = match ending {
                    Ending::Plain => None,
                    Ending::NoTrailers => Some(HeaderMap::new()),
                    Ending::Trailers => {
                        let name = HeaderName::from_static("grpc-status");
                        let zero = HeaderValue::from_static("0");
                        Some(HeaderMap::from_iter([(name, zero)]))
                    }
                };
                responder.finish(trailers.as_ref()).map_err(gone)?;
            }
            Act::StopWriting(id) => drop(self.handles(id)?.stop_writing()),
        }
        if let Act::AwaitRoom(id, _) | Act::AwaitGone(id) = act {
            self.handles(id)?.poll_writer();
        }
        Ok(())
    }

    fn handles(&mut self, id: u32) -> Result<&mut Handles, Undone> {
        let handles = self.streams.get_mut(&id);
        handles.ok_or_else(|| "no such stream".to_owned())
    }

    /// Who waits and was not woken still has to wait.
    pub(super) fn check_sleepers(&self) {
        for (id, handles) in &self.streams {
            handles.check_sleepers(*id);
        }
    }
}

impl Handles {
    fn read(&mut self) -> Result<(), Undone> {
        let received = self.received.as_ref().ok_or("nobody reads")?;
        let waker = Waker::from(Arc::clone(&self.reader));
        self.reader.take();
        let polled = received.poll_data(&Context::from_waker(&waker));
        self.is_reading = polled.is_pending();
        match polled {
            Poll::Ready(Some(Ok(data))) => Err(format!("{} bytes", data.len())),
            other => Err(format!("{other:?}")),
        }
    }

    fn begin(&mut self) -> Result<&Responder, Undone> {
        let responder = self.responder.as_ref().ok_or("nobody answers")?;
        if !self.has_begun {
            let begun = responder.begin(&Response::new(()));
            begun.map_err(|_| "gone".to_owned())?;
            self.has_begun = true;
        }
        Ok(responder)
    }

    fn stop_writing(&mut self) -> Option<Responder> {
        (self.awaits_room, self.awaits_gone) = (None, false);
        self.responder.take()
    }

    /// Goes to sleep until there is something to be done.
    fn poll_writer(&mut self) {
        self.writer.take();
        let (has_room, is_gone) = self.writer_ready();
        if has_room {
            self.awaits_room = None;
        }
        self.awaits_gone &= !is_gone;
    }

    fn writer_ready(&self) -> (bool, bool) {
        let Some(responder) = &self.responder else {
            return (true, true);
        };
        let waker = Waker::from(Arc::clone(&self.writer));
        let context = Context::from_waker(&waker);
        let room = self.awaits_room;
        let has_room = room.is_none_or(|max| responder.poll_room(max, &context).is_ready());
        let is_gone = !self.awaits_gone || responder.poll_gone(&context).is_ready();
        (has_room, is_gone)
    }

    fn check_sleepers(&self, id: u32) {
        if let Some(received) = &self.received
            && self.is_reading
            && !self.reader.0.load(SeqCst)
        {
            let waker = Waker::from(Arc::clone(&self.reader));
            let polled = received.poll_data(&Context::from_waker(&waker));
            assert!(polled.is_pending(), "who reads {id} sleeps");
        }
        if !self.writer.0.load(SeqCst) {
            let (has_room, is_gone) = self.writer_ready();
            let sleeps = (self.awaits_room.is_some() && has_room) || (self.awaits_gone && is_gone);
            assert!(!sleeps, "who writes on {id} sleeps");
        }
    }
}
