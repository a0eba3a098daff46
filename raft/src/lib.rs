//! moim's replicated store.
pub mod codec;
pub mod command;
pub mod error;
pub mod keys;
pub mod kv;
pub mod raft;
pub mod state;
