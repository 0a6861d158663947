//! What those who answer a request hold of its stream.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{HeaderMap, Response};

use super::Protocol;
use crate::transport::Pieces;

/// A connection, as it and its streams share it.
pub(crate) struct Link {
    protocol: Mutex<Protocol>,
    /// Wakes whoever writes.
    connection: Waker,
}

/// The client has broken the stream off, or the connection is no more.
#[derive(Debug)]
pub(crate) struct Gone;

impl Link {
    pub(crate) fn new(protocol: Protocol, connection: Waker) -> Arc<Link> {
        Arc::new(Link {
            protocol: Mutex::new(protocol),
            connection,
        })
    }

    pub(crate) fn protocol(&self) -> MutexGuard<'_, Protocol> {
        // Nothing that is done under the lock panics half-way.
        self.protocol.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The two halves of a stream.
    pub(crate) fn stream(self: &Arc<Link>, id: u32) -> (Received, Responder) {
        let received = Received {
            link: Arc::clone(self),
            id,
        };
        let responder = Responder {
            link: Arc::clone(self),
            id,
        };
        (received, responder)
    }
}

/// What a client sends. Dropped, the rest is thrown away.
pub(crate) struct Received {
    link: Arc<Link>,
    id: u32,
}

impl Received {
    /// All that has come since the last time; none at the end.
    pub(crate) fn poll_data(&self, context: &Context<'_>) -> Poll<Option<Result<Bytes, Gone>>> {
        let mut protocol = self.link.protocol();
        let polled = protocol.poll_data(self.id, context);
        if protocol.has_answers() {
            self.link.connection.wake_by_ref();
        }
        polled
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        self.link.protocol().stop_reading(self.id);
        self.link.connection.wake_by_ref();
    }
}

/// The answer to a request. Dropped before it has ended, the stream is broken off.
pub(crate) struct Responder {
    link: Arc<Link>,
    id: u32,
}

impl Responder {
    /// Begins to answer.
    pub(crate) fn begin(&self, response: &Response<()>) -> Result<(), Gone> {
        self.link.protocol().respond(self.id, response, false)?;
        self.link.connection.wake_by_ref();
        Ok(())
    }

    /// Answers with a head alone.
    pub(crate) fn respond(self, response: &Response<()>) -> Result<(), Gone> {
        self.link.protocol().respond(self.id, response, true)
    }

    /// Hands data over. It waits until the client takes it, so whoever sends bounds how much there may be.
    pub(crate) fn send(&self, data: Pieces) -> Result<(), Gone> {
        self.link.protocol().send(self.id, data)?;
        self.link.connection.wake_by_ref();
        Ok(())
    }

    /// Ready when less than `bytes_max` wait.
    pub(crate) fn poll_room(
        &self,
        bytes_max: usize,
        context: &Context<'_>,
    ) -> Poll<Result<(), Gone>> {
        self.link.protocol().poll_room(self.id, bytes_max, context)
    }

    /// Ready when the client has gone.
    pub(crate) fn poll_gone(&self, context: &Context<'_>) -> Poll<()> {
        self.link.protocol().poll_gone(self.id, context)
    }

    /// Ends the answer, after what waits.
    pub(crate) fn finish(self, trailers: Option<&HeaderMap>) -> Result<(), Gone> {
        self.link.protocol().finish(self.id, trailers)
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.link.protocol().stop_writing(self.id);
        self.link.connection.wake_by_ref();
    }
}
