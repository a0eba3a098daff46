//! Proves in the background that what a start believed adds up, a slice at a time, while checkpoints go on.
//!
//! Pairs are read in key order and summed up. A checkpoint changes the sum for the keys that were read already, and the
//! rest are read later as they are then. So at the end the sum is that of the latest point, whenever that is.

use std::time::{Duration, Instant};

use super::generation::{self, Generation};
use crate::{
    error::{Error, Result},
    kv::Sum,
};

/// Pairs that are read at a time.
const SLICE_PAIRS: usize = 4096;
/// Of the thread's time, one part in so many.
const SHARE: u32 = 4;

pub struct Verify {
    sum: Sum,
    /// All keys before this one are in the sum.
    next: Vec<u8>,
    pub pause: Duration,
}

impl Verify {
    pub fn new() -> Self {
        Self { sum: Sum::default(), next: Vec::new(), pause: Duration::ZERO }
    }

    /// Before a change reaches sled.
    pub fn note(&mut self, on: &Generation, key: &[u8], value: Option<&[u8]>) -> Result<()> {
        if *key >= *self.next {
            return Ok(());
        }
        if let Some(old) = on.db.get(key).map_err(|e| generation::failed("read", &on.path, &e))? {
            self.sum.remove(key, &old);
        }
        if let Some(value) = value {
            self.sum.add(key, value);
        }
        Ok(())
    }

    /// Reads the next slice; true at the end, when it adds up.
    ///
    /// # Errors
    /// `Refused` when it does not.
    pub fn step(&mut self, on: &Generation) -> Result<bool> {
        let began = Instant::now();
        let mut rows = if self.next.is_empty() { on.rows() } else { on.rows_from(&self.next) };
        for _ in 0..SLICE_PAIRS {
            let Some((key, value)) = rows.next().transpose().map_err(|e| Error::refused(generation::reason(&e)))?
            else {
                return self.end(on);
            };
            self.sum.add(&key, &value);
            self.next.clear();
            self.next.extend_from_slice(&key);
            // The least key behind it.
            self.next.push(0);
        }
        self.pause = began.elapsed() * (SHARE - 1);
        Ok(false)
    }

    fn end(&self, on: &Generation) -> Result<bool> {
        let expected = on.point.as_ref().map(super::Point::sum).unwrap_or_default();
        match self.sum == expected {
            true => Ok(true),
            false => Err(Error::refused(format!("{} pairs do not add up to its hash", self.sum.pairs))),
        }
    }
}
