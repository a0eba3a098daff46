//! openraft's sending side: a client for each peer and lane.
//!
//! A client dials when it is first used and again after its link broke. `Unreachable` (openraft waits before it tries again)
//! means that there is no connection; `Network` means that there was one and the request failed on it.

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use openraft::{
    OptionalSend,
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::{RPCOption, RaftNetworkFactory, RaftNetworkV2},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
        VoteRequest, VoteResponse,
    },
    storage::Snapshot,
    type_config::alias::SnapshotOf,
};
use tokio::time::{Instant, timeout};

use super::{
    Lane, Local, SnapshotFile, handshake,
    link::Link,
    message::{RaftReply, RaftRequest},
    snapshot,
};
use crate::{
    codec,
    error::{Error, Result},
    raft::{Entry, NodeId, Payload, Peer, TypeConfig, Vote},
};

/// Payload bytes in one append. What is above it goes with the next: openraft bounds entries by number only. One entry
/// larger than this still goes alone; a batch is far below a frame's bound.
const APPEND_BYTES_MAX: usize = 16 << 20;

/// A wrong node at a peer's address is logged this often at most, for each client.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

/// Makes clients for openraft.
#[derive(Clone)]
pub struct Network {
    local: Arc<Local>,
}

impl Network {
    pub fn new(local: Arc<Local>) -> Self {
        Self { local }
    }

    fn client(&self, target: NodeId, node: &Peer, lane: Lane) -> Client {
        Client { local: Arc::clone(&self.local), target, addr: node.addr.clone(), lane, link: None, complained: None }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: NodeId, node: &Peer) -> Client {
        self.client(target, node, Lane::Raft)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, node: &Peer) -> Client {
        self.client(target, node, Lane::Beat)
    }

    async fn new_snapshot_client(&mut self, target: NodeId, node: &Peer) -> Client {
        self.client(target, node, Lane::Bulk)
    }
}

/// One peer on one lane.
pub struct Client {
    local: Arc<Local>,
    target: NodeId,
    addr: String,
    /// What openraft made this client for. Votes and transfers, which it sends by ordinary clients, are urgent anyway.
    lane: Lane,
    link: Option<Link>,
    complained: Option<Instant>,
}

impl Client {
    async fn ask(&mut self, request: &RaftRequest, within: Duration) -> Result<RaftReply, RPCError<TypeConfig>> {
        let deadline = Instant::now() + within;
        let lane = match (self.lane, request) {
            (Lane::Raft, RaftRequest::Append { .. }) => Lane::Raft,
            _ => Lane::Beat,
        };
        let link = self.link(lane, within).await.map_err(|e| RPCError::Unreachable(unreachable(&e)))?;
        let body = codec::body(request).map_err(|e| RPCError::Network(NetworkError::new(&e)))?;
        let left = deadline.saturating_duration_since(Instant::now());
        let answer = link.request(Bytes::from(body), left).await;
        let reply = answer.and_then(|body| codec::from_body(&body));
        reply.map_err(|e| RPCError::Network(NetworkError::new(&e)))
    }

    /// The link of this client, dialed when there is none. A client that openraft made for votes never sends entries, so one
    /// link is enough: its lane is that of its first request.
    async fn link(&mut self, lane: Lane, within: Duration) -> Result<&Link> {
        if self.link.as_ref().is_none_or(Link::is_closed) {
            self.link = None;
            let dialing = handshake::dial(&self.local, &self.addr, lane, Some(self.target));
            let late = |_| Error::unavailable(format!("{} does not answer within {within:?}", self.addr));
            let dialed = timeout(within, dialing).await.map_err(late)?;
            let (stream, _) = dialed.inspect_err(|e| self.complain(e))?;
            self.link = Some(Link::new(stream));
        }
        Ok(self.link.as_ref().expect("it was made just now"))
    }

    /// A peer that is away is routine; a wrong one at its address is for the operator.
    fn complain(&mut self, error: &Error) {
        if let Error::Refused(why) = error
            && self.complained.is_none_or(|at| at.elapsed() > COMPLAIN_EVERY)
        {
            self.complained = Some(Instant::now());
            tracing::warn!(node = format!("{:016x}", self.target), "a peer is not the one it should be: {why}");
        }
    }

    async fn send_snapshot(
        &mut self,
        vote: &Vote,
        snapshot: &Snapshot<LeaderId, NodeId, Peer, SnapshotFile>,
        step: Duration,
    ) -> Result<Vote, StreamingError<TypeConfig>> {
        let dialed = handshake::dial(&self.local, &self.addr, Lane::Bulk, Some(self.target)).await;
        let (mut stream, _) = dialed.inspect_err(|e| self.complain(e)).map_err(|e| unreachable(&e))?;
        let sent = snapshot::send(&mut stream, vote, &snapshot.meta, &snapshot.snapshot, step).await;
        sent.map_err(|e| StreamingError::Network(NetworkError::new(&e)))
    }
}

type LeaderId = openraft::type_config::alias::CommittedLeaderIdOf<TypeConfig>;

impl RaftNetworkV2<TypeConfig> for Client {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        mut rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let all = rpc.entries.len();
        rpc.entries.truncate(fitting(&rpc.entries));
        let reply = self.ask(&RaftRequest::from(&rpc), option.soft_ttl()).await?;
        let reply = reply.append().map_err(|e| RPCError::Network(NetworkError::new(&e)))?;
        Ok(match reply {
            AppendEntriesResponse::Success if rpc.entries.len() < all => {
                AppendEntriesResponse::PartialSuccess(rpc.entries.last().map(|entry| entry.log_id))
            }
            reply => reply,
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let reply = self.ask(&RaftRequest::Vote((&rpc).into()), option.soft_ttl()).await?;
        reply.vote().map_err(|e| RPCError::Network(NetworkError::new(&e)))
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let reply = self.ask(&RaftRequest::PreVote((&rpc).into()), option.soft_ttl()).await?;
        reply.vote().map_err(|e| RPCError::Network(NetworkError::new(&e)))
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, SnapshotFile>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        tokio::select! {
            // The time is for each step, not for the whole: a big snapshot that gets on is not a failed one.
            sent = self.send_snapshot(&vote, &snapshot, option.hard_ttl()) => sent.map(SnapshotResponse::new),
            closed = cancel => Err(StreamingError::Closed(closed)),
        }
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let reply = self.ask(&RaftRequest::from(&rpc), option.soft_ttl()).await?;
        reply.transfer().map_err(|e| RPCError::Network(NetworkError::new(&e)))
    }
}

/// How many of the entries go into one append: at least one.
fn fitting(entries: &[Entry]) -> usize {
    let mut bytes = 0;
    let mut fits = |entry: &Entry| {
        if let openraft::EntryPayload::Normal(Payload(payload)) = &entry.payload {
            bytes += payload.len();
        }
        bytes <= APPEND_BYTES_MAX
    };
    entries.iter().take_while(|entry| fits(entry)).count().max(1).min(entries.len())
}

fn unreachable(error: &Error) -> Unreachable<TypeConfig> {
    Unreachable::new(error)
}
