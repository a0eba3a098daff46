//! Sessions whose time is over, a slice at a time.
//!
//! With a node tens of thousands of sessions can end at one moment. Proposed all at once they were one batch, so one entry, and all
//! else waited while it was applied. So the next slice is proposed when the one before was applied; what others propose
//! comes in between.

use crate::{
    command::{Command, Holder},
    propose::{Pending, Ticket},
};

/// Sessions in one `Expire`.
pub const SLICE: usize = 1000;

#[derive(Default)]
pub struct Expiry {
    due: Vec<Holder>,
    pending: Pending,
}

impl Expiry {
    /// Whether nothing is left of what was due when it began.
    pub fn is_over(&self) -> bool {
        self.due.is_empty() && self.pending.is_none()
    }

    pub fn begin(&mut self, due: Vec<Holder>) {
        self.due = due;
    }

    /// The next slice, if none is on its way. One that fails is found anew when all others are through.
    pub fn next(&mut self) -> Option<(Command, Ticket)> {
        if self.due.is_empty() || !self.pending.is_none() {
            return None;
        }
        let slice = self.due.split_off(self.due.len().saturating_sub(SLICE));
        Some((Command::Expire(slice), self.pending.ticket()))
    }

    /// Waits until a slice was applied, or failed.
    pub async fn landed(&self) {
        self.pending.answered().await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::{command::Sid, error::Error};

    #[test]
    fn the_next_slice_follows_when_the_one_before_was_applied_or_failed() {
        let holder = |n: u8| Holder { sid: Sid::from_random([n; 16]), generation: 1 };
        let mut expiry = Expiry::default();
        expiry.begin((0..2 * SLICE + 1).map(|n| holder(n as u8)).collect());
        let mut sizes = Vec::new();
        while let Some((command, ticket)) = expiry.next() {
            let Command::Expire(slice) = command else { panic!("{command:?}") };
            sizes.push(slice.len());
            assert!(expiry.next().is_none() && !expiry.is_over(), "one is on its way");
            assert!(expiry.landed().now_or_never().is_none());
            match sizes.len() {
                1 => ticket.answer(Err(Error::unavailable("no quorum"))),
                _ => drop(ticket),
            }
            assert!(expiry.landed().now_or_never().is_some(), "nobody waits for a tick");
        }
        assert_eq!(sizes, [SLICE, SLICE, 1]);
        assert!(expiry.is_over());
    }
}
