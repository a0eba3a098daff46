//! Since when, and why, a session that goes on here was without a transport.
//!
//! The log says it when the loss was recorded. When a node dies it cannot record any, and is declared down only seconds
//! later: then its last sign of life counts, as this node saw it. A node that has just started may have seen none: it
//! takes such a session for one that was taken over.

use std::time::{Duration, Instant};

use moim_raft::state::Session;

use super::Chat;
use crate::{metrics::Cause, seat::Seat};

/// A longer silence of a node that the log still counts as live is taken for its death. Nodes ask each other for the time
/// every other second.
const SILENCE: Duration = Duration::from_secs(3);

/// A session without a transport.
#[derive(Clone, Copy, Debug)]
pub struct Away {
    pub since: Instant,
    pub cause: Cause,
}

impl Chat {
    /// `before` is the session as it was before it was resumed; `came` is when the client did.
    pub(super) fn away(&self, seat: &Seat, before: &Session, came: Instant) -> Away {
        let (over, draining) = self.store.read(|state| {
            let draining = state.drain().is_some_and(|held| held.node == before.node);
            (!state.is_live(before.node, before.incarnation), draining)
        });
        let recorded = seat.gap.map(|gap| seat.made - gap);
        let died = self.last_sign(before, over);
        match (recorded, died) {
            // A loss that was recorded was recorded by a node that lived.
            (Some(since), _) if before.lost_at.is_some() || !over => {
                Away { since, cause: if draining { Cause::Drain } else { Cause::Lost } }
            }
            (Some(since), died) => Away { since: died.map_or(since, |died| died.min(since)), cause: Cause::Killed },
            (None, Some(since)) => Away { since, cause: Cause::Killed },
            (None, None) => Away { since: came, cause: Cause::Takeover },
        }
    }

    /// When the node that a session was on gave its last sign of life, if it seems to be dead.
    fn last_sign(&self, session: &Session, over: bool) -> Option<Instant> {
        let signs = self.store.signs(session.node);
        let ago = match (signs.heard, signs.gone) {
            // It is back: what ended then was the old process.
            (Some(heard), Some(gone)) if over && heard < gone => gone,
            (Some(_), Some(gone)) if signs.is_gone() => gone,
            (Some(heard), _) if over || heard >= SILENCE => heard,
            _ => return None,
        };
        Instant::now().checked_sub(ago).filter(|_| session.node != self.store.node())
    }
}
