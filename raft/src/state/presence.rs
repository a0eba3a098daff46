//! Presence: which users are there, as others see it.
//!
//! ```text
//!         its first session is attached                    its last session ends, or the leader
//! absent ──────────────────────────────▶ present (a row) ───────────────────────────────────────▶ absent
//!         `online`                                         finds it away for too long: `offline`
//! ```
//!
//! What always holds:
//! - A present user has a session, with a transport or without. An absent one may have sessions, all without.
//! - The row says where one of the user's sessions was last attached. While it stays the same, a user that is *away*
//!   (present, but without a transport) stays away: so a verdict that names the row's position is about this absence and
//!   no later one.
//! - A node's start or end changes nobody's presence.

use std::collections::BTreeSet;

use super::State;
use crate::{
    command::{Away, Effect, Holder, Namespace, Position, Refusal, Reply, Room, User},
    keys,
};

impl State {
    /// True from when the user's first session is attached until its last one has ended or had no transport for too long.
    pub fn is_online(&self, ns: &Namespace, user: &User) -> bool {
        self.kv.has(&keys::present(ns, user))
    }

    /// Which users are away, of those to whom these lost sessions belong. Each is named once.
    pub fn away(&self, lost: &[Holder]) -> Vec<Away> {
        let sessions = lost.iter().filter_map(|holder| self.held(holder).ok());
        let users: BTreeSet<(Namespace, User)> = sessions.map(|session| (session.ns, session.user)).collect();
        let away = |(ns, user): (Namespace, User)| {
            let attached = self.last_attached(&ns, &user).filter(|_| !self.has_transport(&ns, &user))?;
            Some(Away { ns, user, attached })
        };
        users.into_iter().filter_map(away).collect()
    }

    /// Whether the user is still as it was found.
    pub fn is_still(&self, away: &Away) -> bool {
        self.last_attached(&away.ns, &away.user) == Some(away.attached) && !self.has_transport(&away.ns, &away.user)
    }

    /// Notes that a session of the user is being attached. Before its seat is made, so that it does not hear of itself.
    pub(super) fn arrive(&mut self, ns: &Namespace, user: &User, effects: &mut Vec<Effect>) {
        if !self.is_online(ns, user) {
            self.tell(ns, user, true, effects);
        }
        self.put(keys::present(ns, user), &self.position.clone());
    }

    /// Ends the user's presence, if it has not ended before.
    pub(super) fn depart(&mut self, ns: &Namespace, user: &User, effects: &mut Vec<Effect>) {
        if self.kv.delete(&keys::present(ns, user)) {
            self.tell(ns, user, false, effects);
        }
    }

    pub(super) fn offline(&mut self, users: &[Away], effects: &mut Vec<Effect>) -> Result<Reply, Refusal> {
        for Away { ns, user, attached } in users {
            if self.last_attached(ns, user) == Some(*attached) && !self.has_transport(ns, user) {
                self.depart(ns, user, effects);
            }
        }
        Ok(Reply::Done)
    }

    fn tell(&self, ns: &Namespace, user: &User, online: bool, effects: &mut Vec<Effect>) {
        let small =
            |room: &Room| self.room(ns, room).is_some_and(|record| record.members <= self.limits.presence_limit);
        let rooms: Vec<Room> = self.rooms_of_user(ns, user).into_iter().filter(small).collect();
        if !rooms.is_empty() {
            effects.push(Effect::Presence { ns: ns.clone(), user: user.clone(), rooms, online });
        }
    }

    fn last_attached(&self, ns: &Namespace, user: &User) -> Option<Position> {
        self.get(&keys::present(ns, user))
    }

    fn has_transport(&self, ns: &Namespace, user: &User) -> bool {
        self.sessions_of(ns, user).iter().any(|session| self.is_attached(session))
    }
}
