//! The ordered key-value view that the state machine works on.
//!
//! All of it is in memory, in key order; every change is noted, so that a checkpoint writes only what changed since the
//! one before. The hash is a sum over all pairs, so it depends neither on the order of changes nor on the points at which
//! checkpoints and snapshots were taken: equal contents, equal hash.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use xxhash_rust::xxh3::{xxh3_64, xxh3_128_with_seed};

/// Keys and values are plain bytes; `keys.rs` says what they mean.
#[derive(Clone, Debug, Default)]
pub struct Kv {
    map: BTreeMap<Vec<u8>, Vec<u8>>,
    changed: BTreeSet<Vec<u8>>,
    hash: u128,
}

impl Kv {
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.map.get(key).map(Vec::as_slice)
    }

    pub fn has(&self, key: &[u8]) -> bool {
        self.map.contains_key(key)
    }

    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.hash = self.hash.wrapping_add(pair_hash(&key, &value));
        self.changed.insert(key.clone());
        if let Some(old) = self.map.insert(key.clone(), value) {
            self.hash = self.hash.wrapping_sub(pair_hash(&key, &old));
        }
    }

    /// True when the key was there.
    pub fn delete(&mut self, key: &[u8]) -> bool {
        let Some((key, old)) = self.map.remove_entry(key) else { return false };
        self.hash = self.hash.wrapping_sub(pair_hash(&key, &old));
        self.changed.insert(key);
        true
    }

    /// All pairs whose key begins with `prefix`, in key order.
    pub fn scan<'a, 'p>(&'a self, prefix: &'p [u8]) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a, 'p> {
        self.scan_from(prefix, Bound::Included(prefix))
    }

    /// As [`Kv::scan`], beginning at `from`, which must not lie before the prefix.
    pub fn scan_from<'a, 'p>(
        &'a self,
        prefix: &'p [u8],
        from: Bound<&[u8]>,
    ) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a, 'p> {
        self.map
            .range::<[u8], _>((from, Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(prefix))
            .map(|(key, value)| (key.as_slice(), value.as_slice()))
    }

    /// As [`Kv::scan`] in falling key order, beginning below `before`.
    pub fn scan_back<'a>(
        &'a self,
        prefix: &'a [u8],
        before: &[u8],
    ) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        self.map
            .range::<[u8], _>((Bound::Unbounded, Bound::Excluded(before)))
            .rev()
            .take_while(move |(key, _)| key.starts_with(prefix))
            .map(|(key, value)| (key.as_slice(), value.as_slice()))
    }

    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.map.iter().map(|(key, value)| (key.as_slice(), value.as_slice()))
    }

    pub fn hash(&self) -> u128 {
        self.hash
    }

    /// What changed since the last call: the new value, or `None` for a key that is gone.
    pub fn take_changes(&mut self) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().map(|key| (key.clone(), self.map.get(&key).cloned())).collect()
    }

    /// A view with these contents and nothing changed.
    pub fn load(pairs: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>) -> Self {
        let mut kv = Self::default();
        for (key, value) in pairs {
            kv.put(key, value);
        }
        kv.changed.clear();
        kv
    }
}

/// The key seeds the hash of the value: a sum of separate hashes would not see two values change places.
fn pair_hash(key: &[u8], value: &[u8]) -> u128 {
    xxh3_128_with_seed(value, xxh3_64(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_depends_on_contents_alone() {
        let mut a = Kv::default();
        a.put(b"x".to_vec(), b"1".to_vec());
        a.put(b"y".to_vec(), b"2".to_vec());
        a.put(b"x".to_vec(), b"3".to_vec());
        a.put(b"z".to_vec(), b"4".to_vec());
        assert!(a.delete(b"z"));
        let b = Kv::load([(b"y".to_vec(), b"2".to_vec()), (b"x".to_vec(), b"3".to_vec())]);
        assert_eq!(a.hash(), b.hash());
        assert_ne!(a.hash(), Kv::load([(b"x".to_vec(), b"2".to_vec()), (b"y".to_vec(), b"3".to_vec())]).hash());
        assert_eq!(Kv::default().hash(), 0);
    }

    #[test]
    fn a_scan_stays_inside_its_prefix() {
        let kv = Kv::load(["a", "ab", "abc", "b"].map(|k| (k.as_bytes().to_vec(), vec![])));
        assert_eq!(kv.scan(b"ab").count(), 2);
        assert_eq!(kv.scan_from(b"a", Bound::Excluded(b"ab")).count(), 1);
        assert_eq!(kv.scan_back(b"a", b"abc").next().unwrap().0, b"ab");
    }

    #[test]
    fn changes_name_each_key_once_with_its_last_value() {
        let mut kv = Kv::load([(b"gone".to_vec(), vec![])]);
        kv.put(b"k".to_vec(), b"1".to_vec());
        kv.put(b"k".to_vec(), b"2".to_vec());
        kv.delete(b"gone");
        assert_eq!(kv.take_changes(), vec![(b"gone".to_vec(), None), (b"k".to_vec(), Some(b"2".to_vec()))]);
        assert!(kv.take_changes().is_empty());
    }
}
