//! moim's replicated store.
pub mod codec;
pub mod error;
pub mod raft;
