//! Rooms: members, entries, and the `mid`s that make a retry harmless.

use std::ops::Bound;

use serde::{Deserialize, Serialize};

use super::{State, decode};
use crate::{
    command::{Effect, Holder, Namespace, Position, Refusal, Reply, Room, RoomEntry, Stamp, User, What},
    keys::{self, Key, Table},
};

/// Entries that one sweep removes at most.
const SWEEP_ENTRIES: usize = 1000;
/// Bytes that an entry counts for beside its text.
const ENTRY_BYTES: u64 = 64;

/// Counts of a room, and where its history begins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoomRecord {
    pub members: u64,
    /// Sessions that entered for themselves.
    pub entered: u64,
    pub entries: u64,
    pub bytes: u64,
    /// The last entry that was trimmed: history is whole above it.
    pub floor: Position,
    /// When the oldest entry was written.
    pub oldest: Stamp,
}

/// A room and its namespace.
pub type RoomName = (Namespace, Room);

/// From a join to a leave, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    pub joined: Position,
    pub left: Option<Position>,
}

/// When a user was a member of a room: the last two spans, and the end of the last one that was dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spans {
    pub spans: Vec<Span>,
    pub dropped: Position,
}

impl Spans {
    pub fn is_member(&self) -> bool {
        self.spans.last().is_some_and(|span| span.left.is_none())
    }
}

/// A recognised `mid`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mid {
    pub position: Position,
    pub at: Stamp,
    /// Of namespace, room and text: the same `mid` with something else is a mistake, not a retry.
    pub content: u64,
}

/// The `mid`s of a user that are remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MidsOf {
    pub count: u64,
    /// Place and time of the oldest.
    pub oldest: Position,
    pub oldest_at: Stamp,
}

impl State {
    pub(super) fn join(&mut self, by: &Holder, room: &Room, effects: &mut Vec<Effect>) -> Result<Reply, Refusal> {
        let session = self.held(by)?;
        let (ns, user) = (&session.ns, &session.user);
        let mut rooms = self.joined(ns, user);
        let count = if !rooms.contains(room.as_str()) {
            if rooms.len() >= self.limits.rooms_per_user {
                return Err(Refusal::TooManyRooms);
            }
            let before = keys::left(ns, user, room);
            let mut spans: Spans = self.get(&before).unwrap_or_default();
            if !spans.spans.is_empty() {
                self.kv.delete(&before);
            }
            if spans.spans.len() == 2 {
                spans.dropped = spans.spans.remove(0).left.unwrap_or_default();
            }
            spans.spans.push(Span { joined: self.position, left: None });
            self.put_new(keys::member(ns, room, user), &spans);
            rooms.insert(room.as_str());
            self.put(keys::joined(ns, user), &rooms);
            effects.push(Effect::Member { ns: ns.clone(), user: user.clone(), room: room.clone(), joined: true });
            self.append(ns, room, user, What::Joined, |record| record.members += 1, effects).members
        } else {
            self.room(ns, room).map_or(0, |record| record.members)
        };
        Ok(Reply::Joined { count })
    }

    pub(super) fn leave(&mut self, by: &Holder, room: &Room, effects: &mut Vec<Effect>) -> Result<Reply, Refusal> {
        let session = self.held(by)?;
        if !self.is_member(&session.ns, &session.user, room) {
            return Err(Refusal::NotMember);
        }
        self.remove_member(&session.ns, &session.user, room, effects);
        Ok(Reply::Done)
    }

    pub(super) fn remove_member(&mut self, ns: &Namespace, user: &User, room: &Room, effects: &mut Vec<Effect>) {
        let member = keys::member(ns, room, user);
        let Some(mut spans) = self.get::<Spans>(&member) else { return };
        if let Some(span) = spans.spans.last_mut() {
            span.left = Some(self.position);
        }
        self.kv.delete(&member);
        self.put(keys::left(ns, user, room), &spans);
        self.put(keys::past(ns, room, self.position), user);
        let mut rooms = self.joined(ns, user);
        rooms.remove(room.as_str());
        self.put_or_delete(keys::joined(ns, user), &rooms);
        self.append(ns, room, user, What::Left, |record| record.members -= 1, effects);
        effects.push(Effect::Member { ns: ns.clone(), user: user.clone(), room: room.clone(), joined: false });
    }

    pub(super) fn enter(&mut self, by: &Holder, room: &Room, effects: &mut Vec<Effect>) -> Result<Reply, Refusal> {
        let mut session = self.held(by)?;
        if session.entered.iter().any(|(entered, _)| entered == room) {
            return Ok(Reply::Done);
        }
        if session.entered.len() as u64 >= self.limits.rooms_per_user {
            return Err(Refusal::TooManyRooms);
        }
        session.entered.push((room.clone(), self.position));
        self.put(keys::session(&session.sid), &session);
        self.mark(keys::entered(&session.ns, room, &session.sid));
        self.touch_room(&session.ns, room, |record| record.entered += 1);
        effects.push(Effect::Entered { sid: session.sid, ns: session.ns, room: room.clone(), entered: true });
        Ok(Reply::Done)
    }

    pub(super) fn exit(&mut self, by: &Holder, room: &Room, effects: &mut Vec<Effect>) -> Result<Reply, Refusal> {
        let mut session = self.held(by)?;
        if !session.exit(room, self.position) {
            return Err(Refusal::NotMember);
        }
        self.put(keys::session(&session.sid), &session);
        self.kv.delete(&keys::entered(&session.ns, room, &session.sid));
        self.touch_room(&session.ns, room, |record| record.entered -= 1);
        effects.push(Effect::Entered { sid: session.sid, ns: session.ns, room: room.clone(), entered: false });
        Ok(Reply::Done)
    }

    pub(super) fn publish(
        &mut self,
        by: &Holder,
        room: &Room,
        text: &str,
        mid: Option<&str>,
        effects: &mut Vec<Effect>,
    ) -> Result<Reply, Refusal> {
        let session = self.held(by)?;
        let (ns, user) = (&session.ns, &session.user);
        let content = content_hash(ns, room, text);
        if let Some(known) = mid.and_then(|mid| self.known_mid(user, mid)) {
            // Also when the user has left since: the first one counted.
            let reply = Reply::Published { position: known.position, at: known.at };
            return if known.content == content { Ok(reply) } else { Err(Refusal::MidReused) };
        }
        let receives = self.is_member(ns, user, room) || session.entered.iter().any(|(entered, _)| entered == room);
        if !receives {
            return Err(Refusal::NotMember);
        }
        if let Some(mid) = mid {
            self.remember_mid(user, mid, content);
        }
        let what = What::Message { text: text.to_owned(), mid: mid.map(str::to_owned) };
        self.append(ns, room, user, what, |_| {}, effects);
        Ok(Reply::Published { position: self.position, at: self.clock })
    }

    /// Adds an entry at the present position, with what else it changes of the room, and trims what the bounds no longer
    /// allow.
    fn append(
        &mut self,
        ns: &Namespace,
        room: &Room,
        user: &User,
        what: What,
        change: impl FnOnce(&mut RoomRecord),
        effects: &mut Vec<Effect>,
    ) -> RoomRecord {
        let mut record = self.room_or_new(ns, room);
        let entry = RoomEntry { position: self.position, at: self.clock, user: user.clone(), what };
        // No two entries have one position.
        self.put_new(keys::history(ns, room, self.position), &entry);
        change(&mut record);
        if record.entries == 0 {
            record.oldest = entry.at;
        }
        record.entries += 1;
        record.bytes += entry_bytes(&entry);
        effects.push(Effect::Entry { ns: ns.clone(), room: room.clone(), entry });
        self.trim(ns, room, &mut record);
        self.put(keys::room(ns, room), &record);
        record
    }

    fn trim(&mut self, ns: &Namespace, room: &Room, record: &mut RoomRecord) {
        let before = record.floor;
        loop {
            let too_many = record.entries > self.limits.history_size || record.bytes > self.limits.history_bytes;
            let too_old = self.is_too_old(record.oldest);
            // The newest entry stays, whatever its size: somebody was just told that it is there.
            if !(too_many || too_old) || record.entries <= 1 {
                break;
            }
            let Some((oldest, next)) = self.two_oldest(ns, room, record.floor) else { break };
            self.kv.delete(&keys::history(ns, room, oldest.position));
            record.entries -= 1;
            record.bytes -= entry_bytes(&oldest);
            (record.floor, record.oldest) = (oldest.position, next.at);
        }
        if record.floor != before {
            self.drop_past_spans(ns, room, record.floor);
        }
    }

    /// Trims by age where nothing is said any more, also the newest entry; a room of which nothing is left goes. What a
    /// command would trim beyond its bound waits for the next one.
    pub(super) fn sweep(&mut self, rooms: &[(Namespace, Room)]) -> Result<Reply, Refusal> {
        let mut left = SWEEP_ENTRIES;
        for (ns, room) in rooms {
            let Some(mut record) = self.room(ns, room) else { continue };
            let before = record.floor;
            let prefix = keys::history_prefix(ns, room);
            let floor = keys::history(ns, room, before);
            let rows =
                self.kv.scan_from(&prefix, Bound::Excluded(&floor)).map(|(_, value)| decode::<RoomEntry>(&value));
            let old = rows.take_while(|entry| self.is_too_old(entry.at)).take(left);
            let old: Vec<RoomEntry> = old.collect();
            left -= old.len();
            for entry in old {
                self.kv.delete(&keys::history(ns, room, entry.position));
                record.entries -= 1;
                record.bytes -= entry_bytes(&entry);
                record.floor = entry.position;
            }
            if record.floor == before {
                continue;
            }
            let oldest = keys::history(ns, room, record.floor);
            let oldest = self.kv.scan_from(&prefix, Bound::Excluded(&oldest)).next();
            record.oldest = oldest.map_or(0, |(_, value)| decode::<RoomEntry>(&value).at);
            self.drop_past_spans(ns, room, record.floor);
            self.put_room(ns, room, &record);
        }
        Ok(Reply::Done)
    }

    fn is_too_old(&self, at: Stamp) -> bool {
        at.saturating_add(self.limits.history_ttl_ms) < self.clock
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

    /// The last entry of any room that is gone.
    pub(super) fn swept(&self) -> Position {
        self.get(&keys::meta("swept")).unwrap_or_default()
    }

    /// A new room may have been there before: its floor is where the last one that went ended.
    fn room_or_new(&self, ns: &Namespace, room: &Room) -> RoomRecord {
        self.room(ns, room).unwrap_or_else(|| RoomRecord { floor: self.swept(), ..RoomRecord::default() })
    }

    /// Of what is above the floor. It begins there, because what was trimmed a moment ago may still be in the way.
    fn two_oldest(&self, ns: &Namespace, room: &Room, floor: Position) -> Option<(RoomEntry, RoomEntry)> {
        let (prefix, floor) = (keys::history_prefix(ns, room), keys::history(ns, room, floor));
        let mut rows = self.kv.scan_from(&prefix, Bound::Excluded(&floor)).map(|(_, value)| decode(&value));
        Some((rows.next()?, rows.next()?))
    }

    /// Spans that ended at or below the floor cannot be replayed any more.
    fn drop_past_spans(&mut self, ns: &Namespace, room: &Room, floor: Position) {
        let prefix = keys::past_prefix(ns, room);
        let useless: Vec<(Vec<u8>, User)> = self
            .kv
            .scan(&prefix)
            .take_while(|(key, _)| keys::last_position(&prefix, key).is_some_and(|left| left <= floor))
            .map(|(key, value)| (key.to_vec(), decode(&value)))
            .collect();
        for (key, user) in useless {
            self.kv.delete(&key);
            let (member, left) = (keys::member(ns, room, &user), keys::left(ns, &user, room));
            let again = self.kv.has(&member);
            let row = if again { member } else { left };
            let Some(mut spans) = self.get::<Spans>(&row) else { continue };
            if let Some(last) = spans.spans.iter().filter_map(|span| span.left).filter(|left| *left <= floor).max() {
                spans.dropped = spans.dropped.max(last);
            }
            spans.spans.retain(|span| span.left.is_none_or(|left| left > floor));
            match spans.spans.is_empty() {
                true => {
                    self.kv.delete(&row);
                    // A session that was there at the time must still be told that something is missing.
                    if self.has_sessions(ns, &user) {
                        let dropped = self.dropped(ns, &user).max(spans.dropped);
                        self.put(keys::dropped(ns, &user), &dropped);
                    }
                }
                false => self.put(row, &spans),
            }
        }
    }

    /// The `mid`, when it was seen within its window.
    fn known_mid(&self, user: &User, mid: &str) -> Option<Mid> {
        self.get::<Mid>(&keys::mid(user, mid)).filter(|known| self.in_window(known.at))
    }

    fn remember_mid(&mut self, user: &User, mid: &str, content: u64) {
        let mut of = self.get::<MidsOf>(&keys::mids_of(user)).unwrap_or_default();
        self.forget_mids(user, &mut of);
        if of.count == 0 {
            (of.oldest, of.oldest_at) = (self.position, self.clock);
        }
        of.count += 1;
        self.put(keys::mids_of(user), &of);
        self.put(keys::mid(user, mid), &Mid { position: self.position, at: self.clock, content });
        self.put(keys::mid_order(user, self.position), &mid);
    }

    /// Past their window, or past the bound on a user's `mid`s with the one that is about to come, the oldest go.
    fn forget_mids(&mut self, user: &User, of: &mut MidsOf) {
        let too_many = (of.count + 1).saturating_sub(self.limits.mids_per_user);
        if of.count == 0 || (too_many == 0 && self.in_window(of.oldest_at)) {
            return;
        }
        let mut forgotten = Vec::new();
        for (nth, (order, mid)) in (0..).zip(self.mids_from(user, of.oldest)) {
            let known: Mid = self.get(&keys::mid(user, &mid)).expect("each place has its `mid`");
            if nth >= too_many && self.in_window(known.at) {
                (of.oldest, of.oldest_at) = (known.position, known.at);
                break;
            }
            forgotten.push((order, mid));
        }
        of.count -= forgotten.len() as u64;
        for (order, mid) in forgotten {
            self.kv.delete(&order);
            self.kv.delete(&keys::mid(user, &mid));
        }
    }

    /// In the order in which they came. It begins at the oldest, because what was forgotten a moment ago may still be in
    /// the way.
    fn mids_from(&self, user: &User, oldest: Position) -> impl Iterator<Item = (Vec<u8>, String)> {
        let (prefix, from) = (keys::mid_order_prefix(user), keys::mid_order(user, oldest));
        self.kv.scan_from(&prefix, Bound::Included(&from)).map(|(order, mid)| (order.to_vec(), decode(&mid)))
    }

    fn in_window(&self, at: Stamp) -> bool {
        at.saturating_add(self.limits.mid_window_ms) >= self.clock
    }

    /// Changes a room's counts.
    pub(super) fn touch_room(&mut self, ns: &Namespace, room: &Room, change: impl FnOnce(&mut RoomRecord)) {
        let mut record = self.room_or_new(ns, room);
        change(&mut record);
        self.put_room(ns, room, &record);
    }

    /// A room of which nothing is left goes; where its history ended is remembered for all that are gone.
    fn put_room(&mut self, ns: &Namespace, room: &Room, record: &RoomRecord) {
        if record.members + record.entered + record.entries > 0 {
            return self.put(keys::room(ns, room), record);
        }
        self.kv.delete(&keys::room(ns, room));
        if record.floor > self.swept() {
            self.put(keys::meta("swept"), &record.floor);
        }
    }
}

fn entry_bytes(entry: &RoomEntry) -> u64 {
    match &entry.what {
        What::Message { text, .. } => ENTRY_BYTES + text.len() as u64,
        What::Joined | What::Left => ENTRY_BYTES,
    }
}

/// 64-bit FNV-1a. Here and not from a library, because its result is stored: it may never change. A collision that a
/// client makes on purpose swallows that client's own message and no other.
fn content_hash(ns: &Namespace, room: &Room, text: &str) -> u64 {
    let parts = [ns.as_str(), "\0", room.as_str(), "\0", text];
    parts
        .iter()
        .flat_map(|part| part.bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}
