//! Snapshots that arrive and are not what the node can use.

use std::{fs, path::PathBuf};

use openraft::storage::RaftStateMachine;

use super::*;
use crate::{
    cluster::{Cluster, say, until},
    snapshot,
};

/// A running cluster, its newest snapshot with what openraft says of it, and the same file as it would arrive at a follower.
async fn arrived() -> (Cluster, usize, Vote, SnapshotMeta, PathBuf) {
    let c = Cluster::of(2, 2).await;
    let (leader, follower) = (c.leader().await, 1 - c.leader().await);
    let by = c.node(leader).open_in_lobby("ann").await;
    c.node(leader).call(say(&by, "hello")).await;
    c.agree().await;
    let store = c.store(leader);
    let consensus = &store.changes().consensus;
    consensus.raft.trigger().snapshot().await.unwrap();
    until(|| consensus.metrics().snapshot.is_some()).await;
    let current = consensus.raft.with_state_machine(|machine| Box::pin(machine.get_current_snapshot())).await;
    let snapshot = current.unwrap().unwrap().expect("it was just made");
    let file = c.data(follower).join("arrived.tmp");
    fs::copy(&snapshot.snapshot.path, &file).unwrap();
    let vote = consensus.metrics().vote;
    (c, follower, vote, snapshot.meta, file)
}

fn receiver(c: &Cluster, node: usize) -> impl Consensus {
    RaftConsensus::new(c.store(node).changes().consensus.raft.clone(), Heard::default(), snapshot::check)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_is_not_needed_does_not_stay() {
    let (c, follower, vote, meta, path) = arrived().await;
    let answer = receiver(&c, follower).install(vote, meta, SnapshotFile { path: path.clone() }).await.unwrap();
    assert_eq!(answer, vote);
    assert!(!path.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_snapshot_is_refused_and_harms_nobody() {
    let (c, follower, vote, meta, path) = arrived().await;
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    let answer = receiver(&c, follower).install(vote, meta, SnapshotFile { path: path.clone() }).await;
    assert!(matches!(answer, Err(Error::Refused(_))), "{answer:?}");
    assert!(!path.exists());
    c.agree().await;
}
