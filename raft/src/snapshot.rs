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

mod file;
mod rows;

use std::{
    fs,
    path::{Path, PathBuf},
};

pub use self::file::{Reading, check};
use self::file::{unwritten, write};
use crate::{base::Point, disk, error::Result, fail};

/// Files that are kept: the newest, and the one before it in case the newest is damaged. The log reaches back to that one: see
/// `retention`.
const KEPT: usize = 2;
/// What a damaged one is called.
const ASIDE: &str = "damaged";

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
        let written = write(&aside, pairs, point).and_then(|()| rename().map_err(|e| unwritten("rename", &aside, &e)));
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
            let point = Reading::open(&path).ok()?.point().clone();
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

#[cfg(test)]
mod tests {
    use super::{rows::PART_BYTES, *};
    use crate::{
        error::Error,
        kv::Sum,
        wire::{WireMembership, WireStoredMembership},
    };

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
}
