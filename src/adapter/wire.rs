//! What adapters of different nodes say to each other.
//!
//! A byte of version, then bincode. Enums grow only at their end, structs do not change; a node that does not know a
//! question answers [`Answer::Unknown`], and news that it does not know are none. The types are this module's own, so that
//! no library's next release changes what is sent.

use bytes::Bytes;
use moim_raft::{
    codec,
    command::{Namespace, Room},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use socketioxide::{AckError, SocketError};
use socketioxide_core::{
    Value,
    packet::{Packet, PacketData},
};

use super::Unsendable;

/// The first byte. No JSON text begins with it, so that the admin's questions can be told from these.
const VERSION: u8 = 1;

/// On the bus; nobody answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum News {
    /// To sockets of socketioxide's rooms.
    Broadcast { ns: String, to: Selection, volatile: bool, event: Event },
    /// To those who are in a room of the log.
    Volatile(RoomEvent),
}

/// Asked over the call lane, within a deadline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Question {
    Join {
        ns: String,
        to: Selection,
        rooms: Vec<String>,
    },
    Leave {
        ns: String,
        to: Selection,
        rooms: Vec<String>,
    },
    Disconnect {
        ns: String,
        to: Selection,
    },
    Rooms {
        ns: String,
        to: Selection,
    },
    Sockets {
        ns: String,
        to: Selection,
    },
    /// Emit this and gather the acks, for so long.
    Gather {
        ns: String,
        to: Selection,
        event: Event,
        timeout_ms: u64,
    },
    /// The acks that were gathered since the last time this was asked.
    Acks {
        id: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// This version does not know the question, or has no room for it.
    Unknown,
    Done,
    Rooms(Vec<String>),
    Sockets(Vec<String>),
    /// By these sockets acks are due.
    Gathering {
        id: u64,
        sids: Vec<String>,
    },
    /// `more` are to come.
    Acks {
        acks: Vec<(String, Acked)>,
        more: bool,
    },
}

/// Which sockets.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Selection {
    pub rooms: Vec<String>,
    pub except: Vec<String>,
    /// All of the namespace, when no rooms are named.
    pub all: bool,
    /// A public sid.
    pub one: Option<String>,
}

/// `["name", args…]` and its attachments.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    pub json: String,
    pub attachments: Vec<Bytes>,
}

/// An event of the chat that may be lost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoomEvent {
    pub ns: Namespace,
    pub room: Room,
    pub name: String,
    /// One JSON value, never a string.
    pub body: String,
}

/// What became of an ack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Acked {
    Data(Event),
    TimedOut,
    Gone,
}

impl Event {
    /// # Errors
    /// For what is not in the common encoding of Socket.IO, which no other can be here.
    pub fn of(packet: &Packet) -> Result<Self, Unsendable> {
        match &packet.inner {
            PacketData::Event(value, _) | PacketData::BinaryEvent(value, _) => Self::of_value(value),
            _ => Err(Unsendable("it is no event".to_owned())),
        }
    }

    fn of_value(value: &Value) -> Result<Self, Unsendable> {
        match value {
            Value::Str(json, attachments) => {
                Ok(Self { json: json.to_string(), attachments: attachments.iter().flatten().cloned().collect() })
            }
            Value::Bytes(_) => Err(Unsendable("it is in another encoding".to_owned())),
        }
    }

    pub fn value(self) -> Value {
        let attachments = (!self.attachments.is_empty()).then(|| self.attachments.into());
        Value::Str(self.json.into(), attachments)
    }

    pub fn packet(self, ns: String) -> Packet {
        Packet::event(ns, self.value())
    }
}

impl From<Result<Value, AckError>> for Acked {
    fn from(result: Result<Value, AckError>) -> Self {
        match result {
            Ok(value) => Event::of_value(&value).map_or(Self::Gone, Self::Data),
            Err(AckError::Timeout) => Self::TimedOut,
            Err(_) => Self::Gone,
        }
    }
}

impl From<Acked> for Result<Value, AckError> {
    fn from(acked: Acked) -> Self {
        match acked {
            Acked::Data(data) => Ok(data.value()),
            Acked::TimedOut => Err(AckError::Timeout),
            Acked::Gone => Err(AckError::Socket(SocketError::Closed)),
        }
    }
}

/// # Errors
/// For what is larger than any frame.
pub fn encode(message: &impl Serialize) -> Result<Bytes, Unsendable> {
    let body = codec::body(message).map_err(|e| Unsendable(e.to_string()))?;
    Ok([&[VERSION], &body[..]].concat().into())
}

/// `None` for what this version does not know, or what is damaged.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    codec::from_body(bytes.strip_prefix(&[VERSION])?).ok()
}

/// Whether these bytes are a message of an adapter of any version.
pub fn is_adapters(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(|version| (1..b' ').contains(version) && !b"\t\n\r".contains(version))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(message: &impl Serialize) -> String {
        encode(message).unwrap().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn to() -> Selection {
        Selection { rooms: vec!["r".into()], except: vec!["e".into()], all: true, one: None }
    }

    /// These bytes are what nodes of version 1 send: they may not change.
    #[test]
    fn what_is_sent_stays_as_it_is() {
        let event = Event { json: r#"["a",1]"#.into(), attachments: vec![Bytes::from_static(&[7])] };
        let broadcast = News::Broadcast { ns: "/".into(), to: to(), volatile: true, event: event.clone() };
        assert_eq!(hex(&broadcast), "0100012f010172010165010001075b2261222c315d010107");
        let gather = Question::Gather { ns: "/".into(), to: to(), event, timeout_ms: 5000 };
        assert_eq!(hex(&gather), "0105012f01017201016501 00075b2261222c315d010107fb1388".replace(' ', ""));
        assert_eq!(hex(&Question::Acks { id: 9 }), "010609");
        assert_eq!(hex(&Answer::Gathering { id: 9, sids: vec!["s".into()] }), "010409010173");
        let acks = vec![("s".to_owned(), Acked::TimedOut)];
        assert_eq!(hex(&Answer::Acks { acks, more: true }), "0105010173".to_owned() + "0101");
    }

    #[test]
    fn what_is_not_known_is_nothing() {
        assert_eq!(decode::<Question>(&[1, 99]), None, "a question of a later version");
        assert_eq!(decode::<Question>(&[2, 6, 9]), None, "another format");
        assert_eq!(decode::<Question>(&[1, 6, 9, 9]), None, "bytes too many");
        assert_eq!(decode::<Question>(&[]), None);
        assert!(is_adapters(&[1, 99]) && is_adapters(&[2]));
        assert!(!is_adapters(b"\"about\"") && !is_adapters(b"{}") && !is_adapters(b" {}") && !is_adapters(b""));
    }
}
