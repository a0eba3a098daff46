//! The namespaces of a pattern such as `/t/{tenant}/chat`, made as clients ask for them.
//!
//! Anybody may name one, and socketioxide keeps each for ever. What always holds: a pattern has at most [`NAMESPACES_MAX`] on a
//! node. One counts from when a client that is authorised asked for it; until then, and past the bound, it is taken down again
//! before its client hears that it is not let in.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

use super::connect::Final;
use crate::adapter::SocketIo;

/// Namespaces of one pattern.
const NAMESPACES_MAX: usize = 1000;

/// See the module.
pub struct Pattern {
    io: SocketIo,
    pattern: String,
    names: Mutex<HashSet<String>>,
}

impl Pattern {
    pub fn new(io: &SocketIo, pattern: &str) -> Self {
        Self { io: io.clone(), pattern: pattern.to_owned(), names: Mutex::default() }
    }

    /// Called for each CONNECT, with who asks or why it is refused.
    pub fn let_in<T>(&self, ns: &str, who: Result<T, Final>) -> Result<T, Final> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.contains(ns) {
            return who;
        }
        let who = match who {
            // It was taken down for somebody else between this CONNECT and now: its client asks again.
            Ok(_) if self.io.of(ns).is_none() => return Err(Final::Cut),
            Ok(_) if names.len() >= NAMESPACES_MAX => {
                tracing::warn!(
                    "{ns} is refused: {} has {NAMESPACES_MAX} namespaces on this node, and no more can be made until it is \
                     started again",
                    self.pattern
                );
                Err(Final::InvalidNamespace)
            }
            who => who,
        };
        match who {
            Ok(_) => _ = names.insert(ns.to_owned()),
            Err(_) => self.io.delete_ns(ns),
        }
        who
    }
}
