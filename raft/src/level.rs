//! Levels: what every node of a cluster understands.
//!
//! A level names a set of commands and of the bytes that carry them. A program knows a range of levels; each node announces
//! its range in every handshake and with every start. The cluster is at one level, which is part of the state:
//!
//! ```text
//! all members, learners included, have announced it ─▶ leader proposes SetLevel(n) ─▶ applied: commands of level n may be proposed
//! ```
//!
//! What always holds:
//! - A command of a higher level than the cluster's is not proposed. So until a level is set, every node can go back to the
//!   version that it ran before.
//! - The level never falls. A node that does not know it is refused by its peers, and stops where it meets it in its own log:
//!   to skip a command that it does not understand would fork the state.
//! - A level may also change what an older command does. `apply` asks the state's level for that, so that all nodes change in
//!   the same place of the log.
//!
//! | level | what came with it |
//! | --- | --- |
//! | 1 | what every version has known |
//! | 2 | a session may be taken over more often before that is a quarrel; `ForgetMids`; `Undrain`; it is said in a handshake which process a node is |
//!
//! This is apart from the version of the peer protocol ([`crate::net::handshake::VERSIONS`]), which two nodes settle between
//! themselves for each connection.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A step in what can be replicated.
pub type Level = u16;

/// What every version has known. Its commands may be proposed before a level was ever set.
pub const FIRST: Level = 1;
/// See the table above.
pub const SECOND: Level = 2;

/// A range of levels, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Levels {
    pub min: Level,
    pub max: Level,
}

/// What this program knows.
pub const KNOWN: Levels = Levels { min: FIRST, max: SECOND };

impl Default for Levels {
    fn default() -> Self {
        KNOWN
    }
}

impl Levels {
    pub fn contains(self, level: Level) -> bool {
        (self.min..=self.max).contains(&level)
    }

    /// Refuses a level that this range does not contain, in words for whoever runs `who`.
    pub fn check(self, level: Level, who: &str) -> Result<()> {
        let Self { min, max } = self;
        if level > max {
            return Err(Error::refused(format!(
                "the cluster is at level {level}, but {who} knows levels {min} to {max} only: it needs a newer version of moim, \
                 on the same data folder; nothing in it is lost"
            )));
        }
        if level < min {
            return Err(Error::refused(format!(
                "the cluster is at level {level}, which {who} does not know any more (levels {min} to {max}): it needs a \
                 version in between, and so do all other nodes, before this one"
            )));
        }
        Ok(())
    }
}

/// The level that a cluster can be at, given what each of its members has announced; `None` while one of them has announced
/// nothing yet, or there is no level that all know.
pub fn common(announced: impl IntoIterator<Item = Option<Levels>>) -> Option<Level> {
    let announced: Vec<Levels> = announced.into_iter().collect::<Option<_>>()?;
    let level = announced.iter().map(|levels| levels.max).min()?;
    announced.iter().all(|levels| levels.contains(level)).then_some(level)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn levels(min: Level, max: Level) -> Option<Levels> {
        Some(Levels { min, max })
    }

    #[test]
    fn the_common_level_is_the_highest_that_all_have_announced() {
        assert_eq!(common([levels(1, 1), levels(1, 2), levels(1, 3)]), Some(1));
        assert_eq!(common([levels(1, 3), levels(2, 3)]), Some(3));
        assert_eq!(common([levels(1, 3), None]), None, "a learner that has not started yet");
        assert_eq!(common([levels(1, 1), levels(2, 3)]), None, "no level that both know");
        assert_eq!(common([]), None);
    }

    #[test]
    fn a_level_outside_of_the_range_is_refused_with_what_to_do() {
        let range = Levels { min: 2, max: 3 };
        assert!(range.check(2, "n1").is_ok() && range.check(3, "n1").is_ok());
        let why = |level| range.check(level, "n1").unwrap_err().to_string();
        assert!(why(4).contains("n1 knows levels 2 to 3 only: it needs a newer version"), "{}", why(4));
        assert!(why(1).contains("does not know any more") && why(1).contains("a version in between"), "{}", why(1));
    }
}
