//! moim's replicated store.
pub mod base;
pub mod codec;
pub mod command;
pub mod disk;
pub mod error;
pub mod form;
pub mod identity;
pub mod keys;
pub mod kv;
pub mod log;
pub mod net;
pub mod raft;
pub mod snapshot;
pub mod state;
pub mod wal;
pub mod wire;
