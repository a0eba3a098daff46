//! openraft's receiving side, and when this node last heard from its leader.

use std::{fs, path::Path, sync::Arc};

use futures_util::future::BoxFuture;
use openraft::{
    Raft,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, TransferLeaderResponse, VoteRequest,
        VoteResponse,
    },
    storage::{RaftStateMachine, Snapshot},
};
use tokio::{sync::watch, time::Instant};

use super::SnapshotFile;
use crate::{
    error::{Error, Result},
    raft::{SnapshotMeta, TypeConfig, Vote},
    wire::WireLogId,
};

/// What the network needs of Raft. openraft is one; tests have another.
pub trait Consensus: Send + Sync + 'static {
    fn append(&self, rpc: AppendEntriesRequest<TypeConfig>)
    -> BoxFuture<'_, Result<AppendEntriesResponse<TypeConfig>>>;
    fn vote(&self, rpc: VoteRequest<TypeConfig>) -> BoxFuture<'_, Result<VoteResponse<TypeConfig>>>;
    fn pre_vote(&self, rpc: VoteRequest<TypeConfig>) -> BoxFuture<'_, Result<VoteResponse<TypeConfig>>>;
    fn transfer(
        &self,
        rpc: TransferLeaderRequest<TypeConfig>,
    ) -> BoxFuture<'_, Result<TransferLeaderResponse<TypeConfig>>>;
    /// Takes the file over, installs it, answers with the node's vote.
    fn install(&self, vote: Vote, meta: SnapshotMeta, file: SnapshotFile) -> BoxFuture<'_, Result<Vote>>;
    /// Whether it has a log or has voted: then it is in a cluster already.
    fn initialized(&self) -> BoxFuture<'_, Result<bool>>;
}

/// When a leader was last heard. openraft's `current_leader` does not clear on a follower that was cut off (with pre-vote on
/// its term never changes), so whether this node is isolated is judged by this.
#[derive(Clone, Debug)]
pub struct Heard(Arc<watch::Sender<Option<Instant>>>);

impl Default for Heard {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }
}

impl Heard {
    /// `None` when never since the start.
    pub fn last(&self) -> Option<Instant> {
        *self.0.borrow()
    }

    pub fn subscribe(&self) -> watch::Receiver<Option<Instant>> {
        self.0.subscribe()
    }

    fn now(&self) {
        self.0.send_replace(Some(Instant::now()));
    }
}

/// openraft as [`Consensus`].
pub struct RaftConsensus<SM: RaftStateMachine<TypeConfig>> {
    raft: Raft<TypeConfig, SM>,
    heard: Heard,
    check: Check,
}

/// Reads a received snapshot, which has to be of that entry, to its end. `Refused` when the state machine could not take it.
pub type Check = fn(&Path, Option<WireLogId>) -> Result<()>;

impl<SM: RaftStateMachine<TypeConfig>> RaftConsensus<SM> {
    /// `heard` is told of each request of a leader that this node accepted.
    pub fn new(raft: Raft<TypeConfig, SM>, heard: Heard, check: Check) -> Self {
        Self { raft, heard, check }
    }

    /// For openraft a state machine that cannot install is at its end, so what the sender's disk has damaged must not get there.
    async fn install_whole(&self, vote: Vote, meta: SnapshotMeta, file: SnapshotFile) -> Result<Vote>
    where
        SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotFile>,
    {
        let (path, last, check) = (file.path.clone(), meta.last_log_id.as_ref().map(WireLogId::from), self.check);
        tokio::task::spawn_blocking(move || check(&path, last)).await.map_err(Error::fatal)??;
        let reply = self.raft.install_full_snapshot(vote, Snapshot { meta, snapshot: file }).await;
        let reply = reply.map_err(Error::unavailable)?;
        if reply.vote == vote {
            self.heard.now();
        }
        Ok(reply.vote)
    }
}

impl<SM> Consensus for RaftConsensus<SM>
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotFile>,
{
    fn append(
        &self,
        rpc: AppendEntriesRequest<TypeConfig>,
    ) -> BoxFuture<'_, Result<AppendEntriesResponse<TypeConfig>>> {
        Box::pin(async move {
            let reply = self.raft.append_entries(rpc).await.map_err(Error::unavailable)?;
            // A conflict is an answer to the right leader as well; only a higher vote says that it is none any more.
            if !matches!(reply, AppendEntriesResponse::HigherVote(_)) {
                self.heard.now();
            }
            Ok(reply)
        })
    }

    fn vote(&self, rpc: VoteRequest<TypeConfig>) -> BoxFuture<'_, Result<VoteResponse<TypeConfig>>> {
        Box::pin(async move { self.raft.vote(rpc).await.map_err(Error::unavailable) })
    }

    fn pre_vote(&self, rpc: VoteRequest<TypeConfig>) -> BoxFuture<'_, Result<VoteResponse<TypeConfig>>> {
        Box::pin(async move { self.raft.pre_vote(rpc).await.map_err(Error::unavailable) })
    }

    fn transfer(
        &self,
        rpc: TransferLeaderRequest<TypeConfig>,
    ) -> BoxFuture<'_, Result<TransferLeaderResponse<TypeConfig>>> {
        Box::pin(async move { self.raft.handle_transfer_leader(rpc).await.map_err(Error::unavailable) })
    }

    fn install(&self, vote: Vote, meta: SnapshotMeta, file: SnapshotFile) -> BoxFuture<'_, Result<Vote>> {
        Box::pin(async move {
            let path = file.path.clone();
            let installed = self.install_whole(vote, meta, file).await;
            // It has another name by now if it was installed. openraft passes over one that it does not need.
            _ = fs::remove_file(path);
            installed
        })
    }

    fn initialized(&self) -> BoxFuture<'_, Result<bool>> {
        Box::pin(async move { self.raft.is_initialized().await.map_err(Error::unavailable) })
    }
}

#[cfg(test)]
mod tests;
