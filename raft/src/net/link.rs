//! One connection, many requests at a time.
//!
//! A request gets an id, its answer carries the same, and answers come in any order. What always holds: a request ends by its
//! deadline, with an answer or an error; a request whose link closes ends at once; and a link on which an awaited answer is
//! overdue while nothing at all arrives is given up, because a broken path can keep a TCP connection "open" for minutes.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncWriteExt, BufReader, BufWriter},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::frame::{self, FRAME_BYTES_MAX, Frame, What};
use crate::{
    error::{Error, Result},
    fail,
};

/// Frames waiting to be written to one connection.
pub const QUEUE_FRAMES_MAX: usize = 1024;
/// And their bytes. A larger frame waits until the queue is empty.
pub const QUEUE_BYTES_MAX: usize = 8 << 20;
/// Requests of one link that wait for their answer; one more is `unavailable`.
pub const IN_FLIGHT_MAX: usize = 1024;
/// A link on which an answer is awaited and nothing arrives for so long is closed when a request times out.
const SILENCE_MAX: Duration = Duration::from_secs(1);

/// The writing end of a connection: a bounded queue, worked off by [`write_all`].
#[derive(Clone)]
pub(crate) struct Outbox {
    queue: mpsc::Sender<Packet>,
    room: Arc<Semaphore>,
}

pub(crate) struct Packet {
    bytes: Vec<u8>,
    _room: OwnedSemaphorePermit,
}

impl Outbox {
    pub(crate) fn new() -> (Self, mpsc::Receiver<Packet>) {
        let (queue, packets) = mpsc::channel(QUEUE_FRAMES_MAX);
        (Self { queue, room: Arc::new(Semaphore::new(QUEUE_BYTES_MAX)) }, packets)
    }

    /// Waits for room.
    pub(crate) async fn send(&self, frame: &Frame) -> Result<()> {
        let bytes = frame::encode(frame)?;
        let room = Arc::clone(&self.room).acquire_many_owned(permits(&bytes)).await;
        let _room = room.expect("this semaphore is never closed");
        self.queue.send(Packet { bytes, _room }).await.map_err(|_| closed())
    }

    /// Never waits; false when the frame found no room.
    pub(crate) fn offer(&self, frame: &Frame) -> Result<bool> {
        let bytes = frame::encode(frame)?;
        let Ok(_room) = Arc::clone(&self.room).try_acquire_many_owned(permits(&bytes)) else { return Ok(false) };
        Ok(self.queue.try_send(Packet { bytes, _room }).is_ok())
    }
}

fn permits(bytes: &[u8]) -> u32 {
    bytes.len().min(QUEUE_BYTES_MAX) as u32
}

/// Writes what is queued, flushing once for all that is there, until the queue or the connection ends.
pub(crate) async fn write_all(mut packets: mpsc::Receiver<Packet>, to: OwnedWriteHalf) {
    let mut to = BufWriter::with_capacity(64 << 10, to);
    let mut some = Vec::new();
    while packets.recv_many(&mut some, 64).await > 0 {
        for packet in some.drain(..) {
            if fail::point("peer-send").is_err() || to.write_all(&packet.bytes).await.is_err() {
                return;
            }
        }
        if to.flush().await.is_err() {
            return;
        }
    }
}

#[derive(Default)]
struct Waiting {
    last_id: u64,
    answers: HashMap<u64, oneshot::Sender<What>>,
    /// Since when an answer is awaited without any sign from the other side.
    since: Option<Instant>,
}

/// The asking end of a connection. Its tasks end with it.
pub struct Link {
    out: Outbox,
    waiting: Arc<Mutex<Waiting>>,
    closed: CancellationToken,
    /// The connection ended, and nobody here wanted that.
    ended: Arc<AtomicBool>,
    _tasks: JoinSet<()>,
}

impl Link {
    /// Takes a connection over after its handshake.
    pub fn new(stream: TcpStream) -> Self {
        let (read, write) = stream.into_split();
        let (out, packets) = Outbox::new();
        let waiting = Arc::new(Mutex::new(Waiting::default()));
        let closed = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let guard = closed.clone().drop_guard();
        tasks.spawn(async move {
            write_all(packets, write).await;
            drop(guard);
        });
        let ended = Arc::new(AtomicBool::new(false));
        let (guard, answers, note) = (closed.clone().drop_guard(), Arc::clone(&waiting), Arc::clone(&ended));
        tasks.spawn(async move {
            if let Err(e) = read_answers(read, &answers).await {
                tracing::debug!("a peer connection ends: {e}");
            }
            note.store(true, Ordering::Release);
            drop(guard);
        });
        Self { out, waiting, closed, ended, _tasks: tasks }
    }

    /// Whether the other side, or what lies between, ended the connection; not so when it was given up for its silence.
    pub fn was_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    pub fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Asks, and waits for the answer at most until the deadline.
    ///
    /// # Errors
    /// `Unavailable` when the link is closed or full, or no answer came in time (the outcome is unknown); otherwise what
    /// the other side said.
    pub async fn request(&self, body: Bytes, within: Duration) -> Result<Bytes> {
        let (id, answer) = self.expect_answer()?;
        let _forget = Forget { id, waiting: &self.waiting };
        let exchange = async {
            self.out.send(&Frame { id, what: What::Request(body) }).await?;
            answer.await.map_err(|_| closed())
        };
        let answered = tokio::select! {
            answered = timeout(within, exchange) => answered,
            () = self.closed.cancelled() => return Err(closed()),
        };
        match answered {
            Ok(Ok(What::Reply(body))) => Ok(body),
            Ok(Ok(What::Failed(true, why))) => Err(Error::Unavailable(why)),
            Ok(Ok(What::Failed(false, why))) => Err(Error::Refused(why)),
            Ok(Ok(What::Request(_) | What::OneWay(_))) => Err(Error::refused("a request where an answer was awaited")),
            Ok(Err(e)) => Err(e),
            Err(_) => {
                self.give_up_if_silent();
                Err(Error::unavailable(format!("no answer within {within:?}")))
            }
        }
    }

    /// Queues bytes that nobody answers; false when there was no room for them.
    pub fn offer(&self, body: Bytes) -> Result<bool> {
        self.out.offer(&Frame { id: 0, what: What::OneWay(body) })
    }

    fn expect_answer(&self) -> Result<(u64, oneshot::Receiver<What>)> {
        let mut waiting = lock(&self.waiting);
        if waiting.answers.len() >= IN_FLIGHT_MAX {
            return Err(Error::unavailable(format!("{IN_FLIGHT_MAX} requests are under way already")));
        }
        let (sender, answer) = oneshot::channel();
        waiting.last_id += 1;
        let id = waiting.last_id;
        waiting.answers.insert(id, sender);
        waiting.since.get_or_insert_with(Instant::now);
        Ok((id, answer))
    }

    fn give_up_if_silent(&self) {
        if lock(&self.waiting).since.is_some_and(|since| since.elapsed() >= SILENCE_MAX) {
            self.closed.cancel();
        }
    }
}

/// A request that is no longer waited for, also when its future was dropped, leaves nothing behind.
struct Forget<'a> {
    id: u64,
    waiting: &'a Mutex<Waiting>,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(self.waiting).answers.remove(&self.id);
    }
}

async fn read_answers(from: OwnedReadHalf, waiting: &Mutex<Waiting>) -> Result<()> {
    let mut from = BufReader::with_capacity(64 << 10, from);
    while let Some(Frame { id, what }) = frame::read(&mut from, FRAME_BYTES_MAX).await? {
        let mut waiting = lock(waiting);
        let answer = waiting.answers.remove(&id);
        waiting.since = (!waiting.answers.is_empty()).then(Instant::now);
        if let Some(answer) = answer {
            let _ = answer.send(what); // Whoever asked may have stopped waiting.
        }
    }
    Ok(())
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

fn closed() -> Error {
    Error::unavailable("the connection was closed; the outcome is unknown")
}
