//! What a returning client missed, or why that cannot be said any more.
//!
//! Replay is, for each room in which the user was a member at some time since the offset, the room's entries in
//! `(offset, seam]` that lie between a join and a leave, merged by position; the same for rooms that the session entered
//! for itself. It is complete or refused, never partial: an entry that was trimmed, a span that was dropped, or a bound
//! that is passed refuses the whole.

use std::collections::BTreeMap;

use super::{Session, Span, State};
use crate::command::{Position, Room, RoomEntry, What};

/// Bounds of one replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplayLimit {
    pub entries: usize,
    pub bytes: usize,
}

/// Why a replay is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incomplete {
    /// The offset lies above the seam: it cannot have been given by this history.
    Future,
    /// Some of it was trimmed.
    Trimmed,
    TooLong,
}

impl Incomplete {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Future => "future",
            Self::Trimmed => "trimmed",
            Self::TooLong => "too_long",
        }
    }
}

impl State {
    /// The entries in `(offset, seam]` that are due to the session, by position. An offset from before the session's
    /// first position counts as that position. The state must have applied the seam; it may be ahead of it.
    pub fn replay(
        &self,
        session: &Session,
        offset: Position,
        seam: Position,
        limit: ReplayLimit,
    ) -> Result<Vec<(Room, RoomEntry)>, Incomplete> {
        if offset > seam {
            return Err(Incomplete::Future);
        }
        let offset = offset.max(session.first);
        if self.dropped(&session.ns, &session.user).max(session.forgotten) > offset {
            return Err(Incomplete::Trimmed);
        }
        let mut received: BTreeMap<Room, Vec<Range>> = BTreeMap::new();
        for (room, spans) in self.all_spans(&session.ns, &session.user) {
            if spans.dropped > offset {
                return Err(Incomplete::Trimmed);
            }
            // A join's own entry is due too: the user's other sessions learn of the room by it.
            let range = |span: &Span| (Position(span.joined.0.saturating_sub(1)), span.left.unwrap_or(seam));
            received.entry(room).or_default().extend(spans.spans.iter().map(range));
        }
        for (room, entered) in &session.entered {
            received.entry(room.clone()).or_default().push((*entered, seam));
        }
        for (room, entered, exited) in &session.exited {
            received.entry(room.clone()).or_default().push((*entered, *exited));
        }
        let mut budget = Budget { limit, entries: 0, bytes: 0 };
        let mut due = Vec::new();
        for (room, ranges) in received {
            let ranges = ranges.into_iter().map(|(from, upto)| (from.max(offset), upto.min(seam)));
            for (from, upto) in merged(ranges.collect()) {
                self.collect(session, &room, from, upto, &mut budget, &mut due)?;
            }
        }
        due.sort_unstable_by_key(|(_, entry)| entry.position);
        Ok(due)
    }

    fn collect(
        &self,
        session: &Session,
        room: &Room,
        from: Position,
        upto: Position,
        budget: &mut Budget,
        due: &mut Vec<(Room, RoomEntry)>,
    ) -> Result<(), Incomplete> {
        let floor = self.room(&session.ns, room).map_or_else(|| self.swept(), |record| record.floor);
        if floor > from {
            return Err(Incomplete::Trimmed);
        }
        for entry in self.entries(&session.ns, room, from, upto) {
            budget.spend(&entry)?;
            due.push((room.clone(), entry));
        }
        Ok(())
    }
}

/// Positions above the first, up to the second.
type Range = (Position, Position);

/// The same positions, none of them twice: a room may be entered and joined at one time.
fn merged(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.retain(|(from, upto)| from < upto);
    ranges.sort_unstable();
    ranges.dedup_by(|next, last| {
        let overlap = next.0 <= last.1;
        if overlap {
            last.1 = last.1.max(next.1);
        }
        overlap
    });
    ranges
}

struct Budget {
    limit: ReplayLimit,
    entries: usize,
    bytes: usize,
}

impl Budget {
    fn spend(&mut self, entry: &RoomEntry) -> Result<(), Incomplete> {
        self.entries += 1;
        self.bytes += match &entry.what {
            What::Message { text, .. } => text.len(),
            What::Joined | What::Left => 0,
        };
        match self.entries > self.limit.entries || self.bytes > self.limit.bytes {
            true => Err(Incomplete::TooLong),
            false => Ok(()),
        }
    }
}
