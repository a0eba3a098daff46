//! One file: written by one pass over the pairs, read by another.

use std::{
    fs::File,
    io::{self, BufReader, Read, Write},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::rows::{PART_BYTES, Rows, read_rows};
use crate::{
    base::Point,
    codec::{self, BODY_BYTES_MAX, HEADER_BYTES, Kind},
    disk,
    error::{Error, Result},
    kv::Sum,
    wire::WireLogId,
};

/// Parts after which what was written is synced: a file that is synced at once at its end holds up the log's disk.
const SYNC_PARTS: usize = 16;

/// One part of a file. Stored: only ever add.
#[derive(Serialize, Deserialize)]
enum Part {
    Header(Point),
    Rows(Bytes),
    End { pairs: u64, hash: u128 },
}

/// Writes the pairs of a point, which come in key order, and syncs them.
///
/// # Errors
/// `Refused` when the pairs do not add up to what the point says, and whatever stands in place of a pair. `Unavailable` when there
/// is no room.
pub fn write<B: AsRef<[u8]>>(aside: &Path, pairs: impl Iterator<Item = Result<(B, B)>>, point: &Point) -> Result<()> {
    let io = |e| unwritten("write", aside, &e);
    let mut out = File::create(aside).map_err(io)?;
    write_part(&mut out, &Part::Header(point.clone()), aside)?;
    let (mut rows, mut sum, mut parts) = (Rows::default(), Sum::default(), 0);
    for pair in pairs {
        let (key, value) = pair?;
        let (key, value) = (key.as_ref(), value.as_ref());
        sum.add(key, value);
        rows.push(key, value);
        if rows.bytes() >= PART_BYTES {
            write_part(&mut out, &Part::Rows(rows.take()), aside)?;
            parts += 1;
            if parts % SYNC_PARTS == 0 {
                out.sync_data().map_err(io)?;
            }
        }
    }
    if sum != point.sum() {
        return Err(Error::refused(format!("{} pairs do not add up to its hash", sum.pairs)));
    }
    write_part(&mut out, &Part::Rows(rows.take()), aside)?;
    write_part(&mut out, &Part::End { pairs: sum.pairs, hash: sum.hash }, aside)?;
    out.sync_all().map_err(io)
}

/// Of a file that nothing rests on yet: for want of room there will be none for now, and anything else is final.
pub fn unwritten(what: &str, aside: &Path, error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Error::unavailable(format!("there is no room for the snapshot {}: {error}", aside.display()))
        }
        _ => disk::failed(what, aside, error),
    }
}

/// A file being read, of which the header was.
pub struct Reading {
    input: BufReader<File>,
    path: PathBuf,
    point: Point,
}

impl Reading {
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| disk::failed("open", path, &e))?;
        let mut input = BufReader::new(file);
        match read_part(&mut input, path)? {
            Part::Header(point) => Ok(Self { input, path: path.to_path_buf(), point }),
            _ => Err(Error::refused(format!("{} is damaged: no header", path.display()))),
        }
    }

    /// What it says that it holds.
    pub fn point(&self) -> &Point {
        &self.point
    }

    /// Hands on all pairs, in key order. Only after the last one is it known that the file was whole.
    ///
    /// # Errors
    /// `Refused` when it is not, and whatever `each` says.
    pub fn for_each(mut self, mut each: impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
        let path = self.path.clone();
        let damaged = |what: &str| Error::refused(format!("{} is damaged: {what}", path.display()));
        let (mut sum, mut before) = (Sum::default(), None::<Vec<u8>>);
        let end = loop {
            match read_part(&mut self.input, &self.path)? {
                Part::Rows(rows) => read_rows(&rows, |key, value| {
                    if before.as_deref().is_some_and(|before| before >= key) {
                        return Err(damaged("keys are out of order"));
                    }
                    let before = before.get_or_insert_default();
                    before.clear();
                    before.extend_from_slice(key);
                    sum.add(key, value);
                    each(key, value)
                })
                .map_err(|e| e.unwrap_or_else(|| damaged("a row is cut")))?,
                Part::End { pairs, hash } => break Sum { pairs, hash },
                Part::Header(_) => return Err(damaged("two headers")),
            }
        };
        if sum != end || self.input.bytes().next().is_some() {
            return Err(damaged("its end does not match"));
        }
        match sum == self.point.sum() {
            true => Ok(()),
            false => Err(damaged("it does not add up to its hash")),
        }
    }
}

/// Reads the whole file, which has to be of that point.
///
/// # Errors
/// `Refused` when it is damaged, or of another point.
pub fn check(path: &Path, last: Option<WireLogId>) -> Result<()> {
    let reading = Reading::open(path)?;
    if reading.point().applied != last {
        return Err(Error::refused("the snapshot is of another point than its offer said"));
    }
    reading.for_each(|_, _| Ok(()))
}

fn write_part(out: &mut impl Write, part: &Part, path: &Path) -> Result<()> {
    let bytes = codec::encode(Kind::Snapshot, part)?;
    let length = (bytes.len() as u32).to_be_bytes();
    out.write_all(&length).and_then(|()| out.write_all(&bytes)).map_err(|e| unwritten("write", path, &e))
}

fn read_part(input: &mut impl Read, path: &Path) -> Result<Part> {
    let io = |e: io::Error| Error::refused(format!("{} is damaged: {e}", path.display()));
    let mut length = [0; 4];
    input.read_exact(&mut length).map_err(io)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > BODY_BYTES_MAX + HEADER_BYTES {
        return Err(Error::refused(format!("{} is damaged: a part of {length} bytes", path.display())));
    }
    let mut bytes = vec![0; length];
    input.read_exact(&mut bytes).map_err(io)?;
    codec::decode(Kind::Snapshot, &bytes)
}
