//! How a room's history stays within its bounds.
//!
//! What always holds: above a room's floor its history is whole. An append trims what the bounds no longer allow, but never the entry
//! itself; where nothing is said any more, a sweep trims by age, and takes the room with the last of it.

use std::ops::Bound;

use super::{
    RoomName, RoomRecord, Spans, State, decode,
    oldest::{Old, READ},
};
use crate::{
    command::{Namespace, Position, Refusal, Reply, Room, RoomEntry, Stamp, User},
    keys::{self, Key, Table},
    kv::Kv,
};

/// Entries that one sweep removes at most.
const SWEEP_ENTRIES: usize = 1000;

/// What a room's history may grow to, at one moment of the state's clock.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    entries: u64,
    bytes: u64,
    ttl_ms: u64,
    clock: Stamp,
}

impl Bounds {
    pub(super) fn allow(&self, record: &RoomRecord) -> bool {
        let too_many = record.entries > self.entries || record.bytes > self.bytes;
        // The newest entry stays, whatever its size: somebody was just told that it is there.
        record.entries <= 1 || !(too_many || self.too_old(record.oldest))
    }

    fn too_old(&self, at: Stamp) -> bool {
        at.saturating_add(self.ttl_ms) < self.clock
    }
}

impl State {
    pub(super) fn trim(&mut self, ns: &Namespace, room: &Room, record: &mut RoomRecord) {
        let bounds = self.bounds();
        while !bounds.allow(record) {
            let Some((oldest, next)) = self.oldest(ns, room, record.floor) else { break };
            self.remove_oldest(ns, room, record, &oldest);
            record.oldest = next;
        }
    }

    /// Trims by age where nothing is said any more, also the newest entry; a room of which nothing is left goes. What a
    /// command would trim beyond its bound waits for the next one.
    pub(super) fn sweep(&mut self, rooms: &[(Namespace, Room)]) -> Result<Reply, Refusal> {
        let mut left = SWEEP_ENTRIES;
        for (ns, room) in rooms {
            let Some(mut record) = self.room(ns, room) else { continue };
            let before = record.floor;
            let old = above(&self.kv, ns, room, before).take_while(|old| self.is_too_old(old.at)).take(left);
            let old: Vec<Old> = old.collect();
            left -= old.len();
            for oldest in &old {
                self.remove_oldest(ns, room, &mut record, oldest);
            }
            if record.floor == before {
                continue;
            }
            record.oldest = above(&self.kv, ns, room, record.floor).next().map_or(0, |old| old.at);
            self.put_room(ns, room, &record);
        }
        Ok(Reply::Done)
    }

    pub(super) fn bounds(&self) -> Bounds {
        let limits = &self.limits;
        Bounds {
            entries: limits.history_size,
            bytes: limits.history_bytes,
            ttl_ms: limits.history_ttl_ms,
            clock: self.clock,
        }
    }

    fn is_too_old(&self, at: Stamp) -> bool {
        self.bounds().too_old(at)
    }

    /// Rooms with entries that are too old, among the next `look` after a name; and the name to go on after, if there are
    /// more.
    pub fn stale_rooms(&self, after: Option<&RoomName>, look: usize) -> (Vec<RoomName>, Option<RoomName>) {
        let prefix = Key::new(Table::Rooms).done();
        let from = after.map(|(ns, room)| keys::room(ns, room));
        let from = from.as_deref().map_or(Bound::Included(prefix.as_slice()), Bound::Excluded);
        let (mut stale, mut last, mut seen) = (Vec::new(), None, 0);
        for (key, value) in self.kv.scan_from(&prefix, from).take(look) {
            seen += 1;
            let Some((ns, room)) = keys::two_texts(&key[prefix.len()..]) else { continue };
            let Some(name) = Namespace::new(ns).zip(Room::new(room)) else { continue };
            let record: RoomRecord = decode(&value);
            if record.entries > 0 && self.is_too_old(record.oldest) {
                stale.push(name.clone());
            }
            last = Some(name);
        }
        (stale, last.filter(|_| seen == look))
    }

    /// The floor of a room is where its oldest entry was.
    fn remove_oldest(&mut self, ns: &Namespace, room: &Room, record: &mut RoomRecord, oldest: &Old) {
        self.kv.delete(&keys::history(ns, room, oldest.position));
        record.entries -= 1;
        record.bytes -= oldest.bytes;
        record.floor = oldest.position;
        // When somebody was there is known as long as the history says that they left.
        if let Some(user) = &oldest.left {
            self.drop_past_span(ns, room, user, oldest.position);
        }
    }

    /// The oldest entry, and when the next one was written; nothing if there are not two.
    fn oldest(&mut self, ns: &Namespace, room: &Room, floor: Position) -> Option<(Old, Stamp)> {
        let kv = &self.kv;
        self.oldest.take(keys::history_prefix(ns, room), floor, || above(kv, ns, room, floor).take(READ).collect())
    }

    /// A span that ended where the room's history begins now, or before, cannot be replayed any more.
    fn drop_past_span(&mut self, ns: &Namespace, room: &Room, user: &User, floor: Position) {
        self.kv.delete(&keys::past(ns, room, floor));
        let (member, left) = (keys::member(ns, room, user), keys::left(ns, user, room));
        let again = self.kv.has(&member);
        let row = if again { member } else { left };
        let Some(mut spans) = self.get::<Spans>(&row) else { return };
        if let Some(last) = spans.spans.iter().filter_map(|span| span.left).filter(|left| *left <= floor).max() {
            spans.dropped = spans.dropped.max(last);
        }
        spans.spans.retain(|span| span.left.is_none_or(|left| left > floor));
        match spans.spans.is_empty() {
            true => {
                self.kv.delete(&row);
                // A session that was there at the time must still be told that something is missing.
                if self.has_sessions(ns, user) {
                    let dropped = self.dropped(ns, user).max(spans.dropped);
                    self.put(keys::dropped(ns, user), &dropped);
                }
            }
            false => self.put(row, &spans),
        }
    }
}

/// What a room's history consists of, oldest first. It begins at the floor, because what was trimmed a moment ago may still be in
/// the way.
fn above(kv: &Kv, ns: &Namespace, room: &Room, floor: Position) -> impl Iterator<Item = Old> {
    let (prefix, floor) = (keys::history_prefix(ns, room), keys::history(ns, room, floor));
    let rows = kv.scan_from(&prefix, Bound::Excluded(&floor));
    rows.map(|(_, value)| Old::of(&decode::<RoomEntry>(&value)))
}
