//! Reading sled, from whichever thread owns the handle: it is `Send` but not `Sync`, so each holder has a clone.

use std::{
    fmt, io,
    ops::Bound,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
    sync::Arc,
};

use super::{
    Health,
    generation::{self, Db, POINT, Rows},
};
use crate::kv::Range;

/// Bytes as sled hands them out: shared, not copied.
pub type Stored = sled::InlineArray;

/// The pairs of the last checkpoint.
pub struct Reader {
    db: Db,
    path: Arc<Path>,
    health: Health,
}

impl Reader {
    pub(super) fn new(db: Db, path: &Path, health: &Health) -> Self {
        Self { db, path: path.into(), health: health.clone() }
    }

    pub fn get(&self, key: &[u8]) -> Option<Stored> {
        self.sound(|| self.db.get(key))
    }

    /// Pairs in key order, or in falling key order.
    pub fn rows(&self, range: Range<'_>, back: bool) -> impl Iterator<Item = (Stored, Stored)> + use<'_> {
        let from = match range.0 {
            Bound::Included(from) | Bound::Excluded(from) if from > POINT => range.0,
            _ => Bound::Excluded(POINT),
        };
        // Forward, sled looks for keys below the end of a range until the end of the tree. So it is not told of it.
        let end = |to: &[u8]| Stored::from(to);
        let (told, end) = match range.1 {
            to if back => (to, Bound::Unbounded),
            to => (Bound::Unbounded, to.map(end)),
        };
        let mut rows: Rows = self.db.range::<&[u8], Range<'_>>((from, told));
        let next = move || self.sound(|| if back { rows.next_back() } else { rows.next() }.transpose());
        std::iter::from_fn(next).take_while(move |(key, _)| match &end {
            Bound::Included(to) => key <= to,
            Bound::Excluded(to) => key < to,
            Bound::Unbounded => true,
        })
    }

    /// Whoever reads cannot go on without an answer, and a wrong one would fork the state: damage ends the reader, and by
    /// way of [`Health`] the node.
    fn sound<T>(&self, read: impl FnOnce() -> io::Result<T>) -> T {
        let what = match self.health.reading.within(|| catch_unwind(AssertUnwindSafe(read))) {
            Ok(Ok(found)) => return found,
            Ok(Err(e)) => generation::reason(&e),
            Err(_) => "sled panicked".to_owned(),
        };
        self.health.damaged(&self.path, &what);
        // That was the line for the operator; a panic like any other would add one of its own, with a backtrace.
        resume_unwind(Box::new(what));
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reader({})", self.path.display())
    }
}
