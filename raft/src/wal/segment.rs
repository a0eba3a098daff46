//! Files of a log: their names, their headers, and how one is read from end to end.
//!
//! ```text
//! [8 bytes "moim-wal"][u32 format][u64 number][u64 end of the segment before][u64 first][u64 next][u64 salt]
//! [u32 crc32 of these]
//! ```
//!
//! Integers are big-endian. Numbers count from 1 without a gap. `first..next` are the indexes that the log held when
//! the segment was made, so that a missing earlier file shows. The salt is random: see [`super::record`].

use std::{
    fs::{self, File, OpenOptions},
    hash::{BuildHasher, RandomState},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::{
    record::{self, Place, Record, Spot},
    state::{Carry, Span},
};
use crate::error::{Error, Result};

const MAGIC: &[u8; 8] = b"moim-wal";
const FORMAT: u32 = 1;
/// Bytes of a segment's header.
pub const HEADER_BYTES: usize = 56;

/// What a segment says about itself and its predecessor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub number: u64,
    /// Bytes of the segment before this one, all of them synced; 0 for the first ever.
    pub before: u64,
    pub span: Span,
    pub salt: u64,
}

impl Header {
    /// Of a segment that follows the place `end`.
    pub fn after(end: Place, span: Span) -> Self {
        // The hasher's keys are the standard library's random numbers.
        let salt = RandomState::new().hash_one(end.segment);
        Self { number: end.segment + 1, before: end.offset, span, salt }
    }

    /// Where a record at `offset` of this segment is written.
    pub fn spot(&self, offset: u64) -> Spot {
        Spot { salt: self.salt, offset }
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::from(MAGIC);
        out.extend(FORMAT.to_be_bytes());
        let numbers = [self.number, self.before, self.span.first, self.span.next, self.salt];
        numbers.iter().for_each(|number| out.extend(number.to_be_bytes()));
        out.extend(crc32fast::hash(&out).to_be_bytes());
        out
    }

    /// `None` if it is damaged or the header of another segment; an error if another version wrote it.
    pub fn decode(bytes: &[u8], number: u64) -> Result<Option<Self>> {
        let Some((header, _)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let u32_at = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) << 32 | u64::from(u32_at(at + 4));
        if !header.starts_with(MAGIC) || u32_at(52) != crc32fast::hash(&header[..52]) || u64_at(12) != number {
            return Ok(None);
        }
        match u32_at(8) {
            FORMAT => {
                let span = Span { first: u64_at(28), next: u64_at(36) };
                Ok(Some(Self { number, before: u64_at(20), span, salt: u64_at(44) }))
            }
            other => {
                Err(Error::refused(format!("segment {number} has format {other}, which only a later version knows")))
            }
        }
    }
}

pub fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016}.wal"))
}

/// The header of a segment's file; `None` if the file does not start with a whole one of that number.
pub fn header(dir: &Path, number: u64) -> Result<Option<Header>> {
    let mut start = [0; HEADER_BYTES];
    match File::open(path(dir, number)).and_then(|file| file.read_exact_at(&mut start, 0)) {
        Ok(()) => Header::decode(&start, number),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(e) => Err(Error::fatal(format!("cannot read segment {number}: {e}"))),
    }
}

/// The numbers of all segments in `dir`, in order. Files of other names are left alone.
pub fn list(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for file in fs::read_dir(dir)? {
        let name = file?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".wal")).and_then(|stem| stem.parse().ok());
        numbers.extend(number.filter(|number| path(dir, *number).file_name() == Some(&name)));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Makes a segment: its header, then the state that must outlive its predecessors. File and folder are synced before
/// it returns. Gives the file and its length.
pub fn create(dir: &Path, header: &Header, carry: &Carry) -> io::Result<(File, u64)> {
    let mut bytes = header.encode();
    carry.records().for_each(|record| record.frame(&mut bytes, header.spot(0)));
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path(dir, header.number))?;
    file.write_all_at(&bytes, 0)?;
    file.sync_all()?;
    sync_dir(dir)?;
    Ok((file, bytes.len() as u64))
}

/// Makes files that were created in or removed from `dir` stay so.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Hands every record to `visit` with the offset where it lies, in order. Gives the offset where the next record would be: the length of the file, or
/// where the first one lies that is not whole.
pub fn scan(
    bytes: &[u8],
    header: &Header,
    dir: &Path,
    mut visit: impl FnMut(Record<'_>, u64) -> Result<()>,
) -> Result<usize> {
    let mut offset = HEADER_BYTES;
    while let Some((kind, body)) = record::parse(&bytes[offset..], header.spot(offset as u64)) {
        let read =
            Record::read(kind, body).and_then(|record| record.map_or(Ok(()), |record| visit(record, offset as u64)));
        if let Err(Error::Refused(why)) = read {
            let place = Place { segment: header.number, offset: offset as u64 };
            return Err(Error::refused(format!(
                "the log in {} is whole at {place}, but this version cannot take it: {why}. Start the version that wrote it",
                dir.display()
            )));
        }
        read?;
        offset += record::HEADER_BYTES + body.len();
    }
    Ok(offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_only_under_its_own_number_and_format() {
        let header = Header::after(Place { segment: 6, offset: 812 }, Span { first: 3, next: 9 });
        let mut bytes = header.encode();
        assert_eq!(bytes.len(), HEADER_BYTES);
        assert_eq!(Header::decode(&bytes, 7).unwrap(), Some(header));
        assert_eq!(Header::decode(&bytes, 8).unwrap(), None);
        assert_eq!(Header::decode(&bytes[1..], 7).unwrap(), None);
        bytes[11] += 1;
        assert_eq!(Header::decode(&bytes, 7).unwrap(), None, "damaged");
        let crc = crc32fast::hash(&bytes[..52]).to_be_bytes();
        bytes[52..].copy_from_slice(&crc);
        assert!(Header::decode(&bytes, 7).is_err(), "of a later version");
    }

    #[test]
    fn only_segments_are_listed() {
        let dir = tempfile::tempdir().unwrap();
        for name in
            ["0000000000000012.wal", "0000000000000002.wal", "3.wal", "x.wal", "mark", "0000000000000004.wal.old"]
        {
            fs::write(dir.path().join(name), b"").unwrap();
        }
        assert_eq!(list(dir.path()).unwrap(), [2, 12]);
    }
}
