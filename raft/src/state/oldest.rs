//! How rooms' histories begin, as far as that was read lately.
//!
//! In a room whose history is full each entry that comes takes one away, and to search for that one each time took as long as all
//! else that is done for an entry. What always holds: what is in here and above its room's floor is how the history begins. Entries
//! go by way of the floor alone and come behind all others, so nothing has to be forgotten here.

use std::collections::{HashMap, VecDeque};

use crate::{
    command::{Position, RoomEntry, Stamp, User, What},
    kv::KeyBytes,
};

/// Entries that are read at a time: about as many as lie in what a scan reads anyway.
pub const READ: usize = 16;
/// Past it all of them go: those that are full are soon here again. About 16 MB.
const ROOMS_MAX: usize = 16_384;
/// Bytes that an entry counts for beside its text.
const ENTRY_BYTES: u64 = 64;

/// What has to be known of an entry to take it out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Old {
    pub position: Position,
    pub at: Stamp,
    pub bytes: u64,
    /// Who left the room with it.
    pub left: Option<User>,
}

impl Old {
    pub fn of(entry: &RoomEntry) -> Self {
        let RoomEntry { position, at, user, what } = entry;
        let left = matches!(what, What::Left).then(|| user.clone());
        Self { position: *position, at: *at, bytes: entry_bytes(what), left }
    }
}

/// What an entry counts for.
pub fn entry_bytes(what: &What) -> u64 {
    match what {
        What::Message { text, .. } => ENTRY_BYTES + text.len() as u64,
        What::Joined | What::Left => ENTRY_BYTES,
    }
}

/// By the beginning of their rows' keys.
#[derive(Debug, Default)]
pub struct Oldest(HashMap<KeyBytes, VecDeque<Old>>);

impl Oldest {
    /// The oldest entry above the floor and when the next one was written, by way of `read` where they are not known.
    pub fn take(&mut self, rows: KeyBytes, floor: Position, read: impl Fn() -> VecDeque<Old>) -> Option<(Old, Stamp)> {
        if self.0.len() >= ROOMS_MAX && !self.0.contains_key(&rows) {
            self.0.clear();
        }
        let known = self.0.entry(rows).or_default();
        while known.front().is_some_and(|old| old.position <= floor) {
            known.pop_front();
        }
        debug_assert!(
            known.iter().zip(read()).all(|(known, row)| *known == row),
            "its rows were changed behind its back"
        );
        if known.len() < 2 {
            *known = read();
        }
        let next = known.get(1)?.at;
        Some((known.pop_front()?, next))
    }
}
