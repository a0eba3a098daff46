//! Sessions that were read lately, decoded.
//!
//! Every command of a client begins with its session, and to search and decode it took a seventh of what a join takes. What
//! always holds: an entry says what its row says. Whoever changes or deletes the row forgets it here; that there is no row is
//! not remembered.

use std::{cell::RefCell, collections::HashMap};

use super::Session;
use crate::command::Sid;

/// Past it all of them go: what is still wanted is soon here again. About 6 MB.
const SESSIONS_MAX: usize = 16_384;

/// Readers take turns anyway: they hold the lock that apply takes.
#[derive(Debug, Default)]
pub struct Decoded(RefCell<HashMap<Sid, Session>>);

impl Decoded {
    /// What the row of the session says, by way of `read` if it is not known here.
    pub fn get(&self, sid: &Sid, read: impl FnOnce() -> Option<Session>) -> Option<Session> {
        let mut known = self.0.borrow_mut();
        if let Some(session) = known.get(sid) {
            debug_assert_eq!(Some(session), read().as_ref(), "its row was changed behind its back");
            return Some(session.clone());
        }
        let session = read()?;
        if known.len() >= SESSIONS_MAX {
            known.clear();
        }
        known.insert(sid.clone(), session.clone());
        Some(session)
    }

    pub fn forget(&mut self, sid: &Sid) {
        self.0.get_mut().remove(sid);
    }
}
