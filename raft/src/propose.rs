//! Proposals: from any node into the log, in order, once.
//!
//! ```text
//! propose(command, ticket) ─▶ queue ─▶ one batch in flight ─▶ leader ─▶ log ─▶ own apply ─▶ feed ─▶ ticket
//! ```
//!
//! What always holds:
//! - One batch of a node is in flight at a time; what arrives meanwhile makes up the next. So a batch's sequence is
//!   always one more than the last, and sending it again can do no harm: `apply` carries it out once.
//! - A ticket is answered exactly once: by the player, when it comes to the command, or with `unavailable`. After an
//!   `unavailable` the command may still take effect, unless it had not left the queue.
//! - A reply is the one that this node's own `apply` computed, so the proposer reads its own writes.
//! - When the node's incarnation is over, what it had queued is dropped, and it goes on under the next one.
//!
//! Why one in flight: openraft groups what several nodes propose by itself; a second batch in flight from one node gained
//! nothing on the leader and would bring the order of arrival into play.

mod queue;
mod ticket;

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU16, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use self::queue::Queue;
pub(crate) use self::ticket::Pending;
pub use self::{queue::TEXT_BYTES_MAX, ticket::Ticket};
use crate::{
    command::{Batch, Command, Incarnation},
    error::Error,
    level::{self, Level},
    observe::{Observation, Observed},
    state::{Outcome, Skipped},
};

/// How long a proposer waits before it hears `unavailable`.
pub const PROPOSAL_TIMEOUT: Duration = Duration::from_secs(5);

struct Flight {
    incarnation: Incarnation,
    sequence: u64,
    tickets: Vec<Ticket>,
    since: Instant,
}

/// How far this node's own batches have come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Landed {
    pub incarnation: Incarnation,
    pub sequence: u64,
    /// The incarnation is not live any more.
    pub over: bool,
}

/// What waits, what is in flight, and what has landed. Shared by those who propose, the task that sends, and apply.
pub struct Proposals {
    queue: Mutex<Queue>,
    arrived: Notify,
    flight: Mutex<Option<Flight>>,
    landed: watch::Sender<Landed>,
    incarnation: AtomicU64,
    /// Of the cluster: a command of a higher one is not taken.
    level: AtomicU16,
    pub(crate) observed: Observed,
}

impl Default for Proposals {
    fn default() -> Self {
        Self {
            queue: Mutex::new(Queue::refusing("this node has not started yet")),
            arrived: Notify::new(),
            flight: Mutex::default(),
            landed: watch::channel(Landed::default()).0,
            incarnation: AtomicU64::new(0),
            level: level::FIRST.into(),
            observed: Observed::default(),
        }
    }
}

impl Proposals {
    /// Names the incarnation under which this node proposes from now on.
    pub fn begin(&self, incarnation: Incarnation) {
        self.incarnation.store(incarnation, Ordering::Release);
    }

    /// The incarnation under which this node proposes; 0 before the first.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation.load(Ordering::Acquire)
    }

    /// Takes commands up to this level from now on.
    pub fn set_level(&self, level: Level) {
        self.level.store(level, Ordering::Relaxed);
    }

    /// Up to which level commands are taken.
    pub fn level(&self) -> Level {
        self.level.load(Ordering::Relaxed)
    }

    /// Queues a command. Past the bounds, or while there is no quorum to be had, the ticket hears `unavailable` at once.
    pub fn push(&self, command: Command, ticket: Ticket) {
        let level = self.level();
        let mut queue = lock(&self.queue);
        match queue.refusal(&command, level) {
            None => queue.push(command, ticket),
            Some(why) => {
                drop(queue);
                return ticket.answer(Err(why));
            }
        }
        drop(queue);
        self.arrived.notify_one();
    }

    /// Takes nothing in until [`Proposals::accept`], and answers `unavailable` to all that waits.
    pub fn refuse(&self, why: &str) {
        let waiting = lock(&self.queue).refuse(why);
        for ticket in waiting {
            ticket.answer(Err(Error::unavailable(why)));
        }
    }

    pub fn accept(&self) {
        lock(&self.queue).accept();
    }

    /// Ends it for good, once nobody sends and nobody watches the time any more: all who wait hear `unavailable`.
    pub fn close(&self, why: &str) {
        self.refuse(why);
        let flight = lock(&self.flight).take();
        drop(flight);
    }

    /// Waits for commands and makes the next batch of them. It is in flight from now on.
    pub async fn next_batch(&self, node: u64, after: Landed) -> Batch {
        loop {
            if let Some(batch) = self.try_batch(node, after) {
                return batch;
            }
            self.arrived.notified().await;
        }
    }

    fn try_batch(&self, node: u64, after: Landed) -> Option<Batch> {
        let (commands, tickets) = lock(&self.queue).pop_batch();
        (!commands.is_empty()).then(|| self.fly(node, after.incarnation, after.sequence + 1, commands, tickets))
    }

    /// Puts a batch in flight.
    pub fn fly(
        &self,
        node: u64,
        incarnation: Incarnation,
        sequence: u64,
        commands: Vec<Command>,
        tickets: Vec<Ticket>,
    ) -> Batch {
        self.observed.tell(Observation::Batch(commands.len()));
        let before = lock(&self.flight).replace(Flight { incarnation, sequence, tickets, since: Instant::now() });
        drop(before); // Outside the lock: whoever still waited for it hears `unavailable`.
        Batch { node, incarnation, sequence, stamp: 0, commands }
    }

    /// Answers `unavailable` to everyone who waited too long. A batch in flight stays in flight without them: until it
    /// has landed no other may follow it.
    pub fn time_out(&self, now: Instant) {
        let late = |since: Instant| now.saturating_duration_since(since) >= PROPOSAL_TIMEOUT;
        let mut dropped = lock(&self.queue).pop_late(late);
        if let Some(flight) = lock(&self.flight).as_mut().filter(|flight| late(flight.since)) {
            dropped.append(&mut flight.tickets);
        }
        for ticket in dropped {
            ticket.answer(Err(Error::unavailable("no quorum answered in time; the outcome is not known")));
        }
    }

    /// Apply came to a batch of this node: who waits for its commands, in order.
    pub fn land(&self, batch: &Batch, outcome: &Outcome) -> Vec<Ticket> {
        match outcome {
            Outcome::Applied(_) => {
                let landed = Landed { incarnation: batch.incarnation, sequence: batch.sequence, over: false };
                self.touch_down(landed)
            }
            Outcome::Skipped(Skipped::NotLive) => {
                self.end_incarnation(batch.incarnation);
                Vec::new()
            }
            // What flies has not landed: somebody else has used its number, a folder that was put back to an older state.
            Outcome::Skipped(Skipped::Repeated) if self.flies(batch) => {
                self.end_incarnation(batch.incarnation);
                Vec::new()
            }
            Outcome::Skipped(Skipped::Repeated | Skipped::TooEarly) => Vec::new(),
        }
    }

    fn flies(&self, batch: &Batch) -> bool {
        let is = |f: &Flight| f.incarnation == batch.incarnation && f.sequence == batch.sequence;
        lock(&self.flight).as_ref().is_some_and(is)
    }

    /// Whether this node lives, and that incarnation is a later one: then another process runs as this node.
    pub fn is_outlived_by(&self, incarnation: Incarnation) -> bool {
        self.lives() && incarnation > self.incarnation()
    }

    /// Whether the start of this incarnation has landed, and not its end.
    fn lives(&self) -> bool {
        let landed = *self.landed.borrow();
        landed.incarnation > 0 && landed.incarnation == self.incarnation() && !landed.over
    }

    /// A snapshot says how far this node's batches have come; what became of them one by one is not known any more. So one
    /// that lived starts again: sessions may be attached to it that nobody here knows of.
    pub fn jump(&self, incarnation: Incarnation, sequence: u64, live: bool) {
        let lived = self.lives();
        drop(self.touch_down(Landed { incarnation, sequence, over: false }));
        if lived || !live {
            self.end_incarnation(incarnation);
        }
    }

    fn touch_down(&self, landed: Landed) -> Vec<Ticket> {
        let mut flight = lock(&self.flight);
        let mine = |f: &Flight| f.incarnation == landed.incarnation && f.sequence <= landed.sequence;
        let landing = flight.take_if(|f| mine(f));
        drop(flight);
        self.landed.send_replace(landed);
        let Some(Flight { tickets, since, .. }) = landing else { return Vec::new() };
        self.observed.tell(Observation::Commit(since.elapsed()));
        tickets
    }

    /// The log says that an incarnation of this node is over.
    pub fn end_incarnation(&self, incarnation: Incarnation) {
        let flight = lock(&self.flight).take_if(|flight| flight.incarnation <= incarnation);
        drop(flight);
        self.landed.send_if_modified(|landed| {
            let news = landed.incarnation <= incarnation && !(landed.over && landed.incarnation == incarnation);
            if news {
                *landed = Landed { incarnation, sequence: landed.sequence, over: true };
            }
            news
        });
    }

    pub fn landed(&self) -> watch::Receiver<Landed> {
        self.landed.subscribe()
    }
}

/// Nothing panics while it holds one of these locks, and what they guard is whole between any two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
