//! A short set of names in one row: the rooms that a user is a member of, the sessions that it has.
//!
//! All names are in one text, in order, each with a zero byte behind it (which no name has): a join reads and writes its user's
//! whole set, and a text of its own for each name was most of what a join cost.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

/// What ends a name.
const END: u8 = 0;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameSet(String);

impl NameSet {
    /// In name order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.split_terminator(char::from(END))
    }

    pub fn len(&self) -> u64 {
        self.0.bytes().filter(|byte| *byte == END).count() as u64
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn contains(&self, name: &str) -> bool {
        self.place(name).1
    }

    /// It must not be there.
    pub fn insert(&mut self, name: &str) {
        let (at, there) = self.place(name);
        debug_assert!(!there, "a set holds a name once");
        self.0.reserve(name.len() + 1);
        self.0.insert(at, char::from(END));
        self.0.insert_str(at, name);
    }

    pub fn remove(&mut self, name: &str) {
        if let (at, true) = self.place(name) {
            self.0.replace_range(at..at + name.len() + 1, "");
        }
    }

    /// At which byte the name is, or would be. The order of bytes is the order of names.
    fn place(&self, name: &str) -> (usize, bool) {
        let bytes = self.0.as_bytes();
        // Both where a name begins, or behind the last.
        let (mut low, mut high) = (0, bytes.len());
        while low < high {
            let middle = low + (high - low) / 2;
            let begin = bytes[low..middle].iter().rposition(|byte| *byte == END).map_or(low, |end| low + end + 1);
            let len = bytes[begin..].iter().position(|byte| *byte == END).unwrap_or(bytes.len() - begin);
            match bytes[begin..begin + len].cmp(name.as_bytes()) {
                Ordering::Less => low = (begin + len + 1).min(high),
                Ordering::Greater => high = begin,
                Ordering::Equal => return (begin, true),
            }
        }
        (low, false)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn it_is_a_set_in_name_order() {
        let (mut set, mut model) = (NameSet::default(), BTreeSet::new());
        // No name may be taken for the beginning of another, nor for its end.
        let names = ["b", "a", "ab", "방", "aa", "bb", "ba", "é"];
        for (nth, name) in (0..200).map(|nth| (nth, names[(nth * nth / 3) % names.len()])) {
            assert_eq!(set.contains(name), model.contains(name));
            match model.remove(name) {
                true => set.remove(name),
                false => {
                    set.insert(name);
                    model.insert(name);
                }
            }
            assert!(set.names().eq(model.iter().copied()), "{nth}");
            assert_eq!((set.len(), set.is_empty()), (model.len() as u64, model.is_empty()));
        }
    }
}
