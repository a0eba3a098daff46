//! Who refuses this node, and whom it refuses.
//!
//! Neither ends by itself: a node of another cluster, or with another secret, goes on for as long as an operator lets it. What
//! always holds: a door that was shut is tried again less and less often, and soon enough for an operator who has mended what
//! was wrong; and of whoever knocks the log says so once in a while, not each time.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::Lane;
use crate::raft::NodeId;

/// Before the second try, and at most. Each pause is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// A refusal that is older is not what keeps a node away now.
const TELLING: Duration = Duration::from_secs(15);
/// Between two words about the same refusal.
const SAY_EVERY: Duration = Duration::from_secs(60);
/// Doors, and texts, that are remembered; past it all are forgotten.
const KNOWN_MAX: usize = 1024;

/// Where a node knocks: an address, whom it wants there, and what for.
pub(super) type Door = (String, Option<NodeId>, Lane);

#[derive(Default)]
pub(super) struct Refusals {
    by: Mutex<HashMap<Door, Refusal>>,
    said: Mutex<HashMap<String, Instant>>,
}

struct Refusal {
    why: String,
    at: Instant,
    pause: Duration,
}

impl Refusals {
    /// Why it is too early to knock there again, if it is.
    pub fn waits(&self, door: &Door) -> Option<String> {
        let by = lock(&self.by);
        let refusal = by.get(door)?;
        (refusal.at.elapsed() < refusal.pause).then(|| refusal.why.clone())
    }

    pub fn refused(&self, door: Door, why: &str) {
        let mut by = lock(&self.by);
        if by.len() >= KNOWN_MAX {
            by.clear();
        }
        let pause = by.get(&door).map_or(FIRST_PAUSE, |before| (before.pause * 2).min(LAST_PAUSE));
        by.insert(door, Refusal { why: why.to_owned(), at: Instant::now(), pause });
    }

    pub fn welcomed(&self, door: &Door) {
        lock(&self.by).remove(door);
    }

    /// The newest one that can still be what keeps this node away.
    pub fn newest(&self) -> Option<String> {
        let by = lock(&self.by);
        let newest = by.values().max_by_key(|refusal| refusal.at)?;
        (newest.at.elapsed() < TELLING).then(|| newest.why.clone())
    }

    /// Whether somebody who is refused for this is worth a word.
    pub fn is_news(&self, why: &str) -> bool {
        let mut said = lock(&self.said);
        if said.get(why).is_some_and(|at| at.elapsed() < SAY_EVERY) {
            return false;
        }
        if said.len() >= KNOWN_MAX {
            said.clear();
        }
        said.insert(why.to_owned(), Instant::now());
        true
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn door(addr: &str) -> Door {
        (addr.to_owned(), Some(7), Lane::Beat)
    }

    #[test]
    fn each_pause_is_longer_up_to_a_bound_and_a_welcome_ends_it() {
        let refusals = Refusals::default();
        assert_eq!(refusals.waits(&door("a")), None);
        let pauses: Vec<Duration> = (0..10)
            .map(|_| {
                refusals.refused(door("a"), "foreign");
                assert_eq!(refusals.waits(&door("a")).as_deref(), Some("foreign"));
                lock(&refusals.by)[&door("a")].pause
            })
            .collect();
        assert_eq!((pauses[0], pauses[1], pauses[9]), (FIRST_PAUSE, FIRST_PAUSE * 2, LAST_PAUSE));
        assert_eq!(refusals.waits(&door("b")), None);
        assert_eq!(refusals.newest().as_deref(), Some("foreign"));
        refusals.welcomed(&door("a"));
        assert_eq!((refusals.waits(&door("a")), refusals.newest()), (None, None));
    }

    #[test]
    fn the_same_word_is_said_once() {
        let refusals = Refusals::default();
        assert_eq!(["a", "b", "a", "b"].map(|why| refusals.is_news(why)), [true, true, false, false]);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let refusals = Refusals::default();
        for n in 0..3 * KNOWN_MAX {
            refusals.refused(door(&n.to_string()), "foreign");
            refusals.is_news(&n.to_string());
        }
        assert!(lock(&refusals.by).len() <= KNOWN_MAX && lock(&refusals.said).len() <= KNOWN_MAX);
    }
}
