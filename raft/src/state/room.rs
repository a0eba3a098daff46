//! Rooms: who joins and leaves, who enters and exits, what is said.

use serde::{Deserialize, Serialize};

use super::{NameSet, State, mids::content_hash, oldest::entry_bytes};
use crate::{
    command::{Effect, Holder, Namespace, Position, Refusal, Reply, Room, RoomEntry, Stamp, User, What},
    keys,
};

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

impl State {
    pub(super) fn join(&mut self, by: &Holder, room: &Room, effects: &mut Vec<Effect>) -> Result<Reply, Refusal> {
        let session = self.held(by)?;
        let (ns, user, rooms_max) = (&session.ns, &session.user, self.limits.rooms_per_user);
        let joined = self.update(
            keys::joined(ns, user),
            |_| NameSet::default(),
            |rooms| match rooms.contains(room.as_str()) {
                true => Err(None),
                false if rooms.len() >= rooms_max => Err(Some(Refusal::TooManyRooms)),
                false => {
                    rooms.insert(room.as_str());
                    Ok(())
                }
            },
        );
        match joined {
            Ok(()) => {}
            Err(None) => {
                return Ok(Reply::Joined { count: self.room(ns, room).map_or(0, |record| record.members) });
            }
            Err(Some(refusal)) => return Err(refusal),
        }
        let mut spans = self.take_left(ns, user, room);
        if spans.spans.len() == 2 {
            spans.dropped = spans.spans.remove(0).left.unwrap_or_default();
        }
        spans.spans.push(Span { joined: self.position, left: None });
        self.put_new(keys::member(ns, room, user), &spans);
        effects.push(Effect::Member { ns: ns.clone(), user: user.clone(), room: room.clone(), joined: true });
        let record = self.append(ns, room, user, What::Joined, |record| record.members += 1, effects);
        Ok(Reply::Joined { count: record.members })
    }

    /// When the user was in the room before, which is no row of its own any more.
    fn take_left(&mut self, ns: &Namespace, user: &User, room: &Room) -> Spans {
        let kv = &self.kv;
        if self.never_left.is_known(keys::left_prefix(ns, user), |rows| kv.scan(rows).next().is_none()) {
            return Spans::default();
        }
        let row = keys::left(ns, user, room);
        let spans = self.get(&row);
        if spans.is_some() {
            self.kv.delete(&row);
        }
        spans.unwrap_or_default()
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
        self.never_left.forget(&keys::left_prefix(ns, user));
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
        self.put_session(&session);
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
        self.put_session(&session);
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
        let entry = RoomEntry { position: self.position, at: self.clock, user: user.clone(), what };
        // No two entries have one position.
        self.put_new(keys::history(ns, room, self.position), &entry);
        let bounds = self.bounds();
        let changed = self.update(keys::room(ns, room), State::new_room, |record| {
            change(record);
            if record.entries == 0 {
                record.oldest = entry.at;
            }
            record.entries += 1;
            record.bytes += entry_bytes(&entry.what);
            match bounds.allow(record) {
                true => Ok(record.clone()),
                false => Err(record.clone()),
            }
        });
        let record = changed.unwrap_or_else(|mut record| {
            self.trim(ns, room, &mut record);
            self.put(keys::room(ns, room), &record);
            record
        });
        effects.push(Effect::Entry { ns: ns.clone(), room: room.clone(), entry });
        record
    }

    /// The last entry of any room that is gone.
    pub(super) fn swept(&self) -> Position {
        self.get(&keys::meta("swept")).unwrap_or_default()
    }

    fn room_or_new(&self, ns: &Namespace, room: &Room) -> RoomRecord {
        self.room(ns, room).unwrap_or_else(|| self.new_room())
    }

    /// A new room may have been there before: its floor is where the last one that went ended.
    fn new_room(&self) -> RoomRecord {
        RoomRecord { floor: self.swept(), ..RoomRecord::default() }
    }

    /// Changes a room's counts.
    pub(super) fn touch_room(&mut self, ns: &Namespace, room: &Room, change: impl FnOnce(&mut RoomRecord)) {
        let mut record = self.room_or_new(ns, room);
        change(&mut record);
        self.put_room(ns, room, &record);
    }

    /// A room of which nothing is left goes; where its history ended is remembered for all that are gone.
    pub(super) fn put_room(&mut self, ns: &Namespace, room: &Room, record: &RoomRecord) {
        if record.members + record.entered + record.entries > 0 {
            return self.put(keys::room(ns, room), record);
        }
        self.kv.delete(&keys::room(ns, room));
        if record.floor > self.swept() {
            self.put(keys::meta("swept"), &record.floor);
        }
    }
}
