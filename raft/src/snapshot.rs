//! Snapshot files: the whole state at one point of the log, as Raft sends it to a node that is too far behind.
//!
//! ```text
//! [header envelope] [chunk envelope] … [end envelope]      each behind its length in four bytes, big-endian
//! ```
//!
//! A chunk holds about a megabyte of pairs; the end says how many there were and what they add up to. A file is written
//! aside, synced, renamed and its folder synced, so that one with the right name is whole; it is verified all the same
//! before a node believes it. Nothing but one chunk of it is in memory at a time, beside the state itself.

use std::{
    fs::{self, File},
    io::{BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    base::Point,
    codec::{self, BODY_BYTES_MAX, HEADER_BYTES, Kind},
    disk,
    error::{Error, Result},
    state::State,
};

/// Bytes of pairs after which a chunk is closed.
const CHUNK_BYTES: usize = 1 << 20;
/// Files that are kept: the newest, and the one before it in case the newest is damaged.
const KEPT: usize = 2;

/// One part of a file. Stored: only ever add.
#[derive(Serialize, Deserialize)]
enum Part {
    Header(Point),
    Pairs(Vec<(Vec<u8>, Vec<u8>)>),
    End { pairs: u64 },
}

/// The folder of a node's snapshots.
#[derive(Clone, Debug)]
pub struct Snapshots {
    dir: PathBuf,
}

impl Snapshots {
    pub fn open(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).map_err(|e| disk::failed("create", dir, &e))?;
        Ok(Self { dir: dir.to_path_buf() })
    }

    /// Where files that are still being received or written belong.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes the state as a file and returns its path.
    pub fn write(&self, state: &State, point: &Point) -> Result<PathBuf> {
        let path = self.path_of(point);
        let aside = path.with_extension("tmp");
        let write = || -> Result<()> {
            let io = |e| disk::failed("write", &aside, &e);
            let mut out = BufWriter::new(File::create(&aside).map_err(io)?);
            write_part(&mut out, &Part::Header(point.clone()), &aside)?;
            let (mut chunk, mut bytes, mut pairs) = (Vec::new(), 0, 0);
            for (key, value) in state.pairs() {
                bytes += key.len() + value.len();
                pairs += 1;
                chunk.push((key.to_vec(), value.to_vec()));
                if bytes >= CHUNK_BYTES {
                    write_part(&mut out, &Part::Pairs(std::mem::take(&mut chunk)), &aside)?;
                    bytes = 0;
                }
            }
            write_part(&mut out, &Part::Pairs(chunk), &aside)?;
            write_part(&mut out, &Part::End { pairs }, &aside)?;
            out.into_inner().map_err(|e| io(e.into_error()))?.sync_all().map_err(io)?;
            fs::rename(&aside, &path).map_err(|e| disk::failed("rename", &aside, &e))
        };
        write()?;
        disk::sync_parent(&path)?;
        self.keep_newest();
        Ok(path)
    }

    /// Takes a received file in, after it was read and found whole.
    pub fn adopt(&self, received: &Path, point: &Point) -> Result<PathBuf> {
        let path = self.path_of(point);
        fs::rename(received, &path).map_err(|e| disk::failed("rename", received, &e))?;
        disk::sync_parent(&path)?;
        self.keep_newest();
        Ok(path)
    }

    /// The newest file that is whole, with its contents.
    pub fn newest(&self) -> Option<(PathBuf, State, Point)> {
        self.paths().into_iter().rev().find_map(|path| match read(&path) {
            Ok((state, point)) => Some((path, state, point)),
            Err(e) => {
                tracing::error!("the snapshot is not usable: {e}");
                None
            }
        })
    }

    /// The newest file and its header alone.
    pub fn newest_header(&self) -> Option<(PathBuf, Point)> {
        self.paths().into_iter().rev().find_map(|path| {
            let mut file = File::open(&path).ok()?;
            match read_part(&mut file, &path) {
                Ok(Part::Header(point)) => Some((path, point)),
                _ => None,
            }
        })
    }

    fn path_of(&self, point: &Point) -> PathBuf {
        let (index, term) = point.applied.map_or((0, 0), |id| (id.index, id.term));
        self.dir.join(format!("snap-{index:020}-{term:020}.moim"))
    }

    /// Finished files, oldest first.
    fn paths(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(&self.dir).into_iter().flatten().flatten().map(|file| file.path());
        let mut paths: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|e| e == "moim")).collect();
        paths.sort_unstable();
        paths
    }

    fn keep_newest(&self) {
        let paths = self.paths();
        for path in &paths[..paths.len().saturating_sub(KEPT)] {
            // It may still be on its way to a peer; an open file outlives its name.
            _ = fs::remove_file(path);
        }
    }
}

/// Reads and verifies a file.
pub fn read(path: &Path) -> Result<(State, Point)> {
    let file = File::open(path).map_err(|e| disk::failed("open", path, &e))?;
    let mut input = BufReader::new(file);
    let damaged = |what: &str| Error::refused(format!("{} is damaged: {what}", path.display()));
    let Part::Header(point) = read_part(&mut input, path)? else { return Err(damaged("no header")) };
    let mut pairs = Vec::new();
    let count = loop {
        match read_part(&mut input, path)? {
            Part::Pairs(more) => pairs.extend(more),
            Part::End { pairs } => break pairs,
            Part::Header(_) => return Err(damaged("two headers")),
        }
    };
    if count != pairs.len() as u64 || input.bytes().next().is_some() {
        return Err(damaged("its end does not match"));
    }
    let state = State::load(pairs);
    match state.hash() == point.hash {
        true => Ok((state, point)),
        false => Err(damaged("it does not add up to its hash")),
    }
}

fn write_part(out: &mut impl Write, part: &Part, path: &Path) -> Result<()> {
    let bytes = codec::encode(Kind::Snapshot, part)?;
    let length = (bytes.len() as u32).to_be_bytes();
    out.write_all(&length).and_then(|()| out.write_all(&bytes)).map_err(|e| disk::failed("write", path, &e))
}

fn read_part(input: &mut impl Read, path: &Path) -> Result<Part> {
    let io = |e: std::io::Error| Error::refused(format!("{} is damaged: {e}", path.display()));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{WireMembership, WireStoredMembership};

    fn sample() -> (State, Point) {
        let state = State::load((0..2000_u32).map(|n| (n.to_be_bytes().to_vec(), vec![7; 1000])));
        let membership = WireMembership { voters: vec![], nodes: vec![] };
        let point =
            Point { applied: None, membership: WireStoredMembership { id: None, membership }, hash: state.hash() };
        (state, point)
    }

    #[test]
    fn a_snapshot_reads_back_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let (state, point) = sample();
        let path = Snapshots::open(dir.path()).unwrap().write(&state, &point).unwrap();
        let (again, read_point) = read(&path).unwrap();
        assert_eq!((again.hash(), read_point), (state.hash(), point));
        assert!(again.pairs().eq(state.pairs()));
    }

    #[test]
    fn a_damaged_or_cut_snapshot_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (state, point) = sample();
        let path = Snapshots::open(dir.path()).unwrap().write(&state, &point).unwrap();
        let whole = fs::read(&path).unwrap();
        for at in (0..whole.len()).step_by(whole.len() / 50) {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(&path, &damaged).unwrap();
            assert!(read(&path).is_err(), "byte {at}");
            fs::write(&path, &whole[..at]).unwrap();
            assert!(read(&path).is_err(), "cut at {at}");
        }
        fs::write(&path, [&whole[..], &[0]].concat()).unwrap();
        assert!(read(&path).is_err(), "a byte too many");
    }
}
