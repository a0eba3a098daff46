//! socketioxide's adapter over the peer links: what a handler does with `io` and `socket.to(…)` reaches all nodes.
//!
//! | a handler's | goes | |
//! |---|---|---|
//! | `emit` | on the bus | never waits; what does not fit is lost, as all that is ephemeral may be |
//! | `join`, `leave`, `disconnect` | as a question | when it returns, all nodes that answer have done it |
//! | `fetch_sockets`, `rooms` | as a question | nodes that do not answer in [`ANSWER`] are left out, without an error |
//! | `emit_with_ack` | as a question, then pulled | see [`acks`] |
//!
//! What always holds:
//! - No caller waits for a node that does not answer for longer than [`ANSWER`].
//! - **An Engine.IO id never leaves its node.** In socketioxide it is the socket's id, and over long-polling whoever knows
//!   it can act as that client. So what `fetch_sockets` and acks name sockets by is moim's public sid, which is as long;
//!   it is turned into the socket's own id on the node that holds it (`names`). Each socket is in the room of its public
//!   sid. A remote socket is looked for where the log says that its session is now, so that it stays the right one when
//!   its client moves to another node.
//! - A broadcast does not end in a string, or a stock client would take it for its offset: a `null` follows.
//!
//! These rooms are socketioxide's, each known to the node of its sockets, and gone with the connection. The rooms of the
//! chat are in the log, and what is said in them is played from it.

pub mod acks;
mod bound;
mod hub;
mod names;
mod select;
pub mod wire;

use std::{sync::Arc, time::Duration};

use futures_util::stream::{BoxStream, SelectAll};
use socketioxide::{AckError, BroadcastError, SocketError, adapter::Emitter, socket::Sid};
use socketioxide_core::{
    Str, Value,
    adapter::{
        BroadcastFlags, BroadcastOptions, CoreAdapter, CoreLocalAdapter, DefinedAdapter, RemoteSocketData, Room,
        RoomParam, errors::AdapterError,
    },
    packet::{Packet, PacketData},
};

pub use self::{bound::Bound, hub::Hub, names::public_sid, select::Reach};
use self::{
    names::Names,
    wire::{Answer, Event, News, Question},
};

/// How long a caller waits for another node. Past it that node is left out.
pub const ANSWER: Duration = Duration::from_millis(600);

/// socketioxide's types with this adapter.
pub type SocketIo = socketioxide::SocketIo<PeerAdapter>;
pub type SocketRef = socketioxide::extract::SocketRef<PeerAdapter>;
pub type AckSender = socketioxide::extract::AckSender<PeerAdapter>;

/// One namespace's adapter on this node.
pub struct PeerAdapter {
    hub: Hub,
    local: CoreLocalAdapter<Emitter>,
    names: Arc<Names>,
}

/// What a handler asked for cannot be sent to other nodes.
#[derive(Debug)]
pub struct Unsendable(String);

impl std::fmt::Display for Unsendable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "not sent to the other nodes: {}", self.0)
    }
}

impl std::error::Error for Unsendable {}

impl From<Unsendable> for AdapterError {
    fn from(error: Unsendable) -> Self {
        Self(Box::new(error))
    }
}

impl DefinedAdapter for PeerAdapter {}

impl CoreAdapter<Emitter> for PeerAdapter {
    type Error = Unsendable;
    type State = Hub;
    type AckStream = SelectAll<BoxStream<'static, (Sid, Result<Value, AckError>)>>;
    type InitRes = ();

    fn new(hub: &Hub, local: CoreLocalAdapter<Emitter>) -> Self {
        Self { hub: hub.clone(), local, names: Arc::default() }
    }

    fn init(self: Arc<Self>, on_success: impl FnOnce() + Send + 'static) {
        self.hub.add(self.local.path(), &self, on_success);
    }

    async fn close(&self) -> Result<(), Unsendable> {
        self.hub.remove(self);
        Ok(())
    }

    /// The nodes that the log counts as live, this one among them: a node that was killed is one of them for
    /// `node.timeout`.
    async fn server_count(&self) -> Result<u16, Unsendable> {
        Ok(u16::try_from(self.hub.others().len() + 1).unwrap_or(u16::MAX))
    }

    /// # Errors
    /// When a local socket's queue is full, and when the packet is too large for the bus; it has gone to the others all
    /// the same.
    async fn broadcast(&self, packet: Packet, opts: BroadcastOptions) -> Result<(), BroadcastError> {
        let packet = without_last_string(packet);
        let sent = match self.reach(&opts) {
            Reach::Here => Ok(()),
            reach => self.tell(&packet, &opts, reach),
        };
        self.broadcast_here(packet, opts)?;
        Ok(sent.map_err(AdapterError::from)?)
    }

    /// Local sockets' acks as they come, and those of the other nodes as these hand them over.
    async fn broadcast_with_ack(
        &self,
        packet: Packet,
        opts: BroadcastOptions,
        timeout: Option<Duration>,
    ) -> Result<Self::AckStream, Unsendable> {
        let timeout = timeout.unwrap_or(self.local.ack_timeout());
        let reach = self.reach(&opts);
        let gather = match reach {
            Reach::Here => None,
            _ => Some(Question::Gather {
                ns: self.ns(),
                to: self.select(&opts),
                event: Event::of(&packet)?,
                timeout_ms: timeout.as_millis() as u64,
            }),
        };
        let local = self.gather_here(packet, opts, timeout);
        let mut all = SelectAll::new();
        all.push(local);
        if let Some(gather) = gather {
            for (node, answer) in self.hub.ask(reach, gather).await {
                if let Answer::Gathering { id, sids } = answer {
                    all.push(acks::pull(self.hub.clone(), node, id, sids));
                }
            }
        }
        Ok(all)
    }

    async fn add_sockets(&self, opts: BroadcastOptions, rooms: impl RoomParam) -> Result<(), Unsendable> {
        let rooms: Vec<Room> = rooms.into_room_iter().collect();
        let (ns, to, names) = (self.ns(), self.select(&opts), texts(&rooms));
        let reach = self.reach(&opts);
        self.local.add_sockets(self.here(opts), rooms);
        self.hub.ask(reach, Question::Join { ns, to, rooms: names }).await;
        Ok(())
    }

    async fn del_sockets(&self, opts: BroadcastOptions, rooms: impl RoomParam) -> Result<(), Unsendable> {
        let rooms: Vec<Room> = rooms.into_room_iter().collect();
        // Read before it is carried out: the rooms to leave may be the rooms that select.
        let (ns, to, names) = (self.ns(), self.select(&opts), texts(&rooms));
        let reach = self.reach(&opts);
        self.local.del_sockets(self.here(opts), rooms);
        self.hub.ask(reach, Question::Leave { ns, to, rooms: names }).await;
        Ok(())
    }

    /// Final for the clients: they are told so, and do not come back by themselves.
    async fn disconnect_socket(&self, opts: BroadcastOptions) -> Result<(), BroadcastError> {
        let reach = self.reach(&opts);
        let question = Question::Disconnect { ns: self.ns(), to: self.select(&opts) };
        let done = self.local.disconnect_socket(self.here(opts));
        self.hub.ask(reach, question).await;
        done.map_err(BroadcastError::Socket)
    }

    async fn rooms(&self, opts: BroadcastOptions) -> Result<Vec<Room>, Unsendable> {
        let reach = self.reach(&opts);
        let question = Question::Rooms { ns: self.ns(), to: self.select(&opts) };
        let mut rooms = self.local.rooms(self.here(opts));
        for (_, answer) in self.hub.ask(reach, question).await {
            if let Answer::Rooms(theirs) = answer {
                rooms.extend(theirs.into_iter().map(Room::Owned));
            }
        }
        Ok(rooms.into_iter().collect())
    }

    async fn fetch_sockets(&self, opts: BroadcastOptions) -> Result<Vec<RemoteSocketData>, Unsendable> {
        let reach = self.reach(&opts);
        let question = Question::Sockets { ns: self.ns(), to: self.select(&opts) };
        let data = |node, id| RemoteSocketData { id, server_id: select::server(node), ns: self.local.path().clone() };
        let mut found: Vec<_> = self.sockets_here(opts).into_iter().map(|sid| data(self.hub.me(), sid)).collect();
        for (node, answer) in self.hub.ask(reach, question).await {
            if let Answer::Sockets(sids) = answer {
                found.extend(sids.iter().filter_map(|sid| sid.parse().ok()).map(|sid| data(node, sid)));
            }
        }
        Ok(found)
    }

    fn get_local(&self) -> &CoreLocalAdapter<Emitter> {
        &self.local
    }
}

impl PeerAdapter {
    /// Queues an event for one socket of this node. `json` is its whole array: of what goes to many sockets, each is given
    /// the same text, where `socket.emit` would write it anew.
    ///
    /// # Errors
    /// If the socket's queue is full, or it has gone.
    pub(crate) fn send(&self, socket: &SocketRef, json: Str) -> Result<(), SocketError> {
        let gone = || if socket.connected() { Ok(()) } else { Err(SocketError::Closed) };
        gone()?;
        let sent = self.local.broadcast(self.event(json), BroadcastOptions::new(socket.id));
        sent.map_err(|errors| errors.into_iter().next().unwrap_or(SocketError::Closed))?;
        // Who has gone meanwhile was passed over without an error, but is not connected any more.
        gone()
    }

    /// The same in the one place that a socket has for what may be lost.
    pub(crate) fn send_volatile(&self, socket: &SocketRef, json: Str) {
        let mut opts = BroadcastOptions::new(socket.id);
        opts.add_flag(BroadcastFlags::Volatile);
        // What may be lost has no error.
        self.local.broadcast(self.event(json), opts).ok();
    }

    fn event(&self, json: Str) -> Packet {
        Packet::event(self.local.path().clone(), Value::Str(json, None))
    }

    fn ns(&self) -> String {
        self.local.path().to_string()
    }

    fn tell(&self, packet: &Packet, opts: &BroadcastOptions, reach: Reach) -> Result<(), Unsendable> {
        let news = News::Broadcast {
            ns: self.ns(),
            to: self.select(opts),
            volatile: opts.has_flag(BroadcastFlags::Volatile),
            event: Event::of(packet)?,
        };
        self.hub.tell(reach, &news)
    }

    /// To the sockets of this node.
    fn broadcast_here(&self, packet: Packet, opts: BroadcastOptions) -> Result<(), BroadcastError> {
        let opts = self.here(opts);
        // A volatile packet replaces the one before it, and is not counted.
        if !opts.has_flag(BroadcastFlags::Volatile) {
            self.count(&packet, &opts);
        }
        Ok(self.local.broadcast(packet, opts)?)
    }

    /// See [`bound`].
    fn count(&self, packet: &Packet, opts: &BroadcastOptions) {
        if let Some(bound) = self.hub.bound() {
            bound.count(packet, &self.names.transports(self.local.sockets(opts.clone())));
        }
    }

    /// The public sids of this node's sockets.
    fn sockets_here(&self, opts: BroadcastOptions) -> Vec<Sid> {
        self.names.public(self.local.fetch_sockets(self.here(opts)).into_iter().map(|socket| socket.id))
    }
}

/// An event that ends in a string gets a `null`, so that no stock client takes the string for its offset.
fn without_last_string(mut packet: Packet) -> Packet {
    if let PacketData::Event(Value::Str(text, _), None) | PacketData::BinaryEvent(Value::Str(text, _), None) =
        &mut packet.inner
        && let Some(start) = text.strip_suffix("\"]")
    {
        *text = format!("{start}\",null]").into();
    }
    packet
}

fn texts(rooms: &[Room]) -> Vec<String> {
    rooms.iter().map(|room| room.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_broadcast_ends_in_a_string() {
        let ended = |text: &'static str| {
            let packet = without_last_string(Packet::event("/", Value::Str(text.into(), None)));
            let PacketData::Event(Value::Str(text, _), _) = packet.inner else { panic!("it was an event") };
            text.to_string()
        };
        assert_eq!(ended(r#"["hello","you"]"#), r#"["hello","you",null]"#);
        assert_eq!(ended(r#"["hello"]"#), r#"["hello",null]"#, "the name counts too");
        for other in [r#"["hello",1]"#, r#"["hello",["you"]]"#, r#"["hello",{"to":"you"}]"#, r#"["hello",null]"#] {
            assert_eq!(ended(other), other);
        }
    }
}
