//! The tables of the state as keys of one ordered space.
//!
//! A key is a table's byte and then its parts. Text ends with a zero byte, which no name has: so key order is name order, and
//! no name is the beginning of another. Positions and ids are big-endian, so that key order is number order. Bytes of
//! tables are stored: only ever add. Zero is none of them (`base` keeps the point of a checkpoint there).
//!
//! | table | key | value |
//! | --- | --- | --- |
//! | meta | name | position, clock, limits, level, drain token, last entry of any room that is gone |
//! | nodes | node | [`crate::state::Node`] |
//! | sessions | sid | [`crate::state::Session`] |
//! | pids | pid hash | sid |
//! | of user | ns, user | [`crate::state::NameSet`]: the sids of the user's sessions |
//! | of node | node, incarnation, sid | generation |
//! | lost | sid | generation |
//! | taken | sid | when it was last taken over from a client that was still there |
//! | members | ns, room, user | [`crate::state::Spans`] of a member |
//! | joined | ns, user | [`crate::state::NameSet`]: the rooms that the user is a member of |
//! | dropped | ns, user | end of the last span whose row is gone, while the user has a session |
//! | left | ns, user, room | [`crate::state::Spans`] of one that is none any more, while the room's history reaches back |
//! | past | ns, room, position of leaving | user: finds the spans that a trim makes useless |
//! | rooms | ns, room | [`crate::state::RoomRecord`] |
//! | entered | ns, room, sid | |
//! | history | ns, room, position | [`crate::command::RoomEntry`] |
//! | mids | user, mid | [`crate::state::Mid`] |
//! | mid order | user, position | mid |
//! | mids of | user | [`crate::state::MidsOf`] |
//! | present | ns, user | where one of its sessions was last attached |

use crate::{
    command::{Incarnation, Namespace, NodeId, PidHash, Position, Room, Sid, User},
    kv::KeyBytes,
};

/// What ends a text.
const END: u8 = 0;

/// The tables' first bytes.
#[derive(Clone, Copy)]
#[repr(u8)]
pub enum Table {
    Meta = 0x01,
    Nodes = 0x02,
    Sessions = 0x10,
    Pids = 0x11,
    OfUser = 0x12,
    OfNode = 0x13,
    Lost = 0x14,
    Taken = 0x15,
    Members = 0x20,
    Left = 0x21,
    Past = 0x22,
    Rooms = 0x23,
    Entered = 0x24,
    Dropped = 0x25,
    Joined = 0x26,
    History = 0x30,
    Mids = 0x40,
    MidOrder = 0x41,
    MidsOf = 0x42,
    Present = 0x50,
}

/// A key being written.
pub struct Key(KeyBytes);

impl Key {
    pub fn new(table: Table) -> Self {
        Self(KeyBytes::from_slice(&[table as u8]))
    }

    fn text(mut self, text: &str) -> Self {
        // Every such text is a checked name, a sid or a word of ours.
        debug_assert!(!text.as_bytes().contains(&END));
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(END);
        self
    }

    fn number(mut self, number: u64) -> Self {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }

    pub fn done(self) -> KeyBytes {
        self.0
    }
}

pub fn meta(name: &str) -> KeyBytes {
    Key::new(Table::Meta).text(name).done()
}

pub fn node(node: NodeId) -> KeyBytes {
    Key::new(Table::Nodes).number(node).done()
}

pub fn session(sid: &Sid) -> KeyBytes {
    Key::new(Table::Sessions).text(sid.as_str()).done()
}

pub fn pid(hash: &PidHash) -> KeyBytes {
    let mut key = Key::new(Table::Pids);
    key.0.extend_from_slice(hash);
    key.done()
}

/// All of a namespace in one of the tables whose keys begin with it.
pub fn in_namespace(table: Table, ns: &Namespace) -> KeyBytes {
    Key::new(table).text(ns.as_str()).done()
}

pub fn of_user(ns: &Namespace, user: &User) -> KeyBytes {
    Key::new(Table::OfUser).text(ns.as_str()).text(user.as_str()).done()
}

pub fn of_incarnation_prefix(node: NodeId, incarnation: Incarnation) -> KeyBytes {
    Key::new(Table::OfNode).number(node).number(incarnation).done()
}

pub fn of_incarnation(node: NodeId, incarnation: Incarnation, sid: &Sid) -> KeyBytes {
    Key(of_incarnation_prefix(node, incarnation)).text(sid.as_str()).done()
}

pub fn lost(sid: &Sid) -> KeyBytes {
    Key::new(Table::Lost).text(sid.as_str()).done()
}

pub fn taken(sid: &Sid) -> KeyBytes {
    Key::new(Table::Taken).text(sid.as_str()).done()
}

pub fn members_prefix(ns: &Namespace, room: &Room) -> KeyBytes {
    in_room(Table::Members, ns, room)
}

pub fn member(ns: &Namespace, room: &Room, user: &User) -> KeyBytes {
    Key(members_prefix(ns, room)).text(user.as_str()).done()
}

pub fn joined(ns: &Namespace, user: &User) -> KeyBytes {
    Key::new(Table::Joined).text(ns.as_str()).text(user.as_str()).done()
}

pub fn left_prefix(ns: &Namespace, user: &User) -> KeyBytes {
    Key::new(Table::Left).text(ns.as_str()).text(user.as_str()).done()
}

pub fn left(ns: &Namespace, user: &User, room: &Room) -> KeyBytes {
    Key(left_prefix(ns, user)).text(room.as_str()).done()
}

pub fn past(ns: &Namespace, room: &Room, left: Position) -> KeyBytes {
    Key(in_room(Table::Past, ns, room)).number(left.0).done()
}

pub fn rooms_prefix(ns: &Namespace) -> KeyBytes {
    Key::new(Table::Rooms).text(ns.as_str()).done()
}

pub fn room(ns: &Namespace, room: &Room) -> KeyBytes {
    in_room(Table::Rooms, ns, room)
}

pub fn entered_prefix(ns: &Namespace, room: &Room) -> KeyBytes {
    in_room(Table::Entered, ns, room)
}

pub fn entered(ns: &Namespace, room: &Room, sid: &Sid) -> KeyBytes {
    Key(entered_prefix(ns, room)).text(sid.as_str()).done()
}

pub fn dropped(ns: &Namespace, user: &User) -> KeyBytes {
    Key::new(Table::Dropped).text(ns.as_str()).text(user.as_str()).done()
}

pub fn history_prefix(ns: &Namespace, room: &Room) -> KeyBytes {
    in_room(Table::History, ns, room)
}

pub fn history(ns: &Namespace, room: &Room, position: Position) -> KeyBytes {
    Key(history_prefix(ns, room)).number(position.0).done()
}

/// A `mid` is the client's, with any characters: it stands at the end and as it is.
pub fn mid(user: &User, mid: &str) -> KeyBytes {
    let mut key = Key::new(Table::Mids).text(user.as_str());
    key.0.extend_from_slice(mid.as_bytes());
    key.done()
}

pub fn mid_order_prefix(user: &User) -> KeyBytes {
    Key::new(Table::MidOrder).text(user.as_str()).done()
}

pub fn mid_order(user: &User, position: Position) -> KeyBytes {
    Key(mid_order_prefix(user)).number(position.0).done()
}

pub fn mids_of(user: &User) -> KeyBytes {
    Key::new(Table::MidsOf).text(user.as_str()).done()
}

pub fn present(ns: &Namespace, user: &User) -> KeyBytes {
    Key::new(Table::Present).text(ns.as_str()).text(user.as_str()).done()
}

fn in_room(table: Table, ns: &Namespace, room: &Room) -> KeyBytes {
    Key::new(table).text(ns.as_str()).text(room.as_str()).done()
}

/// The text at the end of a key, behind a prefix.
pub fn last_text<'a>(prefix: &[u8], key: &'a [u8]) -> Option<&'a str> {
    let (text, rest) = cut(key.get(prefix.len()..)?)?;
    rest.is_empty().then_some(text)
}

/// The text right behind a prefix, whatever follows it.
pub fn first_text<'a>(prefix: &[u8], key: &'a [u8]) -> Option<&'a str> {
    Some(cut(key.get(prefix.len()..)?)?.0)
}

/// The two texts that a key, or what follows its prefix, consists of.
pub fn two_texts(key: &[u8]) -> Option<(&str, &str)> {
    let (first, rest) = cut(key)?;
    Some((first, last_text(&[], rest)?))
}

fn cut(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let end = bytes.iter().position(|byte| *byte == END)?;
    Some((std::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 1..]))
}

/// The least key behind every key that has this text right behind the prefix.
pub fn after_text(prefix: &[u8], text: &str) -> KeyBytes {
    let mut key = KeyBytes::from_slice(prefix);
    key.extend_from_slice(text.as_bytes());
    key.push(END + 1);
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_order_is_name_order_and_no_name_is_the_beginning_of_another() {
        let names = ["!", "a", "a b", "ab", "aé", "b", "방"];
        let ns = Namespace::new("/").expect("a name");
        let keys = names.map(|name| room(&ns, &Room::new(name).expect("a name")));
        assert!(keys.is_sorted());
        let prefix = rooms_prefix(&ns);
        for (name, key) in names.iter().zip(&keys) {
            assert_eq!(last_text(&prefix, key), Some(*name));
            assert_eq!(keys.iter().filter(|other| other.starts_with(key)).count(), 1);
            let after = after_text(&prefix, name);
            assert!(keys.iter().all(|other| (other > key) == (*other >= after)), "{name}");
        }
    }

    #[test]
    fn a_cut_key_names_nothing() {
        let key = in_namespace(Table::Rooms, &Namespace::new("/").expect("a name"));
        assert_eq!(two_texts(b"one\0two\0"), Some(("one", "two")));
        for cut in [&b"one\0two"[..], b"one\0", b"one", b"", b"one\0two\0three\0"] {
            assert_eq!(two_texts(cut), None);
        }
        assert_eq!((last_text(&key, &key), first_text(&key, b"\x23")), (None, None));
    }
}
