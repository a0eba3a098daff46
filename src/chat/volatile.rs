//! What may be lost: straight to the sockets of this node, and over the peer links to those of the others.

use bytes::Bytes;
use moim_raft::command::{Namespace, Room, Sid, User};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Chat, event};
use crate::client::Encoded;

/// One ephemeral event on its way to the other nodes. Sent: only ever add at the end, behind a new kind.
#[derive(Serialize)]
struct Bus<'a> {
    ns: Namespace,
    room: Room,
    name: &'a str,
    /// One JSON value, never a string.
    body: &'a str,
}

impl Chat {
    pub fn typing(&self, ns: &Namespace, room: &Room, user: &User, from: &Sid) {
        self.send_volatile(ns, room, from, "typing", &event::typing_body(room, user));
    }

    /// Sends an event to the room's sockets on all nodes but to the one that it came from.
    pub fn send_volatile(&self, ns: &Namespace, room: &Room, from: &Sid, name: &str, body: &RawValue) {
        self.seats.volatile(ns, room, Some(from), &Encoded::new(name, vec![body.to_owned()]));
        let bus = Bus { ns: ns.clone(), room: room.clone(), name, body: body.get() };
        // Names and payloads are bounded by what the client port takes; what the bus refuses is lost, as it may be.
        if let Ok(bytes) = serde_json::to_vec(&bus) {
            self.store.bus_send(&Bytes::from(bytes));
        }
    }

    /// An ephemeral event of another node.
    pub fn receive_volatile(&self, bytes: &[u8]) {
        let Ok(bus) = serde_json::from_slice::<BusOwned>(bytes) else {
            return tracing::debug!("an ephemeral event of another node that does not decode");
        };
        if let Ok(event) = Encoded::from_json(bus.name, bus.body) {
            self.seats.volatile(&bus.ns, &bus.room, None, &event);
        }
    }
}

/// [`Bus`] as it arrives: its texts may hold escapes.
#[derive(Deserialize)]
struct BusOwned {
    ns: Namespace,
    room: Room,
    name: String,
    body: String,
}
