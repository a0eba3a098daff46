//! The state machine: what the cluster knows, and what each command does to it.
//!
//! [`State::apply`] is a function of the state and a batch alone: no clock, no chance, no I/O, no hash-map order. So the
//! same batches give the same bytes on every node, wherever snapshots were taken.
//!
//! What always holds:
//! - Each command moves the position on by one, also one that is refused, and once more for each room that a guest leaves
//!   because its session ends; a batch that is skipped does not. No two entries of any rooms have one position.
//! - A batch takes effect only in its node's live incarnation and in its turn: once, and in the order in which its node
//!   made it, whatever happened to it on its way.
//! - A session is *attached* when no loss of it is recorded and its incarnation is live. So a node's start and its death
//!   are one write each, whatever the number of its sessions.
//! - A user's membership and a session's own rooms are each stored once. `sids → rooms` and `rooms → sids` are views of
//!   these ([`read`]), and therefore mutual inverses.
//! - What is kept beside the rows (`decoded`, `never_left`, `oldest`) says what they say, and saves a search.
//! - The clock never goes back: it is the largest stamp seen. It serves `at` and trimming, never a session's life.
//!
//! Left out on purpose: who may do what (the server decides before it proposes) and the times after which a lost
//! session expires and a lost user is offline (the leader's monotonic clock, `duties`).

mod decoded;
pub mod list;
mod mids;
mod name_set;
mod never_left;
mod node;
mod oldest;
mod presence;
pub mod read;
pub mod replay;
mod room;
mod session;
mod trim;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use decoded::Decoded;
pub use mids::{Mid, MidsOf};
pub use name_set::NameSet;
use never_left::NeverLeft;
pub use node::Node;
use oldest::Oldest;
pub use room::{RoomName, RoomRecord, Span, Spans};
pub use session::Session;

use crate::{
    codec,
    command::{Batch, Command, Effect, Incarnation, Limits, NodeId, Position, Refusal, Reply, Stamp},
    keys,
    kv::{KeyBytes, Kv, Scan, ValueBytes},
    level::Level,
};

/// The replicated state and the two counters that every command touches.
#[derive(Debug)]
pub struct State {
    kv: Kv,
    position: Position,
    clock: Stamp,
    limits: Limits,
    level: Option<Level>,
    decoded: Decoded,
    never_left: NeverLeft,
    oldest: Oldest,
    /// Where values are encoded before it is known how long they are.
    scratch: Vec<u8>,
}

/// Before the first command: nothing is known, and nothing is bounded.
impl Default for State {
    fn default() -> Self {
        Self {
            kv: Kv::default(),
            position: Position(0),
            clock: 0,
            limits: Limits::UNBOUNDED,
            level: None,
            decoded: Decoded::default(),
            never_left: NeverLeft::default(),
            oldest: Oldest::default(),
            scratch: Vec::new(),
        }
    }
}

/// What became of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// One for each command, in order.
    Applied(Vec<Applied>),
    Skipped(Skipped),
}

/// Why a batch did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skipped {
    /// It had been applied before.
    Repeated,
    /// An earlier one of its node is still missing; the node sends both again.
    TooEarly,
    /// Its incarnation is not the live one of its node.
    NotLive,
}

/// One command, carried out or refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    pub position: Position,
    pub at: Stamp,
    pub reply: Reply,
    /// What sockets have to hear of it, in order.
    pub effects: Vec<Effect>,
}

/// Who proposes the command that is being applied.
#[derive(Clone, Copy)]
struct Proposer {
    node: NodeId,
    incarnation: Incarnation,
}

/// The holder of the cluster's one drain token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    pub node: NodeId,
    pub incarnation: Incarnation,
}

impl State {
    /// The state that these pairs hold, all in memory.
    pub fn load(pairs: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>) -> Self {
        Self::on(Kv::load(pairs))
    }

    /// The state that this view shows.
    pub fn on(kv: Kv) -> Self {
        let mut state = Self { kv, ..Self::default() };
        state.position = state.get(&keys::meta("position")).unwrap_or_default();
        state.clock = state.get(&keys::meta("clock")).unwrap_or_default();
        state.limits = state.get(&keys::meta("limits")).unwrap_or(Limits::UNBOUNDED);
        state.level = state.get(&keys::meta("level"));
        state
    }

    /// Applies one log entry.
    pub fn apply(&mut self, batch: &Batch) -> Outcome {
        if let Err(skipped) = self.admit(batch) {
            return Outcome::Skipped(skipped);
        }
        self.clock = self.clock.max(batch.stamp);
        let proposer = Proposer { node: batch.node, incarnation: batch.incarnation };
        let applied = batch.commands.iter().map(|command| self.apply_one(proposer, command)).collect();
        self.put(keys::meta("position"), &self.position.clone());
        self.put(keys::meta("clock"), &self.clock.clone());
        Outcome::Applied(applied)
    }

    fn apply_one(&mut self, proposer: Proposer, command: &Command) -> Applied {
        self.position.0 += 1;
        // Most commands have as many; four would be more bytes than all else that one allocates.
        let mut effects = Vec::with_capacity(2);
        let reply = self.dispatch(proposer, command, &mut effects).unwrap_or_else(Reply::Refused);
        Applied { position: self.position, at: self.clock, reply, effects }
    }

    fn dispatch(&mut self, by: Proposer, command: &Command, effects: &mut Vec<Effect>) -> Result<Reply, Refusal> {
        match command {
            Command::Started(info) => self.started(by, info, effects),
            Command::Down { node, incarnation } => self.down(*node, *incarnation, effects),
            Command::Removed { node } => self.removed(*node, effects),
            Command::Open { sid, ns, user, guest, pid } => self.open(by, sid, ns, user, *guest, pid, effects),
            Command::Resume { read, ns, user, pid } => self.resume(by, read, ns, user, pid, effects),
            Command::Lost(holders) => self.lose(holders, effects),
            Command::Close(holder) => self.close(holder, effects),
            Command::Expire(holders) => self.expire(holders, effects),
            Command::Join { by, room } => self.join(by, room, effects),
            Command::Leave { by, room } => self.leave(by, room, effects),
            Command::Enter { by, room } => self.enter(by, room, effects),
            Command::Exit { by, room } => self.exit(by, room, effects),
            Command::Publish { by, room, text, mid } => self.publish(by, room, text, mid.as_deref(), effects),
            Command::SetLimits(limits) => self.set_limits(limits),
            Command::TakeDrain { force } => self.take_drain(by, *force),
            Command::EndDrain { node } => self.end_drain(*node, Incarnation::MAX),
            Command::Undrain { node, incarnation } => self.end_drain(*node, *incarnation),
            Command::Offline(users) => self.offline(users, effects),
            Command::SetLevel(level) => self.set_level(*level),
            Command::SetExpected { voters } => self.set_expected(*voters),
            Command::Sweep(rooms) => self.sweep(rooms),
            Command::ForgetMids(users) => self.forget_old_mids(users),
        }
    }

    fn set_limits(&mut self, limits: &Limits) -> Result<Reply, Refusal> {
        self.limits = limits.clone();
        self.put(keys::meta("limits"), limits);
        Ok(Reply::Done)
    }

    /// It never falls: a verdict that comes late changes nothing.
    fn set_level(&mut self, level: Level) -> Result<Reply, Refusal> {
        if self.level.is_none_or(|now| now < level) {
            self.level = Some(level);
            self.put(keys::meta("level"), &level);
        }
        Ok(Reply::Done)
    }

    pub fn position(&self) -> Position {
        self.position
    }

    pub fn clock(&self) -> Stamp {
        self.clock
    }

    /// What the last leader stored; [`Limits::UNBOUNDED`] before the first one did.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What every node understands; `None` before the first leader said so.
    pub fn level(&self) -> Option<Level> {
        self.level
    }

    /// Whether every node has known this level from before this command on: what a level changes begins there.
    fn is_at(&self, level: Level) -> bool {
        self.level.is_some_and(|now| now >= level)
    }

    /// Equal on all nodes at the same applied index.
    pub fn hash(&self) -> u128 {
        self.kv.sum().hash
    }

    /// All pairs, in key order.
    pub fn pairs(&self) -> Scan<'_> {
        self.kv.iter()
    }

    /// The view below it, for checkpoints.
    pub fn kv(&self) -> &Kv {
        &self.kv
    }

    /// As [`State::kv`]. Nobody but a checkpoint may move what is in it, and nobody may change it.
    pub fn kv_mut(&mut self) -> &mut Kv {
        &mut self.kv
    }

    /// The value under a key. Values are written by [`State::put`] alone and their checksums are checked when they come
    /// from a disk or a peer, so one that does not decode is a bug, and going on would fork the state.
    fn get<T: DeserializeOwned>(&self, key: &[u8]) -> Option<T> {
        self.kv.get(key).map(|value| decode(&value))
    }

    fn put<T: Serialize>(&mut self, key: KeyBytes, value: &T) {
        let value = self.encode(value);
        self.kv.put(key, value);
    }

    /// As [`State::put`], under a key that is known not to be there.
    fn put_new<T: Serialize>(&mut self, key: KeyBytes, value: &T) {
        let value = self.encode(value);
        self.kv.put_new(key, value);
    }

    /// Changes the value under a key, which is `absent` if there is none, unless `change` returns an error: what it has changed
    /// is dropped then. One search, where a `get` and a `put` take two, for a row that changed lately.
    fn update<T: Serialize + DeserializeOwned, R, E>(
        &mut self,
        key: KeyBytes,
        absent: impl FnOnce(&Self) -> T,
        change: impl FnOnce(&mut T) -> Result<R, E>,
    ) -> Result<R, E> {
        let Some(row) = self.kv.changed(&key) else {
            let mut value = self.get(&key).unwrap_or_else(|| absent(self));
            let changed = change(&mut value)?;
            self.put(key, &value);
            return Ok(changed);
        };
        let mut value = decode(row.value());
        let changed = change(&mut value)?;
        encode(&mut self.scratch, &value);
        row.replace(&self.scratch);
        Ok(changed)
    }

    /// A set of which nothing is left has no row.
    fn put_or_delete(&mut self, key: KeyBytes, set: &NameSet) {
        match set.is_empty() {
            true => _ = self.kv.delete(&key),
            false => self.put(key, set),
        }
    }

    fn mark(&mut self, key: KeyBytes) {
        self.kv.put(key, ValueBytes::default());
    }

    fn encode<T: Serialize>(&mut self, value: &T) -> ValueBytes {
        encode(&mut self.scratch, value);
        self.scratch.as_slice().into()
    }
}

fn encode<T: Serialize>(scratch: &mut Vec<u8>, value: &T) {
    let mut bytes = std::mem::take(scratch);
    bytes.clear();
    bytes.push(codec::FORMAT);
    *scratch = codec::body_behind(bytes, value).expect("state values are plain data");
}

fn decode<T: DeserializeOwned>(value: &[u8]) -> T {
    let Some((&codec::FORMAT, body)) = value.split_first() else { panic!("a state value of an unknown format") };
    codec::from_body(body).expect("a state value decodes as it was encoded")
}
