//! Which wall clocks can be believed.
//!
//! The wall clock enters the log at one place, the stamp that a leader gives a batch, and from there it trims histories and
//! forgets message ids on all nodes. But operators and hypervisors move wall clocks. So each node compares its own with
//! those of the voters again and again; one that is wrong is not ready and does not lead.
//!
//! What always holds: the median decides, so one wrong clock never convicts the right ones, and two halves that disagree
//! convict nobody: a cluster is never left without a node that may lead. Between two comparisons a stamp follows the
//! monotonic clock from the last one: a jump does not reach the log, noticed or not.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

use crate::{
    command::{NodeId, Stamp},
    consensus::Consensus,
    net::{CallRequest, CallResponse, Peers},
    raft::Peer,
    store::Store,
};

/// A clock that is further off the median of the voters is wrong, in milliseconds.
pub const OFF_MAX_MS: i64 = 5000;
/// Between two comparisons, and while there was none yet.
const LOOK_EVERY: Duration = Duration::from_secs(2);
const FIRST_LOOK_EVERY: Duration = Duration::from_millis(200);
/// For one answer. Half of it is how wrong a comparison can be; it must be small against [`OFF_MAX_MS`].
const ANSWER_MAX: Duration = Duration::from_millis(500);

/// Milliseconds since the Unix epoch. The one place where this crate looks at a wall clock.
pub(crate) fn wall_clock() -> Stamp {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis().try_into().unwrap_or(Stamp::MAX))
}

/// One node's comparison of its clock with the others'.
pub(crate) struct Clock {
    node: NodeId,
    consensus: Consensus,
    peers: Arc<Peers>,
    verdict: Mutex<Option<Verdict>>,
}

/// What the last comparison that could tell found.
#[derive(Clone, Debug)]
struct Verdict {
    /// This node's clock less the median.
    off_ms: i64,
    /// Voters whose clocks are wrong.
    wrong: BTreeSet<NodeId>,
    /// The time at `at`: by this node's clock, or by the median when that one is wrong.
    time: Stamp,
    at: Instant,
}

impl Clock {
    pub fn new(node: NodeId, consensus: Consensus, peers: Arc<Peers>) -> Self {
        Self { node, consensus, peers, verdict: Mutex::default() }
    }

    /// How far this node's clock is ahead of the median of the voters, or behind it; `None` before that could be told.
    pub fn off_ms(&self) -> Option<i64> {
        self.verdict().as_ref().map(|verdict| verdict.off_ms)
    }

    /// Whether that voter's clock was found wrong.
    pub fn is_wrong(&self, voter: NodeId) -> bool {
        self.verdict().as_ref().is_some_and(|verdict| verdict.wrong.contains(&voter))
    }

    /// The time to stamp a batch with.
    pub fn stamp(&self) -> Stamp {
        match &*self.verdict() {
            Some(verdict) => verdict.time.saturating_add(millis(verdict.at.elapsed())),
            None => wall_clock(),
        }
    }

    /// Compares for ever. While this node's clock or its state is wrong it stands for no election and gives leadership away;
    /// one that was removed stands for none either.
    pub async fn run(&self, store: &Store) {
        loop {
            self.look().await;
            let off = self.off_ms();
            let fit = off.is_none_or(|off| off.abs() <= OFF_MAX_MS) && !store.is_wrong();
            self.consensus.raft.runtime_config().elect(fit && !store.is_removed());
            if !fit && self.consensus.leading_term().is_some() {
                tracing::warn!("leadership goes to a node whose clock and state are right");
                store.hand_over().await;
            }
            sleep(if off.is_some() { LOOK_EVERY } else { FIRST_LOOK_EVERY }).await;
        }
    }

    /// Compares once. What cannot be told leaves the last verdict as it was.
    pub async fn look(&self) {
        let voters = self.consensus.voters();
        let (at, own) = (Instant::now(), wall_clock());
        let asked = voters.iter().filter(|(id, _)| *id != self.node).map(|(id, peer)| self.ask(*id, peer, at));
        let mut clocks: Vec<(NodeId, i64)> = join_all(asked).await.into_iter().flatten().collect();
        if voters.iter().any(|(id, _)| *id == self.node) {
            clocks.push((self.node, signed(own)));
        }
        let Some(median) = median(voters.len(), clocks.iter().map(|(_, clock)| *clock).collect()) else { return };
        let is_wrong = |clock: i64| clock.saturating_sub(median).abs() > OFF_MAX_MS;
        let verdict = Verdict {
            off_ms: signed(own).saturating_sub(median),
            wrong: clocks.iter().filter(|(_, clock)| is_wrong(*clock)).map(|(id, _)| *id).collect(),
            time: if is_wrong(signed(own)) { median.unsigned_abs() } else { own },
            at,
        };
        self.say(&verdict);
        *self.verdict() = Some(verdict);
    }

    /// A voter's clock as it was at `since`, if it answers.
    async fn ask(&self, voter: NodeId, peer: &Peer, since: Instant) -> Option<(NodeId, i64)> {
        match self.peers.call(voter, &peer.addr, &CallRequest::Probe, ANSWER_MAX).await {
            // It looked at its clock half-way between the question and the answer, more or less.
            Ok(CallResponse::Probe(probed)) => {
                Some((voter, signed(probed.clock_ms.saturating_sub(millis(since.elapsed() / 2)))))
            }
            _ => None,
        }
    }

    fn say(&self, new: &Verdict) {
        let before = self.off_ms().is_some_and(|off| off.abs() > OFF_MAX_MS);
        match new.off_ms.abs() > OFF_MAX_MS {
            true if !before => tracing::warn!(off_ms = new.off_ms, "this node's wall clock is wrong"),
            false if before => tracing::info!(off_ms = new.off_ms, "this node's wall clock is right again"),
            _ => {}
        }
    }

    fn verdict(&self) -> MutexGuard<'_, Option<Verdict>> {
        self.verdict.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The median of the clocks of those voters that answered. `None` when they are no majority, or when two halves disagree
/// so much that it cannot be told which is right.
fn median(voters: usize, mut clocks: Vec<i64>) -> Option<i64> {
    if clocks.len() <= voters / 2 {
        return None;
    }
    clocks.sort_unstable();
    let (low, high) = (clocks[(clocks.len() - 1) / 2], clocks[clocks.len() / 2]);
    let apart = high.saturating_sub(low);
    (apart <= OFF_MAX_MS).then_some(low + apart / 2)
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis().try_into().unwrap_or(u64::MAX)
}

fn signed(stamp: Stamp) -> i64 {
    stamp.try_into().unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;

    #[test]
    fn one_wrong_clock_of_three_is_the_only_one_off_the_median() {
        for wrong in [HOUR, -HOUR, 24 * HOUR, -180_000, i64::MAX / 2] {
            let now = 50 * HOUR;
            assert_eq!(median(3, vec![now + wrong, now, now + 40]), Some(if wrong > 0 { now + 40 } else { now }));
        }
    }

    #[test]
    fn fewer_than_a_majority_says_nothing() {
        assert_eq!(median(0, vec![]), None);
        assert_eq!(median(3, vec![7]), None);
        assert_eq!(median(4, vec![7, 7]), None);
        assert_eq!(median(1, vec![7]), Some(7));
        assert_eq!(median(3, vec![7, 8]), Some(7));
    }

    #[test]
    fn two_halves_that_disagree_convict_nobody() {
        assert_eq!(median(3, vec![0, HOUR]), None);
        assert_eq!(median(5, vec![0, 0, HOUR, HOUR]), None);
        assert_eq!(median(5, vec![0, 0, 10, HOUR]), Some(5));
        // As far apart as is still right: both are within the bound of the middle.
        assert_eq!(median(2, vec![0, OFF_MAX_MS]), Some(OFF_MAX_MS / 2));
    }

    #[test]
    fn clocks_at_the_ends_of_time_do_not_overflow() {
        assert_eq!(median(3, vec![0, i64::MAX]), None);
        assert_eq!(median(3, vec![i64::MAX, i64::MAX]), Some(i64::MAX));
    }
}
