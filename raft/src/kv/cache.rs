//! Rows that were read from the base lately.
//!
//! Every command reads the same few rows again and again (its session above all), and a search in sled costs ten times a search
//! in memory. What always holds: an entry is what the base has under that key; whatever changes the key forgets the
//! entry before a checkpoint can change the base. That the base has nothing is not kept: such questions (was this user ever in
//! that room?) are rarely asked twice, and a new key then has nothing to forget.

use std::collections::HashMap;

use super::KeyBytes;
use crate::base::Stored;

/// Entries; past it all of them go. That is rare, and what is still wanted is soon here again.
const ENTRIES_MAX: usize = 65_536;
/// Longer values are not kept, so that the cache has a bound in bytes too: 16 MiB and its keys.
const VALUE_BYTES_MAX: usize = 256;

#[derive(Debug, Default)]
pub struct Cache(HashMap<KeyBytes, Stored>);

impl Cache {
    /// What the base has under the key, by way of `read` if it is not known here.
    pub fn get(&mut self, key: &[u8], read: impl FnOnce() -> Option<Stored>) -> Option<Stored> {
        if let Some(known) = self.0.get(key) {
            return Some(known.clone());
        }
        let value = read()?;
        if value.len() <= VALUE_BYTES_MAX {
            if self.0.len() >= ENTRIES_MAX {
                self.0.clear();
            }
            self.0.insert(key.into(), value.clone());
        }
        Some(value)
    }

    pub fn forget(&mut self, key: &[u8]) {
        self.0.remove(key);
    }
}
