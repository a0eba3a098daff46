//! Sessions: born at the first CONNECT, attached by the log, lost, resumed, ended.

use serde::{Deserialize, Serialize};

use super::{Proposer, State};
use crate::{
    command::{
        Attached, Effect, Generation, Holder, Incarnation, Namespace, NodeId, PidHash, Position, Refusal, Reply, Room,
        Sid, Stamp, Unseated, User,
    },
    keys, level,
};

/// A session's record. Its user's rooms are not in it: they are the user's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    pub sid: Sid,
    pub ns: Namespace,
    pub user: User,
    pub guest: bool,
    pub pid: PidHash,
    /// Rooms that it entered for itself, and since when.
    pub entered: Vec<(Room, Position)>,
    /// Rooms that it exited, from when to when it was in them, by the latter. What it missed there is still due to it.
    pub exited: Vec<(Room, Position, Position)>,
    /// The last exit that was forgotten.
    pub forgotten: Position,
    pub node: NodeId,
    pub incarnation: Incarnation,
    pub generation: Generation,
    /// Where it was opened. Nothing before it is ever replayed to it.
    pub first: Position,
    /// When its transport was lost, if that was recorded.
    pub lost_at: Option<Stamp>,
}

/// Exits that a session's record keeps; a client that had not heard what came before an older one is told to start anew.
const EXITS_KEPT: usize = 16;
/// How often a session may be taken over while it is attached, and within what time; past it the newcomer has to open one of
/// its own. Two clients with one secret (a duplicated tab) would otherwise take it from each other for ever.
struct Takeovers {
    max: usize,
    /// Of the state's clock. Where that stands still, because a leader's was ahead, a takeover is refused that need not be,
    /// which costs a client its place and nobody a message.
    within_ms: Stamp,
}

/// Below level 2.
const TAKEOVERS_FIRST: Takeovers = Takeovers { max: 3, within_ms: 10_000 };
/// Who comes back from a node that was killed, and is not declared down yet, takes its own session over, and does so again for
/// each poll that a balancer sends to the dead: some three times a kill. So many allow for three kills in a row. Stock clients
/// that quarrel are at it again 0.5 to 1.5 s after each loss, so they are through with them before the first is long ago.
const TAKEOVERS: Takeovers = Takeovers { max: 10, within_ms: 20_000 };

impl Session {
    /// False when it had not entered.
    pub(super) fn exit(&mut self, room: &Room, at: Position) -> bool {
        let Some(nth) = self.entered.iter().position(|(entered, _)| entered == room) else { return false };
        let (room, since) = self.entered.remove(nth);
        if self.exited.len() == EXITS_KEPT {
            self.forgotten = self.exited.remove(0).2;
        }
        self.exited.push((room, since, at));
        true
    }

    pub fn holder(&self) -> Holder {
        Holder { sid: self.sid.clone(), generation: self.generation }
    }
}

impl State {
    #[allow(clippy::too_many_arguments, reason = "one for each field of the command")]
    pub(super) fn open(
        &mut self,
        by: Proposer,
        sid: &Sid,
        ns: &Namespace,
        user: &User,
        guest: bool,
        pid: &PidHash,
        effects: &mut Vec<Effect>,
    ) -> Result<Reply, Refusal> {
        if self.kv.has(&keys::session(sid)) || self.kv.has(&keys::pid(pid)) {
            // 120 random bits do not repeat; a proposer that sends the same ones twice must not get two sessions.
            return Err(Refusal::Moved);
        }
        self.make_room_for_session(ns, user, effects)?;
        let session = Session {
            sid: sid.clone(),
            ns: ns.clone(),
            user: user.clone(),
            guest,
            pid: *pid,
            entered: Vec::new(),
            exited: Vec::new(),
            forgotten: Position(0),
            node: by.node,
            incarnation: by.incarnation,
            generation: 1,
            first: self.position,
            lost_at: None,
        };
        self.put(keys::pid(pid), sid);
        let mut sids = self.of_user(ns, user);
        sids.insert(sid.as_str());
        self.put(keys::of_user(ns, user), &sids);
        self.put(keys::of_incarnation(by.node, by.incarnation, sid), &session.generation);
        self.put_session(&session);
        self.arrive(ns, user, effects);
        Ok(self.seat(&session, None, effects))
    }

    /// Past the bound on a user's sessions the one that was lost longest ago goes; when none is lost, none is opened.
    fn make_room_for_session(&mut self, ns: &Namespace, user: &User, effects: &mut Vec<Effect>) -> Result<(), Refusal> {
        let sessions = self.sessions_of(ns, user);
        if (sessions.len() as u64) < self.limits.sessions_per_user {
            return Ok(());
        }
        let lost = sessions.into_iter().filter(|session| !self.is_attached(session));
        match lost.min_by_key(|session| (self.lost_since(session), session.first)) {
            Some(oldest) => {
                // Its user goes on in the session that takes its place, also when it was the only one.
                self.take_out(&oldest, Unseated::Evicted, effects);
                Ok(())
            }
            None => Err(Refusal::TooManySessions),
        }
    }

    pub(super) fn resume(
        &mut self,
        by: Proposer,
        read: &Holder,
        ns: &Namespace,
        user: &User,
        pid: &PidHash,
        effects: &mut Vec<Effect>,
    ) -> Result<Reply, Refusal> {
        let Some(mut session) = self.session(&read.sid) else { return Err(Refusal::UnknownSession) };
        if session.pid != *pid || session.ns != *ns {
            return Err(Refusal::UnknownSession);
        }
        if session.user != *user {
            self.end(&session, Unseated::Evicted, effects);
            return Err(Refusal::OtherUser);
        }
        if session.generation != read.generation {
            return Err(Refusal::Moved);
        }
        if self.is_attached(&session) {
            self.take_over(&session.sid)?;
        }
        let gap = self.lost_since(&session).map(|lost_at| self.clock.saturating_sub(lost_at));
        effects.push(Effect::Unseated { holder: session.holder(), why: Unseated::Resumed });
        self.kv.delete(&keys::of_incarnation(session.node, session.incarnation, &session.sid));
        self.kv.delete(&keys::lost(&session.sid));
        session.node = by.node;
        session.incarnation = by.incarnation;
        session.generation += 1;
        session.lost_at = None;
        self.put(keys::of_incarnation(by.node, by.incarnation, &session.sid), &session.generation);
        self.put_session(&session);
        self.arrive(ns, user, effects);
        Ok(self.seat(&session, gap, effects))
    }

    /// Notes a takeover, if there may be another one by now.
    fn take_over(&mut self, sid: &Sid) -> Result<(), Refusal> {
        let allowed = if self.is_at(level::SECOND) { TAKEOVERS } else { TAKEOVERS_FIRST };
        let key = keys::taken(sid);
        let mut taken: Vec<Stamp> = self.get(&key).unwrap_or_default();
        taken.retain(|at| self.clock.saturating_sub(*at) < allowed.within_ms);
        if taken.len() >= allowed.max {
            return Err(Refusal::Contested);
        }
        taken.push(self.clock);
        self.put(key, &taken);
        Ok(())
    }

    fn seat(&self, session: &Session, gap_ms: Option<u64>, effects: &mut Vec<Effect>) -> Reply {
        effects.push(Effect::Seated(Attached {
            holder: session.holder(),
            node: session.node,
            incarnation: session.incarnation,
            ns: session.ns.clone(),
            user: session.user.clone(),
            rooms: self.rooms_of_user(&session.ns, &session.user),
            entered: session.entered.iter().map(|(room, _)| room.clone()).collect(),
            gap_ms,
        }));
        Reply::Seated { generation: session.generation, first: session.first }
    }

    pub(super) fn lose(&mut self, holders: &[Holder], effects: &mut Vec<Effect>) -> Result<Reply, Refusal> {
        for holder in holders {
            let Ok(mut session) = self.held(holder) else { continue };
            if session.lost_at.is_none() {
                session.lost_at = Some(self.clock);
                self.put(keys::lost(&session.sid), &session.generation);
                self.put_session(&session);
                effects.push(Effect::Unseated { holder: holder.clone(), why: Unseated::Lost });
            }
        }
        Ok(Reply::Done)
    }

    pub(super) fn close(&mut self, holder: &Holder, effects: &mut Vec<Effect>) -> Result<Reply, Refusal> {
        let session = self.held(holder)?;
        self.end(&session, Unseated::Closed, effects);
        Ok(Reply::Done)
    }

    pub(super) fn expire(&mut self, holders: &[Holder], effects: &mut Vec<Effect>) -> Result<Reply, Refusal> {
        for holder in holders {
            let Ok(session) = self.held(holder) else { continue };
            if !self.is_attached(&session) {
                self.end(&session, Unseated::Expired, effects);
            }
        }
        Ok(Reply::Done)
    }

    /// Ends a session, and with a user's last one its presence and, of a guest, its memberships.
    fn end(&mut self, session: &Session, why: Unseated, effects: &mut Vec<Effect>) {
        self.take_out(session, why, effects);
        if self.has_sessions(&session.ns, &session.user) {
            return;
        }
        self.kv.delete(&keys::dropped(&session.ns, &session.user));
        self.depart(&session.ns, &session.user, effects);
        if session.guest {
            for room in self.rooms_of_user(&session.ns, &session.user) {
                // Each entry of any history has a position of its own, also when one command writes several.
                self.position.0 += 1;
                self.remove_member(&session.ns, &session.user, &room, effects);
            }
        }
    }

    /// Takes a session out of every table.
    fn take_out(&mut self, session: &Session, why: Unseated, effects: &mut Vec<Effect>) {
        effects.push(Effect::Unseated { holder: session.holder(), why });
        for (room, _) in &session.entered {
            self.kv.delete(&keys::entered(&session.ns, room, &session.sid));
            self.touch_room(&session.ns, room, |record| record.entered -= 1);
        }
        self.kv.delete(&keys::of_incarnation(session.node, session.incarnation, &session.sid));
        let mut sids = self.of_user(&session.ns, &session.user);
        sids.remove(session.sid.as_str());
        self.put_or_delete(keys::of_user(&session.ns, &session.user), &sids);
        self.kv.delete(&keys::lost(&session.sid));
        self.kv.delete(&keys::taken(&session.sid));
        self.kv.delete(&keys::pid(&session.pid));
        self.decoded.forget(&session.sid);
        self.kv.delete(&keys::session(&session.sid));
    }

    pub(super) fn put_session(&mut self, session: &Session) {
        self.decoded.forget(&session.sid);
        self.put(keys::session(&session.sid), session);
    }

    /// The session, if it has not moved on since somebody acted for it.
    pub(super) fn held(&self, holder: &Holder) -> Result<Session, Refusal> {
        let session = self.session(&holder.sid).filter(|session| session.generation == holder.generation);
        session.ok_or(Refusal::Moved)
    }

    /// True when no loss is recorded and its incarnation is live.
    pub fn is_attached(&self, session: &Session) -> bool {
        session.lost_at.is_none() && self.is_live(session.node, session.incarnation)
    }

    /// When its transport went, as far as the log knows: its own loss, or the end of its node's incarnation.
    pub fn lost_since(&self, session: &Session) -> Option<Stamp> {
        session.lost_at.or_else(|| self.node(session.node)?.ended_at(session.incarnation))
    }
}
