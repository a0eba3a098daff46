//! Writing to one socket: encoded once, counted in bytes, and never after a gap.
//!
//! What always holds: once a packet for a socket could not be queued, nothing more is written to it, acks included, and
//! unless it was the client that left, its transport is cut in the same step, with all of its namespaces. The client recovers from its last offset; a later packet that had gone out
//! would have moved that offset over the gap.
//!
//! One socket at a time, because only so an error has a name: socketioxide's broadcast returns errors without a socket
//! and passes over a socket that it does not have without one.

use std::{
    convert::Infallible,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use serde_json::value::RawValue;
use socketioxide::{
    SendError, SocketError,
    handler::{FromMessageParts, Value},
    socket::Socket,
};
use socketioxide_core::Str;

use super::{frame::frame_bytes, socketio::Prefix, transport::Transport};
use crate::adapter::{AckSender, Hub, PeerAdapter, SocketRef};

/// Bytes that may be queued for one socket's transport by default (`limits.queue-bytes`). Past it the socket is poisoned.
pub const QUEUE_BYTES: usize = 1024 * 1024;

/// An event as text, `["name",arg,…]`, encoded once and shared by all sockets that it goes to. For each of them socketioxide
/// copies it behind the packet's type and namespace.
#[derive(Clone, Debug)]
pub struct Encoded(Str);

impl Encoded {
    /// An event `name` with `args`, each one JSON value.
    pub fn new(name: &str, args: &[&RawValue]) -> Self {
        let mut json = serde_json::to_string(name).expect("a string is always JSON");
        json.insert(0, '[');
        json.reserve_exact(1 + args.iter().map(|arg| 1 + arg.get().len()).sum::<usize>());
        args.iter().for_each(|arg| json.extend([",", arg.get()]));
        json.push(']');
        Self(json.into())
    }

    /// An event with one JSON text as its argument.
    ///
    /// # Errors
    /// If `json` is not one JSON value.
    pub fn from_json(name: &str, json: String) -> serde_json::Result<Self> {
        Ok(Self::new(name, &[&RawValue::from_string(json)?]))
    }

    /// The bytes that it takes on a WebSocket in a namespace.
    pub fn bytes(&self, ns: &str) -> usize {
        packet_bytes(ns, 0, self.0.len())
    }
}

/// The frame of `4`, packet type, namespace, ack id and data.
pub(crate) fn packet_bytes(ns: &str, id_digits: usize, data: usize) -> usize {
    frame_bytes(2 + Prefix(ns).len() + id_digits + data)
}

/// The ack that a client asked for with an event; an extractor for handlers, in the place of `AckSender`, which does not
/// tell whether the client wants one and how long its id is.
pub struct Ack {
    sender: AckSender,
    id: Option<i64>,
}

impl FromMessageParts<PeerAdapter> for Ack {
    type Error = Infallible;

    fn from_message_parts(
        socket: &Arc<Socket<PeerAdapter>>,
        data: &mut Value,
        id: &Option<i64>,
    ) -> Result<Self, Infallible> {
        Ok(Self { sender: AckSender::from_message_parts(socket, data, id)?, id: *id })
    }
}

impl Ack {
    /// Whether the client waits for an answer.
    pub fn is_wanted(&self) -> bool {
        self.id.is_some()
    }
}

/// Why nothing more is written to a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Its queue was full: the client reads too slowly.
    Full,
    /// Its transport had ended, or the client had left the namespace.
    Closed,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Lost::Full => "the socket's queue is full",
            Lost::Closed => "the socket is closed",
        })
    }
}

impl std::error::Error for Lost {}

/// The way to one socket. All that must not overtake, be doubled or be lost goes through it.
pub struct Outlet {
    socket: SocketRef,
    /// Its namespace's, which takes packets that are text already.
    adapter: Arc<PeerAdapter>,
    transport: Transport,
    limit: usize,
    /// Of the last page, until the queue was empty.
    page_bytes: AtomicUsize,
    /// Held while a packet is queued, so that none gets in between the one that failed and the poison.
    lost: Mutex<Option<Lost>>,
}

impl Outlet {
    /// An outlet with a bound of [`QUEUE_BYTES`]. Its socket must be connected: make it in the connect handler. `None` when
    /// its namespace is none of this hub's.
    pub fn new(hub: &Hub, socket: SocketRef, transport: Transport) -> Option<Self> {
        let adapter = hub.adapter(socket.ns())?;
        Some(Self {
            socket,
            adapter,
            transport,
            limit: QUEUE_BYTES,
            page_bytes: AtomicUsize::new(0),
            lost: Mutex::new(None),
        })
    }

    /// The same with another bound.
    pub fn with_limit(mut self, bytes: usize) -> Self {
        self.limit = bytes;
        self
    }

    /// Queues an event.
    ///
    /// # Errors
    /// If it could not be queued, now or earlier: the outlet is poisoned, and cut if its queue was full.
    pub fn event(&self, event: &Encoded) -> Result<(), Lost> {
        self.queue(event.bytes(self.socket.ns()), false, || self.adapter.send(&self.socket, event.0.clone()))
    }

    /// Queues the answer `data` to an event; nothing if the client did not ask for one.
    ///
    /// # Errors
    /// As for [`Outlet::event`].
    pub fn ack(&self, ack: Ack, data: &RawValue) -> Result<(), Lost> {
        let Some(bytes) = self.ack_bytes(&ack, data) else { return Ok(()) };
        self.queue(bytes, false, || send(ack, data))
    }

    /// The same for an answer of any size, which gets room of its own beside the queue until that is empty, or the next one
    /// does. So a client that takes what it asked for is not cut for what it did not.
    pub fn page(&self, ack: Ack, data: &RawValue) -> Result<(), Lost> {
        let Some(bytes) = self.ack_bytes(&ack, data) else { return Ok(()) };
        self.queue(bytes, true, || send(ack, data))
    }

    fn ack_bytes(&self, ack: &Ack, data: &RawValue) -> Option<usize> {
        let id = ack.id?.to_string();
        Some(packet_bytes(self.socket.ns(), id.len(), 2 + data.get().len()))
    }

    /// Hands over an event that may be lost and may overtake others: nothing if anything is wrong. It has a place of one
    /// packet beside the queue, where the next one replaces it, and is not counted.
    pub fn volatile(&self, event: &Encoded) {
        let lost = self.lost.lock().expect("nothing panics under this lock");
        if lost.is_none() {
            self.adapter.send_volatile(&self.socket, event.0.clone());
        }
    }

    /// Ends the outlet: nothing more is written, the transport is cut.
    pub fn close(&self) {
        let mut lost = self.lost.lock().expect("nothing panics under this lock");
        lost.get_or_insert(Lost::Closed);
        self.transport.cut();
    }

    /// Why nothing more is written, if so.
    pub fn lost(&self) -> Option<Lost> {
        *self.lost.lock().expect("nothing panics under this lock")
    }

    /// The transport that this writes to, to wait for its progress.
    pub fn transport(&self) -> &Transport {
        &self.transport
    }

    /// The socket that this writes to.
    pub fn socket(&self) -> &SocketRef {
        &self.socket
    }

    fn queue(&self, bytes: usize, page: bool, emit: impl FnOnce() -> Result<(), SocketError>) -> Result<(), Lost> {
        let mut lost = self.lost.lock().expect("nothing panics under this lock");
        if let Some(lost) = *lost {
            return Err(lost);
        }
        match self.try_queue(bytes, page, emit) {
            Ok(()) => Ok(()),
            Err(why) => {
                *lost = Some(why);
                if why == Lost::Full {
                    self.transport.cut();
                }
                Err(why)
            }
        }
    }

    fn try_queue(&self, bytes: usize, page: bool, emit: impl FnOnce() -> Result<(), SocketError>) -> Result<(), Lost> {
        if self.transport.is_closed() {
            return Err(Lost::Closed);
        }
        // An empty queue takes a packet of any size: else one above the limit could never be sent.
        let queued = self.transport.queued_bytes();
        if page || queued == 0 {
            self.page_bytes.store(if page { bytes } else { 0 }, Ordering::Relaxed);
        }
        let limit = self.limit + self.page_bytes.load(Ordering::Relaxed);
        if queued > 0 && queued + bytes > limit {
            return Err(Lost::Full);
        }
        // Counted first: once emitted, it may be written, and subtracted, before this task goes on.
        self.transport.queued(bytes);
        emit().map_err(|error| match error {
            // The client may have left this namespace alone: its transport goes on for the others. If it left in this very
            // moment the packet may have been taken all the same, and the count is too small until the queue is next empty.
            SocketError::Closed => {
                self.transport.unqueued(bytes);
                Lost::Closed
            }
            SocketError::InternalChannelFull => Lost::Full,
        })
    }
}

fn send(ack: Ack, data: &RawValue) -> Result<(), SocketError> {
    match ack.sender.send(data) {
        Err(SendError::Socket(error)) => Err(error),
        // JSON that is text already always serialises. If it did not, it would be a gap like any other.
        Err(SendError::Serialize(_)) => Err(SocketError::InternalChannelFull),
        Ok(()) => Ok(()),
    }
}
