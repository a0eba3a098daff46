//! The tables of the state as keys of one ordered space.
//!
//! A key is a table's byte and then its parts. Text is written behind its length in two bytes, so that no name can be the
//! beginning of another; positions and ids are big-endian, so that key order is number order. Bytes of tables are stored:
//! only ever add.
//!
//! | table | key | value |
//! | --- | --- | --- |
//! | meta | name | position, clock, limits, drain token |
//! | nodes | node | [`crate::state::Node`] |
//! | sessions | sid | [`crate::state::Session`] |
//! | pids | pid hash | sid |
//! | of user | ns, user, sid | |
//! | of node | node, incarnation, sid | |
//! | lost | sid | |
//! | members | ns, room, user | |
//! | dropped | ns, user | end of the last span whose row is gone, while the user has a session |
//! | spans | ns, user, room | [`crate::state::Spans`], kept while the room's history reaches back |
//! | past | ns, room, position of leaving | user: finds the spans that a trim makes useless |
//! | rooms | ns, room | [`crate::state::RoomRecord`] |
//! | entered | ns, room, sid | |
//! | history | ns, room, position | [`crate::command::RoomEntry`] |
//! | mids | user, mid | [`crate::state::Mid`] |
//! | mid order | user, position | mid |
//! | present | ns, user | where one of its sessions was last attached |

use crate::command::{Incarnation, Namespace, NodeId, PidHash, Position, Room, Sid, User};

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
    Members = 0x20,
    Spans = 0x21,
    Past = 0x22,
    Rooms = 0x23,
    Entered = 0x24,
    Dropped = 0x25,
    History = 0x30,
    Mids = 0x40,
    MidOrder = 0x41,
    Present = 0x50,
}

/// A key being written.
pub struct Key(Vec<u8>);

impl Key {
    pub fn new(table: Table) -> Self {
        let mut bytes = Vec::with_capacity(64);
        bytes.push(table as u8);
        Self(bytes)
    }

    fn text(mut self, text: &str) -> Self {
        // Every text in a key is a checked name, a sid or a mid: at most 256 bytes.
        self.0.extend((text.len() as u16).to_be_bytes());
        self.0.extend(text.as_bytes());
        self
    }

    fn number(mut self, number: u64) -> Self {
        self.0.extend(number.to_be_bytes());
        self
    }

    pub fn done(self) -> Vec<u8> {
        self.0
    }
}

pub fn meta(name: &str) -> Vec<u8> {
    Key::new(Table::Meta).text(name).done()
}

pub fn node(node: NodeId) -> Vec<u8> {
    Key::new(Table::Nodes).number(node).done()
}

pub fn session(sid: &Sid) -> Vec<u8> {
    Key::new(Table::Sessions).text(sid.as_str()).done()
}

pub fn pid(hash: &PidHash) -> Vec<u8> {
    let mut key = Key::new(Table::Pids);
    key.0.extend(hash);
    key.done()
}

/// All of a namespace in one of the tables whose keys begin with it.
pub fn in_namespace(table: Table, ns: &Namespace) -> Vec<u8> {
    Key::new(table).text(ns.as_str()).done()
}

pub fn of_user_prefix(ns: &Namespace, user: &User) -> Vec<u8> {
    Key::new(Table::OfUser).text(ns.as_str()).text(user.as_str()).done()
}

pub fn of_user(ns: &Namespace, user: &User, sid: &Sid) -> Vec<u8> {
    Key(of_user_prefix(ns, user)).text(sid.as_str()).done()
}

pub fn of_incarnation_prefix(node: NodeId, incarnation: Incarnation) -> Vec<u8> {
    Key::new(Table::OfNode).number(node).number(incarnation).done()
}

pub fn of_incarnation(node: NodeId, incarnation: Incarnation, sid: &Sid) -> Vec<u8> {
    Key(of_incarnation_prefix(node, incarnation)).text(sid.as_str()).done()
}

pub fn lost(sid: &Sid) -> Vec<u8> {
    Key::new(Table::Lost).text(sid.as_str()).done()
}

pub fn members_prefix(ns: &Namespace, room: &Room) -> Vec<u8> {
    in_room(Table::Members, ns, room)
}

pub fn member(ns: &Namespace, room: &Room, user: &User) -> Vec<u8> {
    Key(members_prefix(ns, room)).text(user.as_str()).done()
}

pub fn spans_prefix(ns: &Namespace, user: &User) -> Vec<u8> {
    Key::new(Table::Spans).text(ns.as_str()).text(user.as_str()).done()
}

pub fn spans(ns: &Namespace, user: &User, room: &Room) -> Vec<u8> {
    Key(spans_prefix(ns, user)).text(room.as_str()).done()
}

pub fn past_prefix(ns: &Namespace, room: &Room) -> Vec<u8> {
    in_room(Table::Past, ns, room)
}

pub fn past(ns: &Namespace, room: &Room, left: Position) -> Vec<u8> {
    Key(past_prefix(ns, room)).number(left.0).done()
}

pub fn rooms_prefix(ns: &Namespace) -> Vec<u8> {
    Key::new(Table::Rooms).text(ns.as_str()).done()
}

pub fn room(ns: &Namespace, room: &Room) -> Vec<u8> {
    in_room(Table::Rooms, ns, room)
}

pub fn entered_prefix(ns: &Namespace, room: &Room) -> Vec<u8> {
    in_room(Table::Entered, ns, room)
}

pub fn entered(ns: &Namespace, room: &Room, sid: &Sid) -> Vec<u8> {
    Key(entered_prefix(ns, room)).text(sid.as_str()).done()
}

pub fn dropped(ns: &Namespace, user: &User) -> Vec<u8> {
    Key::new(Table::Dropped).text(ns.as_str()).text(user.as_str()).done()
}

pub fn history_prefix(ns: &Namespace, room: &Room) -> Vec<u8> {
    in_room(Table::History, ns, room)
}

pub fn history(ns: &Namespace, room: &Room, position: Position) -> Vec<u8> {
    Key(history_prefix(ns, room)).number(position.0).done()
}

pub fn mid(user: &User, mid: &str) -> Vec<u8> {
    Key::new(Table::Mids).text(user.as_str()).text(mid).done()
}

pub fn mid_order_prefix(user: &User) -> Vec<u8> {
    Key::new(Table::MidOrder).text(user.as_str()).done()
}

pub fn mid_order(user: &User, position: Position) -> Vec<u8> {
    Key(mid_order_prefix(user)).number(position.0).done()
}

pub fn present(ns: &Namespace, user: &User) -> Vec<u8> {
    Key::new(Table::Present).text(ns.as_str()).text(user.as_str()).done()
}

fn in_room(table: Table, ns: &Namespace, room: &Room) -> Vec<u8> {
    Key::new(table).text(ns.as_str()).text(room.as_str()).done()
}

/// The text at the end of a key, behind a prefix.
pub fn last_text<'a>(prefix: &[u8], key: &'a [u8]) -> Option<&'a str> {
    let rest = key.get(prefix.len()..)?;
    let (length, text) = rest.split_first_chunk()?;
    (text.len() == usize::from(u16::from_be_bytes(*length))).then(|| std::str::from_utf8(text).ok())?
}

/// The position at the end of a key, behind a prefix.
pub fn last_position(prefix: &[u8], key: &[u8]) -> Option<Position> {
    Some(Position(u64::from_be_bytes(key.get(prefix.len()..)?.try_into().ok()?)))
}

/// The text right behind a prefix, whatever follows it.
pub fn first_text<'a>(prefix: &[u8], key: &'a [u8]) -> Option<&'a str> {
    let (length, rest) = key.get(prefix.len()..)?.split_first_chunk()?;
    std::str::from_utf8(rest.get(..usize::from(u16::from_be_bytes(*length)))?).ok()
}

/// The two texts that a key, or what follows its prefix, consists of.
pub fn two_texts(key: &[u8]) -> Option<(&str, &str)> {
    let first = first_text(&[], key)?;
    Some((first, last_text(key.get(..first.len() + 2)?, key)?))
}

/// The least key behind every key that has this text right behind the prefix.
pub fn after_text(prefix: &[u8], text: &str) -> Vec<u8> {
    let mut key = Key(prefix.to_vec()).text(text).done();
    // No key continues with 0xff: what follows a text is a length, whose first byte is 0 or 1, or a number far below.
    key.push(0xff);
    key
}
