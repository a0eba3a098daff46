//! Users of whom it is known that they have left no room, as far back as that is kept.
//!
//! A join asks whether its user has been in that room before, and the answer is nearly always that there is no such row: a search
//! of the whole base for each of the rooms that a client joins when it starts. What always holds: a user is in here only while
//! the table of what was left has no row of it. Whoever writes one forgets the user.

use std::collections::HashSet;

use crate::kv::KeyBytes;

/// Past it all of them go: they are soon here again.
const USERS_MAX: usize = 16_384;

/// By the beginning of their rows' keys.
#[derive(Debug, Default)]
pub struct NeverLeft(HashSet<KeyBytes>);

impl NeverLeft {
    /// Whether no row begins like this, by way of `look` if it is not known.
    pub fn is_known(&mut self, rows: KeyBytes, look: impl Fn(&KeyBytes) -> bool) -> bool {
        if self.0.contains(&rows) {
            debug_assert!(look(&rows), "a row was written behind its back");
            return true;
        }
        let none = look(&rows);
        if none {
            if self.0.len() >= USERS_MAX {
                self.0.clear();
            }
            self.0.insert(rows);
        }
        none
    }

    pub fn forget(&mut self, rows: &KeyBytes) {
        self.0.remove(rows);
    }
}
