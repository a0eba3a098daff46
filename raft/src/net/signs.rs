//! Signs of life of the other nodes, as this one sees them: what they send, and the end of their connections, which the
//! system of a process that was killed brings about at once.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::raft::NodeId;

/// How long ago another node gave signs of life; `None` when never since this node's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signs {
    /// Anything came.
    pub heard: Option<Duration>,
    /// One of its connections ended. Shorter ago than `heard`: it seems to be gone.
    pub gone: Option<Duration>,
}

#[derive(Debug, Default)]
pub(super) struct AllSigns(Mutex<BTreeMap<NodeId, Seen>>);

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    heard: Option<Instant>,
    gone: Option<Instant>,
}

impl AllSigns {
    pub fn heard(&self, node: NodeId) {
        self.lock().entry(node).or_default().heard = Some(Instant::now());
    }

    pub fn gone(&self, node: NodeId) {
        self.lock().entry(node).or_default().gone = Some(Instant::now());
    }

    pub fn of(&self, node: NodeId) -> Signs {
        let seen = self.lock().get(&node).copied().unwrap_or_default();
        let ago = |at: Option<Instant>| at.map(|at| at.elapsed());
        Signs { heard: ago(seen.heard), gone: ago(seen.gone) }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Seen>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
