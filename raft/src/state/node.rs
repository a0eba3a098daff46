//! Nodes: who is alive, whose batches count, and who may drain.

use serde::{Deserialize, Serialize};

use super::{Drain, Proposer, Skipped, State};
use crate::{
    command::{Batch, Command, Effect, Incarnation, NodeId, NodeInfo, Refusal, Reply, Stamp},
    keys,
};

/// What the cluster knows of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub id: NodeId,
    pub info: NodeInfo,
    /// The latest incarnation that started.
    pub incarnation: Incarnation,
    /// False from `down` until the next start.
    pub live: bool,
    /// The last batch of that incarnation that was applied.
    pub sequence: u64,
    /// When the incarnation before this one was found to be over, or this one, when it is not live.
    pub ended_at: Stamp,
    /// Removed for good: the id may not come back.
    pub removed: bool,
}

impl State {
    /// Whether a batch may take effect, and if so, notes that it did.
    pub(super) fn admit(&mut self, batch: &Batch) -> Result<(), Skipped> {
        let node = self.node(batch.node);
        if let (1, Some(Command::Started(_))) = (batch.sequence, batch.commands.first()) {
            // The row itself is written by `started`.
            return match node {
                Some(node) if node.removed => Err(Skipped::NotLive),
                Some(node) if node.incarnation == batch.incarnation => Err(Skipped::Repeated),
                Some(node) if node.incarnation > batch.incarnation => Err(Skipped::NotLive),
                _ => Ok(()),
            };
        }
        let Some(mut node) = node else { return Err(Skipped::NotLive) };
        if node.incarnation != batch.incarnation || !node.live {
            return Err(Skipped::NotLive);
        }
        if batch.sequence <= node.sequence {
            return Err(Skipped::Repeated);
        }
        if batch.sequence > node.sequence + 1 {
            return Err(Skipped::TooEarly);
        }
        node.sequence = batch.sequence;
        self.put_node(&node);
        Ok(())
    }

    pub(super) fn started(
        &mut self,
        by: Proposer,
        info: &NodeInfo,
        effects: &mut Vec<Effect>,
    ) -> Result<Reply, Refusal> {
        let before = self.node(by.node);
        let ended_at = match &before {
            Some(node) if node.live => {
                effects.push(Effect::Down { node: node.id, incarnation: node.incarnation });
                self.clock
            }
            Some(node) => node.ended_at,
            None => 0,
        };
        let info = info.clone();
        let node =
            Node { id: by.node, info, incarnation: by.incarnation, live: true, sequence: 1, ended_at, removed: false };
        self.put_node(&node);
        Ok(Reply::Done)
    }

    pub(super) fn down(
        &mut self,
        id: NodeId,
        incarnation: Incarnation,
        effects: &mut Vec<Effect>,
    ) -> Result<Reply, Refusal> {
        let Some(mut node) = self.node(id) else { return Ok(Reply::Done) };
        if node.incarnation != incarnation || !node.live {
            return Ok(Reply::Done);
        }
        node.live = false;
        node.ended_at = self.clock;
        self.put_node(&node);
        effects.push(Effect::Down { node: id, incarnation });
        Ok(Reply::Done)
    }

    pub(super) fn removed(&mut self, id: NodeId, effects: &mut Vec<Effect>) -> Result<Reply, Refusal> {
        let before = self.node(id);
        if before.as_ref().is_some_and(|node| node.removed) {
            return Ok(Reply::Done);
        }
        if let Some(node) = &before {
            self.down(id, node.incarnation, effects)?;
        }
        self.end_drain(id)?;
        // One that never started has no row yet, and gets one for this.
        let (info, incarnation, sequence) =
            before.map(|node| (node.info, node.incarnation, node.sequence)).unwrap_or_default();
        self.put_node(&Node { id, info, incarnation, live: false, sequence, ended_at: self.clock, removed: true });
        Ok(Reply::Done)
    }

    pub(super) fn set_expected(&mut self, voters: u64) -> Result<Reply, Refusal> {
        self.put(keys::meta("expected"), &voters);
        Ok(Reply::Done)
    }

    pub(super) fn take_drain(&mut self, by: Proposer, force: bool) -> Result<Reply, Refusal> {
        match self.drain() {
            Some(held) if held.node != by.node && !force => Err(Refusal::DrainHeld(held.node)),
            _ => {
                self.put(keys::meta("drain"), &Drain { node: by.node, incarnation: by.incarnation });
                Ok(Reply::Done)
            }
        }
    }

    pub(super) fn end_drain(&mut self, node: NodeId) -> Result<Reply, Refusal> {
        if self.drain().is_some_and(|held| held.node == node) {
            self.kv.delete(&keys::meta("drain"));
        }
        Ok(Reply::Done)
    }

    fn put_node(&mut self, node: &Node) {
        self.put(keys::node(node.id), node);
    }

    /// Whether this is the incarnation of its node that counts now.
    pub fn is_live(&self, node: NodeId, incarnation: Incarnation) -> bool {
        self.node(node).is_some_and(|node| node.live && node.incarnation == incarnation)
    }
}
