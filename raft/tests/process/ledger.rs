//! What the nodes said, and whether what they hold keeps those words.
//!
//! An acknowledged write has to be on every node, once, at the place that was said. A refused one must not be there. One of
//! an unknown outcome may be there or not; there, it is there once. The writes of a proposer are in the order in which it
//! made them. No term has two leaders.

use std::collections::{BTreeMap, BTreeSet};

/// A write: who made it, and its number.
type Write = (String, u64);

#[derive(Default)]
pub struct Ledger {
    /// With the position that was said.
    acked: BTreeMap<Write, u64>,
    refused: BTreeSet<Write>,
    pub unknown: usize,
    leaders: BTreeMap<u64, BTreeSet<u64>>,
    /// What nodes said before they ended by themselves, by node.
    pub fatal: Vec<(usize, String)>,
    /// Of these all callers had an answer then.
    pub answered: Vec<usize>,
    /// Fail points that nodes came to.
    pub hits: Vec<(usize, String)>,
    /// Lines that no run should have.
    odd: Vec<String>,
}

impl Ledger {
    /// Takes in a line that node `i` said unasked.
    pub fn hear(&mut self, i: usize, line: &str) {
        let mut words = line.splitn(4, ' ');
        let (word, who) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let numbers: Vec<u64> = words.filter_map(|word| word.parse().ok()).collect();
        match (word, &numbers[..]) {
            ("ack", [n, position]) => {
                if self.acked.insert((who.to_owned(), *n), *position).is_some() {
                    self.odd.push(format!("node {i}, twice: {line}"));
                }
            }
            ("refused", [n]) => _ = self.refused.insert((who.to_owned(), *n)),
            ("unknown", [_]) => self.unknown += 1,
            ("term", [leader]) => _ = self.leaders.entry(who.parse().unwrap()).or_default().insert(*leader),
            ("fatal", _) => self.fatal.push((i, line.to_owned())),
            ("hit", _) => self.hits.push((i, who.to_owned())),
            ("answered", _) => self.answered.push(i),
            _ => self.odd.push(format!("node {i}: {line}")),
        }
    }

    pub fn acked(&self) -> usize {
        self.acked.len()
    }

    pub fn terms(&self) -> usize {
        self.leaders.len()
    }

    /// Everything that `dump`, what one node holds, does not keep of what was said; empty when it keeps all.
    pub fn violations(&self, dump: &str) -> Vec<String> {
        let mut wrong = self.odd.clone();
        let two = self.leaders.iter().filter(|(_, leaders)| leaders.len() > 1);
        wrong.extend(two.map(|(term, leaders)| format!("term {term} had the leaders {leaders:?}")));
        let mut held: BTreeMap<Write, u64> = BTreeMap::new();
        let mut last: BTreeMap<String, u64> = BTreeMap::new();
        for line in dump.lines() {
            let mut words = line.split(' ');
            let (Some(who), Some(position), Some(n)) = (words.next(), words.next(), words.next()) else { continue };
            let (Ok(position), Ok(n)) = (position.parse::<u64>(), n.parse::<u64>()) else { continue };
            if let Some(before) = held.insert((who.to_owned(), n), position) {
                wrong.push(format!("{who} {n} is there twice, at {before} and {position}"));
            }
            if last.insert(who.to_owned(), n).is_some_and(|before| before > n) {
                wrong.push(format!("{who} {n} comes after a later one"));
            }
        }
        for ((who, n), position) in &self.acked {
            match held.get(&(who.clone(), *n)) {
                None => wrong.push(format!("{who} {n}, acknowledged at {position}, is lost")),
                Some(at) if at != position => wrong.push(format!("{who} {n}, acknowledged at {position}, is at {at}")),
                Some(_) => {}
            }
        }
        let there = self.refused.iter().filter(|write| held.contains_key(write));
        wrong.extend(there.map(|(who, n)| format!("{who} {n} was refused and is there")));
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(lines: &[&str]) -> Ledger {
        let mut ledger = Ledger::default();
        lines.iter().for_each(|line| ledger.hear(0, line));
        ledger
    }

    #[test]
    fn what_was_said_is_kept() {
        let ledger = ledger(&["term 3 77", "ack a 0 10", "unknown a 1", "refused a 2", "ack a 3 12"]);
        assert_eq!(ledger.violations("a 10 0\na 12 3\n"), [""; 0]);
        assert_eq!(ledger.violations("a 10 0\na 11 1\na 12 3\nb 13 0\n"), [""; 0]);
        assert_eq!((ledger.acked(), ledger.unknown, ledger.terms()), (2, 1, 1));
    }

    #[test]
    fn each_violation_is_found() {
        let said = ledger(&["ack a 0 10", "refused a 1", "ack a 2 12"]);
        for (dump, what) in [
            ("a 10 0\n", "lost"),
            ("a 10 0\na 12 2\na 13 2\n", "twice"),
            ("a 10 0\na 13 2\n", "is at 13"),
            ("a 10 0\na 11 1\na 12 2\n", "was refused"),
            ("a 12 2\na 10 0\n", "after a later one"),
        ] {
            let wrong = said.violations(dump);
            assert!(wrong.iter().any(|wrong| wrong.contains(what)), "{what}: {wrong:?}");
        }
        assert!(!ledger(&["term 3 77", "term 3 78"]).violations("").is_empty(), "two leaders");
        assert!(!ledger(&["trouble a 3 why"]).violations("").is_empty());
    }
}
