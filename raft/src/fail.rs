//! Named points at which a test makes this process die, or its disk fail: one line where it matters,
//! `fail::point("log-after-write")?`. Without the feature `failpoints`, which no server is built with, nothing of it is
//! left.
//!
//! Why not the crate `fail`: a point here needs one thing only, to do something at the n-th time, and `fail` can neither
//! abort nor give an I/O error without a closure at each place.

#[cfg(feature = "failpoints")]
pub use armed::{POINTS, arm};

#[cfg(feature = "failpoints")]
pub(crate) use armed::{io, point};

/// Does what a test has armed here, if it has.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub(crate) fn point(_: &'static str) -> crate::Result<()> {
    Ok(())
}

/// The same, where it matters what error of the disk it is.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub(crate) fn io(_: &'static str) -> std::io::Result<()> {
    Ok(())
}

#[cfg(feature = "failpoints")]
mod armed {
    use std::{
        collections::HashMap,
        io,
        sync::{Mutex, PoisonError},
    };

    use crate::error::{Error, Result};

    /// All points there are. `-before-` and `-after-` say on which side of what they are named after they lie.
    pub const POINTS: [&str; 13] = [
        "log-before-write",
        "log-after-write",
        "log-after-sync",
        "vote-before-save",
        "vote-after-save",
        "checkpoint-before-batch",
        "checkpoint-after-flush",
        "snapshot-before-rename",
        "snapshot-after-rename",
        "install-before-current",
        "install-after-current",
        "purge",
        "peer-send",
    ];

    type Act = Box<dyn FnOnce() -> io::Result<()> + Send>;

    static ARMED: Mutex<Option<HashMap<&str, (u64, Act)>>> = Mutex::new(None);

    /// Does `act` when this process comes to `name` for the `nth` time from now on (1: the next), once.
    ///
    /// # Panics
    /// When there is no such point.
    pub fn arm(name: &str, nth: u64, act: impl FnOnce() -> io::Result<()> + Send + 'static) {
        let known = POINTS.into_iter().find(|known| *known == name).expect("a known point");
        let mut armed = ARMED.lock().unwrap_or_else(PoisonError::into_inner);
        armed.get_or_insert_default().insert(known, (nth.max(1), Box::new(act)));
    }

    /// Does what a test has armed here, if it has.
    pub(crate) fn point(name: &'static str) -> Result<()> {
        io(name).map_err(|e| Error::fatal(format!("{name}: {e}")))
    }

    /// The same, where it matters what error of the disk it is.
    pub(crate) fn io(name: &'static str) -> io::Result<()> {
        debug_assert!(POINTS.contains(&name), "{name} is not in the list");
        let mut armed = ARMED.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((left, _)) = armed.as_mut().and_then(|armed| armed.get_mut(name)) else { return Ok(()) };
        *left -= 1;
        if *left > 0 {
            return Ok(());
        }
        let due = armed.as_mut().and_then(|armed| armed.remove(name));
        drop(armed);
        due.map_or(Ok(()), |(_, act)| act())
    }
}
