//! Snapshot files: the whole state at one point of the log, as Raft sends it to a node that is too far behind.
//!
//! ```text
//! [header envelope] [rows envelope] … [end envelope]      each behind its length in four bytes, big-endian
//! row: shared, rest, [rest of the key], length, [value]   a key leaves out what it shares with the one before
//! ```
//!
//! Rows come about a megabyte at a time, in key order, each part with its checksum. The header says of which point it is
//! and what all pairs add up to, the end what was written. A file is written aside, synced, renamed and its folder synced,
//! so that one with the right name is whole; it is verified all the same before a node believes it. Neither side ever
//! holds more than one part of it in memory.

use std::{
    fs::{self, File},
    io::{self, BufReader, Read, Write},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    base::Point,
    codec::{self, BODY_BYTES_MAX, HEADER_BYTES, Kind},
    disk,
    error::{Error, Result},
    fail,
    kv::Sum,
    wire::WireLogId,
};

/// Bytes of rows after which a part is closed.
const PART_BYTES: usize = 1 << 20;
/// Parts after which what was written is synced: a file that is synced at once at its end holds up the log's disk.
const SYNC_PARTS: usize = 16;
/// Files that are kept: the newest, and the one before it in case the newest is damaged. The log reaches back to that one: see
/// `retention`.
const KEPT: usize = 2;
/// What a damaged one is called.
const ASIDE: &str = "damaged";

/// One part of a file. Stored: only ever add.
#[derive(Serialize, Deserialize)]
enum Part {
    Header(Point),
    Rows(Bytes),
    End { pairs: u64, hash: u128 },
}

/// The folder of a node's snapshots.
#[derive(Clone, Debug)]
pub struct Snapshots {
    dir: PathBuf,
}

impl Snapshots {
    pub fn open(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).map_err(|e| disk::failed("create", dir, &e))?;
        for cut_short in files(dir).filter(|path| path.extension().is_some_and(|e| e == "tmp")) {
            fs::remove_file(&cut_short).map_err(|e| disk::failed("remove", &cut_short, &e))?;
        }
        Ok(Self { dir: dir.to_path_buf() })
    }

    /// Where files that are still being received or written belong.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes the pairs of a point, which come in key order, as a file and returns its path.
    ///
    /// # Errors
    /// `Refused` when the pairs do not add up to what the point says, and whatever stands in place of a pair. `Unavailable`
    /// when there is no room: nothing of it is left then.
    pub fn write<B: AsRef<[u8]>>(&self, pairs: impl Iterator<Item = Result<(B, B)>>, point: &Point) -> Result<PathBuf> {
        let path = self.path_of(point);
        let aside = path.with_extension("tmp");
        let rename = || fail::io("snapshot-before-rename").and_then(|()| fs::rename(&aside, &path));
        let written =
            write_aside(&aside, pairs, point).and_then(|()| rename().map_err(|e| unwritten("rename", &aside, &e)));
        if written.is_err() {
            // What stays is overwritten by the next one of this point, or deleted at the next start.
            _ = fs::remove_file(&aside);
        }
        written?;
        fail::point("snapshot-after-rename")?;
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

    /// Keeps a damaged file under another name, and none of those before it.
    pub fn set_aside(&self, damaged: &Path) -> Result<()> {
        fs::rename(damaged, self.dir.join(ASIDE)).map_err(|e| disk::failed("move aside", damaged, &e))?;
        disk::sync_parent(damaged)
    }

    /// Finished files, the newest first.
    pub fn newest_first(&self) -> Vec<PathBuf> {
        let mut paths = self.paths();
        paths.reverse();
        paths
    }

    /// The newest file and its header alone.
    pub fn newest_header(&self) -> Option<(PathBuf, Point)> {
        self.headers().next()
    }

    /// Finished files and their headers, the newest first. One without a readable header is left out.
    pub fn headers(&self) -> impl Iterator<Item = (PathBuf, Point)> {
        self.newest_first().into_iter().filter_map(|path| {
            let point = Reading::open(&path).ok()?.point.clone();
            Some((path, point))
        })
    }

    fn path_of(&self, point: &Point) -> PathBuf {
        let (index, term) = point.applied.map_or((0, 0), |id| (id.index, id.term));
        self.dir.join(format!("snap-{index:020}-{term:020}.moim"))
    }

    /// Finished files, oldest first.
    fn paths(&self) -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> =
            files(&self.dir).filter(|path| path.extension().is_some_and(|e| e == "moim")).collect();
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

fn files(dir: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|file| file.path())
}

fn write_aside<B: AsRef<[u8]>>(aside: &Path, pairs: impl Iterator<Item = Result<(B, B)>>, point: &Point) -> Result<()> {
    let io = |e| unwritten("write", aside, &e);
    let mut out = File::create(aside).map_err(io)?;
    write_part(&mut out, &Part::Header(point.clone()), aside)?;
    let (mut rows, mut sum, mut parts) = (Rows::default(), Sum::default(), 0);
    for pair in pairs {
        let (key, value) = pair?;
        let (key, value) = (key.as_ref(), value.as_ref());
        sum.add(key, value);
        rows.push(key, value);
        if rows.bytes.len() >= PART_BYTES {
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
fn unwritten(what: &str, aside: &Path, error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Error::unavailable(format!("there is no room for the snapshot {}: {error}", aside.display()))
        }
        _ => disk::failed(what, aside, error),
    }
}

/// Rows being written, one behind the other.
#[derive(Default)]
struct Rows {
    bytes: Vec<u8>,
    last: Vec<u8>,
}

impl Rows {
    fn push(&mut self, key: &[u8], value: &[u8]) {
        let shared = self.last.iter().zip(key).take_while(|(a, b)| a == b).count();
        for number in [shared, key.len() - shared] {
            put_number(&mut self.bytes, number);
        }
        self.bytes.extend_from_slice(&key[shared..]);
        put_number(&mut self.bytes, value.len());
        self.bytes.extend_from_slice(value);
        self.last.truncate(shared);
        self.last.extend_from_slice(&key[shared..]);
    }

    /// The first key of a part is whole.
    fn take(&mut self) -> Bytes {
        self.last.clear();
        std::mem::replace(&mut self.bytes, Vec::with_capacity(PART_BYTES + (PART_BYTES >> 2))).into()
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

/// Hands on the rows of one part; `None` says that they are not rows.
fn read_rows(
    mut rows: &[u8],
    mut each: impl FnMut(&[u8], &[u8]) -> Result<()>,
) -> std::result::Result<(), Option<Error>> {
    let mut key = Vec::new();
    while !rows.is_empty() {
        let shared = take_number(&mut rows).filter(|shared| *shared <= key.len()).ok_or(None)?;
        key.truncate(shared);
        key.extend_from_slice(take_bytes(&mut rows).ok_or(None)?);
        each(&key, take_bytes(&mut rows).ok_or(None)?).map_err(Some)?;
    }
    Ok(())
}

/// Seven bits a byte, the lowest first.
fn put_number(to: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        to.push(number as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

fn take_number(from: &mut &[u8]) -> Option<usize> {
    let mut number = 0;
    for shift in (0..28).step_by(7) {
        let (&byte, rest) = from.split_first()?;
        *from = rest;
        number |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn take_bytes<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = take_number(from)?;
    let (bytes, rest) = from.split_at_checked(length)?;
    *from = rest;
    Some(bytes)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{WireMembership, WireStoredMembership};

    type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

    fn sample() -> (Pairs, Point) {
        let key =
            |n: u32| [&b"a prefix that all of them share "[..], &(n / 3).to_be_bytes(), &[(n % 3) as u8]].concat();
        let pairs: Pairs = (0..3000).map(|n| (key(n), vec![7; n as usize % 1500])).collect();
        let mut sum = Sum::default();
        pairs.iter().for_each(|(key, value)| sum.add(key, value));
        let membership =
            WireStoredMembership { id: None, membership: WireMembership { voters: vec![], nodes: vec![] } };
        (pairs, Point { applied: None, membership, hash: sum.hash, pairs: sum.pairs })
    }

    fn write(dir: &Path, pairs: &Pairs, point: &Point) -> Result<PathBuf> {
        Snapshots::open(dir)?.write(pairs.iter().map(Ok::<_, Error>).map(|pair| pair.map(|(k, v)| (k, v))), point)
    }

    fn read(path: &Path) -> Result<(Pairs, Point)> {
        let reading = Reading::open(path)?;
        let (mut pairs, point) = (Vec::new(), reading.point().clone());
        reading.for_each(|key, value| {
            pairs.push((key.to_vec(), value.to_vec()));
            Ok(())
        })?;
        Ok((pairs, point))
    }

    #[test]
    fn a_snapshot_reads_back_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let (pairs, point) = sample();
        let path = write(dir.path(), &pairs, &point).unwrap();
        assert!(fs::metadata(&path).unwrap().len() > 2 * PART_BYTES as u64, "it has several parts");
        assert_eq!(read(&path).unwrap(), (pairs, point));
    }

    #[test]
    fn a_damaged_or_cut_snapshot_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (pairs, point) = sample();
        let path = write(dir.path(), &pairs, &point).unwrap();
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

    #[test]
    fn a_damaged_snapshot_gives_way_to_one_of_its_point_or_moves_aside() {
        let dir = tempfile::tempdir().unwrap();
        let (pairs, point) = sample();
        let path = write(dir.path(), &pairs, &point).unwrap();
        fs::write(&path, b"damaged").unwrap();
        assert_eq!(write(dir.path(), &pairs, &point).unwrap(), path);
        assert_eq!(read(&path).unwrap(), (pairs, point));
        let snapshots = Snapshots::open(dir.path()).unwrap();
        snapshots.set_aside(&path).unwrap();
        assert!(snapshots.newest_header().is_none() && dir.path().join(ASIDE).exists());
    }

    #[test]
    fn pairs_that_do_not_add_up_make_no_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let (mut pairs, point) = sample();
        pairs[7].1 = b"other".to_vec();
        assert!(matches!(write(dir.path(), &pairs, &point), Err(Error::Refused(_))));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn no_bytes_of_a_part_make_its_reader_panic() {
        let (pairs, _) = sample();
        let mut rows = Rows::default();
        pairs.iter().take(20).for_each(|(key, value)| rows.push(key, value));
        let whole = rows.take();
        for bit in 0..whole.len().min(400) * 8 {
            let mut damaged = whole.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            _ = read_rows(&damaged, |_, _| Ok(()));
        }
        assert!((1..whole.len()).filter(|n| read_rows(&whole[..*n], |_, _| Ok(())).is_ok()).count() < 20);
    }
}
