//! openraft's state machine: decodes committed entries, applies them, and feeds what they changed to the player.
//!
//! What always holds:
//! - The feed loses nothing: it is bounded, and apply waits while it is full.
//! - What an entry changed is visible to readers before it is fed, so a player never knows more than the state.
//! - An entry that does not decode, or holds a command that this version does not know, stops the node: skipping it
//!   would fork the state.
//! - A node that installs a snapshot jumps over entries; the feed says so with [`Play::Installed`].

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
    base::{Base, Point},
    codec::{self, Kind},
    command::{Batch, Effect, NodeId},
    error::{Error, Result},
    net::SnapshotFile,
    propose::{Proposals, Ticket},
    raft::{Done, LogId, Payload, SnapshotMeta, StoredMembership, TypeConfig},
    snapshot::{self, Snapshots},
    state::{Applied, Outcome, State},
    wire::{WireLogId, WireSnapshotMeta, WireStoredMembership},
};

/// Applied indexes of which the state hash is remembered.
pub const HASHES_KEPT: usize = 1024;
/// How long changes may stay out of a checkpoint, about.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(2);
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
            hash: self.state.hash(),
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
    /// Dropped last of all: then the checkpoint of a clean stop is written.
    _alive: oneshot::Sender<()>,
}

impl Machine {
    /// Starts from the newer of checkpoint and snapshot file; openraft applies the rest of the log. After `stop` apply
    /// does not wait for the player any more; what comes of the receiver tells when all of it is over.
    #[allow(clippy::too_many_arguments, reason = "each is a part that it owns from now on")]
    pub fn open(
        node: NodeId,
        base: Base,
        found: Option<(State, Point)>,
        snapshots: Snapshots,
        proposals: Arc<Proposals>,
        feed: mpsc::Sender<Play>,
        stop: CancellationToken,
    ) -> Result<(Self, oneshot::Receiver<()>)> {
        let index = |point: &Point| point.applied.map(|id| id.index);
        let header = snapshots.newest_header().map(|(_, point)| point);
        let behind = match (&found, &header) {
            (Some((_, checkpoint)), Some(header)) => index(header) > index(checkpoint),
            (None, Some(_)) => true,
            (_, None) => false,
        };
        let start = if behind { snapshots.newest().map(|(_, state, point)| (state, point)) } else { None };
        // The newest may turn out to be damaged, and the one before it to be older than the checkpoint.
        let start = start.filter(|(_, point)| found.as_ref().is_none_or(|(_, known)| index(point) > index(known)));
        let rebuilt = start.is_some();
        let (state, point) = match start.or(found) {
            Some((state, point)) => (state, Some(point)),
            None => (State::default(), None),
        };
        let (applied, membership) = match point {
            Some(point) => (point.applied.map(LogId::from), point.membership.try_into()?),
            None => (None, StoredMembership::default()),
        };
        let hashes = applied.iter().map(|id| (id.index, state.hash())).collect();
        let inner = Inner { state, applied, membership, hashes };
        if rebuilt {
            base.replace(&inner.state, inner.point());
        }
        let applied = watch::channel(inner.applied.as_ref().map_or(0, |id| id.index)).0;
        let replica = Arc::new(Replica { node, inner: Mutex::new(inner), applied, proposals, playing: false.into() });
        let (alive, gone) = oneshot::channel();
        let machine = Self { replica, base, snapshots, feed, stop, checkpointed: Instant::now(), _alive: alive };
        Ok((machine, gone))
    }

    pub fn replica(&self) -> Arc<Replica> {
        self.replica.clone()
    }

    /// The first failure of a checkpoint, which is final.
    pub fn failed(&self) -> watch::Receiver<Option<String>> {
        self.base.failed()
    }

    async fn apply_entry(&mut self, entry: crate::raft::Entry) -> Result<()> {
        let index = entry.log_id.index;
        let play = self.replica.apply(entry)?;
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

    fn checkpoint(&mut self, now: bool) {
        if self.base.is_busy() || (!now && self.checkpointed.elapsed() < CHECKPOINT_EVERY) {
            return;
        }
        let (changes, point) = {
            let mut inner = self.replica.lock();
            (inner.state.take_changes(), inner.point())
        };
        self.base.write(changes, point);
        self.checkpointed = Instant::now();
    }
}

impl Replica {
    /// Applies one entry and says what is to be played of it.
    fn apply(&self, entry: crate::raft::Entry) -> Result<Option<Play>> {
        let id = entry.log_id;
        let batch = match entry.payload {
            EntryPayload::Normal(Payload(bytes)) => Some(
                codec::decode::<Batch>(Kind::Batch, &bytes)
                    .map_err(|e| Error::fatal(format!("entry {} cannot be applied: {e}", id.index)))?,
            ),
            EntryPayload::Membership(membership) => {
                self.lock().membership = StoredMembership::new(Some(id), membership);
                None
            }
            EntryPayload::Blank => None,
        };
        let outcome = {
            let mut inner = self.lock();
            let outcome = batch.as_ref().map(|batch| inner.state.apply(batch));
            self.note_applied(&mut inner, id);
            outcome
        };
        // Outside the lock: a ticket that is let go calls back into code that may read the state.
        Ok(batch.zip(outcome).and_then(|(batch, outcome)| self.plays(&batch, outcome)))
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
            if let Some(responder) = responder {
                responder.send(Done);
            }
        }
        self.checkpoint(false);
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        // Purging follows a snapshot: what the log gives up must be in a checkpoint or in the file by then.
        self.checkpoint(true);
        let inner = self.replica.lock();
        Builder { state: inner.state.clone(), point: inner.point(), snapshots: self.snapshots.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, file: SnapshotFile) -> io::Result<()> {
        let received = file.path.clone();
        let (state, point) = blocking(move || snapshot::read(&received)).await?;
        if point.applied.map(LogId::from) != meta.last_log_id().copied() {
            return Err(Error::refused("the snapshot is of another point than its offer said").into());
        }
        let kept = self.snapshots.adopt(&file.path, &point)?;
        tracing::info!(file = %kept.display(), "installed a snapshot");
        let membership = point.membership.clone().try_into()?;
        let index = point.applied.map_or(0, |id| id.index);
        self.base.replace(&state, point.clone());
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
        let (changes, point) = {
            let mut inner = self.replica.lock();
            (inner.state.take_changes(), inner.point())
        };
        if !changes.is_empty() {
            self.base.write(changes, point);
        }
        self.base.close();
    }
}

/// Writes the file of a snapshot from a frozen copy of the state.
pub struct Builder {
    state: State,
    point: Point,
    snapshots: Snapshots,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<TypeConfig, SnapshotFile>> {
        let (state, point, snapshots) = (std::mem::take(&mut self.state), self.point.clone(), self.snapshots.clone());
        let at = point.clone();
        let path = blocking(move || snapshots.write(&state, &at)).await?;
        Ok(offer(path, point)?)
    }
}

/// A file as openraft hands it on.
fn offer(path: PathBuf, point: Point) -> Result<SnapshotOf<TypeConfig, SnapshotFile>> {
    let wire = WireSnapshotMeta { last: point.applied, membership: point.membership };
    Ok(Snapshot { meta: wire.try_into()?, snapshot: SnapshotFile { path } })
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done?),
        Err(e) => Err(io::Error::other(e)),
    }
}
