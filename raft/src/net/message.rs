//! What nodes ask each other. Everything here is sent: enums grow only at their end, structs do not change.

use bytes::Bytes;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    identity::{ClusterId, Members},
    members::{Change, Member},
    raft::{LogId, NodeId, Peer, TypeConfig, Vote},
    wire::{WireEntry, WireLogId, WireVote},
};

/// A request of the layers above Raft, on the `call` lane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CallRequest {
    /// An encoded batch, for the leader to append. Answered by [`CallResponse::Forwarded`].
    Forward { batch: Bytes },
    /// Up to where has the leader committed, confirmed by a quorum? Answered by [`CallResponse::ReadIndex`].
    ReadIndex,
    /// Who are you? Answered by [`CallResponse::Probe`].
    Probe,
    /// Be one of these voters of this new cluster. Answered by [`CallResponse::Form`].
    Form { cluster: ClusterId, members: Members },
    /// Take me in as a learner. Answered by [`CallResponse::Join`].
    Join { id: NodeId, peer: Peer },
    /// Opaque to this crate. Answered by [`CallResponse::Ask`].
    Ask(Bytes),
    /// What does your state add up to? Answered by [`CallResponse::Hashes`].
    Hashes,
    /// An operator's change of the cluster's nodes. Answered by [`CallResponse::Changed`].
    Change(Change),
    /// How do the cluster's nodes stand? Answered by [`CallResponse::Members`].
    Members,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CallResponse {
    Forwarded(Forwarded),
    ReadIndex(Leadership<u64>),
    Probe(Probed),
    /// Refused with the reason.
    Form(Result<(), String>),
    Join(Leadership<Result<(), String>>),
    Ask(Bytes),
    /// By applied index, oldest first.
    Hashes(Vec<(u64, u128)>),
    /// Refused with the reason.
    Changed(Leadership<Result<(), String>>),
    Members(Leadership<Vec<Member>>),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Forwarded {
    /// Appended at this index of the log: not committed yet.
    Accepted {
        index: u64,
    },
    NotLeader {
        leader: Option<NodeId>,
    },
}

/// An answer that only the leader can give.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Leadership<T> {
    Leader(T),
    NotLeader { leader: Option<NodeId> },
}

/// What a node says when it is probed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probed {
    pub node: NodeId,
    /// Name and advertised peer address.
    pub peer: Peer,
    /// The cluster that it is in, or has agreed to be in.
    pub cluster: Option<ClusterId>,
    /// Whether that is final.
    pub formed: bool,
    /// With how many voters it would form a cluster.
    pub expect: u64,
    /// Why it would not take part in forming one, if so.
    pub barred: Option<String>,
    /// Its wall clock, milliseconds since 1970.
    pub clock_ms: u64,
}

/// A request on the `raft` or `beat` lane.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum RaftRequest {
    Append { vote: WireVote, prev: Option<WireLogId>, entries: Vec<WireEntry>, commit: Option<WireLogId> },
    Vote(WireVoteRequest),
    PreVote(WireVoteRequest),
    Transfer { from: WireVote, to: NodeId, last: Option<WireLogId> },
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct WireVoteRequest {
    pub vote: WireVote,
    pub last: Option<WireLogId>,
    pub transfer: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum RaftReply {
    Append(WireAppended),
    Vote { vote: WireVote, granted: bool, last: Option<WireLogId> },
    Transfer(WireTransferred),
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum WireAppended {
    Success,
    Partial(Option<WireLogId>),
    Conflict,
    HigherVote(WireVote),
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum WireTransferred {
    Done,
    VoteChanged { expected: WireVote, actual: WireVote },
    LogNotFlushed { expected: Option<WireLogId>, actual: Option<WireLogId> },
}

fn to_wire(id: &Option<LogId>) -> Option<WireLogId> {
    id.as_ref().map(WireLogId::from)
}

fn from_wire(id: Option<WireLogId>) -> Option<LogId> {
    id.map(LogId::from)
}

impl From<&AppendEntriesRequest<TypeConfig>> for RaftRequest {
    fn from(rpc: &AppendEntriesRequest<TypeConfig>) -> Self {
        Self::Append {
            vote: (&rpc.vote).into(),
            prev: to_wire(&rpc.prev_log_id),
            entries: rpc.entries.iter().map(WireEntry::from).collect(),
            commit: to_wire(&rpc.leader_commit),
        }
    }
}

/// The request that [`RaftRequest::Append`] carried; refused when an entry makes no sense.
pub(crate) fn append_request(
    vote: WireVote,
    prev: Option<WireLogId>,
    entries: Vec<WireEntry>,
    commit: Option<WireLogId>,
) -> Result<AppendEntriesRequest<TypeConfig>> {
    Ok(AppendEntriesRequest {
        vote: vote.into(),
        prev_log_id: from_wire(prev),
        entries: entries.into_iter().map(TryInto::try_into).collect::<Result<_>>()?,
        leader_commit: from_wire(commit),
    })
}

impl From<&VoteRequest<TypeConfig>> for WireVoteRequest {
    fn from(rpc: &VoteRequest<TypeConfig>) -> Self {
        Self { vote: (&rpc.vote).into(), last: to_wire(&rpc.last_log_id), transfer: rpc.leadership_transfer }
    }
}

impl From<WireVoteRequest> for VoteRequest<TypeConfig> {
    fn from(wire: WireVoteRequest) -> Self {
        let mut rpc = Self::new(wire.vote.into(), from_wire(wire.last));
        rpc.leadership_transfer = wire.transfer;
        rpc
    }
}

impl From<&TransferLeaderRequest<TypeConfig>> for RaftRequest {
    fn from(rpc: &TransferLeaderRequest<TypeConfig>) -> Self {
        let last = rpc.last_log_id().map(WireLogId::from);
        Self::Transfer { from: rpc.from_leader().into(), to: *rpc.to_node_id(), last }
    }
}

pub(crate) fn transfer_request(
    from: WireVote,
    to: NodeId,
    last: Option<WireLogId>,
) -> TransferLeaderRequest<TypeConfig> {
    TransferLeaderRequest::new(from.into(), to, from_wire(last))
}

impl From<AppendEntriesResponse<TypeConfig>> for RaftReply {
    fn from(reply: AppendEntriesResponse<TypeConfig>) -> Self {
        Self::Append(match reply {
            AppendEntriesResponse::Success => WireAppended::Success,
            AppendEntriesResponse::PartialSuccess(last) => WireAppended::Partial(to_wire(&last)),
            AppendEntriesResponse::Conflict => WireAppended::Conflict,
            AppendEntriesResponse::HigherVote(vote) => WireAppended::HigherVote((&vote).into()),
        })
    }
}

impl From<VoteResponse<TypeConfig>> for RaftReply {
    fn from(reply: VoteResponse<TypeConfig>) -> Self {
        Self::Vote { vote: (&reply.vote).into(), granted: reply.vote_granted, last: to_wire(&reply.last_log_id) }
    }
}

impl From<TransferLeaderResponse<TypeConfig>> for RaftReply {
    fn from(reply: TransferLeaderResponse<TypeConfig>) -> Self {
        Self::Transfer(match reply {
            Ok(()) => WireTransferred::Done,
            Err(TransferLeaderError::VoteChanged { expected, actual }) => {
                WireTransferred::VoteChanged { expected: (&expected).into(), actual: (&actual).into() }
            }
            Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
                WireTransferred::LogNotFlushed { expected: to_wire(&expected), actual: to_wire(&actual) }
            }
        })
    }
}

impl RaftReply {
    pub(crate) fn append(self) -> Result<AppendEntriesResponse<TypeConfig>> {
        let Self::Append(wire) = self else { return Err(wrong_answer()) };
        Ok(match wire {
            WireAppended::Success => AppendEntriesResponse::Success,
            WireAppended::Partial(last) => AppendEntriesResponse::PartialSuccess(from_wire(last)),
            WireAppended::Conflict => AppendEntriesResponse::Conflict,
            WireAppended::HigherVote(vote) => AppendEntriesResponse::HigherVote(Vote::from(vote)),
        })
    }

    pub(crate) fn vote(self) -> Result<VoteResponse<TypeConfig>> {
        let Self::Vote { vote, granted, last } = self else { return Err(wrong_answer()) };
        Ok(VoteResponse::new(Vote::from(vote), from_wire(last), granted))
    }

    pub(crate) fn transfer(self) -> Result<TransferLeaderResponse<TypeConfig>> {
        let Self::Transfer(wire) = self else { return Err(wrong_answer()) };
        Ok(match wire {
            WireTransferred::Done => Ok(()),
            WireTransferred::VoteChanged { expected, actual } => {
                Err(TransferLeaderError::VoteChanged { expected: expected.into(), actual: actual.into() })
            }
            WireTransferred::LogNotFlushed { expected, actual } => {
                Err(TransferLeaderError::LogNotFlushed { expected: from_wire(expected), actual: from_wire(actual) })
            }
        })
    }
}

/// The other side answered something else than was asked.
pub(crate) fn wrong_answer() -> Error {
    Error::refused("an answer to another question")
}
