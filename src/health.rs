//! Whether this node may get clients, and why not.
//!
//! What always holds: a node that cannot keep a promise (not in a cluster, without a quorum, behind, draining) is not
//! ready and says so; and a node that is not ready takes no new handshakes, so a client never waits behind a door that
//! the balancer would not have shown it. One that was cut off is not ready before it knows what became of it meanwhile: the
//! others may have declared it down, and then it has to start again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use moim_raft::{NodeId, Status, Store, clock::OFF_MAX_MS, divergence::KEEP};

/// Without a word of a leader with a quorum for so long a node is not ready. Longer than an election.
const SILENCE: Duration = Duration::from_millis(1500);
/// How often it is looked after a silence.
const LOOK: Duration = Duration::from_millis(50);
/// Committed entries that may wait to be applied.
const LAG: u64 = 1000;

/// Why a node is not ready: a word for balancers, a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotReady {
    pub word: &'static str,
    pub why: String,
}

/// The node's view of itself. Cheap to clone.
#[derive(Clone)]
pub struct Health(Arc<Inner>);

struct Inner {
    store: Store,
    draining: AtomicBool,
    stopping: AtomicBool,
    /// Namespaces are registered and the player runs.
    serving: AtomicBool,
    /// There was a silence, and what was committed meanwhile is not known here yet.
    returning: AtomicBool,
}

impl Health {
    pub fn new(store: Store) -> Self {
        let no = || AtomicBool::new(false);
        Self(Arc::new(Inner { store, draining: no(), stopping: no(), serving: no(), returning: no() }))
    }

    pub fn set_draining(&self, draining: bool) {
        self.0.draining.store(draining, Ordering::Relaxed);
    }

    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Relaxed)
    }

    pub fn set_stopping(&self) {
        self.0.stopping.store(true, Ordering::Relaxed);
    }

    pub fn set_serving(&self) {
        self.0.serving.store(true, Ordering::Relaxed);
    }

    /// Whether this process has ever been able to get clients.
    pub fn has_served(&self) -> bool {
        self.0.serving.load(Ordering::Relaxed)
    }

    /// Every reason, the most telling first; none when the node is ready.
    pub fn reasons(&self) -> Vec<NotReady> {
        let mut found = Vec::new();
        let mut say = |word, why: String| found.push(NotReady { word, why });
        if self.0.stopping.load(Ordering::Relaxed) {
            say("stopping", "this node is stopping".to_owned());
        }
        if self.is_draining() {
            say("draining", "this node is being taken out of service".to_owned());
        }
        let status = self.0.store.status();
        if !status.waiting.is_empty() {
            say("forming", status.waiting.clone());
        } else if !status.started || !self.has_served() {
            say("starting", starting(status.entering));
        }
        match status.silent_for {
            Some(silent) if silent < SILENCE && self.0.returning.load(Ordering::Relaxed) => {
                say("behind", "this node was cut off, and does not know yet what was committed meanwhile".to_owned());
            }
            Some(silent) if silent < SILENCE => {}
            silent => say("isolated", isolated(silent, status.refused)),
        }
        if let Some(off) = status.clock_off_ms.filter(|off| off.abs() > OFF_MAX_MS) {
            say("clock", wrong_clock(off));
        }
        if let Some(found) = status.diverged.filter(|found| found.wrong.contains(&status.node)) {
            say("diverged", wrong_state(found.index));
        }
        if let Some(why) = status.disk_full {
            say("disk", why);
        }
        let lag = status.committed.saturating_sub(status.applied);
        if lag > LAG {
            say("behind", format!("{lag} committed entries are not applied yet"));
        }
        found
    }

    /// Sees to it that a node that comes back from a silence is ready when it has caught up, and not before. Never ends.
    pub async fn watch(&self) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let returning = &self.0.returning;
        loop {
            look.tick().await;
            if self.silent_for().is_none_or(|silent| silent >= SILENCE) {
                returning.store(self.has_served(), Ordering::Relaxed);
            } else if returning.load(Ordering::Relaxed) && self.0.store.linearizable().await.is_ok() && self.is_live() {
                returning.store(false, Ordering::Relaxed);
            }
        }
    }

    /// Whether the cluster counts with this very start of the node.
    fn is_live(&self) -> bool {
        let store = &self.0.store;
        let known = store.read(|state| state.node(store.node()));
        known.is_some_and(|node| node.live && node.incarnation == store.incarnation())
    }

    pub fn check(&self) -> Result<(), &'static str> {
        self.reasons().first().map_or(Ok(()), |reason| Err(reason.word))
    }

    /// How long no leader with a quorum was heard; `None` when never since the start.
    pub fn silent_for(&self) -> Option<Duration> {
        self.0.store.status().silent_for
    }
}

/// Who leads, as long as it is heard: a node that was cut off remembers the one that led before.
pub fn leader(status: &Status) -> Option<NodeId> {
    status.leader.filter(|_| status.silent_for.is_some_and(|silent| silent < SILENCE))
}

fn starting(why: String) -> String {
    match why.is_empty() {
        true => "this node has not started in its cluster yet".to_owned(),
        false => format!("this node has not started in its cluster yet: {why}"),
    }
}

fn isolated(silent: Option<Duration>, refused: Option<String>) -> String {
    let heard = match silent {
        Some(silent) => format!("no leader with a quorum was heard for {} ms", silent.as_millis()),
        None => "no leader with a quorum was heard yet".to_owned(),
    };
    match refused {
        Some(why) => format!("{heard}; {why}"),
        None => heard,
    }
}

fn wrong_state(index: u64) -> String {
    format!("this node's state differs from that of the majority (compared at index {index}): {KEEP}")
}

fn wrong_clock(off_ms: i64) -> String {
    let (seconds, side) = (off_ms.unsigned_abs() / 1000, if off_ms > 0 { "ahead of" } else { "behind" });
    format!(
        "this node's wall clock is {seconds} s {side} the median of the voters, {} s are allowed: set it, and see that it is \
         kept (chrony, ntpd); then the node is ready again by itself",
        OFF_MAX_MS / 1000
    )
}
