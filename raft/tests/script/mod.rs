//! The languages of the golden scripts.

pub mod keys;
pub mod snapshot;
pub mod state;
pub mod words;
