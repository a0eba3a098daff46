//! Everything that can be replicated, as plain data.
//!
//! A [`Command`] is one intent; a [`Batch`] is what one node proposes at once and what one log entry holds. Whatever
//! chance and time a command needs (ids, hashes, stamps) is already inside it. Enums here are stored in the log: they
//! only ever grow at their end.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

use crate::level::{self, Level, Levels};
pub use crate::raft::NodeId;

/// One start of a node. Grows with every start, and also when a running node plays its own `down`.
pub type Incarnation = u64;

/// How often a session was attached: 1 at its birth, one more at each resume.
pub type Generation = u64;

/// Wall clock of a leader, milliseconds since the Unix epoch.
pub type Stamp = u64;

/// Place in the one order of all commands. Zero is before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position(pub u64);

/// Digits of a position as text: enough for 131 quadrillion commands.
const POSITION_DIGITS: usize = 11;

impl fmt::Display for Position {
    /// 11 base-36 digits with leading zeros, so that text order is number order.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = [b'0'; POSITION_DIGITS];
        let mut rest = self.0;
        for digit in digits.iter_mut().rev() {
            *digit = b"0123456789abcdefghijklmnopqrstuvwxyz"[(rest % 36) as usize];
            rest /= 36;
        }
        f.write_str(std::str::from_utf8(&digits).expect("base-36 digits are ASCII"))
    }
}

impl FromStr for Position {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let digit = |b: u8| b.is_ascii_digit() || b.is_ascii_lowercase();
        if text.len() != POSITION_DIGITS || !text.bytes().all(digit) {
            return Err(());
        }
        u64::from_str_radix(text, 36).map(Self).map_err(|_| ())
    }
}

/// Declares a checked name. Bad input cannot reach `apply`, because these have no other constructor.
macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $type(SmolStr);

        impl $type {
            /// 1 to 128 bytes of UTF-8 without control characters; anything else is `None`.
            pub fn new(text: impl AsRef<str>) -> Option<Self> {
                let text = text.as_ref();
                let is_name = (1..=NAME_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control);
                is_name.then(|| Self(text.into()))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

/// Longest name of a room, user or namespace, in bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// Longest `mid`, in characters.
pub const MID_CHARS_MAX: usize = 64;

name!(
    /// A room of a namespace.
    Room
);
name!(
    /// A user: what membership in a room belongs to.
    User
);
name!(
    /// A Socket.IO namespace, `/` included.
    Namespace
);

/// The public id of a session: 20 characters of the URL-safe base-64 alphabet, as Socket.IO's own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Sid(SmolStr);

impl Sid {
    /// From 16 random bytes, of which 6 bits each are used: as long as a socket's id in Socket.IO libraries.
    pub fn from_random(bytes: [u8; 16]) -> Self {
        Self(url_safe(&bytes).into())
    }

    /// A sid as somebody wrote it; `None` when it cannot be one.
    pub fn parse(text: &str) -> Option<Self> {
        let known = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        // 20: made by versions before.
        (matches!(text.len(), 16 | 20) && text.bytes().all(known)).then(|| Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Sid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One URL-safe character for each byte, from its low 6 bits.
pub fn url_safe(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    bytes.iter().map(|b| char::from(ALPHABET[usize::from(b & 63)])).collect()
}

/// SHA-256 of a session's secret `pid`. The secret itself is never stored.
pub type PidHash = [u8; 32];

/// Names a session at the moment somebody acted for it. A command that carries one does nothing once the session has
/// moved on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Holder {
    pub sid: Sid,
    pub generation: Generation,
}

/// A present user none of whose sessions has a transport, as the leader saw it. A command that carries one does nothing
/// once one of the user's sessions was attached again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Away {
    pub ns: Namespace,
    pub user: User,
    /// Where one of its sessions was last attached.
    pub attached: Position,
}

/// Bounds that `apply` needs. They live in the state, because nodes with different settings must still agree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Entries kept of each room.
    pub history_size: u64,
    /// Age at which an entry may go, in milliseconds of the state's clock.
    pub history_ttl_ms: u64,
    /// Bytes of text kept of each room.
    pub history_bytes: u64,
    /// How long a repeated `mid` is recognised, in milliseconds.
    pub mid_window_ms: u64,
    /// How many `mid`s are remembered for one user.
    pub mids_per_user: u64,
    pub rooms_per_user: u64,
    pub sessions_per_user: u64,
    /// A room with more members than this hears of nobody's presence.
    pub presence_limit: u64,
}

impl Limits {
    /// No bounds at all, which is what holds until a leader has stored the cluster's. Defaults would not do: two versions
    /// may have different ones, and then their states would part.
    pub const UNBOUNDED: Self = Self {
        history_size: u64::MAX,
        history_ttl_ms: u64::MAX,
        history_bytes: u64::MAX,
        mid_window_ms: u64::MAX,
        mids_per_user: u64::MAX,
        rooms_per_user: u64::MAX,
        sessions_per_user: u64::MAX,
        presence_limit: u64::MAX,
    };
}

/// What a leader proposes where nothing else is configured.
impl Default for Limits {
    fn default() -> Self {
        Self {
            history_size: 1000,
            history_ttl_ms: 7 * 24 * 3600 * 1000,
            history_bytes: 4 << 20,
            mid_window_ms: 600_000,
            mids_per_user: 1024,
            rooms_per_user: 128,
            sessions_per_user: 32,
            presence_limit: 1000,
        }
    }
}

/// How a node presents itself when it starts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    pub name: String,
    pub client: String,
    pub admin: String,
    pub peer: String,
    pub version: String,
    /// What its program knows.
    pub levels: Levels,
}

/// One intent. The node and incarnation that propose it stand in its [`Batch`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// The first command of an incarnation: it makes it the live one, and so loses the sessions of the one before.
    Started(NodeInfo),
    /// The leader has not heard of that incarnation for `node.timeout`.
    Down {
        node: NodeId,
        incarnation: Incarnation,
    },
    /// A first CONNECT. A guest's rooms end with its session.
    Open {
        sid: Sid,
        ns: Namespace,
        user: User,
        guest: bool,
        pid: PidHash,
    },
    /// A returning CONNECT, decided on `read`, the session as the proposer saw it. `user` is whom the client proved to be.
    Resume {
        read: Holder,
        ns: Namespace,
        user: User,
        pid: PidHash,
    },
    /// These transports are gone; the sessions count down.
    Lost(Vec<Holder>),
    /// The client's own `disconnect()`, or a new session that nobody took.
    Close(Holder),
    /// The leader found that a lost session has outlived `session.ttl`.
    Expire(Vec<Holder>),
    /// The session's user becomes a member.
    Join {
        by: Holder,
        room: Room,
    },
    /// The session's user is no longer a member.
    Leave {
        by: Holder,
        room: Room,
    },
    /// This session alone becomes a receiver, until it ends.
    Enter {
        by: Holder,
        room: Room,
    },
    /// The opposite of `Enter`.
    Exit {
        by: Holder,
        room: Room,
    },
    /// A message. `text` is the JSON text as it came.
    Publish {
        by: Holder,
        room: Room,
        text: String,
        mid: Option<String>,
    },
    SetLimits(Limits),
    /// The proposing node wants the cluster's one drain token. `force` takes it from whoever has it.
    TakeDrain {
        force: bool,
    },
    /// The token that `node` holds ends, whenever it took it. Below level 2.
    EndDrain {
        node: NodeId,
    },
    /// This node has left for good: its id is never used again, also when it never started. Members of that id are taken
    /// out of Raft's configuration by whoever leads.
    Removed {
        node: NodeId,
    },
    /// The leader found that these users have had no transport for `presence.grace`.
    Offline(Vec<Away>),
    /// The leader found that every member knows this level.
    SetLevel(Level),
    /// With how many voters the cluster was formed: up to so many a leader makes of learners by itself.
    SetExpected {
        voters: u64,
    },
    /// The leader found entries in these rooms that are older than `history.ttl`.
    Sweep(Vec<(Namespace, Room)>),
    /// The leader found that these users have `mid`s past their window. From level 2 on.
    ForgetMids(Vec<User>),
    /// The token that `node` took in this incarnation, or an earlier one, ends. From level 2 on.
    Undrain {
        node: NodeId,
        incarnation: Incarnation,
    },
}

impl Command {
    /// The level from which on a cluster may be given this command. A new command names the level that it came with.
    pub fn level(&self) -> Level {
        match self {
            Self::ForgetMids(_) | Self::Undrain { .. } => level::SECOND,
            _ => level::FIRST,
        }
    }
}

/// What one node proposes at once. `sequence` starts at 1 in each incarnation, with `Started`, and grows by one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    pub node: NodeId,
    pub incarnation: Incarnation,
    pub sequence: u64,
    /// Written by the leader's node when it appends the batch; zero before that.
    pub stamp: Stamp,
    pub commands: Vec<Command>,
}

/// What `apply` answers to the proposer. Each node computes it; the proposer takes its own node's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Done,
    Refused(Refusal),
    /// A session was opened or resumed: [`Effect::Seated`] of the same command has the particulars.
    Seated {
        generation: Generation,
        first: Position,
    },
    /// How many members the room has now. Who they are is a view of the state: whoever wants it reads it.
    Joined {
        count: u64,
    },
    /// The place and time of the message, or of the first one with this `mid`.
    Published {
        position: Position,
        at: Stamp,
    },
}

/// Why a command did nothing. The same on every node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The session has moved on, or is over.
    Moved,
    /// No session with this secret in this namespace.
    UnknownSession,
    /// The secret belongs to another user, whose session was closed for it.
    OtherUser,
    NotMember,
    TooManyRooms,
    TooManySessions,
    MidReused,
    /// That node holds the drain token.
    DrainHeld(NodeId),
    /// Two clients take the session from each other: it stays with the one that has it.
    Contested,
}

/// An entry of a room's history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoomEntry {
    pub position: Position,
    pub at: Stamp,
    pub user: User,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    Message { text: String, mid: Option<String> },
    Joined,
    Left,
}

/// A session as it was attached, with its rooms at that very position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    pub holder: Holder,
    pub node: NodeId,
    pub incarnation: Incarnation,
    pub ns: Namespace,
    pub user: User,
    /// The user's memberships.
    pub rooms: Vec<Room>,
    /// The rooms that this session entered for itself.
    pub entered: Vec<Room>,
    /// Milliseconds between the recorded loss and this resume; `None` for a new session, and where no loss was recorded.
    pub gap_ms: Option<u64>,
}

/// What a command changed for sockets. A node plays these, in order, to the sockets that it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    Seated(Attached),
    /// This generation has no seat any more.
    Unseated {
        holder: Holder,
        why: Unseated,
    },
    /// A user became (or is no longer) a member: all of its sessions of the namespace receive (or no longer do).
    Member {
        ns: Namespace,
        user: User,
        room: Room,
        joined: bool,
    },
    /// The same for one session.
    Entered {
        sid: Sid,
        ns: Namespace,
        room: Room,
        entered: bool,
    },
    /// To be written to every receiver of the room.
    Entry {
        ns: Namespace,
        room: Room,
        entry: RoomEntry,
    },
    /// An incarnation is not live any more, and none of its sessions has a transport.
    Down {
        node: NodeId,
        incarnation: Incarnation,
    },
    /// A user came or went: to be told to every receiver of these rooms, and kept nowhere.
    Presence {
        ns: Namespace,
        user: User,
        /// Those that it is a member of and that are small enough to be told.
        rooms: Vec<Room>,
        online: bool,
    },
}

/// Why a generation lost its seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unseated {
    Lost,
    Resumed,
    Closed,
    Expired,
    /// The user opened too many sessions, or proved to be somebody else.
    Evicted,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_order_of_positions_is_number_order() {
        let numbers = [0, 1, 9, 10, 35, 36, 812, 1 << 40, 36_u64.pow(11) - 1];
        let texts: Vec<_> = numbers.iter().map(|n| Position(*n).to_string()).collect();
        assert!(texts.is_sorted());
        assert!(texts.iter().all(|t| t.len() == 11));
        assert!(numbers.iter().zip(&texts).all(|(n, t)| t.parse() == Ok(Position(*n))));
    }

    #[test]
    fn what_is_not_a_position_does_not_parse() {
        for text in ["", "1", "0000000000A", "+0000000001", "0000000000\u{e9}", "000000000001", "0000000 001"] {
            assert_eq!(text.parse::<Position>(), Err(()), "{text:?}");
        }
    }

    #[test]
    fn names_have_a_length_and_no_control_characters() {
        assert!(Room::new("모임 1").is_some());
        assert!(Room::new("x".repeat(128)).is_some());
        for bad in ["", "a\nb", "\u{7f}", &"x".repeat(129)] {
            assert!(Room::new(bad).is_none(), "{bad:?}");
        }
    }
}
