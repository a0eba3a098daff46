//! A handle on one client connection: facts about it, and the two things one can do to it (cut, close gently).
//!
//! What always holds:
//! * The handle is cheap to clone and outlives the connection; it never keeps the descriptor open.
//! * After `cut` not one more byte goes out, whoever writes what.
//! * `closed` comes true for every way in which a connection can end, and stays true.
//!
//! It is also where a hand-over of live connections would begin: the descriptor can be had here
//! (`State::tcp`), and a `said: Mutex<Vec<u8>>` beside it, filled by the stream's reads until the last CONNECT was
//! answered, would hold what a successor has to replay.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::{net::TcpStream, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{frame::CLOSE_RESTART, outgoing::Outgoing};

/// How long `close_gently` waits for a peer that reads slowly, or not at all, before it cuts.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A client connection, as everybody but its stream sees it.
#[derive(Clone)]
pub struct Connection(pub(super) Arc<State>);

pub(super) struct State {
    tcp: Weak<TcpStream>,
    peer: SocketAddr,
    pub(super) out: Mutex<Out>,
    upgraded: AtomicBool,
    opened: Instant,
    /// Milliseconds from `opened` to the last byte that came from the peer.
    heard: AtomicU64,
    /// What it carries, once it is a WebSocket.
    carries: OnceLock<Arc<Outgoing>>,
    closed: CancellationToken,
}

/// The outgoing half; everything that decides whether and how bytes leave is under one lock.
pub(super) struct Out {
    pub(super) phase: Phase,
    /// Accepted from the writer, not yet taken by the kernel; always ends at the end of a frame.
    pub(super) rest: Vec<u8>,
    /// `None` once the connection has ended.
    on_close: Option<Vec<Box<dyn FnOnce() + Send>>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    /// `rest` still goes out; new writes are swallowed, what the peer says is thrown away.
    Closing,
    /// Nothing goes out, reads are at their end.
    Cut,
}

impl Connection {
    pub(super) fn new(tcp: &Arc<TcpStream>, peer: SocketAddr) -> Self {
        let out = Out { phase: Phase::Open, rest: Vec::new(), on_close: Some(Vec::new()) };
        Self(Arc::new(State {
            tcp: Arc::downgrade(tcp),
            peer,
            out: Mutex::new(out),
            upgraded: AtomicBool::new(false),
            opened: Instant::now(),
            heard: AtomicU64::new(0),
            carries: OnceLock::new(),
            closed: CancellationToken::new(),
        }))
    }

    /// Ends the connection in this very step: everything written from now on is swallowed, reads are at their end, TCP
    /// is shut down. May be called again. The client sees a transport close and reconnects.
    pub fn cut(&self) {
        {
            let mut out = self.lock();
            if out.phase == Phase::Cut {
                return;
            }
            out.phase = Phase::Cut;
            out.rest = Vec::new();
        }
        if let Some(tcp) = self.0.tcp.upgrade() {
            // An error means that the peer has ended it already.
            socket2::SockRef::from(&*tcp).shutdown(std::net::Shutdown::Both).ok();
        }
        self.ended();
    }

    /// Ends the connection after what its stream has accepted was written, with a WebSocket close (1012) if it is one,
    /// and waits for the peer to close too; after [`CLOSE_TIMEOUT`] it is cut. What the peer says meanwhile is thrown
    /// away unread: it could not be answered. Dropping the future cuts.
    pub async fn close_gently(&self) {
        let Some(tcp) = self.0.tcp.upgrade() else { return };
        let _cut = CutOnDrop(self);
        {
            let mut out = self.lock();
            if out.phase != Phase::Open {
                return;
            }
            out.phase = Phase::Closing;
            if self.is_upgraded() {
                out.rest.extend(CLOSE_RESTART);
            }
        }
        let gently = async {
            while !self.drain(&tcp)? {
                tcp.writable().await?;
            }
            socket2::SockRef::from(&*tcp).shutdown(std::net::Shutdown::Write)?;
            self.closed().await;
            std::io::Result::Ok(())
        };
        // Whichever way it ends, the connection is cut now.
        timeout(CLOSE_TIMEOUT, gently).await.ok();
    }

    /// Gives what is accepted to the kernel, without waiting; whether nothing is left.
    fn drain(&self, tcp: &TcpStream) -> std::io::Result<bool> {
        let mut out = self.lock();
        while !out.rest.is_empty() {
            match tcp.try_write(&out.rest) {
                Ok(taken) => {
                    out.rest.drain(..taken);
                    self.wrote(taken);
                }
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    /// The client's address, as TCP has it.
    pub fn peer(&self) -> SocketAddr {
        self.0.peer
    }

    /// Whether this connection is a WebSocket by now.
    pub fn is_upgraded(&self) -> bool {
        self.0.upgraded.load(Relaxed)
    }

    /// How long ago the last byte came from the client.
    pub fn silent_for(&self) -> Duration {
        self.0.opened.elapsed().saturating_sub(Duration::from_millis(self.0.heard.load(Relaxed)))
    }

    /// Waits until the connection has ended: closed by the peer, broken, cut, or dropped by whoever served it.
    pub async fn closed(&self) {
        self.0.closed.cancelled().await;
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.0.closed.is_cancelled()
    }

    /// Whether both handles are of one connection.
    pub fn same(&self, other: &Connection) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Runs `then` when the connection ends, before `closed` comes true; at once if it has ended.
    pub(super) fn on_close(&self, then: impl FnOnce() + Send + 'static) {
        if let Some(on_close) = &mut self.lock().on_close {
            return on_close.push(Box::new(then));
        }
        then();
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Out> {
        self.0.out.lock().expect("nothing panics under this lock")
    }

    /// The answer that is about to be written is 101; what follows it are frames of `carries`.
    pub(super) fn upgraded(&self, carries: &Arc<Outgoing>) {
        // Nothing follows a 101 on a connection but its WebSocket, so there is no second.
        self.0.carries.get_or_init(|| carries.clone());
        self.0.upgraded.store(true, Relaxed);
    }

    pub(super) fn carries(&self) -> Option<&Arc<Outgoing>> {
        self.0.carries.get()
    }

    pub(super) fn heard(&self) {
        self.0.heard.store(self.0.opened.elapsed().as_millis() as u64, Relaxed);
    }

    pub(super) fn wrote(&self, bytes: usize) {
        if let Some(carries) = self.carries() {
            carries.wrote(bytes);
        }
    }

    pub(super) fn ended(&self) {
        let Some(on_close) = self.lock().on_close.take() else { return };
        on_close.into_iter().for_each(|then| then());
        self.0.closed.cancel();
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connection({})", self.peer())
    }
}

struct CutOnDrop<'a>(&'a Connection);

impl Drop for CutOnDrop<'_> {
    fn drop(&mut self) {
        self.0.cut();
    }
}
