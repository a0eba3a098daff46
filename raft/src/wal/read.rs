//! Reading records back that nobody holds in memory any more.
//!
//! Each is verified again, against the checksum that covers its place too: what a disk gives back in the place of a record
//! is never taken for it.

use std::{fs::File, os::unix::fs::FileExt, path::Path};

use super::{
    record::{self, Place, Record},
    segment,
};
use crate::error::{Error, Result};

/// Bytes that are fetched at once, if they lie together; a longer record is fetched alone.
const WINDOW_BYTES: u64 = 1 << 20;

/// A record that was written, and how many bytes it takes with its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub place: Place,
    pub bytes: u64,
}

impl Extent {
    fn end(&self) -> u64 {
        self.place.offset + self.bytes
    }
}

/// Reads the records at `extents`, in that order, through `decode`. Blocks.
///
/// # Errors
/// `Fatal` if one is not what was written there, or the file cannot be read; also the error of `decode`.
pub fn read<T>(dir: &Path, extents: &[Extent], mut decode: impl FnMut(Record<'_>) -> Result<T>) -> Result<Vec<T>> {
    let mut out = Vec::with_capacity(extents.len());
    let mut bytes = Vec::new();
    for in_segment in extents.chunk_by(|a, b| a.place.segment == b.place.segment) {
        let number = in_segment[0].place.segment;
        let lost = |what: String| Error::fatal(format!("the log in {} cannot be read back: {what}", dir.display()));
        let Some(header) = segment::header(dir, number)? else {
            return Err(lost(format!("the header of segment {number} is damaged")));
        };
        let file = File::open(segment::path(dir, number)).map_err(|e| lost(format!("segment {number}: {e}")))?;
        let mut rest = in_segment;
        while !rest.is_empty() {
            let window;
            (window, rest) = rest.split_at(window_of(rest));
            let (start, end) = (window[0].place.offset, window[window.len() - 1].end());
            bytes.resize((end - start) as usize, 0);
            file.read_exact_at(&mut bytes, start).map_err(|e| lost(format!("{}: {e}", window[0].place)))?;
            for extent in window {
                let at = &bytes[(extent.place.offset - start) as usize..(extent.end() - start) as usize];
                let found = record::parse(at, header.spot(extent.place.offset));
                let found = found.filter(|(_, body)| record::HEADER_BYTES + body.len() == at.len());
                let Some((kind, body)) = found else {
                    return Err(lost(format!("{} is damaged", extent.place)));
                };
                let record = Record::read(kind, body)?.ok_or_else(|| lost(format!("{} is no entry", extent.place)))?;
                out.push(decode(record)?);
            }
        }
    }
    Ok(out)
}

/// How many of `extents`, all of one segment, are fetched at once: at least one.
fn window_of(extents: &[Extent]) -> usize {
    let start = extents[0].place.offset;
    let near = |extent: &&Extent| extent.place.offset >= start && extent.end() - start <= WINDOW_BYTES;
    extents.iter().take_while(near).count().max(1)
}
