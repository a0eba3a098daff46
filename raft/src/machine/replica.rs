//! The applied state as everybody on this node reads it, and how an entry changes it.
//!
//! What always holds: state, index and hash change together, under one lock; readers see them so. An entry that does not
//! decode, or holds a command that this version does not know, is an error that is final: skipping it would fork the state.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use openraft::EntryPayload;
use tokio::sync::watch;

use super::Play;
use crate::{
    base::{Found, Point},
    codec::{self, Kind},
    command::{Batch, Command, Effect, NodeId},
    error::{Error, Result},
    kv::Kv,
    level::{Level, Levels},
    propose::{Proposals, Ticket},
    raft::{Entry, LogId, Payload, StoredMembership},
    state::{Outcome, State},
    wire::{WireLogId, WireStoredMembership},
};

/// Applied indexes of which the state hash is remembered.
const HASHES_KEPT: usize = 1024;

/// One for a node; it is read by many and changed by [`super::Machine`] alone.
pub struct Replica {
    node: NodeId,
    inner: Mutex<Inner>,
    applied: watch::Sender<u64>,
    proposals: Arc<Proposals>,
    /// What this program knows.
    levels: Levels,
    /// Why apply has stopped for good.
    failed: watch::Sender<Option<Error>>,
    /// False while this start only applies again what an earlier one had applied: that is not played.
    playing: AtomicBool,
}

pub(super) struct Inner {
    pub state: State,
    pub applied: Option<LogId>,
    pub membership: StoredMembership,
    hashes: VecDeque<(u64, u128)>,
}

impl Inner {
    pub fn point(&self) -> Point {
        Point {
            applied: self.applied.as_ref().map(WireLogId::from),
            membership: WireStoredMembership::from(&self.membership),
            hash: self.state.kv().sum().hash,
            pairs: self.state.kv().sum().pairs,
        }
    }

    fn note_applied(&mut self, id: LogId) {
        self.applied = Some(id);
        if self.hashes.len() == HASHES_KEPT {
            self.hashes.pop_front();
        }
        self.hashes.push_back((id.index, self.state.hash()));
    }
}

impl Replica {
    /// What the node had applied when it stopped; nothing of it is played.
    ///
    /// Refused if the state is of a level that this version does not know.
    pub(super) fn open(node: NodeId, levels: Levels, proposals: Arc<Proposals>, found: Found) -> Result<Self> {
        let (applied, membership): (Option<LogId>, _) = match found.point {
            Some(point) => (point.applied.map(LogId::from), point.membership.try_into()?),
            None => (None, StoredMembership::default()),
        };
        let state = State::on(found.kv);
        if let Some(level) = state.level() {
            levels.check(level, "this node")?;
        }
        let hashes = applied.iter().map(|id| (id.index, state.hash())).collect();
        let inner = Mutex::new(Inner { state, applied, membership, hashes });
        let applied = watch::channel(applied.map_or(0, |id| id.index)).0;
        let failed = watch::channel(None).0;
        Ok(Self { node, inner, applied, proposals, levels, failed, playing: false.into() })
    }

    /// Reads the applied state. The closure must be short: apply waits for it.
    pub fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.lock().state)
    }

    /// As [`Replica::read`], with the index up to which the state is current.
    pub fn read_at<T>(&self, read: impl FnOnce(&State, u64) -> T) -> T {
        let inner = self.lock();
        read(&inner.state, inner.applied.as_ref().map_or(0, |id| id.index))
    }

    /// The index up to which the state is current; changes as it does.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// The state hash at an applied index, or the oldest and newest index of which it is known.
    pub fn hash_at(&self, index: Option<u64>) -> std::result::Result<(u64, u128), (u64, u64)> {
        let inner = self.lock();
        let ends = (inner.hashes.front().map_or(0, |h| h.0), inner.hashes.back().map_or(0, |h| h.0));
        let found = match index {
            Some(index) => inner.hashes.iter().find(|(known, _)| *known == index),
            None => inner.hashes.back(),
        };
        found.copied().ok_or(ends)
    }

    /// The newest state hashes, oldest first.
    pub fn hashes(&self) -> Vec<(u64, u128)> {
        self.lock().hashes.iter().copied().collect()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic inside apply ends the node; a reader that panicked changed nothing.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Replica {
    /// Applies one entry and says what is to be played of it. An error is final.
    pub(super) fn apply(&self, entry: Entry) -> Result<Option<Play>> {
        self.try_apply(entry).inspect_err(|e| self.fail(e))
    }

    fn try_apply(&self, entry: Entry) -> Result<Option<Play>> {
        let id = entry.log_id;
        let batch = match entry.payload {
            EntryPayload::Normal(Payload(bytes)) => Some(
                codec::decode::<Batch>(Kind::Batch, &bytes).map_err(|e| Error::fatal(not_understood(id.index, &e)))?,
            ),
            EntryPayload::Membership(membership) => {
                self.lock().membership = StoredMembership::new(Some(id), membership);
                None
            }
            EntryPayload::Blank => None,
        };
        batch.iter().try_for_each(|batch| self.check_levels(batch))?;
        let outcome = {
            let mut inner = self.lock();
            let outcome = batch.as_ref().map(|batch| inner.state.apply(batch));
            inner.note_applied(id);
            outcome
        };
        if let (Some(batch), Some(Outcome::Applied(_))) = (&batch, &outcome) {
            self.check_alone(batch)?;
        }
        // Outside the lock: a ticket that is let go calls back into code that may read the state.
        Ok(batch.zip(outcome).and_then(|(batch, outcome)| self.plays(&batch, outcome)))
    }

    /// Goes on from a snapshot, which is of `point`. Fatal if it is of a level that this version does not know.
    pub(super) fn install(&self, kv: Kv, point: Point) -> Result<()> {
        let state = State::on(kv);
        if let Some(level) = state.level() {
            self.check_level(level).inspect_err(|e| self.fail(e))?;
        }
        let membership = point.membership.try_into()?;
        let me = {
            let mut inner = self.lock();
            inner.membership = membership;
            inner.hashes.clear();
            inner.state = state;
            if let Some(id) = point.applied {
                inner.note_applied(id.into());
            }
            inner.state.node(self.node)
        };
        if let Some(me) = me {
            self.proposals.jump(me.incarnation, me.sequence, me.live);
        }
        Ok(())
    }

    /// That readers are told: the state is current up to there, and what it changed is fed.
    pub(super) fn tell_applied(&self, index: u64) {
        self.applied.send_replace(index);
    }

    /// A level that this version does not know comes before the first command of that level.
    fn check_levels(&self, batch: &Batch) -> Result<()> {
        batch.commands.iter().try_for_each(|command| match command {
            Command::SetLevel(level) => self.check_level(*level),
            _ => Ok(()),
        })
    }

    fn check_level(&self, level: Level) -> Result<()> {
        self.levels.check(level, "this node").map_err(|e| Error::Fatal(e.why().to_owned()))
    }

    /// A node that lives learns that it was started once more.
    fn check_alone(&self, batch: &Batch) -> Result<()> {
        if batch.node != self.node || !self.proposals.is_outlived_by(batch.incarnation) {
            return Ok(());
        }
        Err(Error::fatal(format!(
            "another process has started as this node (incarnation {}): is a copy of its data folder in use? Stop the copy, \
             then start this node again",
            batch.incarnation
        )))
    }

    /// The reason in our own words, before openraft tells it in its own.
    fn fail(&self, why: &Error) {
        self.failed.send_replace(Some(why.clone()));
    }

    /// Why apply has stopped for good, once it has.
    pub fn failed(&self) -> watch::Receiver<Option<Error>> {
        self.failed.subscribe()
    }

    fn plays(&self, batch: &Batch, outcome: Outcome) -> Option<Play> {
        let mine = batch.node == self.node;
        let mut tickets = if mine { self.proposals.land(batch, &outcome) } else { Vec::new() }.into_iter();
        let Outcome::Applied(commands) = outcome else { return None };
        for effect in commands.iter().flat_map(|applied| &applied.effects) {
            if let Effect::Down { node, incarnation } = effect
                && *node == self.node
            {
                self.proposals.end_incarnation(*incarnation);
            }
        }
        if mine && batch.incarnation == self.proposals.incarnation() {
            self.playing.store(true, Ordering::Relaxed);
        }
        if !self.playing.load(Ordering::Relaxed) {
            return None;
        }
        let with_ticket = |applied| (applied, tickets.next().unwrap_or_else(Ticket::nobody));
        Some(Play::Commands(commands.into_iter().map(with_ticket).collect()))
    }
}

fn not_understood(index: u64, why: &Error) -> String {
    format!(
        "entry {index} of the log was made by a newer version of moim, and skipping it would fork the state ({why}). Start that \
         version on this data folder; nothing in it is lost"
    )
}
