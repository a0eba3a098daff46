//! Whether all nodes have the same state.
//!
//! They must: each applies the same log. A flipped bit in memory, a checkpoint that was tampered with, a bug that lets chance
//! into `apply`: such a thing shows nowhere else until two clients tell different stories. So every node asks the others
//! for their newest state hashes again and again, and compares at the highest index that most of them know.
//!
//! What always holds: the majority decides. A node whose state differs from that of the majority is *wrong*: it is not ready
//! and does not lead. Where no majority agrees nobody is convicted, because a cluster is never left without a node; but
//! everybody raises the alarm.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{sync::watch, time::sleep};

use crate::{
    command::NodeId,
    consensus::Consensus,
    machine::Replica,
    net::{CallRequest, CallResponse, Peers},
};

/// Between two comparisons, and while none could be made yet.
const COMPARE_EVERY: Duration = Duration::from_secs(5);
const FIRST_COMPARE_EVERY: Duration = Duration::from_secs(1);
/// For one answer. A node that takes longer is not compared this time.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// What to do with a node that the majority contradicts. A majority that was put back from an old copy is wrong itself.
pub const KEEP: &str = "stop it and keep its data folder: move it aside, do not delete it, because it may hold what was \
     acknowledged and the others lack. When it is clear that they lack nothing, start the node with an empty folder, so that \
     it joins as a new one";

/// State hashes by applied index, oldest first.
pub(crate) type Hashes = Vec<(u64, u128)>;

/// Nodes that should have one state, and have several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// The applied index at which they were compared.
    pub index: u64,
    pub hashes: BTreeMap<NodeId, u128>,
    /// Those that the majority contradicts; empty when there is none.
    pub wrong: BTreeSet<NodeId>,
}

/// One node's comparison of its state with the others'.
pub(crate) struct Comparison {
    node: NodeId,
    consensus: Consensus,
    peers: Arc<Peers>,
    replica: Arc<Replica>,
    found: watch::Sender<Option<Divergence>>,
}

impl Comparison {
    pub fn new(node: NodeId, consensus: Consensus, peers: Arc<Peers>, replica: Arc<Replica>) -> Self {
        Self { node, consensus, peers, replica, found: watch::Sender::new(None) }
    }

    /// What the last comparison found; `None` when all was well.
    pub fn found(&self) -> Option<Divergence> {
        self.found.borrow().clone()
    }

    /// Whether the majority contradicts that node.
    pub fn is_wrong(&self, node: NodeId) -> bool {
        self.found.borrow().as_ref().is_some_and(|found| found.wrong.contains(&node))
    }

    /// Compares for ever.
    pub async fn run(&self) {
        loop {
            let compared = self.look().await;
            sleep(if compared { COMPARE_EVERY } else { FIRST_COMPARE_EVERY }).await;
        }
    }

    /// Compares once; false when there was nobody to compare with, which leaves the last verdict as it was.
    async fn look(&self) -> bool {
        let members = self.consensus.members();
        let asked = members.iter().filter(|(id, _)| *id != self.node).map(|(id, peer)| async move {
            match self.peers.call(*id, &peer.addr, &CallRequest::Hashes, ANSWER_MAX).await {
                Ok(CallResponse::Hashes(hashes)) => Some((*id, hashes)),
                _ => None,
            }
        });
        let mut known: BTreeMap<NodeId, Hashes> = join_all(asked).await.into_iter().flatten().collect();
        // Last: what the others have applied meanwhile, this node may have, too.
        known.insert(self.node, self.replica.hashes());
        let Some((index, hashes)) = common(&known) else { return false };
        let verdict = compare(index, hashes, self.found().as_ref());
        self.note(verdict);
        true
    }

    fn note(&self, now: Option<Divergence>) {
        let before = self.found.send_replace(now.clone());
        match (before, now) {
            (before, Some(now)) if before.as_ref().is_none_or(|before| before.wrong != now.wrong) => {
                tracing::error!(index = now.index, "{}", say(&now, |id| self.name(id)));
            }
            (Some(_), None) => tracing::warn!("all nodes that answer have the same state again"),
            _ => {}
        }
    }

    fn name(&self, id: NodeId) -> String {
        self.consensus.peer(id).map_or_else(|| format!("{id:016x}"), |peer| peer.name)
    }
}

/// The highest index that as many nodes as possible know, and their hashes there; `None` when no two know the same.
fn common(known: &BTreeMap<NodeId, Hashes>) -> Option<(u64, BTreeMap<NodeId, u128>)> {
    let mut at: BTreeMap<u64, BTreeMap<NodeId, u128>> = BTreeMap::new();
    for (node, hashes) in known {
        for (index, hash) in hashes {
            at.entry(*index).or_default().insert(*node, *hash);
        }
    }
    at.into_iter().filter(|(_, hashes)| hashes.len() > 1).max_by_key(|(index, hashes)| (hashes.len(), *index))
}

/// The verdict on hashes of one index. Where they have no majority, an earlier conviction of one of these nodes stands.
fn compare(index: u64, hashes: BTreeMap<NodeId, u128>, before: Option<&Divergence>) -> Option<Divergence> {
    let mut votes: BTreeMap<u128, usize> = BTreeMap::new();
    hashes.values().for_each(|hash| *votes.entry(*hash).or_default() += 1);
    if votes.len() == 1 {
        return None;
    }
    let right = votes.into_iter().find(|(_, count)| *count > hashes.len() / 2).map(|(hash, _)| hash);
    let is_wrong = |(id, hash): (&NodeId, &u128)| match right {
        Some(right) => *hash != right,
        None => before.is_some_and(|before| before.wrong.contains(id)),
    };
    let wrong = hashes.iter().filter(|(id, hash)| is_wrong((id, hash))).map(|(id, _)| *id).collect();
    Some(Divergence { index, hashes, wrong })
}

fn say(found: &Divergence, name: impl Fn(NodeId) -> String) -> String {
    let names = |ids: Vec<NodeId>| ids.into_iter().map(&name).collect::<Vec<_>>().join(", ");
    match found.wrong.is_empty() {
        true => format!(
            "the states of {} differ, and no majority says which is right: compare what they know of rooms and sessions, and \
             replace the node that is wrong",
            names(found.hashes.keys().copied().collect())
        ),
        false => format!(
            "the state of {} differs from that of the majority: {KEEP}",
            names(found.wrong.iter().copied().collect())
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(known: &[(NodeId, &[(u64, u128)])], before: Option<&Divergence>) -> Option<Option<Divergence>> {
        let known = known.iter().map(|(id, hashes)| (*id, hashes.to_vec())).collect();
        common(&known).map(|(index, hashes)| compare(index, hashes, before))
    }

    fn wrong(known: &[(NodeId, &[(u64, u128)])]) -> Vec<NodeId> {
        let found = verdict(known, None).expect("comparable").expect("they differ");
        found.wrong.into_iter().collect()
    }

    #[test]
    fn the_odd_one_of_three_is_wrong_wherever_it_is() {
        assert_eq!(wrong(&[(1, &[(7, 10)]), (2, &[(7, 10)]), (3, &[(7, 99)])]), [3]);
        assert_eq!(wrong(&[(1, &[(7, 99)]), (2, &[(7, 10)]), (3, &[(7, 10)])]), [1]);
        assert_eq!(wrong(&[(1, &[(7, 1)]), (2, &[(7, 1)]), (3, &[(7, 1)]), (4, &[(7, 2)]), (5, &[(7, 3)])]), [4, 5]);
    }

    #[test]
    fn who_is_wrong_is_told_to_keep_the_folder_first() {
        let found = verdict(&[(1, &[(7, 10)]), (2, &[(7, 10)]), (3, &[(7, 99)])], None).unwrap().unwrap();
        let text = say(&found, |id| format!("n{id}"));
        assert!(text.starts_with("the state of n3 differs from that of the majority: stop it and keep"), "{text}");
        assert!(text.find("do not delete").unwrap() < text.find("empty folder").unwrap(), "{text}");
    }

    #[test]
    fn without_a_majority_the_alarm_is_raised_and_nobody_convicted() {
        assert!(wrong(&[(1, &[(7, 10)]), (2, &[(7, 99)])]).is_empty());
        assert!(wrong(&[(1, &[(7, 1)]), (2, &[(7, 2)]), (3, &[(7, 3)])]).is_empty());
        // But who was convicted before stays so while one of the majority is away.
        let before = verdict(&[(1, &[(7, 1)]), (2, &[(7, 1)]), (3, &[(7, 2)])], None).unwrap();
        let later = verdict(&[(1, &[(8, 1)]), (3, &[(8, 2)])], before.as_ref()).unwrap().unwrap();
        assert_eq!(later.wrong, BTreeSet::from([3]));
    }

    #[test]
    fn equal_states_and_those_that_cannot_be_compared_are_no_alarm() {
        assert_eq!(verdict(&[(1, &[(7, 10)]), (2, &[(7, 10)])], None), Some(None));
        assert_eq!(verdict(&[(1, &[(7, 10)]), (2, &[(8, 11)])], None), None);
        assert_eq!(verdict(&[(1, &[(7, 10)])], None), None);
        // The highest index that most know: 8 is the newest of two, 6 is known by all.
        let known: [(NodeId, &[(u64, u128)]); 3] =
            [(1, &[(6, 1), (7, 2), (8, 3)]), (2, &[(6, 1), (8, 3)]), (3, &[(5, 0), (6, 9)])];
        assert_eq!(verdict(&known, None).unwrap().unwrap().index, 6);
    }
}
