//! moim's replicated store.
mod base;
pub mod codec;
pub mod command;
mod disk;
mod drive;
mod duties;
pub mod error;
pub mod form;
pub mod identity;
mod keys;
mod kv;
pub mod log;
mod machine;
pub mod net;
mod propose;
pub mod raft;
pub mod snapshot;
pub mod state;
pub mod store;
pub mod wal;
pub mod wire;

pub use error::{Error, Result};
pub use machine::Play;
pub use net::Secret;
pub use propose::Ticket;
pub use raft::NodeId;
pub use store::{Config, Feeds, Status, Store};
