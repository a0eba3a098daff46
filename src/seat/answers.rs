//! The answers to one socket's commands, in the order in which these were begun.
//!
//! Commands that are played are answered in that order by themselves. A refusal is not: it may be known while earlier
//! commands are still on their way (they left, then the leader went). So it waits here for its turn. An answer of the player
//! never waits: when the player comes to a command, all earlier ones of its socket have been played or refused.

use std::collections::VecDeque;

/// A place for each command that is begun and not answered. Bounded by whoever begins them.
pub struct Answers<T> {
    /// The number of the first place.
    first: u64,
    places: VecDeque<Option<T>>,
}

impl<T> Default for Answers<T> {
    fn default() -> Self {
        Self { first: 0, places: VecDeque::new() }
    }
}

impl<T> Answers<T> {
    /// The number of a new place, behind all others.
    pub fn begin(&mut self) -> u64 {
        self.places.push_back(None);
        self.first + self.places.len() as u64 - 1
    }

    /// Puts an answer in its place, and gives out those whose turn has come with it.
    pub fn put(&mut self, number: u64, answer: T) -> Vec<T> {
        let place = number.checked_sub(self.first).and_then(|nth| self.places.get_mut(nth as usize));
        if let Some(place) = place {
            *place = Some(answer);
        }
        let mut due = Vec::new();
        while let Some(Some(_)) = self.places.front() {
            due.extend(self.places.pop_front().flatten());
            self.first += 1;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_early_answer_waits_for_those_before_it() {
        let mut answers = Answers::default();
        let [one, two, three] = [(); 3].map(|()| answers.begin());
        assert!(answers.put(two, "refused").is_empty());
        assert_eq!(answers.put(one, "played"), ["played", "refused"]);
        assert_eq!(answers.put(three, "played"), ["played"]);
        let four = answers.begin();
        assert_eq!(answers.put(four, "played"), ["played"]);
        assert!(answers.put(one, "twice").is_empty());
    }
}
