//! What each follower has acknowledged to this leader, so that one whose log went back is noticed.
//!
//! openraft rests on it that a log never does: told of a conflict below what it knows as replicated, a leader asks the same
//! again for ever, and the follower waits for ever. What always holds: somebody is blamed only for entries that he had
//! acknowledged, to this very leader in this very term, before he was asked. A log that is shorter then is an older one.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::raft::{NodeId, Vote};

/// By follower; bounded by the ids that this process ever spoke to.
#[derive(Default)]
pub struct Acked(Mutex<HashMap<NodeId, Follower>>);

struct Follower {
    /// Of the leader that it answered.
    vote: Vote,
    index: u64,
    /// It denies an entry that it had acknowledged: this one.
    denies: Option<u64>,
}

impl Acked {
    /// The last entry that this follower has acknowledged to the leader of that vote. Others' no longer count: they may have
    /// been replaced.
    pub fn upto(&self, node: NodeId, vote: &Vote) -> Option<u64> {
        let mut followers = self.followers();
        let known = followers.get(&node)?;
        if known.vote != *vote {
            followers.remove(&node);
            return None;
        }
        Some(known.index)
    }

    pub fn acknowledged(&self, node: NodeId, vote: &Vote, index: u64) {
        let mut followers = self.followers();
        let known = followers.get(&node).filter(|follower| follower.vote == *vote).map_or(0, |known| known.index);
        followers.insert(node, Follower { vote: *vote, index: index.max(known), denies: None });
    }

    pub fn denied(&self, node: NodeId, index: u64) {
        if let Some(follower) = self.followers().get_mut(&node) {
            follower.denies = Some(index);
        }
    }

    /// The entry that this follower had acknowledged, and does not have, if so.
    pub fn denies(&self, node: NodeId) -> Option<u64> {
        self.followers().get(&node)?.denies
    }

    fn followers(&self) -> MutexGuard<'_, HashMap<NodeId, Follower>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_is_what_was_acknowledged_in_this_term() {
        let (acked, old, new) = (Acked::default(), Vote::new(1, 7), Vote::new(2, 7));
        assert_eq!(acked.upto(3, &old), None);
        acked.acknowledged(3, &old, 10);
        acked.acknowledged(3, &old, 9);
        assert_eq!((acked.upto(3, &old), acked.upto(4, &old)), (Some(10), None));
        acked.denied(3, 8);
        assert_eq!((acked.denies(3), acked.upto(3, &new), acked.denies(3)), (Some(8), None, None));
        acked.acknowledged(3, &new, 5);
        acked.denied(3, 5);
        acked.acknowledged(3, &new, 6);
        assert_eq!((acked.upto(3, &new), acked.denies(3)), (Some(6), None), "it has it again");
    }
}
