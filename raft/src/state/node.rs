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
    /// Its last incarnations that were found to be over, and when, oldest first.
    pub ended: Vec<(Incarnation, Stamp)>,
    /// Removed for good: the id may not come back.
    pub removed: bool,
}

/// Ends of incarnations that a node's record keeps. A session of an earlier one counts as lost when the oldest of these
/// ended, which makes its gap too short in a report and nothing else.
const ENDS_KEPT: usize = 8;

impl Node {
    /// One that never started.
    fn unknown(id: NodeId) -> Self {
        let (info, ended) = (NodeInfo::default(), Vec::new());
        Self { id, info, incarnation: 0, live: false, sequence: 0, ended, removed: false }
    }

    fn end(&mut self, at: Stamp) {
        self.live = false;
        self.ended.push((self.incarnation, at));
        self.ended.drain(..self.ended.len().saturating_sub(ENDS_KEPT));
    }

    /// When an incarnation was over, if it is.
    pub fn ended_at(&self, incarnation: Incarnation) -> Option<Stamp> {
        self.ended.iter().find(|(ended, _)| *ended >= incarnation).map(|(_, at)| *at)
    }
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
        let mut ended = Vec::new();
        if let Some(mut before) = self.node(by.node) {
            if before.live {
                before.end(self.clock);
                effects.push(Effect::Down { node: before.id, incarnation: before.incarnation });
            }
            ended = before.ended;
        }
        let info = info.clone();
        self.put_node(&Node {
            id: by.node,
            info,
            incarnation: by.incarnation,
            live: true,
            sequence: 1,
            ended,
            removed: false,
        });
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
        node.end(self.clock);
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
        self.end_drain(id, Incarnation::MAX)?;
        // One that never started has no row yet, and gets one for this.
        let node = self.node(id).unwrap_or_else(|| Node::unknown(id));
        self.put_node(&Node { removed: true, ..node });
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

    /// Not the token that the node took in an incarnation after `last`.
    pub(super) fn end_drain(&mut self, node: NodeId, last: Incarnation) -> Result<Reply, Refusal> {
        if self.drain().is_some_and(|held| held.node == node && held.incarnation <= last) {
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
