//! The model of sets and vectors: what a history of commands has to come to, in the plainest words.

use std::collections::{BTreeMap, BTreeSet};

pub const HISTORY: usize = 8;
pub const USERS: u64 = 5;
pub const ROOMS: u64 = 4;
pub const NODES: u64 = 3;
/// How long, and how many of a user, `mid`s are recognised.
pub const MID_WINDOW: u64 = 2000;
pub const MIDS: usize = 3;
/// The table of single values.
pub const META: u8 = 0x01;
/// Tables with a row for some rows of another: of sessions, those that were taken over; of users with sessions, those of whom
/// a span was dropped.
pub const EACH_OF: [(u8, u8); 2] = [(0x15, 0x10), (0x25, 0x12)];
/// How many within which time: at level 1, and from level 2 on.
const TAKEOVERS: [(usize, u64); 2] = [(3, 10_000), (10, 20_000)];

/// The last users are guests.
pub fn is_guest(n: u64) -> bool {
    n >= USERS - 2
}

#[derive(Clone)]
pub struct Seat {
    pub user: u64,
    pub generation: u64,
    /// Rooms that it entered, and where.
    pub entered: BTreeMap<u64, u64>,
    /// Rooms that it exited, from when to when.
    pub exited: Vec<(u64, u64, u64)>,
    pub node: u64,
    pub incarnation: u64,
    pub lost: bool,
    pub first: u64,
    /// When it was taken over while it was attached.
    pub taken: Vec<u64>,
}

/// An entry, and which users were members when it was written.
pub struct Entry {
    pub position: u64,
    pub room: u64,
    pub what: String,
    pub members: BTreeSet<u64>,
}

/// What was first said under a `mid`.
pub struct Mid {
    pub user: u64,
    pub mid: u64,
    pub room: u64,
    pub at: u64,
}

#[derive(Default)]
pub struct Model {
    pub position: u64,
    pub clock: u64,
    pub level: u16,
    pub live: BTreeMap<u64, u64>,
    pub seats: BTreeMap<u64, Seat>,
    pub members: BTreeSet<(u64, u64)>,
    /// Users that are present, and where one of their sessions was last attached.
    pub present: BTreeMap<u64, u64>,
    pub log: Vec<Entry>,
    /// (user, room) and where it left.
    pub leaves: Vec<(u64, u64, u64)>,
    /// Those that are remembered, in the order in which they came.
    pub mids: Vec<Mid>,
    /// How many went because they were old and a leader went round.
    pub forgotten: usize,
}

impl Model {
    pub fn write(&mut self, room: u64, what: String) {
        let members = self.members.iter().filter(|(r, _)| *r == room).map(|(_, user)| *user).collect();
        self.log.push(Entry { position: self.position, room, what, members });
    }

    pub fn held(&mut self, by: &(u64, u64)) -> Option<&mut Seat> {
        self.seats.get_mut(&by.0).filter(|seat| seat.generation == by.1)
    }

    /// Whether it is taken over too often; if not, that it is once more.
    pub fn is_contested(&mut self, by: &(u64, u64)) -> bool {
        let Some(seat) = self.held(by).cloned().filter(|seat| self.attached(seat)) else { return false };
        let (now, (max, within)) = (self.clock, TAKEOVERS[usize::from(self.level >= 2)]);
        let contested = seat.taken.iter().filter(|at| now - **at < within).count() >= max;
        self.held(by).unwrap().taken.extend((!contested).then_some(now));
        contested
    }

    pub fn is_old(&self, mid: &Mid) -> bool {
        mid.at + MID_WINDOW < self.clock
    }

    pub fn forget_old_mids(&mut self, user: u64) {
        let mids = std::mem::take(&mut self.mids);
        self.mids = mids.into_iter().filter(|mid| mid.user != user || !self.is_old(mid)).collect();
    }

    pub fn remember(&mut self, mid: Mid) {
        self.forget_old_mids(mid.user);
        let of_user = |known: &Mid| known.user == mid.user;
        if self.mids.iter().filter(|known| of_user(known)).count() == MIDS {
            let oldest = self.mids.iter().position(of_user).unwrap();
            self.mids.remove(oldest);
        }
        self.mids.push(mid);
    }

    /// The same under the same `mid` is no second message.
    pub fn say(&mut self, by: (u64, u64), room: u64, mid: Option<u64>) -> bool {
        let Some(seat) = self.held(&by).cloned() else { return false };
        let known = self.mids.iter().find(|known| known.user == seat.user && Some(known.mid) == mid);
        if let Some(known) = known.filter(|known| !self.is_old(known)) {
            return known.room == room;
        }
        if !self.rooms(&seat).contains(&room) {
            return false;
        }
        if let Some(mid) = mid {
            self.remember(Mid { user: seat.user, mid, room, at: self.clock });
        }
        self.write(room, format!("{}: hello", seat.user));
        true
    }

    pub fn leave(&mut self, room: u64, user: u64) {
        self.write(room, format!("-{user}"));
        self.members.remove(&(room, user));
        self.leaves.push((user, room, self.position));
    }

    pub fn end(&mut self, sid: u64) {
        let user = self.seats.remove(&sid).unwrap().user;
        if self.seats.values().any(|seat| seat.user == user) {
            return;
        }
        self.present.remove(&user);
        if is_guest(user) {
            for room in (0..ROOMS).filter(|room| self.members.contains(&(*room, user))).collect::<Vec<_>>() {
                self.position += 1;
                self.leave(room, user);
            }
        }
    }

    pub fn attached(&self, seat: &Seat) -> bool {
        !seat.lost && self.live.get(&seat.node) == Some(&seat.incarnation)
    }

    pub fn is_away(&self, user: u64) -> bool {
        self.present.contains_key(&user) && !self.seats.values().any(|seat| seat.user == user && self.attached(seat))
    }

    pub fn rooms(&self, seat: &Seat) -> BTreeSet<u64> {
        let joined = self.members.iter().filter(|(_, user)| *user == seat.user).map(|(room, _)| *room);
        joined.chain(seat.entered.keys().copied()).collect()
    }

    pub fn kept(&self, room: u64) -> Vec<(u64, String)> {
        let all: Vec<_> = self.log.iter().filter(|e| e.room == room).map(|e| (e.position, e.what.clone())).collect();
        all[all.len().saturating_sub(HISTORY)..].to_vec()
    }

    /// The last entry of a room that is not kept any more.
    pub fn floor(&self, room: u64) -> u64 {
        let mut gone = self.log.iter().rev().filter(|e| e.room == room).skip(HISTORY);
        gone.next().map_or(0, |e| e.position)
    }

    /// How many rows each table has, by its byte.
    pub fn rows(&self) -> [(u8, usize); 17] {
        let seats = || self.seats.values();
        let is_kept = |(_, room, left): &&(u64, u64, u64)| *left > self.floor(*room);
        let gone = |(user, room, _): &&(u64, u64, u64)| !self.members.contains(&(*room, *user));
        let left: BTreeSet<_> =
            self.leaves.iter().filter(is_kept).filter(gone).map(|(user, room, _)| (user, room)).collect();
        let rooms: BTreeSet<_> =
            self.log.iter().map(|entry| &entry.room).chain(seats().flat_map(|seat| seat.entered.keys())).collect();
        [
            (0x02, NODES as usize),
            (0x10, self.seats.len()),
            (0x11, self.seats.len()),
            (0x12, seats().map(|seat| seat.user).collect::<BTreeSet<_>>().len()),
            (0x13, self.seats.len()),
            (0x14, seats().filter(|seat| seat.lost).count()),
            (0x20, self.members.len()),
            (0x21, left.len()),
            (0x22, self.leaves.iter().filter(is_kept).count()),
            (0x23, rooms.len()),
            (0x24, seats().map(|seat| seat.entered.len()).sum()),
            (0x26, self.members.iter().map(|(_, user)| user).collect::<BTreeSet<_>>().len()),
            (0x30, (0..ROOMS).map(|room| self.kept(room).len()).sum()),
            (0x40, self.mids.len()),
            (0x41, self.mids.len()),
            (0x42, self.mids.iter().map(|mid| mid.user).collect::<BTreeSet<_>>().len()),
            (0x50, self.present.len()),
        ]
    }

    pub fn due(&self, seat: &Seat, offset: u64, seam: u64) -> Vec<(u64, String)> {
        let offset = offset.max(seat.first);
        let heard = |e: &&Entry| {
            let was_in =
                |(room, from, to): &(u64, u64, u64)| *room == e.room && *from < e.position && e.position <= *to;
            e.members.contains(&seat.user)
                || seat.entered.get(&e.room).is_some_and(|entered| *entered < e.position)
                || seat.exited.iter().any(was_in)
        };
        let due = self.log.iter().filter(|e| e.position > offset && e.position <= seam).filter(heard);
        due.map(|e| (e.position, e.what.clone())).collect()
    }

    /// The model's own idea of a command; whether it took effect.
    pub fn carry_out(&mut self, node: u64, incarnation: u64, wish: Wish) -> bool {
        self.position += 1;
        let position = self.position;
        match wish {
            Wish::Open(n, user) => {
                let (generation, entered) = (1, BTreeMap::new());
                let exited = Vec::new();
                let (lost, first, taken) = (false, position, Vec::new());
                let seat = Seat { user, generation, entered, exited, node, incarnation, lost, first, taken };
                self.seats.insert(n, seat);
                self.present.insert(user, position);
            }
            Wish::Resume(by) => {
                if self.is_contested(&by) {
                    return false;
                }
                let Some(seat) = self.held(&by) else { return false };
                *seat = Seat { generation: by.1 + 1, node, incarnation, lost: false, ..seat.clone() };
                let user = seat.user;
                self.present.insert(user, position);
            }
            Wish::Lost(all) => all.iter().for_each(|by| _ = self.held(by).map(|seat| seat.lost = true)),
            Wish::Expire(all) => {
                for by in all {
                    if self.held(&by).cloned().is_some_and(|seat| !self.attached(&seat)) {
                        self.end(by.0);
                    }
                }
            }
            Wish::Close(by) => {
                if self.held(&by).is_none() {
                    return false;
                }
                self.end(by.0);
            }
            Wish::Join(by, room) => {
                let Some(user) = self.held(&by).map(|seat| seat.user) else { return false };
                if self.members.insert((room, user)) {
                    self.write(room, format!("+{user}"));
                }
            }
            Wish::Leave(by, room) => {
                let Some(user) = self.held(&by).map(|seat| seat.user) else { return false };
                if !self.members.contains(&(room, user)) {
                    return false;
                }
                self.leave(room, user);
            }
            Wish::Enter(by, room) => {
                let Some(seat) = self.held(&by) else { return false };
                seat.entered.entry(room).or_insert(position);
            }
            Wish::Exit(by, room) => {
                let Some(seat) = self.held(&by) else { return false };
                let Some(since) = seat.entered.remove(&room) else { return false };
                seat.exited.push((room, since, position));
            }
            Wish::Say(by, room, mid) => return self.say(by, room, mid),
            Wish::ForgetMids(users) => {
                let before = self.mids.len();
                users.into_iter().for_each(|user| self.forget_old_mids(user));
                self.forgotten += before - self.mids.len();
            }
            Wish::Level(level) => self.level = self.level.max(level),
            Wish::Down(node) => _ = self.live.remove(&node),
            Wish::Offline(users) => {
                for (user, attached) in users {
                    if self.is_away(user) && self.present[&user] == attached {
                        self.present.remove(&user);
                    }
                }
            }
        }
        true
    }
}

/// What a script can ask for, in the model's words. A holder is (sid, generation).
pub enum Wish {
    Open(u64, u64),
    Resume((u64, u64)),
    Lost(Vec<(u64, u64)>),
    Expire(Vec<(u64, u64)>),
    Close((u64, u64)),
    Join((u64, u64), u64),
    Leave((u64, u64), u64),
    Enter((u64, u64), u64),
    Exit((u64, u64), u64),
    /// With or without a `mid`.
    Say((u64, u64), u64, Option<u64>),
    ForgetMids(Vec<u64>),
    Down(u64),
    Level(u16),
    /// Users, and where each was last attached.
    Offline(Vec<(u64, u64)>),
}
