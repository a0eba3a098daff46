//! Snapshots on their way to other nodes: how fast they may go together, up to where the log waits for them, and whether their
//! file is in doubt.
//!
//! A node that installs a snapshot goes on from its end with the log. So while one is on its way, and a moment longer (a broken
//! link is tried again, and openraft learns of its arrival a little after us), [`Transfers::oldest`] says what must not be purged.
//!
//! What always holds: tries to one node that follow each other within that moment are one transfer, which began with the first
//! of them. So a node at which none ever arrives is waited for no longer than one at which the first takes as long.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use crate::raft::NodeId;

/// Bytes a second that all snapshots of a node may take together: a link of one gigabit, and a disk, have room beside it.
pub const BYTES_PER_SECOND: u64 = 50 << 20;
/// How long a transfer counts after its end.
const LINGER: Duration = Duration::from_secs(10);

/// All transfers that this node sends.
#[derive(Default)]
pub struct Transfers(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    all: Vec<Transfer>,
    count: u64,
    /// Until when what was sent takes the bandwidth.
    busy: Option<Instant>,
    /// The last index that a snapshot covers of which the file may be damaged.
    doubted: Option<u64>,
}

struct Transfer {
    number: u64,
    target: NodeId,
    /// The last index that the snapshot covers.
    index: u64,
    /// When the first of its tries did.
    began: Instant,
    ended: Option<Instant>,
    arrived: bool,
}

/// One that is going on; dropped at its end, whatever that is.
pub struct Running {
    transfers: Arc<Transfers>,
    number: u64,
}

impl Transfers {
    pub fn begin(self: &Arc<Self>, target: NodeId, index: u64) -> Running {
        let number = self.lock().begin(target, index, Instant::now());
        Running { transfers: Arc::clone(self), number }
    }

    /// The lowest index of the snapshots that are on their way, or were a moment ago; not of those that take longer than
    /// `patience`.
    pub fn oldest(&self, patience: Duration) -> Option<u64> {
        self.lock().oldest(patience, Instant::now())
    }

    /// The last index that a snapshot covers which somebody did not take, although all of it had arrived. Asked once: it is
    /// for whoever asks to look at the file.
    pub fn take_doubted(&self) -> Option<u64> {
        self.lock().doubted.take()
    }

    /// Waits until so many bytes more may be sent.
    pub async fn pace(&self, bytes: u64) {
        let at = self.lock().slot(bytes, Instant::now());
        sleep_until(at).await;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Takes the place of the tries before it, if they are one transfer. Its number.
    fn begin(&mut self, target: NodeId, index: u64, now: Instant) -> u64 {
        self.forget(now);
        let tries = self.all.extract_if(.., |transfer| transfer.target == target && !transfer.arrived);
        let began = tries.map(|transfer| transfer.began).min().unwrap_or(now);
        self.count += 1;
        self.all.push(Transfer { number: self.count, target, index, began, ended: None, arrived: false });
        self.count
    }

    fn end(&mut self, number: u64, now: Instant) {
        if let Some(transfer) = self.numbered(number) {
            transfer.ended = Some(now);
        }
    }

    /// `None` once another try has taken its place.
    fn numbered(&mut self, number: u64) -> Option<&mut Transfer> {
        self.all.iter_mut().find(|transfer| transfer.number == number)
    }

    fn forget(&mut self, now: Instant) {
        self.all.retain(|transfer| transfer.ended.is_none_or(|at| now.duration_since(at) < LINGER));
    }

    fn oldest(&mut self, patience: Duration, now: Instant) -> Option<u64> {
        self.forget(now);
        let counts = |transfer: &&Transfer| now.duration_since(transfer.began) < patience;
        self.all.iter().filter(counts).map(|transfer| transfer.index).min()
    }

    /// When so many bytes may go; they take the time after it.
    fn slot(&mut self, bytes: u64, now: Instant) -> Instant {
        let at = self.busy.map_or(now, |busy| busy.max(now));
        self.busy = Some(at + Duration::from_secs_f64(bytes as f64 / BYTES_PER_SECOND as f64));
        at
    }
}

impl Running {
    /// The next one to this node is another.
    pub fn arrived(self) {
        if let Some(transfer) = self.transfers.lock().numbered(self.number) {
            transfer.arrived = true;
        }
    }

    /// Its file may be damaged.
    pub fn doubted(self) {
        let mut all = self.transfers.lock();
        if let Some(index) = all.numbered(self.number).map(|transfer| transfer.index) {
            all.doubted = Some(index);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.transfers.lock().end(self.number, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn what_was_sent_a_moment_ago_still_counts() {
        let transfers = Arc::new(Transfers::default());
        let (old, _new) = (transfers.begin(1, 7), transfers.begin(2, 9));
        assert_eq!(transfers.oldest(HOUR), Some(7));
        drop(old);
        let now = Instant::now();
        let at = |patience, now| transfers.lock().oldest(patience, now);
        assert_eq!(at(HOUR, now + LINGER / 2), Some(7));
        assert_eq!(at(HOUR, now + LINGER * 3 / 2), Some(9));
        assert_eq!(at(LINGER, now + LINGER * 3 / 2), None, "it takes too long");
    }

    #[test]
    fn tries_that_follow_each_other_are_one_transfer_until_one_arrives() {
        let (mut inner, began) = (Inner::default(), Instant::now());
        let mut now = began;
        let patience = LINGER * 10;
        while now.duration_since(began) < patience {
            let number = inner.begin(1, 7, now);
            assert_eq!(inner.oldest(patience, now), Some(7));
            now += LINGER / 3;
            inner.end(number, now);
            now += LINGER / 3;
        }
        let number = inner.begin(1, 7, now);
        assert_eq!(inner.oldest(patience, now), None, "it was tried for long enough");
        let other = inner.begin(2, 8, now);
        assert_eq!(inner.oldest(patience, now), Some(8), "one to another node is another");
        inner.end(other, now);

        inner.numbered(number).unwrap().arrived = true;
        inner.end(number, now);
        let number = inner.begin(1, 9, now + LINGER / 2);
        assert_eq!(inner.oldest(patience, now + LINGER * 2), Some(9), "the one before has arrived");
        inner.end(number, now + LINGER * 2);
        let later = now + LINGER * 4;
        inner.begin(1, 10, later);
        assert_eq!(inner.oldest(patience, later + patience - LINGER), Some(10), "the one before is long over");
    }

    #[test]
    fn a_doubt_is_told_once() {
        let transfers = Arc::new(Transfers::default());
        transfers.begin(1, 7).arrived();
        assert_eq!(transfers.take_doubted(), None);
        transfers.begin(1, 8).doubted();
        drop(transfers.begin(1, 9));
        assert_eq!((transfers.take_doubted(), transfers.take_doubted()), (Some(8), None));
    }

    #[test]
    fn all_together_keep_to_the_bandwidth() {
        let mut inner = Inner::default();
        let began = Instant::now();
        let last = (0..200).map(|_| inner.slot(1 << 20, began)).last().unwrap();
        let seconds = (last - began).as_secs_f64();
        assert!((3.9..4.0).contains(&seconds), "200 MiB took {seconds} s");
        let later = last + HOUR;
        assert_eq!(inner.slot(1, later), later, "what was not used is not saved up");
    }
}
