//! A client's transport: one record per Engine.IO session, over whichever connections carry it.
//!
//! Why: a client that polls has no connection of its own, and one that upgrades has first many and then one. What is
//! written to it, counted, armed and closed belongs to its Engine.IO session, so that is what everybody above holds.
//!
//! What always holds:
//! * After `cut` no packet goes out; a poll that waits, and every later request, is answered with "session unknown".
//! * `closed` comes true for every way in which a transport can end, and stays true: its WebSocket has ended, a poll was
//!   given up half way, socketioxide has let go of the session (no pong, no CONNECT in time), or it was cut.
//! * One poll and one post at a time, as with Socket.IO's own server: a second one ends the transport. Packets that left
//!   socketioxide for a poll whose client is gone are a gap, so the transport is cut.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{
            AtomicBool,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
};

use socketioxide::socket::Sid;
use tokio::{sync::Notify, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    connection::{CLOSE_TIMEOUT, Connection},
    listener::Relayed,
    outgoing::Outgoing,
    transports::{self, Registry},
};

/// Ends a session inside of socketioxide that has no connection to be cut.
pub(super) type Hangup = Arc<dyn Fn(Sid) + Send + Sync>;

/// See the module. Cheap to clone; outlives what it is a handle on.
#[derive(Clone)]
pub struct Transport(Arc<Record>);

struct Record {
    id: u64,
    outgoing: Arc<Outgoing>,
    hangup: Hangup,
    state: Mutex<State>,
    /// Its WebSocket comes through another node.
    relayed: AtomicBool,
    /// A poll that waits ends with a noop: the client is about to upgrade, or the node that it came through is leaving.
    released: Notify,
    closing: CancellationToken,
    closed: CancellationToken,
    /// `closed` is cancelled, or is about to be in this very step: asked for each packet, where the token takes a lock.
    is_closed: AtomicBool,
    registry: Registry,
}

impl Record {
    fn close(&self) {
        self.is_closed.store(true, Release);
        self.closed.cancel();
    }
}

struct State {
    peer: SocketAddr,
    /// Set when the session began with long-polling.
    sid: Option<Sid>,
    websocket: Option<Connection>,
    /// A poll is being answered.
    polled: bool,
    /// A post is being read or carried out.
    posted: bool,
    /// A WebSocket is offered that the client has not chosen yet.
    offered: bool,
    ended: bool,
    /// What a poll that waits is told at the end, if not that the session is unknown.
    last_word: Option<&'static [u8]>,
}

/// Why a poll is not taken.
pub(super) enum NotNow {
    /// The transport has ended.
    Unknown,
    /// Another one is waiting.
    Second,
}

impl Transport {
    pub(super) fn new(id: u64, peer: SocketAddr, hangup: Hangup, registry: Registry) -> Self {
        Self(Arc::new(Record {
            id,
            outgoing: Arc::default(),
            hangup,
            state: Mutex::new(State {
                peer,
                sid: None,
                websocket: None,
                polled: false,
                posted: false,
                offered: false,
                ended: false,
                last_word: None,
            }),
            relayed: AtomicBool::new(false),
            released: Notify::new(),
            closing: CancellationToken::new(),
            closed: CancellationToken::new(),
            is_closed: AtomicBool::new(false),
            registry,
        }))
    }

    /// Of this node, and of no other transport since its start.
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// The client's address, as the request said that made it what it is: the first one, or the upgrade.
    pub fn peer(&self) -> SocketAddr {
        self.lock().peer
    }

    /// Whether it is a WebSocket by now; else long-polling.
    pub fn is_websocket(&self) -> bool {
        self.lock().websocket.is_some()
    }

    /// Whether its WebSocket comes through another node.
    pub fn is_relayed(&self) -> bool {
        self.0.relayed.load(Relaxed)
    }

    /// From now on the packet `from`, when it is written, goes out as `to`; once, on whichever connection.
    /// To be called before the packet can be written. Both are at most 65,535 bytes.
    pub fn arm(&self, from: Vec<u8>, to: Vec<u8>) {
        if !self.is_closed() && !self.0.outgoing.arm(from, to) {
            self.cut();
        }
    }

    /// Ends the transport in this very step, in a way after which a client reconnects: see the module. May be called
    /// again.
    pub fn cut(&self) {
        let first = self.end();
        // Also where another was first, who may not be that far yet: whoever returns from here relies on it that nothing goes
        // out any more. (Two namespaces of one client whose CONNECTs fail at once, of which one then writes its 44.)
        self.0.close();
        let (sid, websocket) = {
            let state = self.lock();
            (state.sid, state.websocket.clone())
        };
        if let Some(websocket) = websocket {
            websocket.cut();
        }
        // Also for one that has just upgraded: socketioxide may not know yet.
        if let Some(sid) = sid.filter(|_| first) {
            (self.0.hangup)(sid);
        }
    }

    /// Ends the transport after what it was given to write was written: with a WebSocket close (1012), or with
    /// "session unknown" as the answer to a poll. What the client says meanwhile is not heard: it could not be answered.
    /// A client that does not take it in [`CLOSE_TIMEOUT`] is cut. Dropping the future cuts.
    pub async fn close_gently(&self) {
        let _cut = CutOnDrop(self);
        let websocket = self.lock().websocket.clone();
        match websocket {
            Some(websocket) => websocket.close_gently().await,
            None => {
                self.0.closing.cancel();
                // Whichever way it ends, the transport is cut now.
                timeout(CLOSE_TIMEOUT, self.closed()).await.ok();
            }
        }
    }

    /// Lets a poll that waits go: the client polls again, perhaps elsewhere, or upgrades.
    pub(super) fn release(&self) {
        self.0.released.notify_waiters();
    }

    /// The server has ended the client's stay in this namespace: the client may ask for it again.
    pub fn left(&self, ns: &str) {
        self.0.outgoing.asked.ended(ns);
    }

    /// Counts a packet that was just given to socketioxide; see [`Outgoing::queued`].
    pub fn queued(&self, bytes: usize) {
        self.0.outgoing.queued(bytes);
    }

    /// See [`Outgoing::unqueued`].
    pub fn unqueued(&self, bytes: usize) {
        self.0.outgoing.unqueued(bytes);
    }

    /// See [`Outgoing::queued_bytes`].
    pub fn queued_bytes(&self) -> usize {
        self.0.outgoing.queued_bytes()
    }

    /// Waits until at most `max` bytes are queued, or the transport has ended.
    pub async fn drained(&self, max: usize) {
        loop {
            let notified = self.0.outgoing.progress.notified();
            if self.is_closed() || self.queued_bytes() <= max {
                return;
            }
            notified.await;
        }
    }

    /// Waits until the transport has ended.
    pub async fn closed(&self) {
        self.0.closed.cancelled().await;
    }

    pub fn is_closed(&self) -> bool {
        self.0.is_closed.load(Acquire)
    }

    /// Whether both handles are of one transport.
    pub fn same(&self, other: &Transport) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(super) fn outgoing(&self) -> &Arc<Outgoing> {
        &self.0.outgoing
    }

    /// It began with long-polling, under this id.
    pub(super) fn name(&self, sid: Sid) {
        let Some(registry) = self.0.registry.upgrade() else { return };
        let mut tables = transports::lock(&registry);
        let mut state = self.lock();
        if !state.ended {
            state.sid = Some(sid);
            tables.name(sid, self.clone());
        }
    }

    /// Begins an upgrade. `None` if there is one already, or it is too late.
    pub(super) fn offer(&self) -> Option<Offer> {
        let mut state = self.lock();
        let free = !state.ended && state.websocket.is_none() && !state.offered;
        state.offered |= free;
        free.then(|| Offer(self.clone()))
    }

    /// It has a WebSocket, with whose end it ends; through another node, if that says for whom. False if there is one
    /// already, or it is too late.
    pub(super) fn upgraded(&self, websocket: &Connection, relayed: Option<Relayed>) -> bool {
        {
            let mut state = self.lock();
            if state.ended || state.websocket.is_some() {
                return false;
            }
            state.websocket = Some(websocket.clone());
            state.peer = relayed.map_or(websocket.peer(), |Relayed(client)| client);
        }
        self.0.relayed.store(relayed.is_some(), Relaxed);
        websocket.upgraded(&self.0.outgoing);
        // Weak: the connection is held by this record.
        let record = Arc::downgrade(&self.0);
        websocket.on_close(move || {
            if let Some(record) = record.upgrade() {
                Transport(record).ended();
            }
        });
        true
    }

    /// Begins to answer a poll.
    pub(super) fn begin_poll(&self) -> Result<Turn, NotNow> {
        let mut state = self.lock();
        if state.ended {
            return Err(NotNow::Unknown);
        }
        if std::mem::replace(&mut state.polled, true) {
            return Err(NotNow::Second);
        }
        Ok(Turn { transport: self.clone(), done: false })
    }

    /// Whether a poll waits.
    pub(super) fn is_polled(&self) -> bool {
        self.lock().polled
    }

    /// A client whose own doing ends the transport, and that will not come back by itself, is told so by a packet. To be
    /// called before it has ended.
    pub(super) fn part_with(&self, word: &'static [u8]) {
        self.lock().last_word = Some(word);
    }

    /// See [`part_with`](Self::part_with).
    pub(super) fn last_word(&self) -> Option<&'static [u8]> {
        self.lock().last_word
    }

    /// Begins to read a post. `None` if there is one already: which of the two is to be heard first, nobody can say.
    pub(super) fn begin_post(&self) -> Option<Post> {
        let free = !std::mem::replace(&mut self.lock().posted, true);
        free.then(|| Post(self.clone()))
    }

    /// Comes true when a poll that waits shall end, because the transport is about to.
    pub(super) async fn is_closing(&self) {
        self.0.closing.cancelled().await;
    }

    /// Whether [`close_gently`](Self::close_gently) has begun: nothing that the client says is heard any more.
    pub(super) fn hears_nothing(&self) -> bool {
        self.0.closing.is_cancelled() || self.is_closed()
    }

    pub(super) async fn released(&self) {
        self.0.released.notified().await;
    }

    /// It has ended by itself: there is nothing to cut.
    pub(super) fn ended(&self) {
        self.end();
    }

    /// True for the first to come.
    fn end(&self) -> bool {
        let sid = {
            let mut state = self.lock();
            if std::mem::replace(&mut state.ended, true) {
                return false;
            }
            state.sid
        };
        if let Some(registry) = self.0.registry.upgrade() {
            transports::lock(&registry).remove(self.0.id, sid);
        }
        self.0.outgoing.disarm();
        self.0.close();
        self.0.outgoing.progress.notify_waiters();
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("nothing panics under this lock")
    }
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Transport({})", self.peer())
    }
}

struct CutOnDrop<'a>(&'a Transport);

impl Drop for CutOnDrop<'_> {
    fn drop(&mut self) {
        self.0.cut();
    }
}

/// The answer to one poll, from its arrival until its body was taken. Given up before that, the transport is cut: either
/// the client has gone, or it missed packets.
pub(super) struct Turn {
    transport: Transport,
    done: bool,
}

impl Turn {
    pub fn transport(&self) -> &Transport {
        &self.transport
    }

    /// The body is on its way.
    pub fn done(&mut self) {
        if !std::mem::replace(&mut self.done, true) {
            self.transport.lock().polled = false;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.done {
            self.transport.cut();
        }
    }
}

/// A post, until it is answered or its client has gone.
pub(super) struct Post(Transport);

impl Drop for Post {
    fn drop(&mut self) {
        self.0.lock().posted = false;
    }
}

/// A WebSocket that a client may choose. Gone, and there may be another.
pub(super) struct Offer(Transport);

impl Drop for Offer {
    fn drop(&mut self) {
        self.0.lock().offered = false;
    }
}

/// What the request that opened a session carries into socketioxide, which keeps it as long as the session: gone, and the
/// transport has ended, whatever the cause.
#[derive(Clone)]
pub(super) struct Opened(Arc<Guard>);

struct Guard(Transport);

impl Opened {
    pub fn new(transport: Transport) -> Self {
        Self(Arc::new(Guard(transport)))
    }

    pub fn transport(&self) -> &Transport {
        &self.0.0
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.ended();
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::client::stream::ClientStream;

    #[tokio::test]
    async fn nothing_goes_out_after_a_cut_that_was_not_the_first() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut stream = ClientStream::new(listener.accept().await.unwrap().0, None).unwrap();
        let connection = stream.connection();
        let transport = Transport::new(1, connection.peer(), Arc::new(|_| {}), Registry::new());
        assert!(transport.upgraded(&connection, None));
        // Somebody else has begun to end it, and has not come to the connection yet.
        assert!(transport.end());
        transport.cut();
        stream.write_all(b"44").await.unwrap();
        drop(stream);
        let mut seen = Vec::new();
        client.read_to_end(&mut seen).await.unwrap();
        assert!(seen.is_empty(), "{seen:?}");
    }
}
