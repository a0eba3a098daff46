//! The `mid`s that make a retry harmless: the same one again is answered with the place and time of the first.
//!
//! What always holds: a user's `mid`s are forgotten in the order in which they came, past their window or their number; each place
//! in that order has its `mid`, and each `mid` its place. They are forgotten when the next one comes, and where none comes any
//! more, by a leader that goes round (from level 2 on).

use std::ops::Bound;

use serde::{Deserialize, Serialize};

use super::{State, decode};
use crate::{
    command::{Namespace, Position, Refusal, Reply, Room, Stamp, User},
    keys::{self, Key, Table},
};

/// `mid`s that one `ForgetMids` forgets at most.
const FORGET_MAX: u64 = 1000;

/// A recognised `mid`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mid {
    pub position: Position,
    pub at: Stamp,
    /// Of namespace, room and text: the same `mid` with something else is a mistake, not a retry.
    pub content: u64,
}

/// The `mid`s of a user that are remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MidsOf {
    pub count: u64,
    /// Place and time of the oldest.
    pub oldest: Position,
    pub oldest_at: Stamp,
}

impl State {
    /// The `mid`, when it was seen within its window.
    pub(super) fn known_mid(&self, user: &User, mid: &str) -> Option<Mid> {
        self.get::<Mid>(&keys::mid(user, mid)).filter(|known| self.in_window(known.at))
    }

    pub(super) fn remember_mid(&mut self, user: &User, mid: &str, content: u64) {
        let mut of = self.get::<MidsOf>(&keys::mids_of(user)).unwrap_or_default();
        self.forget_mids(user, &mut of);
        if of.count == 0 {
            (of.oldest, of.oldest_at) = (self.position, self.clock);
        }
        of.count += 1;
        self.put(keys::mids_of(user), &of);
        self.put(keys::mid(user, mid), &Mid { position: self.position, at: self.clock, content });
        self.put(keys::mid_order(user, self.position), &mid);
    }

    /// Past their window, or past the bound on a user's `mid`s with the one that is about to come, the oldest go.
    fn forget_mids(&mut self, user: &User, of: &mut MidsOf) {
        let too_many = (of.count + 1).saturating_sub(self.limits.mids_per_user);
        if of.count > 0 && (too_many > 0 || !self.in_window(of.oldest_at)) {
            self.forget_oldest(user, of, too_many, u64::MAX);
        }
    }

    /// Of users who say nothing more, what is past its window goes. What a command would forget beyond its bound waits for the
    /// next one. It is judged here and now: a verdict that comes late forgets nothing that is still recognised.
    pub(super) fn forget_old_mids(&mut self, users: &[User]) -> Result<Reply, Refusal> {
        let mut left = FORGET_MAX;
        for user in users {
            let key = keys::mids_of(user);
            let Some(mut of) = self.get::<MidsOf>(&key).filter(|of| !self.in_window(of.oldest_at)) else { continue };
            let before = of.count;
            self.forget_oldest(user, &mut of, 0, left);
            left -= before - of.count;
            match of.count {
                0 => _ = self.kv.delete(&key),
                _ => self.put(key, &of),
            }
        }
        Ok(Reply::Done)
    }

    /// Forgets the oldest: those that are too many and those past their window, and no more than `most`.
    fn forget_oldest(&mut self, user: &User, of: &mut MidsOf, too_many: u64, most: u64) {
        let mut forgotten = Vec::new();
        for (nth, (order, mid)) in (0..).zip(self.mids_from(user, of.oldest)) {
            let known: Mid = self.get(&keys::mid(user, &mid)).expect("each place has its `mid`");
            if nth >= most || (nth >= too_many && self.in_window(known.at)) {
                (of.oldest, of.oldest_at) = (known.position, known.at);
                break;
            }
            forgotten.push((order, mid));
        }
        of.count -= forgotten.len() as u64;
        for (order, mid) in forgotten {
            self.kv.delete(&order);
            self.kv.delete(&keys::mid(user, &mid));
        }
    }

    /// Users with `mid`s past their window, among the next `look` after one; and the one to go on after, if there are more.
    pub fn users_with_old_mids(&self, after: Option<&User>, look: usize) -> (Vec<User>, Option<User>) {
        let prefix = Key::new(Table::MidsOf).done();
        let from = after.map(keys::mids_of);
        let from = from.as_deref().map_or(Bound::Included(prefix.as_slice()), Bound::Excluded);
        let (mut old, mut last, mut seen) = (Vec::new(), None, 0);
        for (key, value) in self.kv.scan_from(&prefix, from).take(look) {
            seen += 1;
            let Some(user) = keys::last_text(&prefix, &key).and_then(User::new) else { continue };
            if !self.in_window(decode::<MidsOf>(&value).oldest_at) {
                old.push(user.clone());
            }
            last = Some(user);
        }
        (old, last.filter(|_| seen == look))
    }

    /// In the order in which they came. It begins at the oldest, because what was forgotten a moment ago may still be in
    /// the way.
    fn mids_from(&self, user: &User, oldest: Position) -> impl Iterator<Item = (Vec<u8>, String)> {
        let (prefix, from) = (keys::mid_order_prefix(user), keys::mid_order(user, oldest));
        self.kv.scan_from(&prefix, Bound::Included(&from)).map(|(order, mid)| (order.to_vec(), decode(&mid)))
    }

    fn in_window(&self, at: Stamp) -> bool {
        at.saturating_add(self.limits.mid_window_ms) >= self.clock
    }
}

/// 64-bit FNV-1a. Here and not from a library, because its result is stored: it may never change. A collision that a
/// client makes on purpose swallows that client's own message and no other.
pub(super) fn content_hash(ns: &Namespace, room: &Room, text: &str) -> u64 {
    let parts = [ns.as_str(), "\0", room.as_str(), "\0", text];
    parts
        .iter()
        .flat_map(|part| part.bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}
