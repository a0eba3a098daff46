//! openraft's words as plain structs of our own: what is stored in the log and sent to peers.
//!
//! openraft changes the shape of its types between versions, and bincode is positional, so its serde derives would tie
//! our files to one version of it. These structs are ours: fields are never reordered, removed or added (a change is a
//! new struct under a new kind), and enums grow only at their end. Turning ours into theirs checks what theirs demand.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use openraft::{
    EntryPayload,
    entry::RaftEntry,
    type_config::alias::{CommittedLeaderIdOf, LeaderIdOf},
};
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    raft::{Entry, LogId, NodeId, Payload, Peer, SnapshotMeta, StoredMembership, TypeConfig, Vote},
};

type LeaderId = LeaderIdOf<TypeConfig>;
type CommittedLeaderId = CommittedLeaderIdOf<TypeConfig>;
type Membership = openraft::Membership<NodeId, Peer>;

/// Raft's term and vote of a node; `committed` once a quorum has granted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireVote {
    pub term: u64,
    pub node: NodeId,
    pub committed: bool,
}

/// A place in the log: the term in which it was proposed, and its index from 0. A term has one leader, so `node` says
/// nothing: it is 0, or who led in the first version's files, and not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireLogId {
    pub term: u64,
    pub node: NodeId,
    pub index: u64,
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireEntry {
    pub id: WireLogId,
    pub payload: WirePayload,
}

/// What an entry holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WirePayload {
    /// Proposed by each new leader, to commit what came before it.
    Blank,
    /// One encoded batch, opaque here.
    Normal(Bytes),
    /// Who belongs to the cluster from this entry on.
    Membership(WireMembership),
}

/// Voters (two sets while a change is under way) and everybody's address. Who is in `nodes` only is a learner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireMembership {
    pub voters: Vec<Vec<NodeId>>,
    pub nodes: Vec<(NodeId, Peer)>,
}

/// A membership, and the entry that brought it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireStoredMembership {
    pub id: Option<WireLogId>,
    pub membership: WireMembership,
}

/// What a snapshot covers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireSnapshotMeta {
    pub last: Option<WireLogId>,
    pub membership: WireStoredMembership,
}

impl From<&Vote> for WireVote {
    fn from(vote: &Vote) -> Self {
        Self { term: vote.leader_id.term, node: vote.leader_id.voted_for, committed: vote.committed }
    }
}

impl From<WireVote> for Vote {
    fn from(wire: WireVote) -> Self {
        Self { leader_id: LeaderId { term: wire.term, voted_for: wire.node }, committed: wire.committed }
    }
}

impl From<&LogId> for WireLogId {
    fn from(id: &LogId) -> Self {
        Self { term: id.leader_id.term, node: 0, index: id.index }
    }
}

impl From<WireLogId> for LogId {
    fn from(wire: WireLogId) -> Self {
        Self::new(CommittedLeaderId::new(wire.term), wire.index)
    }
}

impl From<&Entry> for WireEntry {
    fn from(entry: &Entry) -> Self {
        let payload = match &entry.payload {
            EntryPayload::Blank => WirePayload::Blank,
            EntryPayload::Normal(Payload(bytes)) => WirePayload::Normal(bytes.clone()),
            EntryPayload::Membership(membership) => WirePayload::Membership(membership.into()),
        };
        Self { id: (&entry.log_id).into(), payload }
    }
}

impl TryFrom<WireEntry> for openraft::Entry<CommittedLeaderId, EntryPayload<Payload, NodeId, Peer>> {
    type Error = Error;

    fn try_from(wire: WireEntry) -> Result<Self> {
        let payload = match wire.payload {
            WirePayload::Blank => EntryPayload::Blank,
            WirePayload::Normal(bytes) => EntryPayload::Normal(Payload(bytes)),
            WirePayload::Membership(membership) => EntryPayload::Membership(membership.try_into()?),
        };
        Ok(Self::new(wire.id.into(), payload))
    }
}

impl From<&Membership> for WireMembership {
    fn from(membership: &Membership) -> Self {
        Self {
            voters: membership.get_joint_config().iter().map(|set| set.iter().copied().collect()).collect(),
            nodes: membership.nodes().map(|(id, peer)| (*id, peer.clone())).collect(),
        }
    }
}

/// Refused when a set of voters is empty or a voter has no address.
impl TryFrom<WireMembership> for Membership {
    type Error = Error;

    fn try_from(wire: WireMembership) -> Result<Self> {
        let voters: Vec<BTreeSet<NodeId>> = wire.voters.into_iter().map(BTreeSet::from_iter).collect();
        let nodes: BTreeMap<NodeId, Peer> = wire.nodes.into_iter().collect();
        Self::new(voters, nodes).map_err(|e| Error::refused(format!("not a membership: {e}")))
    }
}

impl From<&StoredMembership> for WireStoredMembership {
    fn from(stored: &StoredMembership) -> Self {
        Self { id: stored.log_id().as_ref().map(WireLogId::from), membership: stored.membership().into() }
    }
}

impl TryFrom<WireStoredMembership> for StoredMembership {
    type Error = Error;

    fn try_from(wire: WireStoredMembership) -> Result<Self> {
        Ok(Self::new(wire.id.map(LogId::from), wire.membership.try_into()?))
    }
}

impl From<&SnapshotMeta> for WireSnapshotMeta {
    fn from(meta: &SnapshotMeta) -> Self {
        Self {
            last: meta.last_log_id.as_ref().map(WireLogId::from),
            membership: WireStoredMembership::from(&meta.last_membership),
        }
    }
}

impl TryFrom<WireSnapshotMeta> for SnapshotMeta {
    type Error = Error;

    fn try_from(wire: WireSnapshotMeta) -> Result<Self> {
        Ok(Self { last_log_id: wire.last.map(LogId::from), last_membership: wire.membership.try_into()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    const ID: WireLogId = WireLogId { term: 3, node: 0, index: 812 };

    fn peer(name: &str) -> Peer {
        Peer { name: name.into(), addr: "127.0.0.1:1".into() }
    }

    fn there_and_back(payload: WirePayload) {
        let wire = WireEntry { id: ID, payload };
        let read: WireEntry = codec::from_body(&codec::body(&wire).unwrap()).unwrap();
        let entry = Entry::try_from(read).unwrap();
        assert_eq!(WireEntry::from(&entry), wire);
    }

    #[test]
    fn every_payload_comes_back_equal() {
        let joint = WireMembership {
            voters: vec![vec![1, 2], vec![2, 3]],
            nodes: vec![(1, peer("a")), (2, peer("b")), (3, peer("c")), (4, peer("learner"))],
        };
        there_and_back(WirePayload::Blank);
        there_and_back(WirePayload::Normal(Bytes::from_static(b"\0batch")));
        there_and_back(WirePayload::Membership(joint));
        there_and_back(WirePayload::Membership(WireMembership { voters: vec![], nodes: vec![] }));
    }

    #[test]
    fn votes_and_snapshot_metas_come_back_equal() {
        let vote = WireVote { term: 9, node: 4, committed: true };
        assert_eq!(WireVote::from(&Vote::from(vote)), vote);
        let membership = WireMembership { voters: vec![vec![1]], nodes: vec![(1, peer("a"))] };
        let meta = WireSnapshotMeta { last: Some(ID), membership: WireStoredMembership { id: Some(ID), membership } };
        assert_eq!(WireSnapshotMeta::from(&SnapshotMeta::try_from(meta.clone()).unwrap()), meta);
    }

    #[test]
    fn a_voter_without_an_address_is_refused() {
        let wire = WireMembership { voters: vec![vec![1, 2]], nodes: vec![(1, peer("a"))] };
        assert!(Membership::try_from(wire).is_err());
    }

    /// These bytes are on disks: whoever changes them needs a new kind.
    #[test]
    fn the_bytes_of_an_entry_stay_as_they_are() {
        let id = WireLogId { node: 7, ..ID };
        assert_eq!(LogId::from(id), LogId::from(ID), "who led is not looked at");
        let wire = WireEntry { id, payload: WirePayload::Normal(Bytes::from_static(b"hi")) };
        assert_eq!(codec::body(&wire).unwrap(), [3, 7, 251, 3, 44, 1, 2, b'h', b'i']);
    }
}
