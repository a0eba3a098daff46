//! A new directory of sled, filled with the pairs of a snapshot.
//!
//! What always holds: its memory does not grow with the snapshot. Nobody reads it yet, so it can be flushed, and closed and
//! opened again, whenever that helps.

use std::path::{Path, PathBuf};

use super::{
    Generation,
    generation::{self, BATCH_PAIRS, Db, POINT, open_db},
};
use crate::{
    codec::{self, Kind},
    error::{Error, Result},
    snapshot::Reading,
};

/// Bytes of pairs after which it flushes: that much is in memory twice.
const FLUSH_BYTES: usize = 16 << 20;
/// And after which it is opened anew: sled lets go of a leaf that it has read, but never of one that it has written.
const REOPEN_BYTES: usize = 128 << 20;

/// Verified and on disk; a failure leaves half of it. Calls `step` as it gets on.
pub fn fill(path: &Path, reading: Reading, step: impl Fn()) -> Result<Generation> {
    let point = reading.point().clone();
    let mut filling = Filling::new(path)?;
    reading.for_each(|key, value| {
        if key.first().is_none_or(|table| *table == POINT[0]) {
            return Err(Error::refused("a snapshot with a key of no table"));
        }
        if filling.push(key, value)? {
            step();
        }
        Ok(())
    })?;
    filling.batch.insert(POINT, codec::encode(Kind::Meta, &point)?);
    let (db, path) = filling.finish()?;
    Ok(Generation { db, path, point: Some(point) })
}

struct Filling {
    /// `None` only while it is being opened anew.
    db: Option<Db>,
    path: PathBuf,
    batch: sled::Batch,
    pairs: usize,
    /// Bytes since the last flush, and since it was opened.
    unflushed: usize,
    held: usize,
}

impl Filling {
    fn new(path: &Path) -> Result<Self> {
        let db = Some(open_db(path)?);
        Ok(Self { db, path: path.to_path_buf(), batch: sled::Batch::default(), pairs: 0, unflushed: 0, held: 0 })
    }

    /// Whether a batch was full and went.
    fn push(&mut self, key: &[u8], value: &[u8]) -> Result<bool> {
        self.batch.insert(key, value);
        let bytes = key.len() + value.len();
        (self.pairs, self.unflushed, self.held) = (self.pairs + 1, self.unflushed + bytes, self.held + bytes);
        let full = self.pairs == BATCH_PAIRS || self.unflushed >= FLUSH_BYTES;
        if full {
            self.apply()?;
        }
        if self.unflushed >= FLUSH_BYTES {
            self.flush()?;
        }
        if self.held >= REOPEN_BYTES {
            self.reopen()?;
        }
        Ok(full)
    }

    fn finish(mut self) -> Result<(Db, PathBuf)> {
        self.apply()?;
        self.flush()?;
        self.db.map(|db| (db, self.path)).ok_or_else(gone)
    }

    fn apply(&mut self) -> Result<()> {
        let batch = std::mem::take(&mut self.batch);
        self.pairs = 0;
        let db = self.db.as_ref().ok_or_else(gone)?;
        db.apply_batch(batch).map_err(|e| self.failed(&e))
    }

    fn flush(&mut self) -> Result<()> {
        self.unflushed = 0;
        let db = self.db.as_ref().ok_or_else(gone)?;
        db.flush().map(|_| ()).map_err(|e| self.failed(&e))
    }

    fn reopen(&mut self) -> Result<()> {
        self.apply()?;
        self.flush()?;
        self.held = 0;
        // It holds a lock on its files.
        self.db = None;
        self.db = Some(open_db(&self.path)?);
        Ok(())
    }

    fn failed(&self, error: &std::io::Error) -> Error {
        generation::failed("write", &self.path, error)
    }
}

fn gone() -> Error {
    Error::fatal("the files of a checkpoint were not opened again")
}
