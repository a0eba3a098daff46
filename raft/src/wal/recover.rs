//! Reading a log back, and telling an ordinary crash from damage.
//!
//! A crash can only hurt what was not synced: the last group of the last segment, or a segment whose making it cut
//! short. Everything else that is not as it was written is damage, and refused: see [`super`] for the list.

use std::{
    fs::{self, File, OpenOptions},
    io::Read,
    os::unix::fs::FileExt,
    path::Path,
};

use super::{
    mark::Mark,
    record::{self, Place, Record},
    refuse,
    segment::{self, Header},
    state::State,
};
use crate::error::{Error, Result};

/// A log that was found whole and synced up to `end`.
pub struct Recovered {
    pub mark: Mark,
    pub state: State,
    /// The last segment: its header, and its file, where the next record goes. `None` if there is no segment, or none to go on with
    /// because a crash tore its tail: then a new one has to be made. (Bytes of the old tail can come back after a power
    /// cut. They are never valid in another segment.)
    pub open: Option<(Header, File)>,
    pub end: Place,
}

/// Reads the log in `dir`, one segment at a time, handing every record to `visit` in order, with where it lies. Removes what an interrupted start or end of a
/// segment has left, and cuts off a torn tail. Writes the end of the log again and syncs it, for the bytes it has just vouched
/// for may still be in memory only: left there by a killed process, or by a sync that failed.
pub fn recover(dir: &Path, mut visit: impl FnMut(Record<'_>, Place) -> Result<()>) -> Result<Recovered> {
    let mut numbers = list(dir)?;
    let mark = Mark::open(dir, numbers.is_empty())?;
    if drop_unfinished(dir, &numbers, mark.at())? {
        numbers.pop();
    }
    let run = numbers.split_off(newest_run(&numbers));
    let Some(&last) = run.last() else {
        return match mark.at() {
            Place { segment: 0, .. } => {
                Ok(Recovered { mark, state: State::default(), open: None, end: Place::default() })
            }
            at => refuse(dir, format!("it was synced to {at}, but there is no segment")),
        };
    };
    if !run.contains(&mark.at().segment) && mark.at().segment != 0 {
        return refuse(dir, format!("it was synced to {}, but that segment is missing", mark.at()));
    }

    let mut state = None;
    let mut end = Place::default();
    let mut open = None;
    // One buffer for all: fresh memory for each file would cost as much as reading it.
    let mut bytes = Vec::new();
    for number in run {
        read(dir, number, &mut bytes)?;
        let Some(header) = Header::decode(&bytes, number)? else {
            return refuse(dir, format!("the header of segment {number} is damaged"));
        };
        let state = state.get_or_insert_with(|| State::from_span(header.span));
        check_follows(dir, end, &header, state)?;
        state.begin(number);
        let offset = segment::scan(&bytes, &header, dir, |record, offset| {
            state.apply(&record)?;
            visit(record, Place { segment: number, offset })
        })?;
        end = Place { segment: number, offset: offset as u64 };
        // Zeros were never a group: none of it can come back after a power cut.
        let torn = bytes[offset..].iter().any(|byte| *byte != 0);
        open = (!torn).then_some(header);
        if number == last {
            check_tail(dir, &bytes[offset..], torn, &header, end, mark.at())?;
        } else if torn {
            return refuse(dir, format!("{end} is damaged"));
        }
        state.segments.back_mut().expect("begun above").bytes = end.offset;
    }
    let state = state.expect("a run has a last segment");
    if !state.is_complete() {
        return refuse(
            dir,
            format!("its oldest file is segment {}, earlier ones are missing", state.segments[0].number),
        );
    }
    let file = settle(dir, &bytes, mark.at(), end).map_err(|e| Error::fatal(format!("cannot settle {end}: {e}")))?;
    remove(dir, &numbers)?;
    Ok(Recovered { mark, state, open: open.map(|header| (header, file)), end })
}

fn list(dir: &Path) -> Result<Vec<u64>> {
    segment::list(dir).map_err(|e| Error::fatal(format!("cannot list {}: {e}", dir.display())))
}

fn read(dir: &Path, number: u64, bytes: &mut Vec<u8>) -> Result<()> {
    bytes.clear();
    let read = File::open(segment::path(dir, number)).and_then(|mut file| file.read_to_end(bytes));
    read.map(|_| ()).map_err(|e| Error::fatal(format!("cannot read segment {number}: {e}")))
}

/// A crash while a segment was being made can leave it without a whole header. Nothing was ever promised on such a
/// file: the mark reaches a segment before its first group is written.
fn drop_unfinished(dir: &Path, numbers: &[u64], mark: Place) -> Result<bool> {
    let Some(&last) = numbers.last() else { return Ok(false) };
    if mark.segment >= last || segment::header(dir, last)?.is_some() {
        return Ok(false);
    }
    remove(dir, &[last])?;
    Ok(true)
}

/// Where the newest run of segments without a gap starts. Files are removed oldest first, but a power cut may undo the
/// removal of some and not of others: those before a gap are not needed, or the run after it will be found incomplete.
fn newest_run(numbers: &[u64]) -> usize {
    let gap = numbers.windows(2).rposition(|pair| pair[0] + 1 != pair[1]);
    gap.map_or(0, |at| at + 1)
}

/// `end` is where the segment before was found to end; segment 0 if it was not read.
fn check_follows(dir: &Path, end: Place, header: &Header, state: &State) -> Result<()> {
    if end.segment != 0 && end.offset != header.before {
        return refuse(dir, format!("it ends at {end}, but {} bytes were synced there", header.before));
    }
    if end.segment != 0 && state.span != header.span {
        return refuse(dir, format!("segment {} does not continue segment {}", header.number, end.segment));
    }
    Ok(())
}

/// `tail` is what follows the last whole record, which ends at `end`; `torn` when it is not all zeros.
fn check_tail(dir: &Path, tail: &[u8], torn: bool, header: &Header, end: Place, mark: Place) -> Result<()> {
    if end < mark {
        return refuse(dir, format!("it is whole only to {end}, but it was synced to {mark}"));
    }
    if record::holds_group(tail, header.spot(end.offset)) {
        return refuse(dir, format!("{end} is damaged, and later records say that it was synced"));
    }
    if torn {
        tracing::warn!("log: dropping {} bytes that a crash has left unfinished at {end}", tail.len());
    }
    Ok(())
}

/// Ends the file of the last segment, which begins with `bytes`, at `end`, and makes sure that it is on the disk.
///
/// What lies behind the mark is written once more: after a sync that has failed the kernel may keep the pages as if they were
/// on the disk, and the next sync succeeds without writing them.
fn settle(dir: &Path, bytes: &[u8], mark: Place, end: Place) -> std::io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).open(segment::path(dir, end.segment))?;
    let synced = if mark.segment == end.segment { mark.offset } else { 0 };
    file.write_all_at(&bytes[synced as usize..end.offset as usize], synced)?;
    file.set_len(end.offset)?;
    file.sync_all()?;
    segment::sync_dir(dir)?;
    Ok(file)
}

fn remove(dir: &Path, numbers: &[u64]) -> Result<()> {
    for number in numbers {
        tracing::warn!("log: removing segment {number}, which is no longer, or not yet, part of the log");
        fs::remove_file(segment::path(dir, *number))
            .map_err(|e| Error::fatal(format!("cannot remove segment {number}: {e}")))?;
    }
    if numbers.is_empty() {
        return Ok(());
    }
    segment::sync_dir(dir).map_err(|e| Error::fatal(format!("cannot sync {}: {e}", dir.display())))
}
