//! A seat: the place of one attached session on this node, between the player and its socket.
//!
//! The player makes a seat when it comes to an `open` or `resume` of this node, and writes to it from the next position
//! on. What always holds:
//! - Packets go to the socket in the order in which they came to the seat: while there is no socket yet, and while the
//!   replay is being written, they wait in the seat's queue.
//! - A seat that could not take a packet takes no other, acks included, and unless it was the client that left, its
//!   transport is cut: the client recovers from its last offset, and nothing ever follows a gap.
//! - A seat that was let go never comes back; a late word to it changes nothing.

mod answers;

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use moim_raft::command::{Holder, Namespace, Position, Room, User};
use prometheus::IntCounter;
use serde_json::value::RawValue;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use self::answers::Answers;
use crate::client::{Ack, Encoded, Lost, Outlet, Transport};

/// Packets that may wait for a socket beside the bound in bytes; past either the seat is let go.
const WAITING_MAX: usize = 16_384;
/// Commands of one socket that are on their way through the log at once; further ones wait in its queue.
const COMMANDS_MAX: u32 = 512;

/// One packet on its way to a socket.
enum Packet {
    /// The second encoding is for clients that switched recovery off: without the offset.
    Event(Played),
    /// No entry of the log, so without an offset for everybody.
    Live(Encoded),
    Ack(Ack, Box<RawValue>),
}

/// An event of the log as it is written to sockets: with the offset as its last argument, and without.
#[derive(Clone)]
pub struct Played {
    pub with_offset: Encoded,
    pub plain: Encoded,
}

/// A command's place among the answers, from its proposal to its ack.
pub struct Turn {
    number: u64,
    permit: OwnedSemaphorePermit,
}

struct Answer {
    ack: Ack,
    body: Box<RawValue>,
    permit: OwnedSemaphorePermit,
}

enum Stage {
    /// No socket yet, or its replay is still being written.
    Waiting {
        queue: VecDeque<Packet>,
        bytes: usize,
        taken: bool,
    },
    Live(Outlet),
    Gone,
}

/// The place of one attached session on this node.
pub struct Seat {
    pub holder: Holder,
    pub ns: Namespace,
    pub user: User,
    /// Where it was attached: what lies at or below is replayed, what lies above is played.
    pub seam: Position,
    /// The rooms at the seam, for `ready`.
    pub rooms: Vec<Room>,
    pub made: Instant,
    /// How long its session was without a transport by then, if the log knows.
    pub gap: Option<Duration>,
    bounds: Bounds,
    stage: Mutex<Stage>,
    /// Told when the stage is no longer waiting.
    settled: Notify,
    transport: Mutex<Option<Transport>>,
    recovery: AtomicBool,
    answers: Mutex<Answers<Answer>>,
    /// One permit for each command on its way.
    commands: Arc<Semaphore>,
}

/// What a seat may hold, and who counts those that held too much.
pub struct Bounds {
    /// Bytes that wait for the client.
    pub queue_bytes_max: usize,
    pub slow: IntCounter,
}

/// What a packet did to the queue of its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    Unchanged,
    /// With this one, more than half of what may wait does.
    HalfFull,
}

/// A seat has ended: its client has left the namespace, or its transport has ended or is about to.
#[derive(Debug, PartialEq, Eq)]
pub struct Gone;

impl Seat {
    pub fn new(holder: Holder, ns: Namespace, user: User, seam: Position, rooms: Vec<Room>, bounds: Bounds) -> Self {
        let stage = Stage::Waiting { queue: VecDeque::new(), bytes: 0, taken: false };
        Self {
            holder,
            ns,
            user,
            seam,
            rooms,
            made: Instant::now(),
            gap: None,
            bounds,
            stage: Mutex::new(stage),
            settled: Notify::new(),
            transport: Mutex::new(None),
            recovery: true.into(),
            commands: Arc::new(Semaphore::new(COMMANDS_MAX as usize)),
            answers: Mutex::default(),
        }
    }

    /// Names the transport that the session came on, so that it can be cut with the seat, and whether the client wants
    /// offsets.
    pub fn reserve(&self, transport: &Transport, recovery: bool) {
        self.recovery.store(recovery, Ordering::Relaxed);
        *self.carrier() = Some(transport.clone());
        if matches!(*self.lock(), Stage::Gone) {
            transport.cut();
        }
    }

    /// Writes an event of the log.
    pub fn event(&self, event: &Played) -> Result<Fill, Gone> {
        self.write(Packet::Event(event.clone()))
    }

    /// Writes what is played but is no entry of the log: it is in its order, and not replayed.
    pub fn live(&self, event: &Encoded) -> Result<Fill, Gone> {
        self.write(Packet::Live(event.clone()))
    }

    /// Writes the answer to a request.
    pub fn ack(&self, ack: Ack, answer: Box<RawValue>) -> Result<Fill, Gone> {
        self.write(Packet::Ack(ack, answer))
    }

    /// Writes what was asked for and may be larger than what may wait. To be called when the seat is settled and eased.
    pub fn page(&self, ack: Ack, answer: &RawValue) -> Result<(), Gone> {
        let stage = self.lock();
        let written = match &*stage {
            Stage::Live(outlet) => outlet.page(ack, answer).map_err(|lost| self.count(lost)),
            _ => return Err(Gone),
        };
        if written.is_err() {
            self.leave(stage);
        }
        written
    }

    /// Waits until the replay has been written, or the seat was let go.
    pub async fn settled(&self) {
        loop {
            let notified = self.settled.notified();
            if !matches!(*self.lock(), Stage::Waiting { .. }) {
                return;
            }
            notified.await;
        }
    }

    /// Hands over what may be lost; a seat without a socket loses it.
    pub fn volatile(&self, event: &Encoded) {
        if let Stage::Live(outlet) = &*self.lock() {
            outlet.volatile(event);
        }
    }

    fn write(&self, packet: Packet) -> Result<Fill, Gone> {
        let mut stage = self.lock();
        let written = match &mut *stage {
            Stage::Gone => return Err(Gone),
            Stage::Live(outlet) => {
                let above = || outlet.transport().queued_bytes() > self.half();
                let was_above = above();
                let fill = || if above() && !was_above { Fill::HalfFull } else { Fill::Unchanged };
                self.pass(outlet, packet).map(|()| fill())
            }
            Stage::Waiting { queue, bytes, .. } => {
                *bytes += self.size(&packet);
                queue.push_back(packet);
                let fits = *bytes <= self.bounds.queue_bytes_max && queue.len() <= WAITING_MAX;
                fits.then_some(Fill::Unchanged)
                    .ok_or_else(|| self.too_slow("what was said since it came back is more than may wait"))
            }
        };
        if written.is_err() {
            self.leave(stage);
        }
        written
    }

    fn pass(&self, outlet: &Outlet, packet: Packet) -> Result<(), Gone> {
        let done = match packet {
            Packet::Event(event) if self.wants_offsets() => outlet.event(&event.with_offset),
            Packet::Event(event) => outlet.event(&event.plain),
            Packet::Live(event) => outlet.event(&event),
            Packet::Ack(ack, answer) => outlet.ack(ack, &answer),
        };
        done.map_err(|lost| self.count(lost))
    }

    /// The first error of an outlet is followed by its seat's end, so each slow client is counted once.
    fn count(&self, lost: Lost) -> Gone {
        match lost {
            Lost::Full => self.too_slow("more waits for it than may"),
            Lost::Closed => Gone,
        }
    }

    /// Said for operators: the client itself does not read, so it cannot be told.
    fn too_slow(&self, why: &str) -> Gone {
        self.bounds.slow.inc();
        self.cut();
        let (sid, user, bound) = (&self.holder.sid, &self.user, self.bounds.queue_bytes_max);
        tracing::info!(%sid, %user, bound, "a client does not keep up: it is cut off, and recovers; {why}");
        Gone
    }

    fn size(&self, packet: &Packet) -> usize {
        match packet {
            Packet::Event(event) => event.with_offset.bytes(self.ns.as_str()),
            Packet::Live(event) => event.bytes(self.ns.as_str()),
            Packet::Ack(_, answer) => answer.get().len() + 32,
        }
    }

    fn wants_offsets(&self) -> bool {
        self.recovery.load(Ordering::Relaxed)
    }

    /// To be called by who will give it its socket, as soon as there is one: the seat is not free any more. Once only.
    pub fn claim(&self) -> Result<(), Gone> {
        match &mut *self.lock() {
            Stage::Waiting { taken, .. } if !*taken => {
                *taken = true;
                Ok(())
            }
            _ => Err(Gone),
        }
    }

    /// Gives the seat its socket: writes `ready`, then the replay, then what has come meanwhile, each paced by what the
    /// stream has sent; then the seat is live. By who has claimed it.
    pub async fn take(&self, outlet: Outlet, ready: &Encoded, replay: Vec<Played>) -> Result<(), Gone> {
        if matches!(*self.lock(), Stage::Gone) {
            return Err(Gone);
        }
        if self.replay(&outlet, ready, replay).await.is_err() {
            self.vacate();
            return Err(Gone);
        }
        self.go_live(outlet).await
    }

    async fn replay(&self, outlet: &Outlet, ready: &Encoded, replay: Vec<Played>) -> Result<(), Gone> {
        outlet.event(ready).map_err(|_| Gone)?;
        for event in replay {
            self.pace(outlet).await;
            self.pass(outlet, Packet::Event(event))?;
        }
        Ok(())
    }

    /// Waits until half of the bound is free again, or the seat's transport has ended.
    pub async fn eased(&self) {
        if let Some(transport) = self.transport() {
            transport.drained(self.half()).await;
        }
    }

    fn half(&self) -> usize {
        self.bounds.queue_bytes_max / 2
    }

    /// As [`Seat::eased`], for the socket that it is being given.
    async fn pace(&self, outlet: &Outlet) {
        outlet.transport().drained(self.half()).await;
    }

    /// Moves what has come meanwhile to the socket, in steps that leave the player a turn; the last one makes it live.
    async fn go_live(&self, outlet: Outlet) -> Result<(), Gone> {
        loop {
            {
                let mut stage = self.lock();
                let Stage::Waiting { queue, bytes, .. } = &mut *stage else { return Err(Gone) };
                while outlet.transport().queued_bytes() <= self.half() {
                    let Some(packet) = queue.pop_front() else { break };
                    *bytes -= self.size(&packet).min(*bytes);
                    if self.pass(&outlet, packet).is_err() {
                        self.leave(stage);
                        return Err(Gone);
                    }
                }
                if queue.is_empty() {
                    *stage = Stage::Live(outlet);
                    self.settled.notify_waiters();
                    return Ok(());
                }
            }
            self.pace(&outlet).await;
        }
    }

    /// To be taken by a command before it is proposed, in the order in which the client sent them.
    pub async fn begin_command(&self) -> Turn {
        let permit = self.commands.clone().acquire_owned().await.expect("this semaphore is never closed");
        Turn { number: self.answers().begin(), permit }
    }

    /// Answers a command once all before it have been answered; for what is played that is at once.
    pub fn answer(&self, turn: Turn, ack: Ack, body: Box<RawValue>) {
        let mut answers = self.answers();
        for Answer { ack, body, permit } in answers.put(turn.number, Answer { ack, body, permit: turn.permit }) {
            // A seat that is gone has nobody to answer.
            _ = self.ack(ack, body);
            drop(permit);
        }
    }

    /// Waits until every command of this seat was answered. No other begins while the guard lives.
    pub async fn quiet(&self) -> OwnedSemaphorePermit {
        self.commands.clone().acquire_many_owned(COMMANDS_MAX).await.expect("this semaphore is never closed")
    }

    /// Writes what is no entry of the log and must not be lost without need.
    pub fn notice(&self, event: &Encoded) {
        if let Stage::Live(outlet) = &*self.lock() {
            // A socket that cannot take it is closed anyhow.
            _ = outlet.event(event);
        }
    }

    /// Ends the seat and its transport.
    pub fn let_go(&self) {
        self.vacate();
        self.cut();
    }

    /// Ends the seat and leaves the transport to the other namespaces on it.
    pub fn vacate(&self) {
        self.leave(self.lock());
    }

    fn leave(&self, mut stage: MutexGuard<'_, Stage>) {
        *stage = Stage::Gone;
        drop(stage);
        self.settled.notify_waiters();
    }

    fn cut(&self) {
        if let Some(transport) = &*self.carrier() {
            transport.cut();
        }
    }

    /// True until somebody claimed it.
    pub fn is_free(&self) -> bool {
        matches!(&*self.lock(), Stage::Waiting { taken: false, .. })
    }

    /// True when its transport has ended, whatever socketioxide says of it.
    pub fn is_cut_off(&self) -> bool {
        self.carrier().as_ref().is_some_and(Transport::is_closed)
    }

    /// The transport that it writes to, once it is known.
    pub fn transport(&self) -> Option<Transport> {
        self.carrier().clone()
    }

    fn answers(&self) -> MutexGuard<'_, Answers<Answer>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Stage> {
        // What is guarded is whole between any two statements.
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn carrier(&self) -> MutexGuard<'_, Option<Transport>> {
        self.transport.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
