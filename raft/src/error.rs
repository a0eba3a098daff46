//! Errors, by what the caller should do.
//!
//! A command that the state refuses is not an error: its refusal is a [`crate::command::Reply`], the same on every node.

use std::{fmt, io};

/// Why the store could not do what it was asked.
#[derive(Clone, Debug)]
pub enum Error {
    /// Nothing was started, or its outcome is unknown. Trying again later can help.
    Unavailable(String),
    /// Asked for in a way that can never work: a wrong flag, a foreign folder, a damaged file. The text says what to do.
    Refused(String),
    /// The node can no longer keep its promises and has to stop: a failed write or sync, a state that does not add up.
    Fatal(String),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn unavailable(why: impl fmt::Display) -> Self {
        Self::Unavailable(why.to_string())
    }

    pub fn refused(why: impl fmt::Display) -> Self {
        Self::Refused(why.to_string())
    }

    /// The reason alone.
    pub fn why(&self) -> &str {
        match self {
            Self::Unavailable(why) | Self::Refused(why) | Self::Fatal(why) => why,
        }
    }

    pub fn fatal(why: impl fmt::Display) -> Self {
        Self::Fatal(why.to_string())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable(why) => write!(f, "unavailable: {why}"),
            Self::Refused(why) => write!(f, "refused: {why}"),
            Self::Fatal(why) => write!(f, "fatal: {why}"),
        }
    }
}

impl std::error::Error for Error {}

/// Storage traits of openraft speak `io::Error`; any of them is final for the node.
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        io::Error::other(error.to_string())
    }
}
