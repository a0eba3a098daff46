//! Signs of life of the other nodes, as this one sees them: what they send, and the end of their connections, which the
//! system of a process that was killed brings about at once.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::raft::NodeId;

/// The ends of one process's connections are noticed within that time.
const ONE_END: Duration = Duration::from_secs(1);

/// How long ago another node gave signs of life; `None` when never since this node's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signs {
    /// Anything came.
    pub heard: Option<Duration>,
    /// One of its connections ended. Shorter ago than `heard`: it seems to be gone.
    pub gone: Option<Duration>,
}

impl Signs {
    /// Whether its connections ended and nothing came since.
    pub fn is_gone(&self) -> bool {
        self.gone.is_some_and(|gone| self.heard.is_none_or(|heard| gone <= heard))
    }
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
        let now = Instant::now();
        let mut all = self.lock();
        let seen = all.entry(node).or_default();
        // The first of them is nearest to the process's end.
        let same = |gone: Instant| now - gone < ONE_END && seen.heard.is_none_or(|heard| heard < gone);
        if !seen.gone.is_some_and(same) {
            seen.gone = Some(now);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_one_process_are_one_sign_and_a_word_undoes_it() {
        let signs = AllSigns::default();
        signs.heard(1);
        assert!(!signs.of(1).is_gone());
        signs.gone(1);
        let first = signs.lock()[&1].gone;
        signs.gone(1);
        assert!(signs.of(1).is_gone() && signs.lock()[&1].gone == first);
        signs.heard(1);
        assert!(!signs.of(1).is_gone());
        signs.gone(1);
        assert!(signs.of(1).is_gone() && signs.lock()[&1].gone > first);
    }
}
