//! Records, and the frame that each one sits in.
//!
//! ```text
//! [u32 length of body][u8 kind][u32 crc32 of body][u32 crc32 of salt, offset and these nine bytes][body]
//! ```
//!
//! Integers are big-endian. The header has a checksum of its own, so a damaged length is damage and not a long record.
//! It covers where the record was written, the random salt of its file and the offset: what a file system leaves in a tail
//! after a power cut, or a client puts into a message, is never taken for a record.

use std::{borrow::Cow, fmt};

use crate::error::{Error, Result};

/// Bytes in front of each body.
pub const HEADER_BYTES: usize = 13;
/// A longer body is neither written nor believed. One body of [`crate::codec`] fits, with the index in front of it.
pub const BODY_BYTES_MAX: usize = crate::codec::BODY_BYTES_MAX + 1024;
/// The kind of the empty record in front of each group; see [`super`].
pub const GROUP: u8 = 1;

const ENTRY: u8 = 2;
const VOTE: u8 = 3;
const TRUNCATE: u8 = 4;
const PURGE: u8 = 5;
const COMMITTED: u8 = 6;

/// One step in the life of the log. Bodies are the caller's, opaque here; indexes are not, for the file must know which
/// segments are still needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// The entry at `index`, which is the log's next.
    Entry { index: u64, body: Cow<'a, [u8]> },
    /// The vote; the last one counts.
    Vote(Cow<'a, [u8]>),
    /// Entries from `next` on are gone; `next` is the next to be written.
    Truncate { next: u64 },
    /// Entries below `first` are no longer needed. `body` says more about the last of them; the last record counts.
    Purge { first: u64, body: Cow<'a, [u8]> },
    /// How far the log was known to be committed; the last one counts. It never causes a sync of its own.
    Committed(Cow<'a, [u8]>),
}

impl<'a> Record<'a> {
    /// Bytes that it takes in a file, header included.
    pub fn bytes(&self) -> usize {
        HEADER_BYTES
            + match self {
                Self::Entry { body, .. } | Self::Purge { body, .. } => 8 + body.len(),
                Self::Truncate { .. } => 8,
                Self::Vote(body) | Self::Committed(body) => body.len(),
            }
    }

    /// Appends its frame to `out`, the bytes that will be written at `start`.
    pub fn frame(&self, out: &mut Vec<u8>, start: Spot) {
        match self {
            Self::Entry { index, body } => frame(out, start, ENTRY, &index.to_be_bytes(), body),
            Self::Vote(body) => frame(out, start, VOTE, body, &[]),
            Self::Truncate { next } => frame(out, start, TRUNCATE, &next.to_be_bytes(), &[]),
            Self::Purge { first, body } => frame(out, start, PURGE, &first.to_be_bytes(), body),
            Self::Committed(body) => frame(out, start, COMMITTED, body, &[]),
        }
    }

    /// The same, owing nothing to what it was read from.
    pub fn to_owned(&self) -> Record<'static> {
        let body = |body: &Cow<'a, [u8]>| Cow::Owned(body.to_vec());
        match self {
            Self::Entry { index, body: entry } => Record::Entry { index: *index, body: body(entry) },
            Self::Vote(vote) => Record::Vote(body(vote)),
            Self::Truncate { next } => Record::Truncate { next: *next },
            Self::Purge { first, body: last } => Record::Purge { first: *first, body: body(last) },
            Self::Committed(committed) => Record::Committed(body(committed)),
        }
    }

    /// The record of a frame that was found whole; `None` for the one in front of a group.
    pub fn read(kind: u8, body: &'a [u8]) -> Result<Option<Self>> {
        let number = || match body.split_first_chunk::<8>() {
            Some((number, rest)) => Ok((u64::from_be_bytes(*number), Cow::Borrowed(rest))),
            None => Err(Error::refused(format!("a record of kind {kind} is too short"))),
        };
        Ok(Some(match kind {
            GROUP => return Ok(None),
            ENTRY => number().map(|(index, body)| Self::Entry { index, body })?,
            VOTE => Self::Vote(body.into()),
            TRUNCATE => number().map(|(next, _)| Self::Truncate { next })?,
            PURGE => number().map(|(first, body)| Self::Purge { first, body })?,
            COMMITTED => Self::Committed(body.into()),
            _ => return Err(Error::refused(format!("a record of kind {kind}, which only a later version knows"))),
        }))
    }
}

/// Where a record is written: the salt of its file, and the offset there.
#[derive(Clone, Copy, Debug)]
pub struct Spot {
    pub salt: u64,
    pub offset: u64,
}

impl Spot {
    pub fn plus(self, bytes: usize) -> Self {
        Self { offset: self.offset + bytes as u64, ..self }
    }
}

/// A byte of the log: the number of a segment and an offset in its file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub segment: u64,
    pub offset: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "segment {} byte {}", self.segment, self.offset)
    }
}

/// Appends the empty record that a group starts with.
pub fn frame_group(out: &mut Vec<u8>, start: Spot) {
    frame(out, start, GROUP, &[], &[]);
}

/// `out` holds what will be written from `start` on, so its length says where this record will lie.
fn frame(out: &mut Vec<u8>, start: Spot, kind: u8, head: &[u8], body: &[u8]) {
    let spot = start.plus(out.len());
    let mut crc = crc32fast::Hasher::new();
    crc.update(head);
    crc.update(body);
    let mut header = [0; 9];
    header[..4].copy_from_slice(&((head.len() + body.len()) as u32).to_be_bytes());
    header[4] = kind;
    header[5..].copy_from_slice(&crc.finalize().to_be_bytes());
    out.extend(header);
    out.extend(header_crc(spot, &header).to_be_bytes());
    out.extend(head);
    out.extend(body);
}

fn header_crc(spot: Spot, header: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&spot.salt.to_be_bytes());
    crc.update(&spot.offset.to_be_bytes());
    crc.update(header);
    crc.finalize()
}

/// Kind and body of the frame that `bytes` start with, or `None` if no whole one was written at `spot`.
pub fn parse(bytes: &[u8], spot: Spot) -> Option<(u8, &[u8])> {
    let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>()?;
    let u32_at = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if u32_at(9) != header_crc(spot, &header[..9]) {
        return None;
    }
    let body = rest.get(..u32_at(0) as usize)?;
    (crc32fast::hash(body) == u32_at(5)).then_some((header[4], body))
}

/// Is there a group's first record in `bytes`, which start at `spot`? The cheap test of five fixed bytes comes first.
pub fn holds_group(bytes: &[u8], spot: Spot) -> bool {
    bytes
        .windows(HEADER_BYTES)
        .enumerate()
        .any(|(at, header)| header[..5] == [0, 0, 0, 0, GROUP] && parse(header, spot.plus(at)).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPOT: Spot = Spot { salt: 3, offset: 4711 };

    #[test]
    fn a_record_is_read_only_where_it_was_written() {
        let records = [
            Record::Entry { index: 7, body: b"body".into() },
            Record::Vote(b"vote".into()),
            Record::Truncate { next: 5 },
            Record::Purge { first: 4, body: b"id".into() },
            Record::Committed(b"".into()),
        ];
        for record in records {
            let mut out = Vec::new();
            record.frame(&mut out, SPOT);
            assert_eq!(out.len(), record.bytes());
            let (kind, body) = parse(&out, SPOT).unwrap();
            assert_eq!(Record::read(kind, body).unwrap(), Some(record));
            assert_eq!(parse(&out, Spot { salt: 4, ..SPOT }), None);
            assert_eq!(parse(&out, SPOT.plus(1)), None);
            for bit in 0..out.len() * 8 {
                let mut damaged = out.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(parse(&damaged, SPOT), None, "bit {bit}");
            }
        }
    }

    #[test]
    fn a_group_is_found_wherever_it_starts() {
        let mut out = Vec::new();
        frame(&mut out, SPOT, VOTE, b"some vote", &[]);
        assert!(!holds_group(&out, SPOT));
        frame_group(&mut out, SPOT);
        assert!(holds_group(&out, SPOT));
        assert!(!holds_group(&out[1..], SPOT), "written elsewhere");
    }
}
