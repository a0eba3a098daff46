//! The `mid`s that make a retry harmless: the same one again is answered with the place and time of the first.
//!
//! What always holds: a user's `mid`s are forgotten in the order in which they came, past their window or their number; each place
//! in that order has its `mid`, and each `mid` its place.

use std::ops::Bound;

use serde::{Deserialize, Serialize};

use super::{State, decode};
use crate::{
    command::{Namespace, Position, Room, Stamp, User},
    keys,
};

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
        if of.count == 0 || (too_many == 0 && self.in_window(of.oldest_at)) {
            return;
        }
        let mut forgotten = Vec::new();
        for (nth, (order, mid)) in (0..).zip(self.mids_from(user, of.oldest)) {
            let known: Mid = self.get(&keys::mid(user, &mid)).expect("each place has its `mid`");
            if nth >= too_many && self.in_window(known.at) {
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
