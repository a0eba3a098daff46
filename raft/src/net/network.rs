//! openraft's sending side: a client for each peer and lane.
//!
//! A client dials when it is first used and again after its link broke; all that is urgent to one node (heartbeats, votes,
//! transfers) shares one connection, because openraft makes a client for each vote. `Unreachable` (openraft waits before it tries again)
//! means that there is no connection; `Network` means that there was one and the request failed on it.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex as StdMutex, PoisonError},
    time::Duration,
};

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
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

use super::{
    Acked, Lane, Local, SnapshotFile, Transfers,
    dial::Slot,
    handshake,
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

/// How long one append may take. Far more than a heartbeat: a follower whose disk stalls is slow, not gone.
const APPEND_TIMEOUT: Duration = Duration::from_secs(2);

/// Connections by where they go.
type Slots = Arc<StdMutex<HashMap<(NodeId, String), Arc<Mutex<Slot>>>>>;

/// Where each peer is. openraft keeps a client for as long as it leads, also when the peer's address changes.
type Addrs = Arc<StdMutex<HashMap<NodeId, String>>>;

/// Makes clients for openraft.
#[derive(Clone)]
pub struct Network {
    local: Arc<Local>,
    addrs: Addrs,
    acked: Arc<Acked>,
    /// The urgent lane of each peer. Bounded by the addresses that peers ever had in one life of this process.
    beats: Slots,
    transfers: Arc<Transfers>,
}

impl Network {
    pub fn new(local: Arc<Local>) -> Self {
        Self {
            local,
            addrs: Addrs::default(),
            acked: Arc::default(),
            beats: Slots::default(),
            transfers: Arc::default(),
        }
    }

    /// What followers have acknowledged.
    pub(crate) fn acked(&self) -> Arc<Acked> {
        Arc::clone(&self.acked)
    }

    /// Says where the peers are from now on. Connections that stand are kept.
    pub fn set_addrs(&self, peers: impl IntoIterator<Item = (NodeId, Peer)>) {
        let addrs = peers.into_iter().map(|(node, peer)| (node, peer.addr)).collect();
        *self.addrs.lock().unwrap_or_else(PoisonError::into_inner) = addrs;
    }

    /// The snapshots that it sends.
    pub fn transfers(&self) -> Arc<Transfers> {
        Arc::clone(&self.transfers)
    }

    fn client(&self, target: NodeId, node: &Peer, lane: Lane) -> Client {
        let beat = {
            let mut beats = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(beats.entry((target, node.addr.clone())).or_default())
        };
        let own = Arc::default();
        let (local, transfers) = (Arc::clone(&self.local), Arc::clone(&self.transfers));
        let (addr, addrs, acked) = (node.addr.clone(), Arc::clone(&self.addrs), Arc::clone(&self.acked));
        Client { local, target, addr, addrs, acked, lane, own, beat, transfers, complained: None }
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
    /// Where the target was when openraft made this client, and where it is now.
    addr: String,
    addrs: Addrs,
    acked: Arc<Acked>,
    /// What openraft made this client for. Votes and transfers, which it sends by ordinary clients, are urgent anyway.
    lane: Lane,
    /// For entries.
    own: Arc<Mutex<Slot>>,
    /// For what is urgent; shared by all clients of this peer.
    beat: Arc<Mutex<Slot>>,
    transfers: Arc<Transfers>,
    complained: Option<Instant>,
}

impl Client {
    fn update_addr(&mut self) {
        if let Some(addr) = self.addrs.lock().unwrap_or_else(PoisonError::into_inner).get(&self.target) {
            self.addr.clone_from(addr);
        }
    }

    async fn ask(&mut self, request: &RaftRequest, option: &RPCOption) -> Result<RaftReply, RPCError<TypeConfig>> {
        let (lane, slot, within) = match (self.lane, request) {
            (Lane::Raft, RaftRequest::Append { .. }) => (Lane::Raft, &self.own, APPEND_TIMEOUT.max(option.hard_ttl())),
            _ => (Lane::Beat, &self.beat, option.hard_ttl()),
        };
        let (slot, deadline) = (Arc::clone(slot), Instant::now() + within);
        self.update_addr();
        let dialed = async {
            let mut slot = slot.lock().await;
            slot.link(&self.local, &self.addr, lane, self.target, within).await
        };
        let link = match timeout(within, dialed).await {
            Ok(Ok(link)) => link,
            Ok(Err(e)) => {
                self.complain(&e);
                return Err(RPCError::Unreachable(unreachable(&e)));
            }
            Err(_) => {
                let late = Error::unavailable(format!("{} does not answer within {within:?}", self.addr));
                return Err(RPCError::Unreachable(unreachable(&late)));
            }
        };
        let body = codec::body(request).map_err(|e| RPCError::Network(NetworkError::new(&e)))?;
        let left = deadline.saturating_duration_since(Instant::now());
        let answer = link.request(Bytes::from(body), left).await;
        let reply = answer.and_then(|body| codec::from_body(&body));
        reply.map_err(|e| RPCError::Network(NetworkError::new(&e)))
    }

    /// A peer that is away is routine; a wrong one at its address is for the operator.
    fn complain(&mut self, error: &Error) {
        if let Error::Refused(why) = error
            && self.is_time_to_complain()
        {
            tracing::warn!(node = format!("{:016x}", self.target), "a peer is not the one it should be: {why}");
        }
    }

    fn is_time_to_complain(&mut self) -> bool {
        let due = self.complained.is_none_or(|at| at.elapsed() > COMPLAIN_EVERY);
        if due {
            self.complained = Some(Instant::now());
        }
        due
    }

    /// A follower that denies what it had acknowledged. It is not fed: what it lacks counts as replicated on it.
    fn went_back(&mut self, index: u64) -> RPCError<TypeConfig> {
        self.acked.denied(self.target, index);
        let why = format!("it does not have entry {index} any more, which it had acknowledged: its log went back");
        if self.is_time_to_complain() {
            tracing::error!(node = format!("{:016x}", self.target), addr = self.addr, "{why}");
        }
        RPCError::Unreachable(unreachable(&Error::unavailable(why)))
    }

    async fn send_snapshot(
        &mut self,
        vote: &Vote,
        snapshot: &Snapshot<LeaderId, NodeId, Peer, SnapshotFile>,
        step: Duration,
    ) -> Result<Vote, StreamingError<TypeConfig>> {
        self.update_addr();
        // Before it is dialed: the log could be purged past this snapshot meanwhile.
        let running = self.transfers.begin(self.target, snapshot.meta.last_log_id.map_or(0, |id| id.index));
        let dialed = handshake::dial(&self.local, &self.addr, Lane::Bulk, Some(self.target)).await;
        let (mut stream, _) = dialed.inspect_err(|e| self.complain(e)).map_err(|e| unreachable(&e))?;
        let sent = snapshot::send(&mut stream, vote, &snapshot.meta, &snapshot.snapshot, &self.transfers, step).await;
        match &sent {
            Ok(_) => running.arrived(),
            Err(Error::Unavailable(_)) => {}
            Err(_) => running.doubted(),
        }
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
        let (prev, last) = (rpc.prev_log_id, rpc.entries.last().map(|entry| entry.log_id).or(rpc.prev_log_id));
        // Before it is asked: what it acknowledges on the other lane meanwhile, it need not have had when it answered here.
        let promised = self.acked.upto(self.target, &rpc.vote);
        let reply = self.ask(&RaftRequest::from(&rpc), &option).await?;
        let reply = reply.append().map_err(|e| RPCError::Network(NetworkError::new(&e)))?;
        match (&reply, prev) {
            (AppendEntriesResponse::Conflict, Some(prev)) if Some(prev.index) <= promised => {
                return Err(self.went_back(prev.index));
            }
            (AppendEntriesResponse::Success, _) if last.is_some() => {
                self.acked.acknowledged(self.target, &rpc.vote, last.map_or(0, |id| id.index));
            }
            (AppendEntriesResponse::PartialSuccess(Some(upto)), _) => {
                self.acked.acknowledged(self.target, &rpc.vote, upto.index);
            }
            _ => {}
        }
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
        let reply = self.ask(&RaftRequest::Vote((&rpc).into()), &option).await?;
        reply.vote().map_err(|e| RPCError::Network(NetworkError::new(&e)))
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let reply = self.ask(&RaftRequest::PreVote((&rpc).into()), &option).await?;
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
        let reply = self.ask(&RaftRequest::from(&rpc), &option).await?;
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
