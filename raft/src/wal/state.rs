//! What all records so far come to: which entries the log holds, the last vote, and which segments are still needed.
//!
//! Pure. Recovery feeds it what it reads and the flusher what it writes, so both always agree.

use std::collections::VecDeque;

use super::record::Record;
use crate::error::{Error, Result};

/// The indexes `first..next` that the log holds; everything below `first` was purged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    pub first: u64,
    pub next: u64,
}

impl Span {
    pub fn is_empty(&self) -> bool {
        self.first == self.next
    }

    /// Refused if it would leave a hole. Only a log that never held anything may start at any index.
    fn apply(&mut self, record: &Record<'_>) -> Result<()> {
        match record {
            Record::Entry { index, .. } => {
                if *self == Self::default() {
                    *self = Self { first: *index, next: *index };
                }
                if *index != self.next {
                    return Err(Error::refused(format!("entry {index} follows entries {}..{}", self.first, self.next)));
                }
                self.next += 1;
            }
            Record::Truncate { next } => {
                self.next = self.next.min(*next);
                self.first = self.first.min(self.next);
            }
            Record::Purge { first, .. } => {
                self.first = self.first.max(*first);
                self.next = self.next.max(self.first);
            }
            Record::Vote(_) | Record::Committed(_) => {}
        }
        Ok(())
    }
}

/// The records of which the last one counts. Each segment starts with them, so earlier segments can go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Carry {
    vote: Option<Record<'static>>,
    purge: Option<Record<'static>>,
    committed: Option<Record<'static>>,
}

impl Carry {
    pub fn records(&self) -> impl Iterator<Item = &Record<'static>> {
        [&self.vote, &self.purge, &self.committed].into_iter().flatten()
    }

    fn apply(&mut self, record: &Record<'_>) {
        match record {
            Record::Vote(_) => self.vote = Some(record.to_owned()),
            Record::Purge { .. } => self.purge = Some(record.to_owned()),
            Record::Committed(_) => self.committed = Some(record.to_owned()),
            Record::Entry { .. } | Record::Truncate { .. } => {}
        }
    }
}

/// One file of the log.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    pub number: u64,
    pub bytes: u64,
    /// One past the highest index that lies in it and is not truncated; 0 if there is none.
    top: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct State {
    pub span: Span,
    pub carry: Carry,
    /// All files, oldest first; the last one is being written.
    pub segments: VecDeque<Segment>,
    /// The lowest index from which on all entries were seen. Above `span.first`, some are missing.
    seen: u64,
}

impl State {
    /// The state at the start of a segment whose predecessors were not read.
    pub fn from_span(span: Span) -> Self {
        Self { span, seen: span.next, ..Self::default() }
    }

    /// From here on, records go to segment `number`.
    pub fn begin(&mut self, number: u64) {
        self.segments.push_back(Segment { number, bytes: 0, top: 0 });
    }

    pub fn apply(&mut self, record: &Record<'_>) -> Result<()> {
        let was_empty = self.span.is_empty();
        self.span.apply(record)?;
        self.carry.apply(record);
        match record {
            Record::Entry { index, .. } => {
                self.seen = if was_empty { *index } else { self.seen.min(*index) };
                if let Some(segment) = self.segments.back_mut() {
                    segment.top = index + 1;
                }
            }
            Record::Truncate { next } => {
                self.seen = self.seen.min(*next);
                self.segments.iter_mut().for_each(|segment| segment.top = segment.top.min(*next));
            }
            Record::Purge { .. } | Record::Vote(_) | Record::Committed(_) => {}
        }
        Ok(())
    }

    /// Was every entry that the log holds among the records?
    pub fn is_complete(&self) -> bool {
        self.span.is_empty() || self.seen <= self.span.first
    }

    /// Takes the oldest segment out if nothing in it is needed any more.
    pub fn take_unneeded(&mut self) -> Option<Segment> {
        let unneeded = self.segments.len() > 1 && self.segments[0].top <= self.span.first;
        unneeded.then(|| self.segments.pop_front())?
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64) -> Record<'static> {
        Record::Entry { index, body: b"".into() }
    }

    fn purge(first: u64) -> Record<'static> {
        Record::Purge { first, body: b"".into() }
    }

    #[test]
    fn a_hole_is_refused() {
        let mut state = State::default();
        state.apply(&entry(3)).unwrap();
        assert!(state.apply(&entry(5)).is_err());
        assert!(state.apply(&entry(3)).is_err());
        state.apply(&purge(9)).unwrap();
        assert!(state.apply(&entry(10)).is_err());
        state.apply(&entry(9)).unwrap();
        assert_eq!(state.span, Span { first: 9, next: 10 });
    }

    #[test]
    fn a_segment_goes_once_its_live_entries_are_purged() {
        let mut state = State::default();
        state.begin(1);
        (0..20).for_each(|index| state.apply(&entry(index)).unwrap());
        state.begin(2);
        state.apply(&Record::Truncate { next: 14 }).unwrap();
        state.apply(&entry(14)).unwrap();
        state.apply(&purge(13)).unwrap();
        assert!(state.take_unneeded().is_none(), "13 lies in segment 1");
        state.apply(&purge(14)).unwrap();
        assert_eq!(state.take_unneeded().unwrap().number, 1);
        state.apply(&purge(99)).unwrap();
        assert!(state.take_unneeded().is_none(), "the last segment stays");
    }

    #[test]
    fn entries_of_unread_segments_are_missed() {
        let mut state = State::from_span(Span { first: 5, next: 10 });
        state.apply(&entry(10)).unwrap();
        assert!(!state.is_complete());
        state.apply(&Record::Truncate { next: 7 }).unwrap();
        state.apply(&entry(7)).unwrap();
        assert!(!state.is_complete());
        state.apply(&purge(7)).unwrap();
        assert!(state.is_complete());
    }
}
