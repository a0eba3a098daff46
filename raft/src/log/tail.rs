//! What the log comes to, in memory: the vote, where each entry lies, and the newest entries themselves.
//!
//! Pure. What always holds:
//!
//! * There is a [`Position`] of 16 bytes for each entry that the log holds; the entries in memory are the last ones of them.
//! * Everything goes by index. Ids are compared nowhere, so entries of an older term that replace newer ones are read like
//!   any other; a truncation takes positions and entries alike.
//! * An entry leaves the memory only after the file has it: its position says where.

use std::collections::VecDeque;

use crate::{
    raft::{Entry, LogId, Vote},
    wal::{Extent, record::Place},
};

/// What an entry costs in memory beside its bytes.
const ENTRY_BYTES: u64 = size_of::<Entry>() as u64;

/// Where an entry lies. Its length is the difference to the entry before it.
#[derive(Clone, Copy, Debug)]
struct Position {
    /// 0 while it is queued.
    segment: u32,
    /// In the file; the number of the append while it is queued.
    offset: u32,
    /// Bytes of all entries up to its end, since the first one that this process saw.
    end: u64,
}

const _: () = assert!(size_of::<Position>() == 16);

/// One append, until the file has it.
#[derive(Clone, Copy, Debug)]
pub struct Queued {
    first: u64,
    count: usize,
    ticket: u32,
    /// Bytes of all entries before it, as in [`Position::end`].
    start: u64,
}

/// What a read takes: first what lies in the files, then what is in memory.
#[derive(Debug, Default)]
pub struct Plan {
    pub first: u64,
    pub stored: Vec<Extent>,
    pub cached: Vec<Entry>,
}

/// See the module.
pub struct Tail {
    pub vote: Option<Vote>,
    pub purged: Option<LogId>,
    pub committed: Option<LogId>,
    last: Option<LogId>,
    /// The index of the first position.
    first: u64,
    /// Bytes before it, as in [`Position::end`].
    base: u64,
    positions: VecDeque<Position>,
    cached: VecDeque<Entry>,
    cache_bytes: u64,
    ticket: u32,
}

impl Tail {
    /// An empty log that keeps so many bytes of entries in memory, and what is queued.
    pub fn new(cache_bytes: usize) -> Self {
        Self {
            vote: None,
            purged: None,
            committed: None,
            last: None,
            first: 0,
            base: 0,
            positions: VecDeque::new(),
            cached: VecDeque::new(),
            cache_bytes: cache_bytes as u64,
            ticket: 0,
        }
    }

    pub fn last(&self) -> Option<LogId> {
        self.last
    }

    /// The index of the next entry; `None` while any will do, because there never was one.
    pub fn next(&self) -> Option<u64> {
        Some(self.last?.index + 1)
    }

    /// Takes entries in that follow the last one, each with the bytes of its record.
    pub fn append(&mut self, entries: Vec<Entry>, bytes: impl Iterator<Item = usize>) -> Queued {
        if self.positions.is_empty()
            && let Some(entry) = entries.first()
        {
            self.first = entry.log_id.index;
        }
        self.ticket = self.ticket.wrapping_add(1);
        let (first, start, count) = (self.end_index(), self.end_bytes(), entries.len());
        let mut end = start;
        for bytes in bytes {
            end += bytes as u64;
            self.positions.push_back(Position { segment: 0, offset: self.ticket, end });
        }
        self.last = entries.last().map(|entry| entry.log_id).or(self.last);
        self.cached.extend(entries);
        Queued { first, count, ticket: self.ticket, start }
    }

    /// Notes that an append was written at `place`; what of it was truncated since is not touched. Then lets go of what is
    /// over the bound and can be read from the file.
    pub fn written(&mut self, queued: Queued, place: Place) {
        for index in queued.first.max(self.first)..queued.first + queued.count as u64 {
            let at = (index - self.first) as usize;
            let start = self.start_bytes(at);
            let Some(position) = self.positions.get_mut(at) else { break };
            if (position.segment, position.offset) == (0, queued.ticket)
                && let (Ok(segment), Ok(offset)) =
                    (place.segment.try_into(), (place.offset + start - queued.start).try_into())
            {
                *position = Position { segment, offset, ..*position };
            }
        }
        self.evict();
    }

    fn evict(&mut self) {
        while let Some(at) = self.cached_at().filter(|at| self.positions[*at].segment != 0)
            && self.end_bytes() - self.start_bytes(at) + ENTRY_BYTES * self.cached.len() as u64 > self.cache_bytes
        {
            self.cached.pop_front();
        }
    }

    /// An entry that was read from the file, its record as long as `bytes`.
    pub fn found(&mut self, index: u64, place: Place, bytes: usize) -> Result<(), std::num::TryFromIntError> {
        let position = Position {
            segment: place.segment.try_into()?,
            offset: place.offset.try_into()?,
            end: self.end_bytes() + bytes as u64,
        };
        if self.positions.is_empty() {
            self.first = index;
        }
        self.positions.push_back(position);
        Ok(())
    }

    /// Where the last entry lies, once all of the file was found.
    pub fn last_extent(&self) -> Option<Extent> {
        self.positions.len().checked_sub(1).map(|at| self.extent(at))
    }

    /// The id of the last entry, once all of the file was found; without one it is the purged one.
    pub fn set_last(&mut self, last: Option<LogId>) {
        self.last = last.or(self.purged);
    }

    /// Entries from `next` on go; `last` is the id of the one before it.
    pub fn truncate(&mut self, next: u64, last: Option<LogId>) {
        let kept = next.saturating_sub(self.first) as usize;
        let cached = self.cached.len().saturating_sub(self.positions.len().saturating_sub(kept));
        self.positions.truncate(kept);
        self.cached.truncate(cached);
        self.last = last;
    }

    /// Entries up to the one with this id go. Gives back what was in memory: many take a while to free.
    pub fn purge(&mut self, upto: LogId) -> VecDeque<Entry> {
        let gone = ((upto.index + 1).saturating_sub(self.first) as usize).min(self.positions.len());
        let cached = gone.saturating_sub(self.positions.len() - self.cached.len());
        let kept = self.cached.split_off(cached);
        let freed = std::mem::replace(&mut self.cached, kept);
        if let Some(at) = gone.checked_sub(1) {
            self.base = self.positions[at].end;
        }
        self.positions.drain(..gone);
        self.positions.shrink_to(self.positions.len() * 2);
        self.first = self.first.max(upto.index + 1);
        self.purged = Some(upto);
        if self.positions.is_empty() && self.last.is_none_or(|last| last.index <= upto.index) {
            self.last = Some(upto);
        }
        freed
    }

    /// What of `start..end` there is. Stops before `limit` bytes are passed, but never before the first entry.
    pub fn plan(&self, start: u64, end: u64, limit: u64) -> Plan {
        let first = start.max(self.first);
        let end = end.min(self.end_index());
        if first >= end {
            return Plan { first, ..Plan::default() };
        }
        let at = |index: u64| (index - self.first) as usize;
        let from = self.start_bytes(at(first));
        let most = self.positions.partition_point(|position| position.end - from.min(position.end) <= limit);
        let end = at(end).min(most.max(at(first) + 1));
        let cached_at = self.cached_at().unwrap_or(usize::MAX);
        let stored = (at(first)..end.min(cached_at)).map(|at| self.extent(at)).collect();
        let cached = (at(first).max(cached_at)..end).map(|at| self.cached[at - cached_at].clone()).collect();
        Plan { first, stored, cached }
    }

    /// Whether the log still holds this index or a later one.
    pub fn starts_after(&self, index: u64) -> bool {
        self.first > index
    }

    /// Bytes of the entries after `index`.
    pub fn bytes_after(&self, index: u64) -> u64 {
        let at = (index + 1).saturating_sub(self.first) as usize;
        self.end_bytes() - self.start_bytes(at.min(self.positions.len()))
    }

    /// Bytes of all entries.
    pub fn bytes_in_all(&self) -> u64 {
        self.end_bytes() - self.base
    }

    /// The lowest index from which on the entries up to `last` have no more than `bytes`; `last + 1` if none does.
    pub fn reach_back(&self, last: u64, bytes: u64) -> u64 {
        let at = ((last + 1).saturating_sub(self.first) as usize).min(self.positions.len());
        let end = self.start_bytes(at);
        // An entry counts by where it starts: where the one before it ends.
        let fits = |at: usize| end - self.start_bytes(at) <= bytes;
        let (mut low, mut high) = (0, at);
        while low < high {
            let middle = (low + high) / 2;
            match fits(middle) {
                true => high = middle,
                false => low = middle + 1,
            }
        }
        self.first + low as u64
    }

    /// Whether the entry at `index` was written and synced, or purged.
    pub fn is_stored(&self, index: u64) -> bool {
        match index.checked_sub(self.first) {
            None => true,
            Some(at) => match usize::try_from(at).ok().and_then(|at| self.positions.get(at)) {
                Some(position) => position.segment != 0,
                None => self.purged.is_some_and(|purged| index <= purged.index),
            },
        }
    }

    /// Entries in memory, and in all.
    pub fn counts(&self) -> (usize, usize) {
        (self.cached.len(), self.positions.len())
    }

    fn end_index(&self) -> u64 {
        self.first + self.positions.len() as u64
    }

    fn end_bytes(&self) -> u64 {
        self.positions.back().map_or(self.base, |position| position.end)
    }

    /// Bytes before the entry at this place among the positions.
    fn start_bytes(&self, at: usize) -> u64 {
        at.checked_sub(1).and_then(|before| self.positions.get(before)).map_or(self.base, |position| position.end)
    }

    /// Where among the positions the entries in memory begin, if there are any.
    fn cached_at(&self) -> Option<usize> {
        (!self.cached.is_empty()).then(|| self.positions.len() - self.cached.len())
    }

    fn extent(&self, at: usize) -> Extent {
        let Position { segment, offset, end } = self.positions[at];
        Extent { place: Place { segment: segment.into(), offset: offset.into() }, bytes: end - self.start_bytes(at) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{WireEntry, WireLogId, WirePayload};

    fn entries(term: u64, indexes: std::ops::Range<u64>) -> Vec<Entry> {
        let id = |index| WireLogId { term, node: 1, index };
        indexes.map(|index| WireEntry { id: id(index), payload: WirePayload::Blank }.try_into().unwrap()).collect()
    }

    /// Entries of ten bytes each.
    fn append(tail: &mut Tail, term: u64, indexes: std::ops::Range<u64>) -> Queued {
        let count = indexes.clone().count();
        tail.append(entries(term, indexes), std::iter::repeat_n(10, count))
    }

    fn at(segment: u64, offset: u64) -> Place {
        Place { segment, offset }
    }

    fn stored(plan: &Plan) -> Vec<(u64, u64)> {
        plan.stored.iter().map(|extent| (extent.place.segment, extent.place.offset)).collect()
    }

    #[test]
    fn what_was_written_leaves_the_memory_and_what_is_queued_stays() {
        let mut tail = Tail::new(0);
        let first = append(&mut tail, 1, 5..8);
        append(&mut tail, 1, 8..9);
        assert!(tail.is_stored(4) && !tail.is_stored(5));
        tail.written(first, at(3, 100));
        assert_eq!([7, 8, 9].map(|index| tail.is_stored(index)), [true, false, false]);
        assert_eq!(tail.counts(), (1, 4));
        let plan = tail.plan(0, 99, u64::MAX);
        assert_eq!((plan.first, stored(&plan)), (5, vec![(3, 100), (3, 110), (3, 120)]));
        assert_eq!(plan.cached, entries(1, 8..9));
        assert_eq!(stored(&tail.plan(6, 99, 15)), [(3, 110)]);
        assert_eq!(stored(&tail.plan(6, 99, 1)), [(3, 110)], "one is always given");
        assert_eq!(tail.plan(9, 99, 1).stored, []);
    }

    #[test]
    fn a_late_word_of_what_was_replaced_meanwhile_changes_nothing() {
        let mut tail = Tail::new(0);
        let old = append(&mut tail, 3, 0..6);
        tail.truncate(2, Some(entries(3, 1..2)[0].log_id));
        let new = append(&mut tail, 2, 2..4);
        tail.written(old, at(1, 100));
        assert_eq!(stored(&tail.plan(0, 9, u64::MAX)), [(1, 100), (1, 110)]);
        assert_eq!(tail.plan(0, 9, u64::MAX).cached, entries(2, 2..4));
        tail.written(new, at(2, 500));
        assert_eq!(stored(&tail.plan(0, 9, u64::MAX)), [(1, 100), (1, 110), (2, 500), (2, 510)]);
        tail.purge(entries(3, 1..2)[0].log_id);
        assert_eq!(stored(&tail.plan(0, 9, u64::MAX)), [(2, 500), (2, 510)]);
        assert_eq!(tail.last().unwrap().index, 3);
    }

    #[test]
    fn bytes_are_counted_back_from_the_end() {
        let mut tail = Tail::new(usize::MAX);
        append(&mut tail, 1, 0..10);
        assert_eq!(tail.bytes_after(9), 0);
        assert_eq!(tail.bytes_after(6), 30);
        assert_eq!(tail.bytes_after(99), 0);
        assert_eq!(tail.reach_back(9, 35), 7);
        assert_eq!(tail.reach_back(9, 30), 7);
        assert_eq!(tail.reach_back(7, 30), 5);
        assert_eq!(tail.reach_back(9, 0), 10);
        assert_eq!(tail.reach_back(9, 1000), 0);
        tail.purge(entries(1, 3..4)[0].log_id);
        assert_eq!((tail.reach_back(9, 1000), tail.reach_back(9, 35), tail.bytes_after(0)), (4, 7, 60));
        tail.purge(entries(1, 20..21)[0].log_id);
        assert_eq!((tail.reach_back(9, 1000), tail.bytes_after(20), tail.next()), (21, 0, Some(21)));
    }
}
