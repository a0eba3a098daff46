//! What this node has seen of sessions coming and going, for the report of a rolling restart.
//!
//! Taken from the log as it is played, so every node that is up sees the same; what came before the node's start is not
//! in it. Gaps are differences of the leader's stamps, from the recorded loss to the resume.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use moim_raft::{
    command::{Effect, Position, Sid},
    state::Applied,
};

/// Sessions that are remembered; past it the oldest are forgotten.
const KEPT: usize = 100_000;

/// One session that was opened or resumed.
#[derive(Clone, Debug)]
pub struct Attachment {
    pub position: Position,
    pub sid: Sid,
    /// False for a new session.
    pub resumed: bool,
    /// Milliseconds without a transport, where the loss was recorded.
    pub gap_ms: Option<u64>,
}

#[derive(Default)]
pub struct Report(Mutex<VecDeque<Attachment>>);

impl Report {
    pub fn note(&self, applied: &Applied, effect: &Effect) {
        let Effect::Seated(attached) = effect else { return };
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() == KEPT {
            seen.pop_front();
        }
        seen.push_back(Attachment {
            position: applied.position,
            sid: attached.holder.sid.clone(),
            resumed: attached.holder.generation > 1,
            gap_ms: attached.gap_ms,
        });
    }

    /// What came after a position, oldest first.
    pub fn after(&self, position: Position) -> Vec<Attachment> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().filter(|attachment| attachment.position > position).cloned().collect()
    }
}
