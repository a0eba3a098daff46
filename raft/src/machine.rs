//! openraft's state machine: decodes committed entries, applies them, and feeds what they changed to the player.
//!
//! What always holds:
//! - The feed loses nothing: it is bounded, and apply waits while it is full.
//! - What an entry changed is visible to readers before it is fed, so a player never knows more than the state.
//! - An entry that does not decode, or holds a command that this version does not know, stops the node: skipping it
//!   would fork the state.
//! - A node that installs a snapshot jumps over entries; the feed says so with [`Play::Installed`].
//! - What is applied and not in a checkpoint yet is bounded: apply waits while a checkpoint is far behind it.

mod replica;

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use futures_util::{Stream, TryStreamExt};
use openraft::{
    RaftSnapshotBuilder, storage::EntryResponder, storage::RaftStateMachine, storage::Snapshot,
    type_config::alias::SnapshotOf,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

pub use self::replica::Replica;
use crate::{
    base::{self, Base, Copied, Found, Health, Point},
    command::NodeId,
    error::{Error, Result},
    kv::KeyBytes,
    level::Levels,
    net::SnapshotFile,
    propose::{Proposals, Ticket},
    raft::{Done, Entry, LogId, SnapshotMeta, StoredMembership, TypeConfig},
    snapshot::Snapshots,
    state::Applied,
    wire::WireSnapshotMeta,
};

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
        let replica = Arc::new(Replica::open(node, levels, proposals, found)?);
        let kept = replica.lock().applied;
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

    async fn apply_entry(&mut self, entry: Entry) -> Result<()> {
        let index = entry.log_id.index;
        let play = self.replica.apply(entry)?;
        if let Some(play) = play {
            self.feed(play).await;
        }
        self.replica.tell_applied(index);
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

    /// Writes a snapshot of what is applied now. Apply goes on meanwhile.
    pub fn snapshot(&mut self) -> impl Future<Output = Result<(PathBuf, Point)>> + use<> {
        answer(self.begin_snapshot())
    }

    /// It is of this very point: the checkpoint of it is written first, and none between the two.
    fn begin_snapshot(&mut self) -> Asked<(PathBuf, Point)> {
        self.checkpoint(true);
        self.base.snapshot()
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

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder { asked: Some(self.begin_snapshot()), snapshots: self.snapshots.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, file: SnapshotFile) -> io::Result<()> {
        let installed = answer(self.base.install(&file.path, meta.last_log_id().copied())).await;
        if installed.is_err() {
            // It is ours, and nobody wants it any more.
            _ = std::fs::remove_file(&file.path);
        }
        let Found { kv, point } = installed?;
        let point = point.ok_or_else(|| Error::fatal("a snapshot of no point"))?;
        self.kept = point.applied.map(LogId::from);
        // What was asked of the base before is done.
        self.thawed = self.base.written();
        let index = point.applied.map_or(0, |id| id.index);
        self.replica.install(kv, point)?;
        self.feed(Play::Installed).await;
        self.replica.tell_applied(index);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<TypeConfig, SnapshotFile>>> {
        Ok(newest(&self.snapshots)?)
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
pub struct Builder {
    asked: Option<Asked<(PathBuf, Point)>>,
    snapshots: Snapshots,
}

type Asked<T> = oneshot::Receiver<Result<T>>;

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotFile;

    /// An error is the end of the node. Where it need not be, openraft gets what it has already, or a snapshot of nothing, and
    /// passes over it.
    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<TypeConfig, SnapshotFile>> {
        let asked = self.asked.take().ok_or_else(|| Error::fatal("a builder builds one snapshot"))?;
        match answer(asked).await {
            Ok((path, point)) => Ok(offer(path, point)?),
            Err(Error::Unavailable(why)) => {
                tracing::warn!("no snapshot was written: {why}");
                let nothing =
                    || Snapshot { meta: SnapshotMeta::default(), snapshot: SnapshotFile { path: PathBuf::new() } };
                Ok(newest(&self.snapshots)?.unwrap_or_else(nothing))
            }
            Err(e) => Err(e.into()),
        }
    }
}

async fn answer<T>(asked: Asked<T>) -> Result<T> {
    asked.await.unwrap_or_else(|_| Err(Error::fatal("the checkpoint thread is gone")))
}

fn newest(snapshots: &Snapshots) -> Result<Option<SnapshotOf<TypeConfig, SnapshotFile>>> {
    snapshots.newest_header().map(|(path, point)| offer(path, point)).transpose()
}

/// A file as openraft hands it on.
fn offer(path: PathBuf, point: Point) -> Result<SnapshotOf<TypeConfig, SnapshotFile>> {
    let wire = WireSnapshotMeta { last: point.applied, membership: point.membership };
    Ok(Snapshot { meta: wire.try_into()?, snapshot: SnapshotFile { path } })
}

#[cfg(test)]
mod tests;
