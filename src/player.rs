//! The player: plays the applied log to the sockets of this node.
//!
//! ```text
//! log ─▶ apply (the state) ─▶ feed ─▶ player ─▶ seats ─▶ sockets
//! ```
//!
//! What always holds:
//! - The seats are in exactly the rooms that the state had at the *played* position: rooms come from the effects, never
//!   from the state, which is ahead.
//! - The ack of a command is written when the player comes to it, so acks and events of one socket have one order.
//! - A seat that cannot take a packet is let go. Nobody waits for a client that does not read; for writers that had no
//!   turn yet the player waits as `pace` says.
//! - When the node's incarnation is over, or its state jumped, every seat is let go.

mod pace;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use moim_raft::{
    NodeId, Play, Ticket,
    command::{Attached, Effect, Holder, Namespace, Position, Room, RoomEntry, Sid, Unseated, User},
    state::Applied,
};
use prometheus::IntCounter;
use tokio::sync::mpsc;

use self::pace::Pace;
use crate::{
    chat::event::{self, Encoder},
    client::{Encoded, Transport},
    report::Report,
    seat::{Bounds, Fill, Gone, Seat},
};

/// How long a seat waits for its socket.
const PATIENCE: Duration = Duration::from_secs(5);

/// The seats of this node, and which of them are in which room.
pub struct Seats {
    node: NodeId,
    queue_bytes_max: usize,
    encoder: Encoder,
    slow: IntCounter,
    tables: Mutex<Tables>,
}

#[derive(Default)]
struct Tables {
    seats: HashMap<Sid, Place>,
    by_user: HashMap<(Namespace, User), HashSet<Sid>>,
    by_room: HashMap<(Namespace, Room), BTreeMap<Sid, Arc<Seat>>>,
}

/// A seat and why it is in its rooms: as one of its user's sessions, or for itself.
struct Place {
    seat: Arc<Seat>,
    member_of: HashSet<Room>,
    entered: HashSet<Room>,
}

impl Seats {
    /// `slow` counts the seats that are let go because their client does not keep up.
    pub fn new(node: NodeId, queue_bytes_max: usize, encoder: Encoder, slow: IntCounter) -> Self {
        Self { node, queue_bytes_max, encoder, slow, tables: Mutex::default() }
    }

    /// The seat of this generation, if it is on this node.
    pub fn get(&self, holder: &Holder) -> Option<Arc<Seat>> {
        let tables = self.lock();
        let place = tables.seats.get(&holder.sid)?;
        (place.seat.holder.generation == holder.generation).then(|| place.seat.clone())
    }

    pub fn all(&self) -> Vec<Arc<Seat>> {
        self.lock().seats.values().map(|place| place.seat.clone()).collect()
    }

    pub fn len(&self) -> usize {
        self.lock().seats.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rooms of a seat at the played position.
    pub fn rooms(&self, holder: &Holder) -> HashSet<Room> {
        let tables = self.lock();
        let place = tables.seats.get(&holder.sid).filter(|place| place.seat.holder == *holder);
        place.map(|place| place.member_of.union(&place.entered).cloned().collect()).unwrap_or_default()
    }

    /// Hands what may be lost to the room's seats on this node, one of them excepted.
    pub fn volatile(&self, ns: &Namespace, room: &Room, except: Option<&Sid>, event: &Encoded) {
        for seat in self.in_room(ns, room) {
            if Some(&seat.holder.sid) != except {
                seat.volatile(event);
            }
        }
    }

    /// The seats of this node that are in one of these rooms, of one of these users, or named, each once.
    pub fn named(&self, ns: &Namespace, rooms: &[Room], users: &[User], sids: &[Sid]) -> Vec<Arc<Seat>> {
        let tables = self.lock();
        let in_rooms = rooms.iter().filter_map(|room| tables.by_room.get(&(ns.clone(), room.clone())));
        let of_users = users.iter().filter_map(|user| tables.by_user.get(&(ns.clone(), user.clone()))).flatten();
        let named = of_users.chain(sids).filter_map(|sid| Some(&tables.seats.get(sid)?.seat));
        let all = in_rooms.flat_map(BTreeMap::values).chain(named).filter(|seat| seat.ns == *ns);
        let once: BTreeMap<&Sid, &Arc<Seat>> = all.map(|seat| (&seat.holder.sid, seat)).collect();
        once.into_values().cloned().collect()
    }

    fn in_room(&self, ns: &Namespace, room: &Room) -> Vec<Arc<Seat>> {
        let tables = self.lock();
        let seats = tables.by_room.get(&(ns.clone(), room.clone()));
        seats.map(|seats| seats.values().cloned().collect()).unwrap_or_default()
    }

    /// Lets every seat go, and with each its transport.
    pub fn let_all_go(&self) {
        let tables = std::mem::take(&mut *self.lock());
        for place in tables.seats.into_values() {
            place.seat.let_go();
        }
    }

    /// The seats whose queues this made half full.
    fn play(&self, position: Position, effect: Effect) -> Vec<Arc<Seat>> {
        match effect {
            Effect::Entry { ns, room, entry } => return self.entry(&ns, &room, &entry),
            Effect::Presence { ns, user, rooms, online } => {
                return rooms.iter().flat_map(|room| self.presence(&ns, room, &user, online)).collect();
            }
            Effect::Seated(attached) if attached.node == self.node => self.seat(position, attached),
            Effect::Seated(_) => {}
            Effect::Unseated { holder, why } => self.unseat(&holder, why),
            Effect::Member { ns, user, room, joined } => self.member(&ns, &user, &room, joined),
            Effect::Entered { sid, ns, room, entered } => self.entered(&sid, &ns, &room, entered),
            // Another node's end concerns nobody here; this node's own is the player's business.
            Effect::Down { .. } => {}
        }
        Vec::new()
    }

    fn seat(&self, seam: Position, attached: Attached) {
        let Attached { holder, ns, user, rooms, entered, gap_ms, .. } = attached;
        let mut all: Vec<Room> = rooms.iter().chain(&entered).cloned().collect();
        all.sort_unstable();
        all.dedup();
        let bounds = Bounds { queue_bytes_max: self.queue_bytes_max, slow: self.slow.clone() };
        let mut seat = Seat::new(holder, ns.clone(), user.clone(), seam, all.clone(), bounds);
        seat.gap = gap_ms.map(Duration::from_millis);
        let seat = Arc::new(seat);
        let sid = seat.holder.sid.clone();
        let mut tables = self.lock();
        for room in all {
            tables.by_room.entry((ns.clone(), room)).or_default().insert(sid.clone(), seat.clone());
        }
        tables.by_user.entry((ns, user)).or_default().insert(sid.clone());
        let place = Place { seat, member_of: rooms.into_iter().collect(), entered: entered.into_iter().collect() };
        tables.seats.insert(sid, place);
    }

    fn unseat(&self, holder: &Holder, why: Unseated) {
        let mut tables = self.lock();
        if tables.seats.get(&holder.sid).is_none_or(|place| place.seat.holder != *holder) {
            return;
        }
        let Some(place) = tables.remove(&holder.sid) else { return };
        drop(tables);
        match why {
            // The client ended this one namespace; others on the transport go on.
            Unseated::Closed => place.seat.vacate(),
            _ => place.seat.let_go(),
        }
    }

    fn member(&self, ns: &Namespace, user: &User, room: &Room, joined: bool) {
        let mut tables = self.lock();
        let sids = tables.by_user.get(&(ns.clone(), user.clone())).cloned().unwrap_or_default();
        for sid in sids {
            let Some(place) = tables.seats.get_mut(&sid) else { continue };
            if joined {
                place.member_of.insert(room.clone())
            } else {
                place.member_of.remove(room)
            };
            tables.settle(&sid, ns, room);
        }
    }

    fn entered(&self, sid: &Sid, ns: &Namespace, room: &Room, entered: bool) {
        let mut tables = self.lock();
        let Some(place) = tables.seats.get_mut(sid) else { return };
        if entered {
            place.entered.insert(room.clone())
        } else {
            place.entered.remove(room)
        };
        tables.settle(sid, ns, room);
    }

    fn entry(&self, ns: &Namespace, room: &Room, entry: &RoomEntry) -> Vec<Arc<Seat>> {
        // Encoded once for all of them.
        self.write(ns, room, || self.encoder.played(room, entry), Seat::event)
    }

    fn presence(&self, ns: &Namespace, room: &Room, user: &User, online: bool) -> Vec<Arc<Seat>> {
        self.write(ns, room, || event::presence(room, user, online), Seat::live)
    }

    /// Writes one packet to everybody in a room.
    fn write<P>(
        &self,
        ns: &Namespace,
        room: &Room,
        packet: impl FnOnce() -> P,
        write: impl Fn(&Seat, &P) -> Result<Fill, Gone>,
    ) -> Vec<Arc<Seat>> {
        let mut seats = self.in_room(ns, room);
        if seats.is_empty() {
            return seats;
        }
        let packet = packet();
        // A seat that cannot take it has let itself go; the reaper reports its loss.
        seats.retain(|seat| write(seat, &packet) == Ok(Fill::HalfFull));
        seats
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seats whose transport has ended, or that nobody took in time.
    pub fn abandoned(&self) -> Vec<Arc<Seat>> {
        let late = |seat: &Seat| seat.is_free() && seat.made.elapsed() >= PATIENCE;
        self.all().into_iter().filter(|seat| seat.is_cut_off() || late(seat)).collect()
    }

    /// The seats on one transport, one for each of its namespaces.
    pub fn on(&self, transport: &Transport) -> Vec<Arc<Seat>> {
        let is_on = |seat: &Arc<Seat>| seat.transport().is_some_and(|of| of.same(transport));
        self.all().into_iter().filter(is_on).collect()
    }

    /// The transports that seats are on, each once.
    pub fn transports(&self) -> Vec<(Transport, Vec<Arc<Seat>>)> {
        let mut found: HashMap<u64, (Transport, Vec<Arc<Seat>>)> = HashMap::new();
        for seat in self.all() {
            let Some(transport) = seat.transport() else { continue };
            found.entry(transport.id()).or_insert_with(|| (transport, Vec::new())).1.push(seat);
        }
        found.into_values().collect()
    }
}

impl Tables {
    fn remove(&mut self, sid: &Sid) -> Option<Place> {
        let place = self.seats.remove(sid)?;
        let Seat { ns, user, .. } = &*place.seat;
        for room in place.member_of.union(&place.entered) {
            self.take_out(sid, ns, room);
        }
        let key = (ns.clone(), user.clone());
        if let Some(sids) = self.by_user.get_mut(&key) {
            sids.remove(sid);
            if sids.is_empty() {
                self.by_user.remove(&key);
            }
        }
        Some(place)
    }

    /// Makes the room's table say what the place says.
    fn settle(&mut self, sid: &Sid, ns: &Namespace, room: &Room) {
        let Some(place) = self.seats.get(sid) else { return };
        if place.member_of.contains(room) || place.entered.contains(room) {
            let seat = place.seat.clone();
            self.by_room.entry((ns.clone(), room.clone())).or_default().insert(sid.clone(), seat);
        } else {
            self.take_out(sid, ns, room);
        }
    }

    fn take_out(&mut self, sid: &Sid, ns: &Namespace, room: &Room) {
        let key = (ns.clone(), room.clone());
        if let Some(seats) = self.by_room.get_mut(&key) {
            seats.remove(sid);
            if seats.is_empty() {
                self.by_room.remove(&key);
            }
        }
    }
}

/// Works the feed off until the store closes it.
pub async fn play(mut feed: mpsc::Receiver<Play>, seats: Arc<Seats>, report: Arc<Report>) {
    let mut pace = Pace::new();
    while let Some(play) = feed.recv().await {
        match play {
            Play::Commands(commands) => {
                for (applied, ticket) in commands {
                    let half_full = play_one(&seats, &report, applied, ticket);
                    pace.ease(&half_full).await;
                }
            }
            Play::Installed => {
                tracing::warn!("the state jumped over entries: letting all clients go, they recover");
                seats.let_all_go();
            }
        }
    }
}

/// The seats whose queues this made half full.
fn play_one(seats: &Seats, report: &Report, mut applied: Applied, ticket: Ticket) -> Vec<Arc<Seat>> {
    let mut half_full = Vec::new();
    for effect in std::mem::take(&mut applied.effects) {
        report.note(&applied, &effect);
        if let Effect::Down { node, incarnation } = &effect
            && *node == seats.node
            && !seats.is_empty()
        {
            tracing::warn!(incarnation, "this node's incarnation is over: letting its clients go, they recover");
            seats.let_all_go();
        }
        half_full.append(&mut seats.play(applied.position, effect));
    }
    ticket.answer(Ok(&applied));
    half_full
}
