//! Rooms: members, entries, and the `mid`s that make a retry harmless.

use serde::{Deserialize, Serialize};

use super::{State, decode};
use crate::{
    command::{Effect, Holder, Namespace, Position, Refusal, Reply, Room, RoomEntry, Stamp, User, What},
    keys,
};

/// Members that the ack of a join names.
pub const MEMBERS_IN_ACK: usize = 100;
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
}

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

impl State {
    pub(super) fn join(&mut self, by: &Holder, room: &Room, effects: &mut Vec<Effect>) -> Result<Reply, Refusal> {
        let session = self.held(by)?;
        let (ns, user) = (&session.ns, &session.user);
        let mut spans = self.spans(ns, user, room).unwrap_or_default();
        if !spans.is_member() {
            if self.rooms_of_user(ns, user).len() as u64 >= self.limits.rooms_per_user {
                return Err(Refusal::TooManyRooms);
            }
            if spans.spans.len() == 2 {
                spans.dropped = spans.spans.remove(0).left.unwrap_or_default();
            }
            spans.spans.push(Span { joined: self.position, left: None });
            self.put(keys::spans(ns, user, room), &spans);
            self.mark(keys::member(ns, room, user));
            self.touch_room(ns, room, |record| record.members += 1);
            effects.push(Effect::Member { ns: ns.clone(), user: user.clone(), room: room.clone(), joined: true });
            self.append(ns, room, user, What::Joined, effects);
        }
        let count = self.room(ns, room).map_or(0, |record| record.members);
        Ok(Reply::Joined { count, users: self.members(ns, room, None, MEMBERS_IN_ACK) })
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
        let mut spans = self.spans(ns, user, room).unwrap_or_default();
        let Some(span) = spans.spans.last_mut().filter(|span| span.left.is_none()) else { return };
        span.left = Some(self.position);
        self.put(keys::spans(ns, user, room), &spans);
        self.put(keys::past(ns, room, self.position), user);
        self.kv.delete(&keys::member(ns, room, user));
        self.append(ns, room, user, What::Left, effects);
        effects.push(Effect::Member { ns: ns.clone(), user: user.clone(), room: room.clone(), joined: false });
        self.touch_room(ns, room, |record| record.members -= 1);
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
        let Some(at) = session.entered.iter().position(|(entered, _)| entered == room) else {
            return Err(Refusal::NotMember);
        };
        session.entered.remove(at);
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
        self.append(ns, room, user, what, effects);
        Ok(Reply::Published { position: self.position, at: self.clock })
    }

    /// Adds an entry at the present position and trims what the bounds no longer allow.
    fn append(&mut self, ns: &Namespace, room: &Room, user: &User, what: What, effects: &mut Vec<Effect>) {
        let entry = RoomEntry { position: self.position, at: self.clock, user: user.clone(), what };
        self.put(keys::history(ns, room, self.position), &entry);
        self.touch_room(ns, room, |record| {
            record.entries += 1;
            record.bytes += entry_bytes(&entry);
        });
        effects.push(Effect::Entry { ns: ns.clone(), room: room.clone(), entry });
        self.trim(ns, room);
    }

    fn trim(&mut self, ns: &Namespace, room: &Room) {
        let Some(mut record) = self.room(ns, room) else { return };
        let prefix = keys::history_prefix(ns, room);
        let before = record.floor;
        loop {
            let Some(oldest) = self.kv.scan(&prefix).next().map(|(_, value)| decode::<RoomEntry>(value)) else { break };
            let too_many = record.entries > self.limits.history_size || record.bytes > self.limits.history_bytes;
            let too_old = oldest.at.saturating_add(self.limits.history_ttl_ms) < self.clock;
            // The newest entry stays, whatever its size: somebody was just told that it is there.
            if !(too_many || too_old) || oldest.position == self.position {
                break;
            }
            self.kv.delete(&keys::history(ns, room, oldest.position));
            record.entries -= 1;
            record.bytes -= entry_bytes(&oldest);
            record.floor = oldest.position;
        }
        if record.floor != before {
            self.drop_past_spans(ns, room, record.floor);
            self.put(keys::room(ns, room), &record);
        }
    }

    /// Spans that ended at or below the floor cannot be replayed any more.
    fn drop_past_spans(&mut self, ns: &Namespace, room: &Room, floor: Position) {
        let prefix = keys::past_prefix(ns, room);
        let useless: Vec<(Vec<u8>, User)> = self
            .kv
            .scan(&prefix)
            .take_while(|(key, _)| keys::last_position(&prefix, key).is_some_and(|left| left <= floor))
            .map(|(key, value)| (key.to_vec(), decode(value)))
            .collect();
        for (key, user) in useless {
            self.kv.delete(&key);
            let Some(mut spans) = self.spans(ns, &user, room) else { continue };
            if let Some(last) = spans.spans.iter().filter_map(|span| span.left).filter(|left| *left <= floor).max() {
                spans.dropped = spans.dropped.max(last);
            }
            spans.spans.retain(|span| span.left.is_none_or(|left| left > floor));
            match spans.spans.is_empty() {
                true => {
                    self.kv.delete(&keys::spans(ns, &user, room));
                    // A session that was there at the time must still be told that something is missing.
                    if self.has_sessions(ns, &user) {
                        let dropped = self.dropped(ns, &user).max(spans.dropped);
                        self.put(keys::dropped(ns, &user), &dropped);
                    }
                }
                false => self.put(keys::spans(ns, &user, room), &spans),
            }
        }
    }

    /// The `mid`, when it was seen within its window.
    fn known_mid(&self, user: &User, mid: &str) -> Option<Mid> {
        self.get::<Mid>(&keys::mid(user, mid)).filter(|known| self.in_window(known))
    }

    /// Past its window, or past the bound on a user's `mid`s, the oldest are forgotten.
    fn remember_mid(&mut self, user: &User, mid: &str, content: u64) {
        let prefix = keys::mid_order_prefix(user);
        let too_many = (self.kv.scan(&prefix).count() as u64 + 1).saturating_sub(self.limits.mids_per_user);
        let oldest_first = (0..).zip(self.kv.scan(&prefix)).map_while(|(nth, (order, old))| {
            let old: String = decode(old);
            let fresh = self.get::<Mid>(&keys::mid(user, &old)).is_some_and(|known| self.in_window(&known));
            (nth < too_many || !fresh).then(|| (order.to_vec(), old))
        });
        let forgotten: Vec<(Vec<u8>, String)> = oldest_first.collect();
        for (order, old) in forgotten {
            self.kv.delete(&order);
            self.kv.delete(&keys::mid(user, &old));
        }
        self.put(keys::mid(user, mid), &Mid { position: self.position, at: self.clock, content });
        self.put(keys::mid_order(user, self.position), &mid);
    }

    fn in_window(&self, known: &Mid) -> bool {
        known.at.saturating_add(self.limits.mid_window_ms) >= self.clock
    }

    /// Changes a room's counts; a room of which nothing is left goes.
    pub(super) fn touch_room(&mut self, ns: &Namespace, room: &Room, change: impl FnOnce(&mut RoomRecord)) {
        let mut record = self.room(ns, room).unwrap_or_default();
        change(&mut record);
        match record.members + record.entered + record.entries {
            0 => _ = self.kv.delete(&keys::room(ns, room)),
            _ => self.put(keys::room(ns, room), &record),
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
