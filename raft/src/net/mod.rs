//! The network between nodes.
//!
//! Every node listens on one peer port. A connection begins with a [`handshake`] and then carries one [`Lane`] of traffic
//! as [`frame`]s, so entries do not wait behind snapshots, nor heartbeats behind entries, nor Raft behind chat. What always
//! holds: nothing is handed on from somebody who did not prove the cluster's secret and name the node it meant to reach;
//! nothing is allocated for a length that was only declared; every queue has a bound.
//!
//! | module | |
//! |---|---|
//! | [`local`] | what this node says of itself |
//! | `dial` | the place of one connection, and the making of it |
//! | [`link`] | requests and answers, many at a time, over one connection |
//! | [`message`] | what is asked and answered |
//! | [`network`] | openraft's side: sends |
//! | [`consensus`] | openraft's side: receives |
//! | [`serve()`] | the listener |
//! | `acked` | whether a follower still has what it acknowledged |
//! | `signs` | when another node was last alive |
//! | `refusals` | how often a shut door is tried again |
//! | `originals` | which process is a node, should two say that they are it |
//! | [`peers`] | requests of the layers above, and the bus |
//! | [`snapshot`], `incoming` | files over the bulk lane, and what has arrived of one |
//! | [`transfers`] | how fast they may go, and what the log keeps for them |

mod acked;
pub mod consensus;
mod dial;
pub mod frame;
pub mod handshake;
mod incoming;
pub mod link;
pub mod local;
pub mod message;
mod moved;
pub mod network;
mod originals;
pub mod peers;
mod refusals;
pub mod serve;
mod signs;
pub mod snapshot;
pub mod transfers;

pub(crate) use acked::Acked;
pub use consensus::{Consensus, Heard, RaftConsensus};
pub use handshake::{Lane, Remote};
pub(crate) use incoming::clean;
pub use local::{Local, Secret};
pub use message::{CallRequest, CallResponse, Forwarded, Leadership, Probed};
pub use network::Network;
pub use peers::Peers;
pub use serve::{App, serve};
pub use signs::Signs;
pub use snapshot::SnapshotFile;
pub use transfers::Transfers;
