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

use std::{
    collections::VecDeque,
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

use crate::{
    command::{Batch, Command, Incarnation},
    error::Error,
    level::{self, Level},
    observe::{Observation, Observed},
    state::{Applied, Outcome, Skipped},
};

/// Commands of one batch; more wait for the next.
pub const BATCH_COMMANDS_MAX: usize = 1024;
/// Bytes of one batch, about; more wait for the next. A single command that is larger is refused: no batch can carry it,
/// and one that the leader does not take would hold up all that follow.
pub const BATCH_BYTES_MAX: usize = 1 << 20;
/// Commands that may wait in front of the batch in flight; past it a proposal is answered `unavailable` at once.
pub const QUEUE_COMMANDS_MAX: usize = 65_536;
/// Bytes that may wait, about; the same.
pub const QUEUE_BYTES_MAX: usize = 64 << 20;
/// How long a proposer waits before it hears `unavailable`.
pub const PROPOSAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Called with what became of a command.
type Answer = Box<dyn FnOnce(Result<&Applied, Error>) + Send>;

/// The one who waits for a command. Dropped without an answer, it says `unavailable`.
pub struct Ticket(Option<Answer>);

impl Ticket {
    pub fn new(answer: impl FnOnce(Result<&Applied, Error>) + Send + 'static) -> Self {
        Self(Some(Box::new(answer)))
    }

    /// For a command whose outcome nobody waits for.
    pub fn nobody() -> Self {
        Self(None)
    }

    pub fn answer(mut self, result: Result<&Applied, Error>) {
        if let Some(answer) = self.0.take() {
            answer(result);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(answer) = self.0.take() {
            answer(Err(Error::unavailable("the outcome is not known; try again")));
        }
    }
}

struct Proposal {
    command: Command,
    ticket: Ticket,
    since: Instant,
}

/// Two lanes, each in order. Sessions and the cluster's own commands go first into a batch, so that a returning client
/// does not wait behind a flood of messages; all commands of one client after its attachment are in one lane.
#[derive(Default)]
struct Queue {
    first: VecDeque<Proposal>,
    rest: VecDeque<Proposal>,
    bytes: usize,
    /// Why nothing is taken in, while that is so.
    refusing: Option<String>,
}

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
        let queue = Queue { refusing: Some("this node has not started yet".to_owned()), ..Queue::default() };
        Self {
            queue: Mutex::new(queue),
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

    /// Queues a command. Past the bounds, or while there is no quorum to be had, the ticket hears `unavailable` at once.
    pub fn push(&self, command: Command, ticket: Ticket) {
        let mut queue = lock(&self.queue);
        if size(&command) > BATCH_BYTES_MAX {
            drop(queue);
            let why = format!("a command of more than {BATCH_BYTES_MAX} bytes");
            return ticket.answer(Err(Error::refused(why)));
        }
        let level = self.level.load(Ordering::Relaxed);
        let refusal = match &queue.refusing {
            _ if command.level() > level => Some(format!(
                "the cluster is at level {level} until all of its nodes run a version that knows level {}",
                command.level()
            )),
            Some(why) => Some(why.clone()),
            None if queue.len() >= QUEUE_COMMANDS_MAX || queue.bytes >= QUEUE_BYTES_MAX => {
                Some("overloaded".to_owned())
            }
            None => None,
        };
        if let Some(why) = refusal {
            drop(queue);
            return ticket.answer(Err(Error::unavailable(why)));
        }
        queue.bytes += size(&command);
        let first = goes_first(&command);
        let proposal = Proposal { command, ticket, since: Instant::now() };
        if first {
            queue.first.push_back(proposal)
        } else {
            queue.rest.push_back(proposal)
        }
        drop(queue);
        self.arrived.notify_one();
    }

    /// Takes nothing in until [`Proposals::accept`], and answers `unavailable` to all that waits.
    pub fn refuse(&self, why: &str) {
        let mut queue = lock(&self.queue);
        queue.refusing = Some(why.to_owned());
        queue.bytes = 0;
        let waiting: Vec<Proposal> = std::mem::take(&mut queue.first).into_iter().chain(queue.rest.drain(..)).collect();
        drop(queue);
        for proposal in waiting {
            proposal.ticket.answer(Err(Error::unavailable(why)));
        }
    }

    pub fn accept(&self) {
        lock(&self.queue).refusing = None;
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
        let mut queue = lock(&self.queue);
        let (mut commands, mut tickets, mut bytes) = (Vec::new(), Vec::new(), 0);
        while commands.len() < BATCH_COMMANDS_MAX && bytes < BATCH_BYTES_MAX {
            let Some(proposal) = queue.pop() else { break };
            bytes += size(&proposal.command);
            commands.push(proposal.command);
            tickets.push(proposal.ticket);
        }
        drop(queue);
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
        let mut dropped = Vec::new();
        {
            let mut queue = lock(&self.queue);
            let Queue { first, rest, bytes, .. } = &mut *queue;
            for lane in [first, rest] {
                while lane.front().is_some_and(|proposal| late(proposal.since)) {
                    let proposal = lane.pop_front().expect("it was just looked at");
                    *bytes = bytes.saturating_sub(size(&proposal.command));
                    dropped.push(proposal.ticket);
                }
            }
        }
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
        let landed = *self.landed.borrow();
        let lives = landed.incarnation > 0 && landed.incarnation == self.incarnation() && !landed.over;
        lives && incarnation > landed.incarnation
    }

    /// A snapshot says how far this node's batches have come; what became of them one by one is not known any more.
    pub fn jump(&self, incarnation: Incarnation, sequence: u64, live: bool) {
        drop(self.touch_down(Landed { incarnation, sequence, over: false }));
        if !live {
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

impl Queue {
    fn len(&self) -> usize {
        self.first.len() + self.rest.len()
    }

    fn pop(&mut self) -> Option<Proposal> {
        let proposal = self.first.pop_front().or_else(|| self.rest.pop_front())?;
        self.bytes = self.bytes.saturating_sub(size(&proposal.command));
        Some(proposal)
    }
}

/// Everything but what a seated client sends. A client's own `disconnect()` stays behind its messages.
fn goes_first(command: &Command) -> bool {
    use Command::{Close, Enter, Exit, Join, Leave, Publish};
    !matches!(command, Join { .. } | Leave { .. } | Enter { .. } | Exit { .. } | Publish { .. } | Close(_))
}

/// About as many bytes as the command takes in a batch.
fn size(command: &Command) -> usize {
    const COMMAND_BYTES: usize = 96;
    COMMAND_BYTES
        + match command {
            Command::Publish { text, .. } => text.len(),
            Command::Lost(holders) | Command::Expire(holders) => holders.len() * 32,
            Command::Sweep(rooms) => rooms.iter().map(|(ns, room)| ns.as_str().len() + room.as_str().len()).sum(),
            Command::Offline(away) => away.iter().map(|a| a.ns.as_str().len() + a.user.as_str().len() + 16).sum(),
            _ => 0,
        }
}

/// Nothing panics while it holds one of these locks, and what they guard is whole between any two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex as StdMutex};

    use super::*;
    use crate::{
        command::{Holder, Room, Sid},
        state::State,
    };

    type Heard = Arc<StdMutex<Vec<String>>>;

    fn ticket(heard: &Heard, name: &str) -> Ticket {
        let (heard, name) = (heard.clone(), name.to_owned());
        Ticket::new(move |outcome| {
            let what = outcome.map_or_else(|e| format!("{name}: {e}"), |_| format!("{name}: done"));
            heard.lock().unwrap().push(what);
        })
    }

    fn say(text: String) -> Command {
        let by = Holder { sid: Sid::from_random([7; 16]), generation: 1 };
        Command::Publish { by, room: Room::new("r").unwrap(), text, mid: None }
    }

    fn live() -> (Proposals, Landed) {
        let proposals = Proposals::default();
        proposals.begin(1);
        proposals.accept();
        (proposals, Landed { incarnation: 1, sequence: 1, over: false })
    }

    #[test]
    fn sessions_go_first_and_the_rest_keeps_its_order() {
        let (proposals, after) = live();
        let lost = Command::Lost(Vec::new());
        for command in [say("1".into()), say("2".into()), lost.clone(), say("3".into())] {
            proposals.push(command, Ticket::nobody());
        }
        let batch = proposals.try_batch(9, after).unwrap();
        assert_eq!(batch.commands, [lost, say("1".into()), say("2".into()), say("3".into())]);
        assert_eq!((batch.incarnation, batch.sequence), (1, 2));
    }

    #[test]
    fn a_batch_is_bounded_by_commands_and_by_bytes() {
        let (proposals, after) = live();
        (0..BATCH_COMMANDS_MAX + 1).for_each(|_| proposals.push(say(String::new()), Ticket::nobody()));
        assert_eq!(proposals.try_batch(9, after).unwrap().commands.len(), BATCH_COMMANDS_MAX);
        assert_eq!(proposals.try_batch(9, after).unwrap().commands.len(), 1);
        (0..5).for_each(|_| proposals.push(say("x".repeat(BATCH_BYTES_MAX / 3)), Ticket::nobody()));
        assert_eq!(proposals.try_batch(9, after).unwrap().commands.len(), 3);
        assert_eq!(proposals.try_batch(9, after).unwrap().commands.len(), 2);
        assert_eq!(lock(&proposals.queue).bytes, 0);
    }

    #[test]
    fn past_a_bound_or_without_a_quorum_a_ticket_hears_so_at_once() {
        let (heard, (proposals, _)) = (Heard::default(), live());
        proposals.push(say("x".repeat(BATCH_BYTES_MAX)), ticket(&heard, "large"));
        (0..QUEUE_COMMANDS_MAX).for_each(|_| proposals.push(say(String::new()), Ticket::nobody()));
        proposals.push(say(String::new()), ticket(&heard, "one more"));
        proposals.refuse("no quorum");
        proposals.push(say(String::new()), ticket(&heard, "late"));
        let heard = heard.lock().unwrap();
        let expected = ["large: refused", "one more: unavailable: overloaded", "late: unavailable: no quorum"];
        assert!(heard.iter().zip(expected).all(|(heard, expected)| heard.starts_with(expected)), "{heard:?}");
        assert_eq!(heard.len(), 3);
    }

    #[test]
    fn a_command_above_the_clusters_level_waits_for_it() {
        let (heard, (proposals, after)) = (Heard::default(), live());
        proposals.set_level(0);
        proposals.push(say("early".into()), ticket(&heard, "early"));
        assert!(heard.lock().unwrap()[0].starts_with("early: unavailable: the cluster is at level 0 until all"));
        proposals.set_level(1);
        proposals.push(say("in time".into()), ticket(&heard, "in time"));
        assert_eq!(proposals.try_batch(9, after).unwrap().commands, [say("in time".into())]);
    }

    #[test]
    fn every_ticket_is_answered_whatever_ends_the_wait() {
        let (heard, (proposals, after)) = (Heard::default(), live());
        let names = |heard: &Heard| {
            let mut heard = heard.lock().unwrap();
            heard.drain(..).map(|what| what.split(':').next().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let fly_and_queue = |proposals: &Proposals| {
            proposals.push(say("1".into()), ticket(&heard, "flying"));
            proposals.try_batch(9, after).unwrap();
            proposals.push(say("2".into()), ticket(&heard, "waiting"));
        };
        fly_and_queue(&proposals);
        proposals.time_out(Instant::now() + PROPOSAL_TIMEOUT);
        assert_eq!(names(&heard), ["waiting", "flying"]);
        fly_and_queue(&proposals);
        proposals.end_incarnation(1);
        proposals.refuse("starting again");
        assert_eq!(names(&heard), ["flying", "waiting"]);
        proposals.accept();
        fly_and_queue(&proposals);
        proposals.close("stopping");
        assert_eq!(names(&heard), ["waiting", "flying"]);
        proposals.accept();
        fly_and_queue(&proposals);
        drop(proposals);
        assert_eq!(names(&heard).len(), 2);
    }

    #[test]
    fn a_landed_batch_gives_its_tickets_to_the_player_and_a_skipped_one_keeps_them() {
        let (heard, (proposals, after)) = (Heard::default(), live());
        proposals.push(say("1".into()), ticket(&heard, "one"));
        let batch = proposals.try_batch(9, after).unwrap();
        assert!(proposals.land(&batch, &Outcome::Skipped(Skipped::TooEarly)).is_empty());
        assert!(heard.lock().unwrap().is_empty());
        let tickets = proposals.land(&batch, &Outcome::Applied(Vec::new()));
        assert_eq!(tickets.len(), 1);
        assert_eq!(*proposals.landed().borrow(), Landed { incarnation: 1, sequence: 2, over: false });
        let started = Batch { sequence: 1, commands: vec![Command::Started(Default::default())], ..batch };
        let Outcome::Applied(applied) = State::default().apply(&started) else { panic!("a first start counts") };
        tickets.into_iter().for_each(|ticket| ticket.answer(Ok(&applied[0])));
        // It was sent twice.
        assert!(proposals.land(&batch, &Outcome::Skipped(Skipped::Repeated)).is_empty());
        assert!(!proposals.landed().borrow().over);
        assert_eq!(*heard.lock().unwrap(), ["one: done"]);
    }

    #[test]
    fn a_number_that_was_used_before_ends_the_incarnation_and_a_later_one_is_somebody_else() {
        let (heard, (proposals, _)) = (Heard::default(), live());
        let started = vec![Command::Started(Default::default())];
        let batch = proposals.fly(9, 1, 1, started, vec![ticket(&heard, "one")]);
        assert!(proposals.land(&batch, &Outcome::Skipped(Skipped::Repeated)).is_empty());
        assert!(proposals.landed().borrow().over, "it would be sent again for ever");
        assert_eq!(heard.lock().unwrap().len(), 1);

        proposals.begin(2);
        assert!(!proposals.is_outlived_by(3), "not before it lives");
        let batch = proposals.fly(9, 2, 1, Vec::new(), Vec::new());
        proposals.land(&batch, &Outcome::Applied(Vec::new()));
        assert!(proposals.is_outlived_by(3) && !proposals.is_outlived_by(2));
        proposals.end_incarnation(2);
        assert!(!proposals.is_outlived_by(3), "it is the next of its own");
    }

    #[test]
    fn what_is_said_of_an_earlier_incarnation_does_not_end_this_one() {
        let (heard, (proposals, _)) = (Heard::default(), live());
        proposals.begin(5);
        proposals.fly(9, 5, 1, vec![say("1".into())], vec![ticket(&heard, "one")]);
        proposals.end_incarnation(4);
        assert!(heard.lock().unwrap().is_empty());
        let landed = *proposals.landed().borrow();
        assert!(landed.over && landed.incarnation == 4);
        proposals.end_incarnation(5);
        assert_eq!(heard.lock().unwrap().len(), 1);
        assert!(proposals.landed().borrow().over);
    }
}
