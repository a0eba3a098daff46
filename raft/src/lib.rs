//! moim's replicated store: one order of commands, the same on every node, kept through the loss of any one of them.
//!
//! # What it promises
//!
//! - **Acknowledged is kept.** A [`Ticket`] that hears `Ok` stands for a command that a quorum has committed and synced to
//!   disk, and that this node has applied and played.
//! - **Once, and in order.** The commands of a node take effect in the order in which it made them, once, whatever happened
//!   to leaders, links and processes in between.
//! - **One state.** At the same applied index all nodes have the same bytes, and the same [hash](Store::hash_at).
//! - **Nothing older than before.** A node that was restarted serves nothing until it has caught up with what it served.
//! - **Silence without a quorum.** A node that is cut off acknowledges nothing and answers no linearizable read.
//!
//! # How a command goes
//!
//! ```text
//!              propose                    drive                     openraft, net
//!  Store ───▶ queue ───▶ one batch in flight ───▶ leader: stamp, append ───▶ quorum: wal, one fdatasync a group
//!                                                                               │ committed
//!  Ticket ◀── player ◀── feed (bounded, lossless) ◀── machine: State::apply ◀───┘
//!                                                        │ every couple of seconds
//!                                                        ▼
//!                                                 base: checkpoint in sled        snapshot: files
//! ```
//!
//! | to know | read |
//! | --- | --- |
//! | what can be replicated, and what it does | [`command`], [`state`] |
//! | how a command gets into the log once | `propose`, `drive` |
//! | what is on disk and why it is still there after a power cut | [`wal`], [`log`], [`snapshot`], `base`, `disk` |
//! | when a snapshot is written, and how much log is kept behind it | `retention` |
//! | what a node does when its disk fills up | `space` |
//! | whether all nodes have one state | [`divergence`] |
//! | who is alive, whose session is over, whose clock is wrong | `duties`, `clock` |
//! | how a cluster goes from one version to the next | [`level`], [`codec`] |
//! | how nodes talk, and how they become a cluster once | [`net`], [`form`], [`identity`] |
//! | how an old copy of a data folder is known as one, and one that runs beside its original | [`marker`], [`net`] |
//! | who votes, who learns, who is gone for good | `members` |
//! | how everything is put together | [`store`] |
//!
//! # What is true and what is derived
//!
//! The truth is the log with the vote, and the snapshot files. The checkpoint in sled saves a start from applying the log
//! again, and memory from holding the state: apply works on an overlay of what changed since ([`kv`], [`base`]). It carries
//! the sum of all pairs, which a start believes and then proves in the background; one that does not open, does not add up or
//! does not answer ends the node, loudly, and its next start rebuilds it by itself.
//!
//! # Invariants
//!
//! - `purged ≤ snapshot ≤ applied ≤ committed ≤ last`; none of them, nor term or vote, goes back across a restart.
//! - A vote and the entries around it reach the disk in the order in which Raft made them: they share one stream.
//! - The first failed write or sync is final: the node says so and ends; nothing is tried again on that disk.
//! - The feed loses nothing: apply waits for the player. What a start applies again is not played.
//! - A late word of an old incarnation or generation changes nothing; what the leader decides names what it was decided for.
//! - Time enters at one place, the leader's stamp; lives of sessions are measured on a leader's monotonic clock.
//! - openraft and sled are named inside this crate alone; no web or socket library is named in it.
//!
//! # What is left out, and what that means
//!
//! - A view of the whole state for operators is in memory as a whole, and the next checkpoint waits while it is copied.
//! - sled keeps in memory whatever leaves were written since the node's start: its cache bounds only those that were read.
//! - sled gives back an emptied leaf, but not the space of one that is half full: only an installed snapshot packs it anew.
//! - The peer links prove a shared secret at their start; they are neither encrypted nor authenticated after it.

// Tests inside the crate share the test cluster with those outside, which names it.
#[cfg(test)]
extern crate self as moim_raft;

mod answers;
pub mod base;
pub mod clock;
#[cfg(test)]
#[path = "../tests/cluster/mod.rs"]
mod cluster;
pub mod codec;
pub mod command;
mod consensus;
mod disk;
pub mod divergence;
mod drive;
mod duties;
pub mod error;
#[cfg(feature = "failpoints")]
pub mod fail;
#[cfg(not(feature = "failpoints"))]
mod fail;
pub mod form;
#[cfg(test)]
mod golden;
pub mod identity;
mod keys;
pub mod kv;
pub mod level;
pub mod log;
pub mod machine;
pub mod marker;
mod members;
pub mod net;
mod observe;
pub mod propose;
pub mod raft;
mod retention;
pub mod snapshot;
mod space;
pub mod state;
pub mod store;
pub mod wal;
pub mod wire;

pub use error::{Error, Result};
pub use machine::Play;
pub use members::{Change, Member};
pub use net::{Secret, Signs};
pub use observe::{Observation, Observer};
pub use propose::Ticket;
pub use raft::NodeId;
pub use store::{Config, Feeds, Status, Store};

/// Directives for tracing's filter, to be put before those of an operator. openraft complains of a peer that is away ten
/// times a second, and says what it was told of a failed disk four times over; this crate says once what it made of it.
pub const TRACE_FILTER: &str = "openraft=off";
