//! Going round a table for what grows old where nothing happens any more.
//!
//! Each step looks at some rows and goes on behind them at the next; behind the last it begins anew, as each new leader does. What
//! it finds is proposed, and the next step waits until that was applied or has failed: a cluster that is busy is
//! not given more to do. So a round takes a second for each 2,000 rows, and longer where much is old.

use crate::propose::{Pending, Ticket};

/// Rows that are looked at under the state's lock at a time, and named by one command.
pub const SLICE: usize = 100;
/// In one step, of which there are ten a second.
const SLICES: usize = 2;

/// By what names a row.
pub struct Round<T> {
    after: Option<T>,
    pending: Pending,
}

impl<T> Default for Round<T> {
    fn default() -> Self {
        Self { after: None, pending: Pending::default() }
    }
}

impl<T> Round<T> {
    /// One step. `look` says which of the next [`SLICE`] rows after one are old, and after which to go on.
    pub fn step(&mut self, look: impl Fn(Option<&T>) -> (Vec<T>, Option<T>), propose: impl Fn(Vec<T>, Ticket)) {
        if !self.pending.is_none() {
            return;
        }
        for _ in 0..SLICES {
            let (old, next) = look(self.after.as_ref());
            self.after = next;
            if !old.is_empty() {
                propose(old, self.pending.ticket());
            }
            if self.after.is_none() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// Rows 0 to 549, of which every second is old.
    fn look(after: Option<&usize>) -> (Vec<usize>, Option<usize>) {
        let rows = after.map_or(0, |after| after + 1)..550;
        let next = rows.start + SLICE - 1;
        (rows.take(SLICE).filter(|row| row % 2 == 0).collect(), Some(next).filter(|next| *next < 550))
    }

    #[test]
    fn it_goes_on_where_it_was_when_what_it_found_was_applied_and_begins_anew_behind_the_last() {
        let (mut round, proposed) = (Round::default(), RefCell::new(Vec::new()));
        let mut step = || {
            round.step(look, |old, ticket| proposed.borrow_mut().push((old, ticket)));
            proposed.borrow().iter().map(|(old, _)| old[0]).collect::<Vec<_>>()
        };
        assert_eq!(step(), [0, 100]);
        assert_eq!(step(), [0, 100], "they are on their way");
        proposed.borrow_mut().pop();
        assert_eq!(step(), [0], "one still is");
        for first in [vec![200, 300], vec![400, 500], vec![0, 100]] {
            proposed.borrow_mut().clear();
            assert_eq!(step(), first);
        }
    }

    #[test]
    fn what_finds_nothing_goes_on_at_the_next_step() {
        let (mut round, looked) = (Round::default(), RefCell::new(Vec::new()));
        let nothing = |after: Option<&usize>| {
            looked.borrow_mut().push(after.copied());
            (Vec::new(), look(after).1)
        };
        for _ in 0..4 {
            round.step(nothing, |_, _| panic!("nothing was found"));
        }
        assert_eq!(looked.into_inner(), [None, Some(99), Some(199), Some(299), Some(399), Some(499), None, Some(99)]);
    }
}
