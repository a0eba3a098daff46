//! openraft's state machine: decodes committed entries, applies them, and feeds what they changed to the player.
//!
//! What always holds:
//! - The feed loses nothing: it is bounded, and apply waits while it is full.
//! - What an entry changed is visible to readers before it is fed, so a player never knows more than the state.
//! - An entry that does not decode, or holds a command that this version does not know, stops the node: skipping it
//!   would fork the state.
//! - A node that installs a snapshot jumps over entries; the feed says so with [`Play::Installed`].
//! - What is applied and not in a checkpoint yet is bounded: apply waits while a checkpoint is far behind it.

use std::{
    collections::VecDeque,
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{Stream, TryStreamExt};
use openraft::{
    EntryPayload, RaftSnapshotBuilder, storage::EntryResponder, storage::RaftStateMachine, storage::Snapshot,
    type_config::alias::SnapshotOf,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    base::{self, Base, Copied, Found, Health, Point},
    codec::{self, Kind},
    command::{Batch, Command, Effect, NodeId},
    error::{Error, Result},
    kv::KeyBytes,
    level::{Level, Levels},
    net::SnapshotFile,
    propose::{Proposals, Ticket},
    raft::{Done, LogId, Payload, SnapshotMeta, StoredMembership, TypeConfig},
    snapshot::Snapshots,
    state::{Applied, Outcome, State},
    wire::{WireLogId, WireSnapshotMeta, WireStoredMembership},
};

/// Applied indexes of which the state hash is remembered.
pub const HASHES_KEPT: usize = 1024;
/// How long changes may stay out of a checkpoint, about. What a start applies again is no more than that.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(4);
/// Bytes of changes in memory after which a checkpoint is written at once. The more it takes together, the cheaper: sled
/// writes whole leaves.
const CHECKPOINT_BYTES: usize = 64 << 20;
/// Leaves of sled's that a checkpoint may change: until it is written, each is in memory as a whole.
const CHECKPOINT_LEAVES: usize = 1 << 16;
/// How many times as many bytes wait for a checkpoint to end before apply does.
const CHECKPOINT_BACKLOG: usize = 6;
/// Entries' worth of plays that the feed holds; past it apply waits for the player.
pub const FEED_ENTRIES: usize = 256;

/// What the player gets, in log order.
pub enum Play {
    /// The commands of one entry, each with the one who waits for it on this node.
    Commands(Vec<(Applied, Ticket)>),
    /// The state jumped: whatever was attached here must be let go.
    Installed,
}

/// The applied state as everybody on this node reads it.
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

struct Inner {
    state: State,
    applied: Option<LogId>,
    membership: StoredMembership,
    hashes: VecDeque<(u64, u128)>,
}

impl Inner {
    fn point(&self) -> Point {
        Point {
            applied: self.applied.as_ref().map(WireLogId::from),
            membership: WireStoredMembership::from(&self.membership),
            hash: self.state.kv().sum().hash,
            pairs: self.state.kv().sum().pairs,
        }
    }
}

impl Replica {
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

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic inside apply ends the node; a reader that panicked changed nothing.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_applied(&self, inner: &mut Inner, id: LogId) {
        inner.applied = Some(id);
        if inner.hashes.len() == HASHES_KEPT {
            inner.hashes.pop_front();
        }
        inner.hashes.push_back((id.index, inner.state.hash()));
    }
}

/// The writing side, owned by openraft.
pub struct Machine {
    replica: Arc<Replica>,
    base: Base,
    snapshots: Snapshots,
    feed: mpsc::Sender<Play>,
    stop: CancellationToken,
    checkpointed: Instant,
    /// Of which entry the last checkpoint was asked for, or found at the start.
    kept: Option<LogId>,
    /// How many checkpoints were written of which the changes are not in memory any more.
    thawed: u64,
    /// Dropped last of all: then the checkpoint of a clean stop is written.
    _alive: oneshot::Sender<()>,
}

impl Machine {
    /// Starts from what the base found; openraft applies the rest of the log. After `stop` apply does not wait for the
    /// player any more; what comes of the receiver tells when all of it is over.
    #[allow(clippy::too_many_arguments, reason = "each is a part that it owns from now on")]
    pub fn open(
        node: NodeId,
        levels: Levels,
        base: Base,
        found: Found,
        snapshots: Snapshots,
        proposals: Arc<Proposals>,
        feed: mpsc::Sender<Play>,
        stop: CancellationToken,
    ) -> Result<(Self, oneshot::Receiver<()>)> {
        let (applied, membership): (Option<LogId>, _) = match found.point {
            Some(point) => (point.applied.map(LogId::from), point.membership.try_into()?),
            None => (None, StoredMembership::default()),
        };
        let state = State::on(found.kv);
        if let Some(level) = state.level() {
            levels.check(level, "this node")?;
        }
        let hashes = applied.iter().map(|id| (id.index, state.hash())).collect();
        let kept = applied;
        let inner = Inner { state, applied, membership, hashes };
        let applied = watch::channel(inner.applied.as_ref().map_or(0, |id| id.index)).0;
        let failed = watch::channel(None).0;
        let (inner, playing) = (Mutex::new(inner), false.into());
        let replica = Arc::new(Replica { node, inner, applied, proposals, levels, failed, playing });
        let (alive, gone) = oneshot::channel();
        let checkpointed = Instant::now();
        let machine = Self { replica, base, snapshots, feed, stop, checkpointed, kept, thawed: 0, _alive: alive };
        Ok((machine, gone))
    }

    pub fn replica(&self) -> Arc<Replica> {
        self.replica.clone()
    }

    /// Of the checkpoints.
    pub fn health(&self) -> Health {
        self.base.health()
    }

    async fn apply_entry(&mut self, entry: crate::raft::Entry) -> Result<()> {
        let index = entry.log_id.index;
        let play = self.replica.apply(entry).inspect_err(|e| self.replica.fail(e))?;
        if let Some(play) = play {
            self.feed(play).await;
        }
        self.replica.applied.send_replace(index);
        Ok(())
    }

    /// Waits for the player, unless the node is stopping: what is not played then was not acknowledged either.
    async fn feed(&self, play: Play) {
        tokio::select! {
            biased;
            _ = self.feed.send(play) => {}
            () = self.stop.cancelled() => {}
        }
    }

    /// Starts a checkpoint when one is due, or now.
    fn checkpoint(&mut self, now: bool) {
        self.thaw();
        if !now && self.base.is_busy() {
            return;
        }
        let late = self.checkpointed.elapsed() >= CHECKPOINT_EVERY;
        let (changes, point) = {
            let mut inner = self.replica.lock();
            let kv = inner.state.kv();
            let (keys, bytes) = (kv.changed_keys(), kv.changed_bytes());
            // A leaf for each key, but no more than there are.
            let leaves = keys.min(kv.sum().pairs as usize / base::LEAF_PAIRS);
            let due = leaves >= CHECKPOINT_LEAVES || bytes >= CHECKPOINT_BYTES || (late && keys > 0);
            if !(now || due) {
                return;
            }
            let point = inner.point();
            (inner.state.kv_mut().freeze(), point)
        };
        self.kept = point.applied.map(LogId::from);
        self.base.checkpoint(changes, point);
        self.checkpointed = Instant::now();
    }

    /// Sees to a checkpoint of this very point.
    fn keep(&mut self) {
        let applied = self.replica.lock().applied;
        if applied != self.kept {
            self.checkpoint(true);
        }
    }

    /// Copies the pairs below these prefixes as they are now. Apply goes on meanwhile, however many they are.
    pub fn copy(&mut self, tables: Vec<KeyBytes>) -> impl Future<Output = Result<Copied>> + use<> {
        self.keep();
        answer(self.base.copy(tables))
    }

    /// What sled has by now need not be in memory.
    fn thaw(&mut self) {
        while self.thawed < self.base.written() {
            self.thawed += 1;
            let written = self.replica.lock().state.kv_mut().thaw();
            if let Some(written) = written {
                self.base.discard(written);
            }
        }
    }

    /// While the disk does not keep up, memory must not take what it leaves.
    async fn wait_for_checkpoint(&mut self) -> Result<()> {
        let waiting = self.replica.lock().state.kv().changed_bytes();
        if waiting >= CHECKPOINT_BYTES * CHECKPOINT_BACKLOG && self.base.is_busy() {
            self.base.idle().await?;
            self.checkpoint(false);
        }
        Ok(())
    }
}

impl Replica {
    /// Applies one entry and says what is to be played of it.
    fn apply(&self, entry: crate::raft::Entry) -> Result<Option<Play>> {
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
            self.note_applied(&mut inner, id);
            outcome
        };
        if let (Some(batch), Some(Outcome::Applied(_))) = (&batch, &outcome)
            && batch.node == self.node
            && self.proposals.is_outlived_by(batch.incarnation)
        {
            return Err(Error::fatal(format!(
                "another process has started as this node (incarnation {}): is a copy of its data folder in use? Stop the \
                 copy, then start this node again",
                batch.incarnation
            )));
        }
        // Outside the lock: a ticket that is let go calls back into code that may read the state.
        Ok(batch.zip(outcome).and_then(|(batch, outcome)| self.plays(&batch, outcome)))
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

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let inner = self.replica.lock();
        Ok((inner.applied, inner.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + Send,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            self.apply_entry(entry).await?;
            self.checkpoint(false);
            self.wait_for_checkpoint().await?;
            if let Some(responder) = responder {
                responder.send(Done);
            }
        }
        Ok(())
    }

    /// The snapshot is of this very point: the checkpoint of it is written first, and none between the two.
    async fn get_snapshot_builder(&mut self) -> Builder {
        self.checkpoint(true);
        Builder(Some(self.base.snapshot()))
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, file: SnapshotFile) -> io::Result<()> {
        let installed = answer(self.base.install(&file.path, meta.last_log_id().copied())).await;
        if installed.is_err() {
            // It is ours, and nobody wants it any more.
            _ = std::fs::remove_file(&file.path);
        }
        let Found { kv, point } = installed?;
        let state = State::on(kv);
        if let Some(level) = state.level() {
            self.replica.check_level(level).inspect_err(|e| self.replica.fail(e))?;
        }
        let point = point.ok_or_else(|| Error::fatal("a snapshot of no point"))?;
        self.kept = point.applied.map(LogId::from);
        // What was asked of the base before is done.
        self.thawed = self.base.written();
        let membership = point.membership.try_into()?;
        let index = point.applied.map_or(0, |id| id.index);
        let me = {
            let mut inner = self.replica.lock();
            inner.membership = membership;
            inner.hashes.clear();
            inner.state = state;
            if let Some(id) = point.applied {
                self.replica.note_applied(&mut inner, id.into());
            }
            inner.state.node(self.replica.node)
        };
        if let Some(me) = me {
            self.replica.proposals.jump(me.incarnation, me.sequence, me.live);
        }
        self.feed(Play::Installed).await;
        self.replica.applied.send_replace(index);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<TypeConfig, SnapshotFile>>> {
        let Some((path, point)) = self.snapshots.newest_header() else { return Ok(None) };
        Ok(Some(offer(path, point)?))
    }
}

impl Drop for Machine {
    /// A clean stop leaves nothing to apply again.
    fn drop(&mut self) {
        self.keep();
        self.base.close();
    }
}

/// Waits for the snapshot that was asked for when it was made.
pub struct Builder(Option<Asked<(PathBuf, Point)>>);

type Asked<T> = oneshot::Receiver<Result<T>>;

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<TypeConfig, SnapshotFile>> {
        let asked = self.0.take().ok_or_else(|| Error::fatal("a builder builds one snapshot"))?;
        let (path, point) = answer(asked).await?;
        Ok(offer(path, point)?)
    }
}

async fn answer<T>(asked: Asked<T>) -> Result<T> {
    asked.await.unwrap_or_else(|_| Err(Error::fatal("the checkpoint thread is gone")))
}

fn not_understood(index: u64, why: &Error) -> String {
    format!(
        "entry {index} of the log was made by a newer version of moim, and skipping it would fork the state ({why}). Start that \
         version on this data folder; nothing in it is lost"
    )
}

/// A file as openraft hands it on.
fn offer(path: PathBuf, point: Point) -> Result<SnapshotOf<TypeConfig, SnapshotFile>> {
    let wire = WireSnapshotMeta { last: point.applied, membership: point.membership };
    Ok(Snapshot { meta: wire.try_into()?, snapshot: SnapshotFile { path } })
}

#[cfg(test)]
mod tests;
