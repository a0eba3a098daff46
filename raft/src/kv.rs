//! The ordered key-value view that the state machine works on.
//!
//! ```text
//! put, delete ──▶ overlay: what changed since the last checkpoint began        in memory
//!                 frozen:  what a checkpoint is writing at this moment, per checkpoint
//! get, scan  ◀──  base:    the last checkpoint that was written                in sled, or nothing at all
//! ```
//!
//! What always holds:
//! - A read looks in the overlay, then in what is frozen (newest first), then in the base; the first that knows the key
//!   decides, and a deletion is something that is known. So it makes no difference when checkpoints begin or end.
//! - Without a base (tests, small tools) all of it is in the overlay, and nothing else differs.
//! - The hash is a sum over all pairs: it depends neither on the order of changes nor on the points at which checkpoints
//!   and snapshots were taken. Equal contents, equal hash.

mod cache;
mod rows;
mod scan;

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    ops::{Bound, Deref},
    sync::Arc,
};

use smallvec::SmallVec;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128_with_seed};

use cache::Cache;
pub use rows::Rows;
pub use scan::{Range, Scan};

use crate::base::{Reader, Stored};

/// What a change costs in memory beside its bytes, about.
const CHANGE_BYTES: usize = 128;

/// A key. Most are short enough to lie where a search compares them, and not somewhere else in memory: that is what a search
/// costs.
pub type KeyBytes = SmallVec<[u8; 56]>;

/// A value, without room to grow: it is only ever replaced.
pub type ValueBytes = Box<[u8]>;

/// Bytes of a key or a value, wherever they are.
#[derive(Debug)]
pub enum Slice<'a> {
    Memory(&'a [u8]),
    Base(Stored),
}

impl Deref for Slice<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Memory(bytes) => bytes,
            Self::Base(bytes) => bytes,
        }
    }
}

/// Changes in key order: the new value, or `None` for a key that is gone.
#[derive(Clone, Debug, Default)]
pub struct Overlay {
    map: BTreeMap<KeyBytes, Option<ValueBytes>>,
    bytes: usize,
}

impl Overlay {
    fn set(&mut self, key: KeyBytes, value: Option<ValueBytes>) {
        let length = |value: &Option<ValueBytes>| value.as_ref().map_or(0, |value| value.len());
        let (key_length, now) = (key.len(), length(&value));
        match self.map.insert(key, value) {
            Some(old) => self.bytes = self.bytes + now - length(&old),
            None => self.bytes += key_length + now + CHANGE_BYTES,
        }
    }

    fn forget(&mut self, key: &[u8]) {
        if let Some(old) = self.map.remove(key) {
            self.bytes -= key.len() + old.map_or(0, |value| value.len()) + CHANGE_BYTES;
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        self.map.iter().map(|(key, value)| (&**key, value.as_deref()))
    }

    fn rows<'a>(&'a self, range: Range<'_>, back: bool) -> Box<dyn Iterator<Item = scan::Known<'a>> + 'a> {
        let rows = self.map.range::<[u8], _>(range);
        let rows = rows.map(|(key, value)| (Slice::Memory(key), value.as_deref().map(Slice::Memory)));
        if back { Box::new(rows.rev()) } else { Box::new(rows) }
    }
}

/// Keys and values are plain bytes; `keys.rs` says what they mean.
#[derive(Debug, Default)]
pub struct Kv {
    overlay: Overlay,
    /// Oldest first.
    frozen: VecDeque<Arc<Overlay>>,
    base: Option<Reader>,
    /// Of the base. Readers take turns anyway: they hold the lock that apply takes.
    cache: RefCell<Cache>,
    sum: Sum,
}

/// See [`Kv::changed`].
pub struct Changed<'a> {
    key: &'a [u8],
    value: &'a mut ValueBytes,
    bytes: &'a mut usize,
    sum: &'a mut Sum,
}

impl Changed<'_> {
    pub fn value(&self) -> &[u8] {
        self.value
    }

    pub fn replace(self, value: &[u8]) {
        self.sum.remove(self.key, self.value);
        self.sum.add(self.key, value);
        *self.bytes = *self.bytes + value.len() - self.value.len();
        match self.value.len() == value.len() {
            true => self.value.copy_from_slice(value),
            false => *self.value = value.into(),
        }
    }
}

/// What a set of pairs adds up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    pub pairs: u64,
    pub hash: u128,
}

impl Sum {
    pub fn add(&mut self, key: &[u8], value: &[u8]) {
        self.pairs += 1;
        self.hash = self.hash.wrapping_add(pair_hash(key, value));
    }

    pub fn remove(&mut self, key: &[u8], value: &[u8]) {
        // A damaged base may know less than it once counted; the hash tells.
        self.pairs = self.pairs.wrapping_sub(1);
        self.hash = self.hash.wrapping_sub(pair_hash(key, value));
    }
}

impl Kv {
    /// The view of a checkpoint, which says what it adds up to.
    pub fn on(base: Reader, sum: Sum) -> Self {
        Self { base: Some(base), sum, ..Self::default() }
    }

    pub fn get(&self, key: &[u8]) -> Option<Slice<'_>> {
        for layer in self.layers() {
            if let Some(known) = layer.map.get(key) {
                return known.as_deref().map(Slice::Memory);
            }
        }
        let base = self.base.as_ref()?;
        self.cache.borrow_mut().get(key, || base.get(key)).map(Slice::Base)
    }

    pub fn has(&self, key: &[u8]) -> bool {
        self.get(key).is_some()
    }

    pub fn put(&mut self, key: KeyBytes, value: ValueBytes) {
        // What changes often is found by this one search.
        if let Some(row) = self.changed(&key) {
            return row.replace(&value);
        }
        let mut sum = self.sum;
        sum.add(&key, &value);
        if let Some(old) = self.get(&key) {
            sum.remove(&key, &old);
        }
        self.sum = sum;
        self.change(key, Some(value));
    }

    /// As [`Kv::put`], of a key that is known not to be there: nothing is looked for, which in the base is not cheap.
    pub fn put_new(&mut self, key: KeyBytes, value: ValueBytes) {
        debug_assert!(!self.has(&key), "the hash would count it twice");
        self.sum.add(&key, &value);
        self.overlay.set(key, Some(value));
    }

    fn change(&mut self, key: KeyBytes, value: Option<ValueBytes>) {
        self.cache.get_mut().forget(&key);
        self.overlay.set(key, value);
    }

    /// The value of a key that changed since the last checkpoint began, to be read and replaced by one search.
    pub fn changed<'a>(&'a mut self, key: &'a [u8]) -> Option<Changed<'a>> {
        let Overlay { map, bytes } = &mut self.overlay;
        let value = map.get_mut(key)?.as_mut()?;
        Some(Changed { key, value, bytes, sum: &mut self.sum })
    }

    /// True when the key was there.
    pub fn delete(&mut self, key: &[u8]) -> bool {
        let mut sum = self.sum;
        let Some(old) = self.get(key) else { return false };
        sum.remove(key, &old);
        drop(old);
        self.sum = sum;
        match self.base.is_none() && self.frozen.is_empty() {
            true => self.overlay.forget(key),
            false => self.change(key.into(), None),
        }
        true
    }

    /// All pairs whose key begins with `prefix`, in key order.
    pub fn scan(&self, prefix: &[u8]) -> Scan<'_> {
        self.scan_from(prefix, Bound::Included(prefix))
    }

    /// As [`Kv::scan`], beginning at `from`, which must not lie before the prefix.
    pub fn scan_from(&self, prefix: &[u8], from: Bound<&[u8]>) -> Scan<'_> {
        let end = scan::after(prefix);
        self.sources((from, end.as_deref().map_or(Bound::Unbounded, Bound::Excluded)), false)
    }

    /// As [`Kv::scan`] in falling key order, beginning below `before`.
    pub fn scan_back(&self, prefix: &[u8], before: &[u8]) -> Scan<'_> {
        self.sources((Bound::Included(prefix), Bound::Excluded(before)), true)
    }

    pub fn iter(&self) -> Scan<'_> {
        self.scan(&[])
    }

    pub fn sum(&self) -> Sum {
        self.sum
    }

    /// Bytes of memory that changes take which no checkpoint holds yet, about.
    pub fn changed_bytes(&self) -> usize {
        self.layers().map(|layer| layer.bytes).sum()
    }

    /// How many keys the next checkpoint would write.
    pub fn changed_keys(&self) -> usize {
        self.overlay.map.len()
    }

    /// What changed since the last call, for a checkpoint; reads still see it, until [`Kv::thaw`].
    pub fn freeze(&mut self) -> Arc<Overlay> {
        let frozen = Arc::new(std::mem::take(&mut self.overlay));
        self.frozen.push_back(frozen.clone());
        frozen
    }

    /// The base now holds what was frozen first. Taken out, so that it can be dropped where nobody waits.
    pub fn thaw(&mut self) -> Option<Arc<Overlay>> {
        self.frozen.pop_front()
    }

    /// A view with these contents, all in memory.
    pub fn load(pairs: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>) -> Self {
        let mut kv = Self::default();
        for (key, value) in pairs {
            kv.put(key.into(), value.into());
        }
        kv
    }

    /// Newest first.
    fn layers(&self) -> impl Iterator<Item = &Overlay> {
        std::iter::once(&self.overlay).chain(self.frozen.iter().rev().map(Arc::as_ref))
    }

    fn sources(&self, range: Range<'_>, back: bool) -> Scan<'_> {
        let mut scan = Scan::new(back);
        if !scan::is_empty(range) {
            self.layers().for_each(|layer| scan.add(layer.rows(range, back)));
            if let Some(base) = &self.base {
                let rows = base.rows(range, back);
                scan.add(rows.map(|(key, value)| (Slice::Base(key), Some(Slice::Base(value)))));
            }
        }
        scan
    }
}

/// The key seeds the hash of the value: a sum of separate hashes would not see two values change places.
fn pair_hash(key: &[u8], value: &[u8]) -> u128 {
    xxh3_128_with_seed(value, xxh3_64(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(scan: Scan<'_>) -> Vec<(String, String)> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        scan.map(|(key, value)| (text(&key), text(&value))).collect()
    }

    fn keys(scan: Scan<'_>) -> Vec<String> {
        pairs(scan).into_iter().map(|(key, _)| key).collect()
    }

    fn put(kv: &mut Kv, key: &str, value: &str) {
        kv.put(key.as_bytes().into(), value.as_bytes().into());
    }

    #[test]
    fn the_hash_depends_on_contents_alone() {
        let mut a = Kv::default();
        put(&mut a, "x", "1");
        put(&mut a, "y", "2");
        put(&mut a, "x", "3");
        put(&mut a, "z", "4");
        assert!(a.delete(b"z"));
        let b = Kv::load([(b"y".to_vec(), b"2".to_vec()), (b"x".to_vec(), b"3".to_vec())]);
        assert_eq!(a.sum(), b.sum());
        assert_ne!(a.sum(), Kv::load([(b"x".to_vec(), b"2".to_vec()), (b"y".to_vec(), b"3".to_vec())]).sum());
        assert_eq!(Kv::default().sum(), Sum::default());
    }

    #[test]
    fn a_scan_stays_inside_its_prefix() {
        let kv = Kv::load(["a", "ab", "abc", "b"].map(|k| (k.as_bytes().to_vec(), vec![])));
        assert_eq!(keys(kv.scan(b"ab")), ["ab", "abc"]);
        assert_eq!(keys(kv.scan_from(b"a", Bound::Excluded(b"ab"))), ["abc"]);
        assert_eq!(keys(kv.scan_back(b"a", b"abc")), ["ab", "a"]);
        assert_eq!(keys(kv.scan_from(b"a", Bound::Included(b"b"))), [""; 0], "a place behind all of it");
        let high = Kv::load([(vec![0xff, 0xff], vec![]), (vec![0xff], vec![]), (vec![0xfe], vec![])]);
        assert_eq!(high.scan(&[0xff]).count(), 2, "a prefix that has nothing behind it");
    }

    #[test]
    fn a_read_sees_the_newest_layer_that_knows_the_key() {
        let mut kv = Kv::load(["a", "b", "c", "d"].map(|k| (k.as_bytes().to_vec(), b"old".to_vec())));
        kv.freeze();
        put(&mut kv, "b", "frozen");
        assert!(kv.delete(b"c"));
        kv.freeze();
        put(&mut kv, "bb", "new");
        put(&mut kv, "c", "again");
        assert!(kv.delete(b"d") && !kv.delete(b"d"));
        let expected = [("a", "old"), ("b", "frozen"), ("bb", "new"), ("c", "again")];
        let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(pairs(kv.iter()), expected);
        assert!(pairs(kv.scan_back(b"", b"z")).iter().rev().eq(&expected));
        assert_eq!(keys(kv.scan_from(b"b", Bound::Excluded(b"b"))), ["bb"]);
        assert!(kv.get(b"d").is_none() && kv.get(b"c").is_some_and(|value| *value == *b"again"));
        assert_eq!(kv.sum(), Kv::load(expected.map(|(key, value)| (key.into_bytes(), value.into_bytes()))).sum());
    }

    #[test]
    fn what_changed_lately_is_replaced_in_its_place() {
        let mut kv = Kv::load([(b"a".to_vec(), b"old".to_vec()), (b"b".to_vec(), b"gone".to_vec())]);
        kv.freeze();
        assert!(kv.changed(b"a").is_none(), "a checkpoint may be writing it");
        put(&mut kv, "a", "new");
        assert!(kv.delete(b"b") && kv.changed(b"b").is_none() && kv.changed(b"c").is_none());
        for value in ["own", "longer", ""] {
            let row = kv.changed(b"a").expect("it changed lately");
            row.replace(value.as_bytes());
            assert_eq!(pairs(kv.iter()), [("a".to_owned(), value.to_owned())]);
            assert_eq!(kv.sum(), Kv::load([(b"a".to_vec(), value.as_bytes().to_vec())]).sum());
        }
        assert_eq!(kv.overlay.bytes, 2 * (1 + CHANGE_BYTES));
    }

    #[test]
    fn what_is_frozen_is_counted_until_it_thaws() {
        let mut kv = Kv::default();
        put(&mut kv, "key", "value");
        let bytes = kv.changed_bytes();
        assert_eq!((bytes, kv.changed_keys()), (3 + 5 + CHANGE_BYTES, 1));
        put(&mut kv, "key", "v");
        assert_eq!(kv.changed_bytes(), bytes - 4);
        kv.freeze();
        assert_eq!((kv.changed_bytes(), kv.changed_keys()), (bytes - 4, 0));
        assert_eq!(kv.thaw().unwrap().map.len(), 1);
        assert_eq!(kv.changed_bytes(), 0);
        assert!(kv.thaw().is_none());
    }
}
