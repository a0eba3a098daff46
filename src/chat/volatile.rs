//! What may be lost: straight to the sockets of this node, and over the peer links to those of the others.

use moim_raft::command::{Namespace, Room, Sid, User};
use serde_json::value::RawValue;

use super::{Chat, event};
use crate::{
    adapter::{
        Reach,
        wire::{News, RoomEvent},
    },
    client::Encoded,
};

impl Chat {
    pub fn typing(&self, ns: &Namespace, room: &Room, user: &User, from: &Sid) {
        self.send_volatile(ns, room, from, "typing", &event::typing_body(room, user));
    }

    /// Sends an event to the room's sockets on all nodes but to the one that it came from.
    pub fn send_volatile(&self, ns: &Namespace, room: &Room, from: &Sid, name: &str, body: &RawValue) {
        self.seats.volatile(ns, room, Some(from), &Encoded::new(name, &[body]));
        let (ns, room) = (ns.clone(), room.clone());
        let event = RoomEvent { ns, room, name: name.to_owned(), body: body.get().to_owned() };
        if let Err(error) = self.hub.tell(Reach::Everywhere, &News::Volatile(event)) {
            tracing::debug!(%error, "an ephemeral event stays on this node");
        }
    }

    /// An ephemeral event of another node.
    pub fn receive_volatile(&self, event: RoomEvent) {
        if let Ok(encoded) = Encoded::from_json(&event.name, event.body) {
            self.seats.volatile(&event.ns, &event.room, None, &encoded);
        }
    }
}
