//! Taking a node out of service: nobody loses an answer, and only one node at a time.
//!
//! ```text
//! not ready ─▶ token ─▶ leadership handed over ─▶ the balancer notices (drain.delay)
//!           ─▶ what passes through this node to others is let go
//!           ─▶ transports closed one by one over drain.window, each after its queue is empty and its acks are written;
//!              first those that come through another node, which may be the next to be restarted
//!           ─▶ the losses are in the log
//! ```
//!
//! A drain that is *asked for* is refused when another node has the cluster's one drain token, or when the quorum would be
//! lost. A *signal* is never refused: without the token the node does the same.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use moim_raft::{
    Store,
    command::{Command, Refusal, Reply},
};
use tokio::{
    task::{JoinHandle, JoinSet},
    time::Instant,
};
use tokio_util::task::TaskTracker;

use crate::{
    chat::{Chat, event},
    client::{Relay, Transport},
    config,
    health::Health,
    seat::Seat,
};

/// How long one socket may take to come to rest; then it is closed all the same, and its client recovers.
const REST: Duration = Duration::from_secs(2);
/// How long a node that was told to stop waits for the token. It is not needed, only good to have.
const TOKEN: Duration = Duration::from_secs(1);
/// Without a quorum for so long a node that stops has nobody left to tell. Longer than an election.
const ALONE: Duration = Duration::from_millis(1500);
/// Pause between two looks for seats that came during the drain.
const LOOK: Duration = Duration::from_millis(50);

/// Why a drain was refused; the text says what to do.
#[derive(Debug)]
pub struct Refused(pub String);

/// Drains this node, and takes it back into service.
pub struct Drain {
    pub chat: Chat,
    pub relay: Relay,
    pub health: Health,
    pub settings: config::Drain,
    pub tasks: TaskTracker,
    /// The process was told to stop: this drain is not taken back any more.
    pub stopping: AtomicBool,
}

impl Drain {
    fn store(&self) -> &Store {
        &self.chat.store
    }

    /// Starts a drain that an operator asked for; it goes on by itself. `others_ready` says how many of the other voters
    /// are ready now; `force` takes the token from another node that has it.
    ///
    /// # Errors
    /// With the reason, when it would not be safe.
    pub async fn ask(self: &Arc<Self>, others_ready: usize, force: bool) -> Result<(), Refused> {
        if self.health.is_draining() {
            return Ok(());
        }
        let me = self.store().node();
        // The log decides who gets the token; this is only the more telling reason.
        if let Some(held) = self.store().read(|state| state.drain()).filter(|held| held.node != me && !force) {
            return Err(Refused(self.held_by(held.node)));
        }
        let voters = self.store().status().voters.len();
        let quorum = voters / 2 + 1;
        if others_ready < quorum {
            return Err(Refused(format!(
                "without this node {others_ready} of {voters} voters would be ready, and {quorum} are needed: \
                 bring the others back first"
            )));
        }
        let taken = self.store().call(Command::TakeDrain { force }).await;
        match taken.map(|applied| applied.reply) {
            Ok(Reply::Refused(Refusal::DrainHeld(node))) => return Err(Refused(self.held_by(node))),
            Ok(_) => {}
            Err(e) => return Err(Refused(format!("the drain token cannot be had: {e}"))),
        }
        self.health.set_draining(true);
        let drain = self.clone();
        self.spawn(async move { drain.empty().await });
        Ok(())
    }

    /// What must not be left half done when whoever asked for it goes away. `None` when the node's stop ended it.
    pub fn spawn<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> JoinHandle<Option<T>> {
        self.tasks.spawn(self.chat.stopping.clone().run_until_cancelled_owned(work))
    }

    /// Waits, once the node stops, until nothing of this is left.
    pub async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn held_by(&self, node: u64) -> String {
        let name = self.store().read(|state| state.node(node)).map_or("another node".to_owned(), |n| n.info.name);
        format!("{name} is being drained; wait until it is back, or undrain it")
    }

    /// Takes the node back into service. Transports that are not closed yet stay.
    ///
    /// # Errors
    /// When the process was told to stop, or the log does not take it.
    pub async fn undo(&self) -> Result<(), Refused> {
        if self.stopping.load(Ordering::Relaxed) {
            return Err(Refused("this node was told to stop; start it again when it has".to_owned()));
        }
        let ended = self.store().call(self.store().undrain(self.store().incarnation())).await;
        ended.map_err(|e| Refused(format!("the drain token could not be given back: {e}")))?;
        self.health.set_draining(false);
        Ok(())
    }

    /// The drain of a node that was told to stop: the same, token or not.
    pub async fn for_stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        if !self.health.is_draining() {
            self.health.set_draining(true);
            if tokio::time::timeout(TOKEN, self.store().call(Command::TakeDrain { force: false })).await.is_err() {
                tracing::warn!("stopping without the drain token");
            }
        }
        tokio::select! {
            biased;
            () = self.alone() => match self.health.has_served() {
                true => tracing::warn!("stopping without a quorum: the next start says which sessions were lost"),
                false => tracing::info!("stopping before this node has served anybody"),
            },
            () = self.empty() => {}
        }
    }

    /// Comes true when this node has no transport left, and no quorum. Nothing gets into the log then, and nothing has to:
    /// the start of a node's next incarnation is the loss of all that was on it. So that a stop of all nodes is quick.
    async fn alone(&self) {
        let silent = || self.health.silent_for().is_none_or(|silent| silent >= ALONE);
        while !(silent() && self.chat.transports.is_empty()) {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Hands leadership over and closes every transport.
    async fn empty(&self) {
        self.store().hand_over().await;
        let until = Instant::now() + self.settings.delay;
        while Instant::now() < until && !self.chat.transports.is_empty() {
            tokio::time::sleep(LOOK.min(self.settings.delay)).await;
        }
        self.close_all().await;
        self.chat.losses.settled().await;
    }

    /// False once the node was taken back into service: what comes from then on stays.
    fn goes_on(&self) -> bool {
        self.health.is_draining() || self.stopping.load(Ordering::Relaxed)
    }

    async fn close_all(&self) {
        let (mut closing, mut begun) = (JoinSet::new(), HashSet::new());
        // Once each: a client is told once, however long it takes to be closed.
        let mut begin = |transport: Transport, seats| {
            if begun.insert(transport.id()) {
                closing.spawn(close(transport, seats));
            }
        };
        let mut transports = self.chat.seats.transports();
        transports.retain(|(transport, _)| !transport.is_closed());
        let passing = self.relay.websockets();
        tracing::info!(transports = transports.len(), passing, "draining");
        shuffle(&mut transports);
        transports.sort_by_key(|(transport, _)| !transport.is_relayed());
        let mut moments = moments(self.settings.window, transports.len() + passing);
        self.relay.leave(&mut moments).await;
        for ((transport, seats), moment) in transports.into_iter().zip(moments) {
            tokio::select! {
                biased;
                () = transport.closed() => continue,
                () = tokio::time::sleep_until(moment) => {}
            }
            if !self.goes_on() {
                break;
            }
            begin(transport, seats);
        }
        // Those whose CONNECT was on its way when the drain began.
        while self.goes_on() && !self.chat.seats.is_empty() {
            for (transport, seats) in self.chat.seats.transports() {
                begin(transport, seats);
            }
            tokio::time::sleep(LOOK).await;
        }
        while closing.join_next().await.is_some() {}
        self.pass_out().await;
    }

    /// Until nothing passes through this node any more. What still comes is what the balancer has not noticed yet, or
    /// never does: the clients of a node that is only drained poll through it for as long as they are sent to it.
    async fn pass_out(&self) {
        let until = Instant::now() + self.settings.delay + REST;
        while self.goes_on() && !self.relay.is_empty() && Instant::now() < until {
            self.relay.leave(std::iter::repeat_with(Instant::now)).await;
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Closes one transport when all that its client sent was answered, and all that is due to it was written.
pub async fn close(transport: Transport, seats: Vec<Arc<Seat>>) {
    let notice = event::drain(LOOK);
    for seat in &seats {
        seat.notice(&notice);
    }
    // Held until the transport is closed: what the client sends meanwhile is not begun, so its outcome is no riddle.
    let mut quiet = Vec::new();
    let rest = async {
        for seat in &seats {
            quiet.push(seat.quiet().await);
        }
        transport.drained(0).await;
    };
    if tokio::time::timeout(REST, rest).await.is_err() {
        tracing::debug!(peer = %transport.peer(), "did not come to rest in time");
    }
    transport.close_gently().await;
}

/// When transports are closed: the first at once, each other at some moment of its share of the window. Should there be more of
/// them than `count`, the rest at its end.
fn moments(window: Duration, count: usize) -> impl Iterator<Item = Instant> {
    let (begin, share) = (Instant::now(), window / count.max(1) as u32);
    let within = move |nth: u32| share * nth + share.mul_f64(f64::from(random_u32()) / f64::from(u32::MAX));
    std::iter::once(begin).chain((0..).map(move |nth| begin + within(nth).min(window)))
}

fn shuffle<T>(items: &mut [T]) {
    for last in (1..items.len()).rev() {
        items.swap(last, random_u32() as usize % (last + 1));
    }
}

fn random_u32() -> u32 {
    // A poor number is as good here; without a generator the order is simply not shuffled.
    getrandom::u32().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transports_are_closed_one_after_another_within_the_window() {
        let (window, count) = (Duration::from_secs(10), 5);
        let all: Vec<Instant> = moments(window, count).take(count + 3).collect();
        assert!(all.is_sorted() && all[0] <= Instant::now(), "the first is not kept waiting");
        assert!(all[count - 1] - all[0] <= window / 5 * 4, "and whoever is last has its share of time left");
        assert_eq!(all[count + 2] - all[0], window, "more than were counted do not make it longer");
    }
}
