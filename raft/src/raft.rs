//! The types that this crate gives to openraft, and the words that go into its log.
//!
//! The log holds opaque bytes: an entry is stored, replicated and forwarded without being decoded. It is decoded once,
//! in the state machine, when it is applied. A reply never travels through Raft (each node computes its own), so the
//! response type is empty.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Raft identity of a node: random, made together with its data folder, never reused.
pub type NodeId = u64;

/// One encoded [`crate::command::Batch`]; see [`crate::codec`] for its envelope.
#[derive(Clone, PartialEq, Eq)]
pub struct Payload(pub Bytes);

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.0.len())
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// What every node knows of a peer from Raft's own configuration: enough to dial it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// The operator's word for the node (host name, pod name).
    pub name: String,
    /// `host:port` where the node listens for its peers.
    pub addr: String,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.addr)
    }
}

/// What applying one entry answers to openraft: nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done;

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("done")
    }
}

openraft::declare_raft_types!(
    /// openraft's types, chosen once.
    pub TypeConfig:
        D = Payload,
        R = Done,
        NodeId = NodeId,
        Node = Peer,
        // Raft's own: at most one leader a term. openraft's default orders several by their ids.
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, NodeId>,
);

pub type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
pub type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
pub type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
pub type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
pub type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;
