//! Ends a process in which sled does not answer any more.
//!
//! On damaged files sled was seen to look for a leaf for ever, without a word and without an error: a read of a key whose
//! leaf is not there any more spins. The thread that does so holds what everybody else waits for, and nothing ends it but
//! the end of the process. So a thread of our own, which waits for nothing, looks whether those that are inside sled come
//! back, and if not, says why, marks the checkpoint, and exits: the next start rebuilds it.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use super::{Health, generation};

/// How long sled may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For one pair. What is read is one page at most, unless the disk is as good as gone.
    pub read: Duration,
    /// For a checkpoint, or a part of a snapshot.
    pub write: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { read: Duration::from_secs(20), write: Duration::from_secs(60) }
    }
}

/// Who exits on its account says so with this.
const EXIT_CODE: i32 = 1;

/// Counts the calls of one user of sled: odd while it is inside.
#[derive(Clone, Debug, Default)]
pub struct Pulse(Arc<AtomicU64>);

impl Pulse {
    pub fn within<T>(&self, call: impl FnOnce() -> T) -> T {
        self.0.fetch_add(1, Ordering::Relaxed);
        let done = call();
        self.0.fetch_add(1, Ordering::Relaxed);
        done
    }

    /// Inside, and getting on.
    pub fn step(&self) {
        self.0.fetch_add(2, Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Looks until the other end of `closed` is dropped.
pub fn run(dir: &Path, health: &Health, patience: Patience, closed: &Receiver<()>) {
    let tick = patience.read / 8;
    let mut users = [Watched::new(&health.reading, patience.read), Watched::new(&health.writing, patience.write)];
    while let Err(RecvTimeoutError::Timeout) = closed.recv_timeout(tick) {
        if let Some(stuck) = users.iter_mut().find_map(Watched::stuck) {
            let path = generation::current(dir).ok().flatten().unwrap_or_else(|| PathBuf::from(dir));
            health.damaged(&path, &format!("sled has not answered for {stuck:?}"));
            std::process::exit(EXIT_CODE);
        }
    }
}

struct Watched {
    pulse: Pulse,
    patience: Duration,
    seen: u64,
    since: Instant,
}

impl Watched {
    fn new(pulse: &Pulse, patience: Duration) -> Self {
        Self { pulse: pulse.clone(), patience, seen: pulse.now(), since: Instant::now() }
    }

    /// How long it has been inside one call, when that is too long.
    fn stuck(&mut self) -> Option<Duration> {
        let now = self.pulse.now();
        if now != self.seen || now.is_multiple_of(2) {
            (self.seen, self.since) = (now, Instant::now());
        }
        Some(self.since.elapsed()).filter(|inside| *inside >= self.patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_stays_inside_is_stuck() {
        let pulse = Pulse::default();
        let mut watched = Watched::new(&pulse, Duration::ZERO);
        watched.patience = Duration::from_millis(5);
        let late = Duration::from_millis(6);
        std::thread::sleep(late);
        assert_eq!(watched.stuck(), None, "outside");
        pulse.within(|| {
            assert_eq!(watched.stuck(), None, "it just came in");
            std::thread::sleep(late);
            pulse.step();
            assert_eq!(watched.stuck(), None, "it gets on");
            std::thread::sleep(late);
            assert!(watched.stuck().is_some());
        });
        assert_eq!(watched.stuck(), None, "it came back");
    }
}
