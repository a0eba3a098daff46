//! Where nodes are that say so themselves, while the cluster still knows them elsewhere.
//!
//! Only a leader can write down where a node is, and to elect one, nodes have to reach each other: a majority that moved at
//! once would never have a leader again. So who hears from a node where it is now tries that place first.
//!
//! What always holds: it is a hint. Every connection proves whom it has reached, and a place where the node was not reached
//! is forgotten: until the cluster knows better, the node says again where it is.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::raft::NodeId;

#[derive(Default)]
pub(super) struct Moved(Mutex<HashMap<NodeId, String>>);

impl Moved {
    /// A member has said that it is at `addr`.
    pub fn is_at(&self, node: NodeId, addr: &str) {
        if self.lock().insert(node, addr.to_owned()).is_none_or(|before| before != addr) {
            tracing::info!("node {node:016x} says that it is at {addr} now");
        }
    }

    /// Where else than at `addr` the node may be.
    pub fn instead_of(&self, node: NodeId, addr: &str) -> Option<String> {
        self.lock().get(&node).filter(|at| *at != addr).cloned()
    }

    /// It was not reached there.
    pub fn is_not_at(&self, node: NodeId, addr: &str) {
        let mut moved = self.lock();
        if moved.get(&node).is_some_and(|at| at == addr) {
            moved.remove(&node);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, String>> {
        // Each change is one call of the map's.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
