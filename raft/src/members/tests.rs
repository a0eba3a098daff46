//! A leader that stops between the two steps of a change. Inside the crate, because only here a change can be left half done.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use openraft::{EntryPayload, Membership};

use crate::{
    cluster::{Cluster, until},
    command::Command,
    error::Error,
    raft::{NodeId, Peer},
    store::Store,
};

/// Four nodes, three voters: where the leader is, the learner, and the voter whose place it is to take.
async fn three_and_one() -> (Cluster, usize, usize, usize) {
    let c = Cluster::of(4, 3).await;
    let leader = c.leader().await;
    let votes = |i: usize| c.store(leader).status().voters.contains(&c.store(i).node());
    let learner = (0..4).find(|i| !votes(*i)).unwrap();
    let old = (0..4).find(|i| votes(*i) && *i != leader).unwrap();
    until(|| c.store(leader).read(|state| state.expected_voters()) == Some(3)).await;
    (c, leader, learner, old)
}

/// Concurrent membership changes leave a joint configuration: whoever leads next leaves it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_whose_leader_stopped_between_the_two_steps_is_finished_by_the_next() {
    a_half_done_change().await;
}

/// The voter that the change takes out may lead for a while after it. On one thread, a node that waits for that to end
/// without giving way would leave no time to anything else.
#[test]
fn a_leader_that_is_no_member_any_more_is_waited_for_in_peace() {
    let (done, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for _ in 0..3 {
            runtime.block_on(a_half_done_change());
        }
        done.send(()).unwrap();
    });
    told.recv_timeout(Duration::from_secs(90)).expect("it goes on");
}

/// The first step and the second of a change that has this node take the place of that one.
fn steps(store: &Store, new: NodeId, old: NodeId) -> [Membership<NodeId, Peer>; 2] {
    let membership = store.changes().consensus.metrics().membership_config.membership().clone();
    let before: BTreeSet<NodeId> = membership.voter_ids().collect();
    let mut after = before.clone();
    after.remove(&old);
    after.insert(new);
    let mut nodes: BTreeMap<_, _> = membership.nodes().map(|(id, peer)| (*id, peer.clone())).collect();
    let joint = Membership::new(vec![before, after.clone()], nodes.clone()).unwrap();
    nodes.remove(&old);
    [joint, Membership::new(vec![after], nodes).unwrap()]
}

async fn a_half_done_change() {
    let (mut c, leader, learner, old) = three_and_one().await;
    let (new_id, old_id, leader_id) = (c.store(learner).node(), c.store(old).node(), c.store(leader).node());
    {
        let store = c.store(leader);
        // The leader's own task must not be quicker than its end.
        let _held = store.changes().state.lock.lock().await;
        let raft = store.changes().consensus.raft.clone();
        let [joint, _] = steps(&store, new_id, old_id);
        raft.append_membership(joint, EntryPayload::Blank, []).await.unwrap();
        assert_eq!(store.changes().consensus.configs().0.len(), 2);
        until(|| c.running().all(|node| node.store.changes().consensus.configs().0.len() == 2)).await;
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert_eq!(store.changes().consensus.configs().0.len(), 2, "nobody finishes it while the lock is held");
        c.stop(leader).await;
    }
    let wanted = BTreeSet::from([
        new_id,
        leader_id,
        c.store((0..4).find(|i| ![leader, learner, old].contains(i)).unwrap()).node(),
    ]);
    for node in c.running() {
        let store = &node.store;
        if store.node() != old_id {
            until(|| store.changes().consensus.configs().0 == [wanted.clone()]).await;
        }
    }
    c.node(learner).call(Command::EndDrain { node: 0 }).await;
}

/// A removal that was decided, by a leader that stopped before it did anything about it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_whose_leader_stopped_after_its_first_step_is_finished_by_the_next() {
    let (mut c, leader, learner, old) = three_and_one().await;
    let (old_id, new_id) = (c.store(old).node(), c.store(learner).node());
    {
        let store = c.store(leader);
        let _held = store.changes().state.lock.lock().await;
        c.node(leader).call(Command::Removed { node: old_id }).await;
        until(|| c.running().all(|node| node.store.read(|state| state.is_removed(old_id)))).await;
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert!(store.status().voters.contains(&old_id));
        c.stop(leader).await;
    }
    // It voted until it was out: without it the two that are left of three could not have done it.
    until(|| c.store(learner).status().voters.contains(&new_id)).await;
    until(|| !c.store(learner).status().voters.contains(&old_id)).await;
    until(|| c.store(old).is_removed()).await;
    c.node(learner).call(Command::EndDrain { node: 0 }).await;
}

/// A leader acts on a configuration as soon as it has it, and the next leader may still need the vote that it takes away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_voter_is_not_sent_away_before_that_is_committed() {
    let (mut c, leader, learner, old) = three_and_one().await;
    let (old_id, new_id) = (c.store(old).node(), c.store(learner).node());
    let other = (0..4).find(|i| ![leader, learner, old].contains(i)).unwrap();
    let store = c.store(leader);
    let held = store.changes().state.lock.lock().await;
    c.node(leader).call(Command::Removed { node: old_id }).await;
    let raft = store.changes().consensus.raft.clone();
    let [joint, alone] = steps(&store, new_id, old_id);
    raft.append_membership(joint, EntryPayload::Blank, []).await.unwrap();
    until(|| c.running().all(|node| node.store.changes().consensus.configs().0.len() == 2)).await;
    until(|| c.store(old).read(|state| state.is_removed(old_id))).await;
    c.stop(other).await;
    c.stop(learner).await;
    let second = tokio::spawn(async move { raft.append_membership(alone, EntryPayload::Blank, []).await });
    until(|| store.changes().consensus.configs().0.len() == 1).await;
    // It knocks five times in that time.
    let sent_away = tokio::time::timeout(Duration::from_secs(1), c.store(old).fatal()).await;
    assert!(sent_away.is_err(), "nobody else has heard of it yet: {sent_away:?}");
    drop(held);
    c.reopen(other).await;
    c.reopen(learner).await;
    second.await.unwrap().unwrap();
    assert!(matches!(c.store(old).fatal().await, Error::Refused(_)));
}
