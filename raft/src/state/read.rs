//! Reading the state: the records, and the views that are derived from them.
//!
//! `rooms_of_session` and `sids_in_room` are the two sides of one relation: a session receives in the rooms of its user
//! and in those that it entered for itself.

use std::{collections::BTreeSet, ops::Bound};

use super::{Drain, NameSet, Node, RoomRecord, Session, Spans, State, decode};
use crate::{
    command::{Holder, Namespace, NodeId, PidHash, Position, Room, RoomEntry, Sid, User},
    keys::{self, Key, Table},
    kv::KeyBytes,
};

impl State {
    pub fn node(&self, id: NodeId) -> Option<Node> {
        self.get(&keys::node(id))
    }

    /// All nodes that were not removed, by id.
    pub fn nodes(&self) -> Vec<Node> {
        let nodes = self.kv.scan(&[Table::Nodes as u8]).map(|(_, value)| decode::<Node>(&value));
        nodes.filter(|node| !node.removed).collect()
    }

    /// Ids that were removed for good.
    pub fn removed_nodes(&self) -> BTreeSet<NodeId> {
        let nodes = self.kv.scan(&[Table::Nodes as u8]).map(|(_, value)| decode::<Node>(&value));
        nodes.filter(|node| node.removed).map(|node| node.id).collect()
    }

    pub fn is_removed(&self, id: NodeId) -> bool {
        self.node(id).is_some_and(|node| node.removed)
    }

    /// With how many voters the cluster was formed; `None` until its first leader has stored it.
    pub fn expected_voters(&self) -> Option<u64> {
        self.get(&keys::meta("expected"))
    }

    pub fn drain(&self) -> Option<Drain> {
        self.get(&keys::meta("drain"))
    }

    pub fn session(&self, sid: &Sid) -> Option<Session> {
        self.decoded.get(sid, || self.get(&keys::session(sid)))
    }

    /// The session that has this secret, in any namespace.
    pub fn session_of_pid(&self, pid: &PidHash) -> Option<Session> {
        self.get::<Sid>(&keys::pid(pid)).and_then(|sid| self.session(&sid))
    }

    /// Sessions in sid order, after a sid, of any namespace.
    pub fn sessions_after(&self, after: Option<&Sid>) -> impl Iterator<Item = Session> {
        const PREFIX: &[u8] = &[Table::Sessions as u8];
        let from = after.map(keys::session);
        let from = from.as_deref().map_or(Bound::Included(PREFIX), Bound::Excluded);
        self.kv.scan_from(PREFIX, from).map(|(_, value)| decode(&value))
    }

    pub fn sessions_of(&self, ns: &Namespace, user: &User) -> Vec<Session> {
        self.sids_of_user(ns, user).iter().filter_map(|sid| self.session(sid)).collect()
    }

    pub(super) fn has_sessions(&self, ns: &Namespace, user: &User) -> bool {
        self.kv.has(&keys::of_user(ns, user))
    }

    pub(super) fn of_user(&self, ns: &Namespace, user: &User) -> NameSet {
        self.get(&keys::of_user(ns, user)).unwrap_or_default()
    }

    /// Sessions without a transport, as far as the log knows: those that expire if nobody resumes them. In the order of their
    /// sids. A leader asks twice a second, so this reads rows that say it all, and no session.
    pub fn lost_sessions(&self) -> Vec<Holder> {
        let mut lost: Vec<Holder> = self.holders(&[Table::Lost as u8]).collect();
        let over = self.incarnations_with_sessions().into_iter().filter(|(node, inc)| !self.is_live(*node, *inc));
        for (node, incarnation) in over {
            lost.extend(self.holders(&keys::of_incarnation_prefix(node, incarnation)));
        }
        // One that was lost before its node was is in both tables.
        lost.sort_unstable();
        lost.dedup();
        lost
    }

    /// What a table with a sid at the end of its keys and a generation as its values names.
    fn holders<'a>(&'a self, prefix: &'a [u8]) -> impl Iterator<Item = Holder> + 'a {
        let holder = |key: &[u8], value: &[u8]| {
            let sid = Sid::parse(keys::last_text(prefix, key)?)?;
            Some(Holder { sid, generation: decode(value) })
        };
        self.kv.scan(prefix).filter_map(move |(key, value)| holder(&key, &value))
    }

    /// Skips from one incarnation to the next, so its cost is the number of incarnations, not of sessions.
    fn incarnations_with_sessions(&self) -> Vec<(NodeId, u64)> {
        const PREFIX: &[u8] = &[Table::OfNode as u8];
        let mut found = Vec::new();
        let mut from = KeyBytes::from_slice(PREFIX);
        loop {
            let next = self.kv.scan_from(PREFIX, Bound::Included(&from)).next();
            let Some((node, incarnation)) = next.and_then(|(key, _)| two_numbers(key.get(1..17)?)) else { break };
            found.push((node, incarnation));
            let Some(after) = incarnation.checked_add(1) else { break };
            from = keys::of_incarnation_prefix(node, after);
        }
        found
    }

    pub fn is_member(&self, ns: &Namespace, user: &User, room: &Room) -> bool {
        self.kv.has(&keys::member(ns, room, user))
    }

    pub fn spans(&self, ns: &Namespace, user: &User, room: &Room) -> Option<Spans> {
        self.get(&keys::member(ns, room, user)).or_else(|| self.get(&keys::left(ns, user, room)))
    }

    /// Rooms that the user is a member of, in name order.
    pub fn rooms_of_user(&self, ns: &Namespace, user: &User) -> Vec<Room> {
        self.joined(ns, user).names().filter_map(Room::new).collect()
    }

    pub(super) fn joined(&self, ns: &Namespace, user: &User) -> NameSet {
        self.get(&keys::joined(ns, user)).unwrap_or_default()
    }

    /// Rooms in which the session receives, in name order.
    pub fn rooms_of_session(&self, session: &Session) -> Vec<Room> {
        let mut rooms = self.rooms_of_user(&session.ns, &session.user);
        rooms.extend(session.entered.iter().map(|(room, _)| room.clone()));
        rooms.sort_unstable();
        rooms.dedup();
        rooms
    }

    /// Sessions that receive in the room, in sid order.
    pub fn sids_in_room(&self, ns: &Namespace, room: &Room) -> Vec<Sid> {
        let members = self.members(ns, room, None, usize::MAX);
        let mut sids: Vec<Sid> =
            members.iter().flat_map(|user| self.sessions_of(ns, user)).map(|session| session.sid).collect();
        let prefix = keys::entered_prefix(ns, room);
        sids.extend(self.texts(&prefix).filter_map(|sid| Sid::parse(&sid)));
        sids.sort_unstable();
        sids.dedup();
        sids
    }

    /// Members in name order, after a name.
    pub fn members(&self, ns: &Namespace, room: &Room, after: Option<&User>, limit: usize) -> Vec<User> {
        let prefix = keys::members_prefix(ns, room);
        let from = after.map(|user| keys::member(ns, room, user));
        let from = from.as_deref().map_or(Bound::Included(prefix.as_slice()), Bound::Excluded);
        let rows = self.kv.scan_from(&prefix, from);
        rows.filter_map(|(key, _)| User::new(keys::last_text(&prefix, &key)?)).take(limit).collect()
    }

    pub fn room(&self, ns: &Namespace, room: &Room) -> Option<RoomRecord> {
        self.get(&keys::room(ns, room))
    }

    /// Up to `limit` entries of the room between two positions (both excluded), oldest first, and whether there are
    /// more beyond. With `after` the oldest of them are taken, else the newest.
    pub fn history(
        &self,
        ns: &Namespace,
        room: &Room,
        after: Option<Position>,
        before: Option<Position>,
        limit: usize,
        wanted: impl Fn(&RoomEntry) -> bool,
    ) -> (Vec<RoomEntry>, bool) {
        let prefix = keys::history_prefix(ns, room);
        let end = keys::history(ns, room, before.unwrap_or(Position(u64::MAX)));
        let mut found: Vec<RoomEntry>;
        if let Some(after) = after {
            let start = keys::history(ns, room, after);
            let rows = self.kv.scan_from(&prefix, Bound::Excluded(&start)).take_while(|(key, _)| **key < *end);
            found = rows.map(|(_, value)| decode(&value)).filter(wanted).take(limit.saturating_add(1)).collect();
            let more = found.len() > limit;
            found.truncate(limit);
            (found, more)
        } else {
            let rows = self.kv.scan_back(&prefix, &end);
            found = rows.map(|(_, value)| decode(&value)).filter(wanted).take(limit.saturating_add(1)).collect();
            let more = found.len() > limit;
            found.truncate(limit);
            found.reverse();
            (found, more)
        }
    }

    /// Entries of the room in `(after, upto]`, oldest first.
    pub(super) fn entries(
        &self,
        ns: &Namespace,
        room: &Room,
        after: Position,
        upto: Position,
    ) -> impl Iterator<Item = RoomEntry> {
        let prefix = keys::history_prefix(ns, room);
        let start = keys::history(ns, room, after);
        let end = keys::history(ns, room, upto);
        let rows = self.kv.scan_from(&prefix, Bound::Excluded(&start)).take_while(|(key, _)| **key <= *end);
        rows.map(|(_, value)| decode(&value)).collect::<Vec<_>>().into_iter()
    }

    /// Rooms in which the user is or was a member, and when.
    pub(super) fn all_spans(&self, ns: &Namespace, user: &User) -> Vec<(Room, Spans)> {
        let present = self.rooms_of_user(ns, user).into_iter().filter_map(|room| {
            let spans = self.get(&keys::member(ns, &room, user))?;
            Some((room, spans))
        });
        let prefix = keys::left_prefix(ns, user);
        let past = self.kv.scan(&prefix);
        let past = past.filter_map(|(key, spans)| Some((Room::new(keys::last_text(&prefix, &key)?)?, decode(&spans))));
        present.chain(past).collect()
    }

    /// The end of the last span of the user, in any room, of which nothing else is known any more.
    pub(super) fn dropped(&self, ns: &Namespace, user: &User) -> Position {
        self.get(&keys::dropped(ns, user)).unwrap_or_default()
    }

    /// Namespaces in which there is a room or a session.
    pub fn namespaces(&self) -> Vec<Namespace> {
        let mut found: Vec<Namespace> = Vec::new();
        for table in [Table::Rooms, Table::OfUser] {
            let prefix = Key::new(table).done();
            let mut from = prefix.clone();
            while let Some(ns) = self
                .kv
                .scan_from(&prefix, Bound::Included(&from))
                .next()
                .and_then(|(key, _)| Namespace::new(keys::first_text(&prefix, &key)?))
            {
                from = keys::after_text(&prefix, ns.as_str());
                found.push(ns);
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// The texts that end the keys below a prefix.
    fn texts<'a>(&'a self, prefix: &'a [u8]) -> impl Iterator<Item = String> + 'a {
        self.kv.scan(prefix).filter_map(|(key, _)| keys::last_text(prefix, &key).map(str::to_owned))
    }
}

fn two_numbers(bytes: &[u8]) -> Option<(u64, u64)> {
    let (first, second) = bytes.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*first), u64::from_be_bytes(second.try_into().ok()?)))
}
