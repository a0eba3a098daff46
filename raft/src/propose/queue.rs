//! What waits for the next batch of a node.
//!
//! Two lanes, each in order. Sessions and the cluster's own commands go first into a batch, so that a returning client does
//! not wait behind a flood of messages; all commands of one client after its attachment are in one lane. Both together are
//! bounded.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::Ticket;
use crate::{command::Command, error::Error, level::Level};

/// Commands of one batch; more wait for the next.
pub const BATCH_COMMANDS_MAX: usize = 1024;
/// Bytes of one batch, about; more wait for the next. A single command that is larger is refused: no batch can carry it,
/// and one that the leader does not take would hold up all that follow.
pub const BATCH_BYTES_MAX: usize = 1 << 20;
/// The longest text of a message: with it the command fills a batch.
pub const TEXT_BYTES_MAX: usize = BATCH_BYTES_MAX - COMMAND_BYTES;
/// Commands that may wait in front of the batch in flight; past it a proposal is answered `unavailable` at once.
pub const QUEUE_COMMANDS_MAX: usize = 65_536;
/// Bytes that may wait, about; the same.
pub const QUEUE_BYTES_MAX: usize = 64 << 20;
/// What a command takes in a batch, about, beside what its client said.
const COMMAND_BYTES: usize = 96;

struct Proposal {
    command: Command,
    ticket: Ticket,
    since: Instant,
}

pub struct Queue {
    first: VecDeque<Proposal>,
    rest: VecDeque<Proposal>,
    bytes: usize,
    /// Why nothing is taken in, while that is so.
    refusing: Option<String>,
}

impl Queue {
    /// An empty one that takes nothing in yet.
    pub fn refusing(why: &str) -> Self {
        Self { first: VecDeque::new(), rest: VecDeque::new(), bytes: 0, refusing: Some(why.to_owned()) }
    }

    /// Why the command is not taken in by a cluster of that level, if so.
    pub fn refusal(&self, command: &Command, level: Level) -> Option<Error> {
        if size(command) > BATCH_BYTES_MAX {
            return Some(Error::refused(format!("a command of more than {BATCH_BYTES_MAX} bytes")));
        }
        let needs = command.level();
        if needs > level {
            return Some(Error::unavailable(format!(
                "the cluster is at level {level} until all of its nodes run a version that knows level {needs}"
            )));
        }
        let full = self.len() >= QUEUE_COMMANDS_MAX || self.bytes >= QUEUE_BYTES_MAX;
        let why = self.refusing.as_deref().or(full.then_some("overloaded"))?;
        Some(Error::unavailable(why))
    }

    /// Of a command for which there is no [`Queue::refusal`].
    pub fn push(&mut self, command: Command, ticket: Ticket) {
        self.bytes += size(&command);
        let lane = if goes_first(&command) { &mut self.first } else { &mut self.rest };
        lane.push_back(Proposal { command, ticket, since: Instant::now() });
    }

    /// What the next batch holds; nothing if nothing waits.
    pub fn pop_batch(&mut self) -> (Vec<Command>, Vec<Ticket>) {
        let (mut commands, mut tickets, mut bytes) = (Vec::new(), Vec::new(), 0);
        while commands.len() < BATCH_COMMANDS_MAX && bytes < BATCH_BYTES_MAX {
            let Some(proposal) = self.first.pop_front().or_else(|| self.rest.pop_front()) else { break };
            bytes += size(&proposal.command);
            commands.push(proposal.command);
            tickets.push(proposal.ticket);
        }
        self.bytes -= bytes;
        (commands, tickets)
    }

    /// Those who have waited for too long.
    pub fn pop_late(&mut self, late: impl Fn(Instant) -> bool) -> Vec<Ticket> {
        let mut dropped = Vec::new();
        for lane in [&mut self.first, &mut self.rest] {
            while let Some(proposal) = lane.pop_front_if(|proposal| late(proposal.since)) {
                self.bytes -= size(&proposal.command);
                dropped.push(proposal.ticket);
            }
        }
        dropped
    }

    /// Takes nothing in until [`Queue::accept`]. All who wait, in order, lane by lane.
    pub fn refuse(&mut self, why: &str) -> Vec<Ticket> {
        self.refusing = Some(why.to_owned());
        self.bytes = 0;
        self.first.drain(..).chain(self.rest.drain(..)).map(|proposal| proposal.ticket).collect()
    }

    pub fn accept(&mut self) {
        self.refusing = None;
    }

    fn len(&self) -> usize {
        self.first.len() + self.rest.len()
    }

    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Everything but what a seated client sends. A client's own `disconnect()` stays behind its messages.
fn goes_first(command: &Command) -> bool {
    use Command::{Close, Enter, Exit, Join, Leave, Publish};
    !matches!(command, Join { .. } | Leave { .. } | Enter { .. } | Exit { .. } | Publish { .. } | Close(_))
}

/// About as many bytes as the command takes in a batch.
fn size(command: &Command) -> usize {
    COMMAND_BYTES
        + match command {
            Command::Publish { text, .. } => text.len(),
            Command::Lost(holders) | Command::Expire(holders) => holders.len() * 32,
            Command::Sweep(rooms) => rooms.iter().map(|(ns, room)| ns.as_str().len() + room.as_str().len()).sum(),
            Command::ForgetMids(users) => users.iter().map(|user| user.as_str().len()).sum(),
            Command::Offline(away) => away.iter().map(|a| a.ns.as_str().len() + a.user.as_str().len() + 16).sum(),
            _ => 0,
        }
}
