//! Reading the state for operators: names in pages, in name order, counts, and a copy of the relation behind both of Socket.IO's maps.
//!
//! What always holds: nothing here looks at the whole state while apply waits. Lists are lazy, counts go part by part, and a
//! [`Relation`] is made of a copy for which apply does not wait.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
};

use serde::Serialize;

use super::{NameSet, RoomRecord, State, decode};
use crate::{
    command::{Namespace, Room, Sid, User},
    keys::{self, Table},
    kv::{KeyBytes, Rows},
};

impl State {
    /// Rooms of a namespace in name order, after a name.
    pub fn rooms_after(&self, ns: &Namespace, after: Option<&Room>) -> impl Iterator<Item = (Room, RoomRecord)> {
        let prefix = keys::rooms_prefix(ns);
        let from = after.map(|room| keys::room(ns, room));
        let from = from.as_deref().map_or(Bound::Included(prefix.as_slice()), Bound::Excluded);
        let rows = self.kv.scan_from(&prefix, from);
        let skip = prefix.len();
        rows.filter_map(move |(key, value)| {
            let room = Room::new(keys::last_text(&[], key.get(skip..)?)?)?;
            Some((room, decode(&value)))
        })
    }

    /// Users that have a session in the namespace, or were a member of one of its rooms as far back as that is known; in
    /// name order, after a name. Skips from user to user.
    pub fn users_after(&self, ns: &Namespace, after: Option<&User>) -> impl Iterator<Item = User> {
        let tables = [Table::OfUser, Table::Joined, Table::Left].map(|table| keys::in_namespace(table, ns));
        let mut last = after.cloned();
        std::iter::from_fn(move || {
            last = tables.iter().filter_map(|prefix| self.next_user(prefix, last.as_ref())).min();
            last.clone()
        })
    }

    fn next_user(&self, prefix: &[u8], after: Option<&User>) -> Option<User> {
        let from = after.map_or_else(|| prefix.into(), |user| keys::after_text(prefix, user.as_str()));
        let (key, _) = self.kv.scan_from(prefix, Bound::Included(&from)).next()?;
        User::new(keys::first_text(prefix, &key)?)
    }

    /// Sessions of a user, in sid order.
    pub fn sids_of_user(&self, ns: &Namespace, user: &User) -> Vec<Sid> {
        self.of_user(ns, user).names().filter_map(Sid::parse).collect()
    }

    /// Sessions that entered the room for themselves, in sid order.
    pub fn sids_entered(&self, ns: &Namespace, room: &Room) -> Vec<Sid> {
        let prefix = keys::entered_prefix(ns, room);
        self.kv.scan(&prefix).filter_map(|(key, _)| Sid::parse(keys::last_text(&prefix, &key)?)).collect()
    }

    /// Rooms of a namespace among the next `look` after a name, and the name to go on after if there may be more. So are all
    /// counts: apply waits for a part, and not for all of it.
    pub fn count_rooms(&self, ns: &Namespace, after: Option<&str>, look: usize) -> (usize, Option<String>) {
        self.count(&keys::rooms_prefix(ns), after, look, |_, _| 1)
    }

    /// Users that have a session. Tells how many each has.
    pub fn count_users(
        &self,
        ns: &Namespace,
        after: Option<&str>,
        look: usize,
        mut tell: impl FnMut(usize),
    ) -> (usize, Option<String>) {
        self.count(&keys::in_namespace(Table::OfUser, ns), after, look, |_, sids| {
            tell(decode::<NameSet>(sids).len() as usize);
            1
        })
    }

    /// Sessions that receive in the room because their user is a member. `known` remembers the members' sessions for the next
    /// room.
    pub fn count_members_sids(
        &self,
        ns: &Namespace,
        room: &Room,
        after: Option<&str>,
        look: usize,
        known: &mut SessionCounts,
    ) -> (usize, Option<String>) {
        self.count(&keys::members_prefix(ns, room), after, look, |name, _| match known.0.get(name) {
            Some(sessions) => *sessions,
            None => {
                let sessions = User::new(name).map_or(0, |user| self.of_user(ns, &user).len() as usize);
                known.0.insert(name.to_owned(), sessions);
                sessions
            }
        })
    }

    /// Sessions that receive in the room only because they entered it. With [`State::count_members_sids`] they are as many as
    /// [`State::sids_in_room`] names.
    pub fn count_entered_sids(
        &self,
        ns: &Namespace,
        room: &Room,
        after: Option<&str>,
        look: usize,
    ) -> (usize, Option<String>) {
        self.count(&keys::entered_prefix(ns, room), after, look, |sid, _| {
            let session = Sid::parse(sid).and_then(|sid| self.session(&sid));
            usize::from(session.is_some_and(|session| !self.is_member(ns, &session.user, room)))
        })
    }

    /// What `see` makes of rows with one name behind the prefix.
    fn count(
        &self,
        prefix: &[u8],
        after: Option<&str>,
        look: usize,
        mut see: impl FnMut(&str, &[u8]) -> usize,
    ) -> (usize, Option<String>) {
        let from = after.map_or_else(|| prefix.into(), |name| keys::after_text(prefix, name));
        let (mut count, mut next) = (0, None);
        for (nth, (key, value)) in (1..).zip(self.kv.scan_from(prefix, Bound::Included(&from)).take(look)) {
            let name = keys::last_text(prefix, &key).unwrap_or_default();
            count += see(name, &value);
            next = (nth == look).then(|| name.to_owned());
        }
        (count, next)
    }
}

/// How many sessions users of one namespace have, as far as somebody asked.
#[derive(Default)]
pub struct SessionCounts(HashMap<String, usize>);

/// Names by another name.
type Index<'a> = BTreeMap<&'a str, Vec<&'a str>>;

/// Who has which sessions and is in which rooms of one namespace, as raw rows.
pub struct Relation {
    sessions: Rows,
    joined: Rows,
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
    /// What it is made of: the beginnings of the keys.
    pub fn tables(ns: &Namespace) -> Vec<KeyBytes> {
        [Table::OfUser, Table::Joined, Table::Members, Table::Entered].map(|table| keys::in_namespace(table, ns)).into()
    }

    /// From a copy of [`Relation::tables`], in their order.
    pub fn of(tables: Vec<Rows>) -> Self {
        let mut tables = tables.into_iter();
        let mut next = || tables.next().unwrap_or_default();
        Self { sessions: next(), joined: next(), members: next(), entered: next() }
    }

    /// Both maps. `sids` is read from what users are in, `rooms` from who is in rooms: two tables, so that a state in which
    /// they disagree is seen here and not papered over.
    pub fn views(&self) -> Views {
        let (sessions, joined) = (sets(&self.sessions), sets(&self.joined));
        let of_user: Index = sessions.iter().map(|(user, sids)| (*user, sids.names().collect())).collect();
        let mut sids: Index = of_user.values().flatten().map(|sid| (*sid, Vec::new())).collect();
        let (mut rooms, mut members) = (Index::new(), Index::new());
        let none = Vec::new();
        for (user, room) in joined.iter().flat_map(|(user, rooms)| rooms.names().map(move |room| (*user, room))) {
            let sessions = of_user.get(user).unwrap_or(&none);
            sessions.iter().for_each(|sid| sids.entry(sid).or_default().push(room));
        }
        for (room, user) in names(&self.members) {
            members.entry(room).or_default().push(user);
            if let Some(sessions) = of_user.get(user) {
                rooms.entry(room).or_default().extend(sessions);
            }
        }
        for (room, sid) in names(&self.entered) {
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
    map: Index<'a>,
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

/// Names by the one name that each key is made of.
fn sets(rows: &Rows) -> Vec<(&str, NameSet)> {
    rows.iter().map(|(key, set)| (keys::last_text(&[], key).unwrap_or_default(), decode(set))).collect()
}

/// The two names that each key is made of.
fn names(rows: &Rows) -> impl Iterator<Item = (&str, &str)> {
    rows.iter().map(|(key, _)| keys::two_texts(key).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Batch, Command, Holder, NodeInfo};

    fn ns() -> Namespace {
        Namespace::new("/").expect("a name")
    }

    fn room(name: &str) -> Room {
        Room::new(name).expect("a name")
    }

    fn sid(n: u8) -> Sid {
        Sid::from_random([n; 16])
    }

    fn open(n: u8, ns: Namespace, user: &str) -> Command {
        let user = User::new(user).expect("a name");
        Command::Open { sid: sid(n), ns, user, guest: false, pid: [n; 32] }
    }

    fn by(n: u8) -> Holder {
        Holder { sid: sid(n), generation: 1 }
    }

    fn in_parts(mut part: impl FnMut(Option<&str>) -> (usize, Option<String>)) -> usize {
        let (mut count, mut next) = part(None);
        while let Some(after) = next {
            let (more, then) = part(Some(&after));
            (count, next) = (count + more, then);
        }
        count
    }

    /// Ann with two sessions, bo with one, and one session in another namespace; joins, a leave, a room of one session.
    fn state() -> State {
        let other = Namespace::new("/other").expect("a name");
        let commands = vec![
            Command::Started(NodeInfo::default()),
            open(1, ns(), "ann"),
            open(2, ns(), "ann"),
            open(3, ns(), "bo"),
            open(4, other, "ann"),
            Command::Join { by: by(1), room: room("both") },
            Command::Join { by: by(3), room: room("both") },
            Command::Join { by: by(3), room: room("left") },
            Command::Leave { by: by(3), room: room("left") },
            Command::Enter { by: by(2), room: room("alone") },
            Command::Enter { by: by(2), room: room("both") },
            Command::Join { by: by(4), room: room("elsewhere") },
        ];
        let mut state = State::default();
        state.apply(&Batch { node: 1, incarnation: 1, sequence: 1, stamp: 1000, commands });
        state
    }

    #[test]
    fn both_maps_are_inverse_and_what_single_reads_say() {
        let state = state();
        let copy = |prefix: KeyBytes| {
            let mut rows = Rows::default();
            state.kv.scan(&prefix).for_each(|(key, value)| rows.push(&key[prefix.len()..], &value));
            rows
        };
        let views = Relation::of(Relation::tables(&ns()).into_iter().map(copy).collect()).views();
        assert_eq!(views.sids.len(), 3, "of this namespace alone");
        assert_eq!(views.sids[&sid(2)], [room("alone"), room("both")]);
        for (sid, rooms) in &views.sids {
            let session = state.session(sid).expect("it is there");
            assert_eq!(*rooms, state.rooms_of_session(&session));
            assert!(rooms.iter().all(|room| views.rooms[room].contains(sid)));
        }
        for (room, sids) in &views.rooms {
            assert_eq!(*sids, state.sids_in_room(&ns(), room));
            assert!(sids.iter().all(|sid| views.sids[sid].contains(room)));
        }
        assert_eq!(views.rooms.keys().map(Room::as_str).collect::<Vec<_>>(), ["alone", "both"]);
        assert_eq!(views.members.keys().map(Room::as_str).collect::<Vec<_>>(), ["both"]);
        assert_eq!(views.members[&room("both")].len(), 2);
    }

    #[test]
    fn lists_go_on_after_a_name_and_stay_in_their_namespace() {
        let state = state();
        let rooms = |after: Option<&str>| -> Vec<String> {
            state.rooms_after(&ns(), after.map(room).as_ref()).map(|(room, _)| room.to_string()).collect()
        };
        assert_eq!(rooms(None), ["alone", "both", "left"]);
        assert_eq!(rooms(Some("both")), ["left"]);
        assert_eq!(rooms(Some("gone")), ["left"], "a name that is no more is a place all the same");
        let users = |after: Option<&str>| -> Vec<String> {
            let after = after.and_then(User::new);
            state.users_after(&ns(), after.as_ref()).map(|user| user.to_string()).collect()
        };
        assert_eq!(users(None), ["ann", "bo"]);
        assert_eq!(users(Some("ann")), ["bo"]);
        for look in 1..5 {
            let mut sessions = 0;
            let users = in_parts(|after| state.count_users(&ns(), after, look, |of_user| sessions += of_user));
            let rooms = in_parts(|after| state.count_rooms(&ns(), after, look));
            assert_eq!((sessions, users, rooms), (3, 2, 3), "{look} at a time");
            let mut known = SessionCounts::default();
            for room in ["both", "alone", "left"].map(room) {
                let members = in_parts(|after| state.count_members_sids(&ns(), &room, after, look, &mut known));
                let entered = in_parts(|after| state.count_entered_sids(&ns(), &room, after, look));
                assert_eq!(members + entered, state.sids_in_room(&ns(), &room).len(), "{look} at a time");
            }
        }
    }
}
