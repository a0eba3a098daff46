//! Reading the state for operators: names in pages, counts, and a copy of the relation behind both of Socket.IO's maps.
//!
//! What always holds: nothing here decodes the whole state while apply waits. Lists are lazy, counts read keys alone, and
//! [`State::relation`] copies bytes that are made sense of after the lock was let go.

use std::{collections::BTreeMap, ops::Bound};

use serde::Serialize;

use super::{RoomRecord, Spans, State, decode};
use crate::{
    command::{Namespace, Room, Sid, User},
    keys::{self, Table},
};

impl State {
    /// Rooms of a namespace in key order (shorter names first), after a name.
    pub fn rooms_after(&self, ns: &Namespace, after: Option<&Room>) -> impl Iterator<Item = (Room, RoomRecord)> {
        let prefix = keys::rooms_prefix(ns);
        let from = after.map(|room| keys::room(ns, room));
        let from = from.as_deref().map_or(Bound::Included(prefix.as_slice()), Bound::Excluded);
        let rows: Vec<_> = self.kv.scan_from(&prefix, from).collect();
        let skip = prefix.len();
        rows.into_iter().filter_map(move |(key, value)| {
            let room = Room::new(keys::first_text(&[], key.get(skip..)?)?)?;
            Some((room, decode(value)))
        })
    }

    /// Users that have a session in the namespace, or were a member of one of its rooms as far back as that is known; in
    /// key order (shorter names first), after a name. Skips from user to user.
    pub fn users_after(&self, ns: &Namespace, after: Option<&User>) -> impl Iterator<Item = User> {
        let tables = [Table::OfUser, Table::Spans].map(|table| keys::in_namespace(table, ns));
        let mut last = after.cloned();
        std::iter::from_fn(move || {
            let next = tables.iter().filter_map(|prefix| self.next_user(prefix, last.as_ref()));
            last = next.min_by(|a, b| (a.as_str().len(), a.as_str()).cmp(&(b.as_str().len(), b.as_str())));
            last.clone()
        })
    }

    fn next_user(&self, prefix: &[u8], after: Option<&User>) -> Option<User> {
        let from = after.map_or_else(|| prefix.to_vec(), |user| keys::after_text(prefix, user.as_str()));
        let (key, _) = self.kv.scan_from(prefix, Bound::Included(&from)).next()?;
        User::new(keys::first_text(prefix, key)?)
    }

    /// Sessions of a user, in sid order.
    pub fn sids_of_user(&self, ns: &Namespace, user: &User) -> Vec<Sid> {
        let prefix = keys::of_user_prefix(ns, user);
        self.kv.scan(&prefix).filter_map(|(key, _)| Sid::parse(keys::last_text(&prefix, key)?)).collect()
    }

    /// Sessions that entered the room for themselves, in sid order.
    pub fn sids_entered(&self, ns: &Namespace, room: &Room) -> Vec<Sid> {
        let prefix = keys::entered_prefix(ns, room);
        self.kv.scan(&prefix).filter_map(|(key, _)| Sid::parse(keys::last_text(&prefix, key)?)).collect()
    }

    pub fn count_rooms(&self, ns: &Namespace) -> usize {
        self.kv.scan(&keys::rooms_prefix(ns)).count()
    }

    /// Sessions of a namespace, and the users that they are of.
    pub fn count_sessions(&self, ns: &Namespace) -> (usize, usize) {
        let prefix = keys::in_namespace(Table::OfUser, ns);
        let (mut sessions, mut users, mut last) = (0, 0, None);
        for (key, _) in self.kv.scan(&prefix) {
            let user = keys::first_text(&prefix, key);
            sessions += 1;
            users += usize::from(user != last);
            last = user;
        }
        (sessions, users)
    }

    /// The rows that [`Relation::views`] are made of, copied at one position.
    pub fn relation(&self, ns: &Namespace) -> Relation {
        let copy = |table| Rows::copy(self, &keys::in_namespace(table, ns));
        Relation {
            sessions: copy(Table::OfUser),
            spans: copy(Table::Spans),
            members: copy(Table::Members),
            entered: copy(Table::Entered),
        }
    }
}

/// Who has which sessions and is in which rooms of one namespace, as raw rows.
pub struct Relation {
    sessions: Rows,
    spans: Rows,
    members: Rows,
    entered: Rows,
}

/// Socket.IO's two maps and the members, of one namespace at one position.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Views {
    /// Of every session, also of those in no room.
    pub sids: BTreeMap<Sid, Vec<Room>>,
    /// Of every room that somebody receives in.
    pub rooms: BTreeMap<Room, Vec<Sid>>,
    /// Of every room that has a member.
    pub members: BTreeMap<Room, Vec<User>>,
}

impl Relation {
    /// Both maps. `sids` is read from what users are in, `rooms` from who is in rooms: two tables, so that a state in which
    /// they disagree is seen here and not papered over.
    pub fn views(&self) -> Views {
        let mut of_user: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (user, sid) in self.sessions.names() {
            of_user.entry(user).or_default().push(sid);
        }
        let mut sids: BTreeMap<&str, Vec<&str>> = self.sessions.names().map(|(_, sid)| (sid, Vec::new())).collect();
        let (mut rooms, mut members): (BTreeMap<&str, Vec<&str>>, BTreeMap<&str, Vec<&str>>) = Default::default();
        let none = Vec::new();
        for ((user, room), (_, value)) in self.spans.names().zip(self.spans.iter()) {
            let sessions = of_user.get(user).unwrap_or(&none);
            if !sessions.is_empty() && decode::<Spans>(value).is_member() {
                sessions.iter().for_each(|sid| sids.entry(sid).or_default().push(room));
            }
        }
        for (room, user) in self.members.names() {
            members.entry(room).or_default().push(user);
            if let Some(sessions) = of_user.get(user) {
                rooms.entry(room).or_default().extend(sessions);
            }
        }
        for (room, sid) in self.entered.names() {
            sids.entry(sid).or_default().push(room);
            rooms.entry(room).or_default().push(sid);
        }
        Views {
            sids: named(sids, Sid::parse, Room::new),
            rooms: named(rooms, Room::new, Sid::parse),
            members: named(members, Room::new, User::new),
        }
    }
}

/// Names are checked before they are stored; one that is not a name any more would be left out.
fn named<'a, K: Ord, V: Ord>(
    map: BTreeMap<&'a str, Vec<&'a str>>,
    key: fn(&'a str) -> Option<K>,
    value: fn(&'a str) -> Option<V>,
) -> BTreeMap<K, Vec<V>> {
    let row = |(name, values): (&'a str, Vec<&'a str>)| {
        let mut values: Vec<V> = values.into_iter().filter_map(value).collect();
        values.sort_unstable();
        values.dedup();
        Some((key(name)?, values))
    };
    map.into_iter().filter_map(row).collect()
}

/// Copied pairs, one behind the other in one buffer: a copy is made under the lock that apply waits for.
#[derive(Default)]
struct Rows {
    bytes: Vec<u8>,
    /// Where each key and each value ends.
    ends: Vec<(usize, usize)>,
}

impl Rows {
    /// All rows below a prefix, their keys without it.
    fn copy(state: &State, prefix: &[u8]) -> Self {
        let mut rows = Self::default();
        for (key, value) in state.kv.scan(prefix) {
            rows.bytes.extend(&key[prefix.len()..]);
            let key_end = rows.bytes.len();
            rows.bytes.extend(value);
            rows.ends.push((key_end, rows.bytes.len()));
        }
        rows
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let starts = std::iter::once(0).chain(self.ends.iter().map(|(_, end)| *end));
        starts.zip(&self.ends).map(|(start, (key, value))| (&self.bytes[start..*key], &self.bytes[*key..*value]))
    }

    /// The two names that each key is made of.
    fn names(&self) -> impl Iterator<Item = (&str, &str)> {
        self.iter().map(|(key, _)| keys::two_texts(key).unwrap_or_default())
    }
}
