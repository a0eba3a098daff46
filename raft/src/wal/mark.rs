//! The low-water mark: a small file that says how far the log was synced at least.
//!
//! Two slots, written in turn and synced each time, so that one of them is always whole. A mark is written only after
//! what it speaks of was synced; it may lag behind the log, never run ahead of it. The open file also carries the lock
//! that keeps a second process away.
//!
//! ```text
//! slot at 0 and at 4096: [u64 turn][u64 segment][u64 offset][u32 crc32 of these]      integers big-endian
//! ```

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::Path,
};

use super::{record::Place, refuse};
use crate::error::{Error, Result};

const NAME: &str = "mark";
const SLOT_BYTES: usize = 28;
/// Slots never share a block of the disk.
const SLOT_STRIDE: u64 = 4096;

pub struct Mark {
    file: File,
    turn: u64,
    at: Place,
}

impl Mark {
    /// Opens the mark in `dir` and locks it. Where there is no log yet (`fresh`) it may be made; otherwise it must be
    /// there and readable, for without it nobody can say whether the log is whole.
    pub fn open(dir: &Path, fresh: bool) -> Result<Self> {
        let path = dir.join(NAME);
        let opened = OpenOptions::new().read(true).write(true).create(fresh).truncate(false).open(&path);
        let file = match opened {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return refuse(dir, "the mark is missing"),
            other => other.map_err(|e| Error::fatal(format!("cannot open {}: {e}", path.display())))?,
        };
        if file.try_lock().is_err() {
            return Err(Error::refused(format!("{} is in use by another process", dir.display())));
        }
        match newest(&file) {
            Some((turn, at)) => Ok(Self { file, turn, at }),
            None if fresh => Ok(Self { file, turn: 0, at: Place::default() }),
            None => refuse(dir, "the mark is damaged"),
        }
    }

    /// Everything before this place was synced; segment 0 when there never was a log.
    pub fn at(&self) -> Place {
        self.at
    }

    /// Moves the mark to `at`, which must have been synced, and syncs it.
    pub fn set(&mut self, at: Place) -> io::Result<()> {
        if at == self.at && self.turn > 0 {
            return Ok(());
        }
        self.turn += 1;
        self.at = at;
        let mut slot = Vec::with_capacity(SLOT_BYTES);
        [self.turn, at.segment, at.offset].iter().for_each(|number| slot.extend(number.to_be_bytes()));
        slot.extend(crc32fast::hash(&slot).to_be_bytes());
        self.file.write_all_at(&slot, self.turn % 2 * SLOT_STRIDE)?;
        self.file.sync_data()
    }
}

/// The whole slot with the highest turn.
fn newest(file: &File) -> Option<(u64, Place)> {
    (0..2).filter_map(|slot| read(file, slot * SLOT_STRIDE)).max()
}

fn read(file: &File, offset: u64) -> Option<(u64, Place)> {
    let mut slot = [0; SLOT_BYTES];
    file.read_exact_at(&mut slot, offset).ok()?;
    let (numbers, crc) = slot.split_last_chunk::<4>()?;
    let number = |at: usize| numbers[at * 8..].first_chunk().map(|bytes| u64::from_be_bytes(*bytes));
    let whole = crc32fast::hash(numbers) == u32::from_be_bytes(*crc);
    whole.then_some((number(0)?, Place { segment: number(1)?, offset: number(2)? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_slot_leaves_the_one_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let place = |offset| Place { segment: 1, offset };
        let mut mark = Mark::open(dir.path(), true).unwrap();
        mark.set(place(10)).unwrap();
        mark.set(place(20)).unwrap();
        assert!(Mark::open(dir.path(), false).is_err(), "locked");
        let torn = mark.turn % 2 * SLOT_STRIDE;
        mark.file.write_all_at(b"torn", torn).unwrap();
        drop(mark);
        let mark = Mark::open(dir.path(), false).unwrap();
        assert_eq!(mark.at(), place(10));
        mark.file.set_len(0).unwrap();
        drop(mark);
        assert!(Mark::open(dir.path(), false).is_err(), "damaged");
    }
}
