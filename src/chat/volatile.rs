//! What may be lost: straight to the sockets of this node, and over the peer links to those of the others.

use moim_raft::command::{Namespace, Room, Sid, User};
use serde_json::value::RawValue;

use super::{
    Chat,
    event::{self, Refused},
};
use crate::{
    adapter::{
        Reach,
        wire::{News, RoomEvent},
    },
    client::Encoded,
};

impl Chat {
    /// # Errors
    /// As for [`Chat::send_volatile`].
    pub fn typing(&self, ns: &Namespace, room: &Room, user: &User, from: &Sid) -> Result<(), Refused> {
        self.send_volatile(ns, room, from, "typing", &event::typing_body(room, user))
    }

    /// Sends an event to the room's sockets on all nodes but to the one that it came from.
    ///
    /// # Errors
    /// When it is too large for the way to the other nodes: then nobody gets it, wherever the members are.
    pub fn send_volatile(
        &self,
        ns: &Namespace,
        room: &Room,
        from: &Sid,
        name: &str,
        body: &RawValue,
    ) -> Result<(), Refused> {
        let event =
            RoomEvent { ns: ns.clone(), room: room.clone(), name: name.to_owned(), body: body.get().to_owned() };
        self.hub.tell(Reach::Everywhere, &News::Volatile(event)).map_err(|_| event::TOO_LARGE)?;
        self.seats.volatile(ns, room, Some(from), &Encoded::new(name, &[body]));
        Ok(())
    }

    /// An ephemeral event of another node.
    pub fn receive_volatile(&self, event: RoomEvent) {
        if let Ok(encoded) = Encoded::from_json(&event.name, event.body) {
            self.seats.volatile(&event.ns, &event.room, None, &encoded);
        }
    }
}
