//! One ordered scan over several layers: of each key the newest layer that knows it decides.

use std::{cmp::Ordering, iter::Peekable, ops::Bound};

use super::Slice;

/// From where to where.
pub type Range<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);
/// What a layer knows of a key: a value, or that it is gone.
pub type Known<'a> = (Slice<'a>, Option<Slice<'a>>);

/// Pairs in key order, or in falling key order.
pub struct Scan<'a> {
    /// Newest first.
    layers: Vec<Peekable<Box<dyn Iterator<Item = Known<'a>> + 'a>>>,
    back: bool,
}

impl<'a> Scan<'a> {
    pub(super) fn new(back: bool) -> Self {
        Self { layers: Vec::with_capacity(4), back }
    }

    /// The next older layer, in the scan's order.
    pub(super) fn add(&mut self, rows: impl Iterator<Item = Known<'a>> + 'a) {
        let rows: Box<dyn Iterator<Item = Known<'a>> + 'a> = Box::new(rows);
        self.layers.push(rows.peekable());
    }

    /// The next key that any layer knows. Older layers are moved over it.
    fn known(&mut self) -> Option<Known<'a>> {
        let mut next: Option<usize> = None;
        for at in 0..self.layers.len() {
            let Some(order) = self.compare(at, next) else { continue };
            match order {
                Ordering::Less => next = Some(at),
                Ordering::Equal => _ = self.layers[at].next(),
                Ordering::Greater => {}
            }
        }
        self.layers[next?].next()
    }

    /// How the head of one layer lies to that of another; `None` for a layer that has no more.
    fn compare(&mut self, at: usize, other: Option<usize>) -> Option<Ordering> {
        self.layers[at].peek()?;
        let Some(other) = other else { return Some(Ordering::Less) };
        let (older, newer) = self.layers.split_at_mut(at);
        let (known, best) = (newer[0].peek()?, older[other].peek()?);
        let order = known.0.cmp(&best.0);
        Some(if self.back { order.reverse() } else { order })
    }
}

impl<'a> Iterator for Scan<'a> {
    type Item = (Slice<'a>, Slice<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let (key, Some(value)) = self.known()? {
                return Some((key, value));
            }
        }
    }
}

/// The least key that begins with no prefix up to this one; `None` when there is none.
pub(super) fn after(prefix: &[u8]) -> Option<Vec<u8>> {
    let kept = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=kept].to_vec();
    end[kept] += 1;
    Some(end)
}

/// True of ranges that hold nothing, of which a `BTreeMap` would panic.
pub(super) fn is_empty(range: Range<'_>) -> bool {
    match range {
        (Bound::Included(from), Bound::Included(to)) => from > to,
        (Bound::Included(from) | Bound::Excluded(from), Bound::Excluded(to))
        | (Bound::Excluded(from), Bound::Included(to)) => from >= to,
        _ => false,
    }
}
