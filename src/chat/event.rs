//! The wire of the chat: what clients send and receive, as its own structs. Replicated types never reach a browser.
//!
//! What always holds: an event that carries the offset is an entry of a room's history, and nothing else that is written
//! ends in a string. (A stock client remembers the last argument of *any* event as its offset if it is a string; volatile
//! packets overtake others, so an offset on them would lose and double.)

use std::sync::{Arc, OnceLock};

use moim_raft::command::{Position, Room, RoomEntry, Stamp, User, What};
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use crate::{client::Encoded, seat::Played};

/// Names that a Socket.IO client keeps for itself, and those of what the chat sends: forged ones would not be in anybody's
/// history.
const SENT: [&str; 15] = [
    "connect",
    "connect_error",
    "disconnect",
    "disconnecting",
    "newListener",
    "removeListener",
    "error",
    "ready",
    "message",
    "joined",
    "left",
    "online",
    "offline",
    "typing",
    "moim:drain",
];
/// What clients ask of the chat.
const ASKED: [&str; 7] = ["join", "leave", "message", "history", "rooms", "users", "typing"];

/// Whether an event of this name that a client is sent is Socket.IO's or the chat's.
pub fn is_sent(name: &str) -> bool {
    SENT.contains(&name)
}

/// Whether an event of this name means something already, to clients or to the chat.
pub fn is_ours(name: &str) -> bool {
    is_sent(name) || ASKED.contains(&name)
}

/// Text that a client sent is kept and sent on as the JSON that it was.
#[derive(Serialize)]
pub struct Message<'a> {
    pub room: &'a str,
    pub user: &'a str,
    pub text: &'a RawValue,
    pub id: String,
    pub at: Stamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mid: Option<&'a str>,
}

#[derive(Serialize)]
struct Moved<'a> {
    room: &'a str,
    user: &'a str,
    id: String,
}

#[derive(Serialize)]
pub struct Ready<'a> {
    pub user: &'a str,
    pub sid: &'a str,
    pub rooms: Vec<&'a str>,
    pub recovered: bool,
    pub node: &'a str,
}

#[derive(Serialize)]
struct UserInRoom<'a> {
    room: &'a str,
    user: &'a str,
}

#[derive(Serialize)]
struct Drain {
    within: u64,
}

/// What a client may send as the payload of `message`.
#[derive(Deserialize)]
pub struct Publish<'a> {
    pub room: String,
    #[serde(borrow)]
    pub text: &'a RawValue,
    #[serde(default)]
    pub mid: Option<String>,
}

#[derive(Deserialize)]
pub struct HistoryQuery {
    pub room: String,
    pub before: Option<String>,
    pub after: Option<String>,
    pub limit: Option<u64>,
}

/// A room's name alone, or in an object.
#[derive(Deserialize)]
#[serde(untagged)]
pub enum UsersQuery {
    Room(String),
    Page { room: String, after: Option<String>, limit: Option<u64> },
}

/// The answer to `history`.
#[derive(Serialize)]
pub struct History {
    pub messages: Vec<Box<RawValue>>,
    pub more: bool,
    /// Of what came behind `after`, something is not kept any more. Left out when not so.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub trimmed: bool,
}

#[derive(Deserialize)]
pub struct InRoom {
    pub room: String,
}

/// A user in the answer to `users`.
#[derive(Serialize)]
pub struct Present {
    pub user: String,
    pub online: bool,
}

/// An answer that is not ok.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// A stable word.
    pub code: &'static str,
    pub message: &'static str,
    /// Whether trying again can help.
    pub retry: bool,
}

impl Refused {
    pub const fn new(code: &'static str, message: &'static str) -> Self {
        Self { code, message, retry: false }
    }
}

pub const BAD_REQUEST: Refused = Refused::new("bad_request", "the payload is not what this event takes");
pub const ROOM_NAME: Refused =
    Refused::new("room_name", "a room's name is 1 to 128 bytes of UTF-8 without control characters");
pub const NOT_MEMBER: Refused = Refused::new("not_member", "join the room first");
pub const TOO_LARGE: Refused = Refused::new("too_large", "it is larger than this server takes");
pub const TOO_MANY_ROOMS: Refused = Refused::new("too_many_rooms", "leave a room first");
pub const MID_REUSED: Refused =
    Refused::new("mid_reused", "this mid was used for another message; make a new one for each message");
pub const UNKNOWN_EVENT: Refused = Refused::new("unknown_event", "this server does not know that event");
pub const SESSION_MOVED: Refused =
    Refused { code: "unavailable", message: "this session goes on elsewhere", retry: true };
pub const UNAVAILABLE: Refused =
    Refused { code: "unavailable", message: "no quorum answered in time; the outcome is not known", retry: true };

/// `{ ok: true, … }` with the fields of an object. Spliced as text: what clients sent stays the JSON that it was.
pub fn ok(fields: &impl Serialize) -> Box<RawValue> {
    let fields = raw(fields);
    let inner = fields.get().strip_prefix('{').expect("answers are objects");
    let comma = if inner == "}" { "" } else { "," };
    RawValue::from_string(format!("{{\"ok\":true{comma}{inner}")).expect("an object with one field more is one")
}

/// `{ ok: false, error: { code, message, retry } }`.
pub fn refused(refused: Refused) -> Box<RawValue> {
    let Refused { code, message, retry } = refused;
    raw(&serde_json::json!({ "ok": false, "error": { "code": code, "message": message, "retry": retry } }))
}

/// JSON of something that always has one.
pub fn raw(value: &impl Serialize) -> Box<RawValue> {
    to_raw_value(value).expect("wire structs are plain data")
}

/// Encodes events once for all sockets that get them. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Encoder {
    /// `m1.`, four characters of the cluster id, and a dot.
    prefix: Arc<OnceLock<String>>,
}

impl Encoder {
    /// Names the cluster. To be called once, before there is a seat: what is encoded before it is nobody's.
    pub fn name(&self, cluster: &str) {
        let tag: String = cluster.chars().chain("----".chars()).take(4).collect();
        // A second name would be of another cluster, which a node never changes to.
        _ = self.prefix.set(format!("m1.{tag}."));
    }

    /// What a client hands back to be given everything after `position`.
    pub fn offset(&self, position: Position) -> String {
        format!("{}{position}", self.prefix())
    }

    /// The position in an offset that this cluster gave; `None` for any other text.
    pub fn position(&self, offset: &str) -> Option<Position> {
        offset.strip_prefix(self.prefix())?.parse().ok()
    }

    fn prefix(&self) -> &str {
        self.prefix.get().map_or("m1.----.", String::as_str)
    }

    /// An entry of a room as its receivers get it.
    pub fn played(&self, room: &Room, entry: &RoomEntry) -> Played {
        let (name, body) = match &entry.what {
            What::Message { .. } => ("message", message(room, entry)),
            What::Joined => ("joined", moved(room, entry)),
            What::Left => ("left", moved(room, entry)),
        };
        let offset = raw(&self.offset(entry.position));
        Played { with_offset: Encoded::new(name, &[&body, &offset]), plain: Encoded::new(name, &[&body]) }
    }
}

/// A message entry as JSON; `null` for an entry that is none.
pub fn message(room: &Room, entry: &RoomEntry) -> Box<RawValue> {
    let What::Message { text, mid } = &entry.what else { return raw(&()) };
    // It was checked to be JSON before it was proposed; one that is not would be a bug of an older node.
    let Ok(text) = serde_json::from_str::<&RawValue>(text) else { return raw(&()) };
    raw(&Message {
        room: room.as_str(),
        user: entry.user.as_str(),
        text,
        id: entry.position.to_string(),
        at: entry.at,
        mid: mid.as_deref(),
    })
}

fn moved(room: &Room, entry: &RoomEntry) -> Box<RawValue> {
    raw(&Moved { room: room.as_str(), user: entry.user.as_str(), id: entry.position.to_string() })
}

pub fn ready(ready: &Ready<'_>) -> Encoded {
    Encoded::new("ready", &[&raw(ready)])
}

pub fn typing_body(room: &Room, user: &User) -> Box<RawValue> {
    raw(&UserInRoom { room: room.as_str(), user: user.as_str() })
}

/// That a member of the room came or went. No entry of the room: it has no offset, and does not end in a string.
pub fn presence(room: &Room, user: &User, online: bool) -> Encoded {
    let name = if online { "online" } else { "offline" };
    Encoded::new(name, &[&raw(&UserInRoom { room: room.as_str(), user: user.as_str() })])
}

/// Sent just before a connection is closed for a planned stop.
pub fn drain(within: std::time::Duration) -> Encoded {
    Encoded::new("moim:drain", &[&raw(&Drain { within: within.as_millis() as u64 })])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(text: &str) -> RoomEntry {
        let what = What::Message { text: text.to_owned(), mid: None };
        RoomEntry { position: Position(812), at: 5, user: User::new("ada").unwrap(), what }
    }

    #[test]
    fn text_goes_on_as_it_came() {
        let room = Room::new("r").unwrap();
        let json = message(&room, &entry("{\"n\": 1.0, \"big\": 12345678901234567890123}"));
        assert_eq!(
            json.get(),
            r#"{"room":"r","user":"ada","text":{"n": 1.0, "big": 12345678901234567890123},"id":"000000000mk","at":5}"#
        );
    }

    #[test]
    fn an_ok_answer_keeps_what_it_carries() {
        assert_eq!(ok(&serde_json::json!({})).get(), r#"{"ok":true}"#);
        let messages = vec![RawValue::from_string("1.0".to_owned()).unwrap()];
        let page = |trimmed| History { messages: messages.clone(), more: false, trimmed };
        assert_eq!(ok(&page(false)).get(), r#"{"ok":true,"messages":[1.0],"more":false}"#);
        assert_eq!(ok(&page(true)).get(), r#"{"ok":true,"messages":[1.0],"more":false,"trimmed":true}"#);
    }

    #[test]
    fn only_this_clusters_offsets_are_known() {
        let encoder = Encoder::default();
        encoder.name("ab3dxyz");
        assert_eq!(encoder.offset(Position(812)), "m1.ab3d.000000000mk");
        assert_eq!(encoder.position("m1.ab3d.000000000mk"), Some(Position(812)));
        for foreign in ["m1.zzzz.000000000mk", "m1.ab3d.mk", "m1.ab3d.", "000000000mk", "", "m1.ab3d.000000000mk "] {
            assert_eq!(encoder.position(foreign), None, "{foreign:?}");
        }
    }
}
