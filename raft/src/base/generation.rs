//! The directories of sled: which one counts, how one is built from a snapshot, and what becomes of those that do not
//! count any more.

use std::{
    fs, io,
    ops::Bound,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::Duration,
};

use super::{Health, Point, Reader, fill::fill};
use crate::{
    codec::{self, Kind},
    disk,
    error::{Error, Result},
    snapshot::{Reading, Snapshots},
};

const CURRENT: &str = "CURRENT";
const UNUSABLE: &str = "unusable";
const ASIDE: &str = "aside";
/// The row of the point. No table begins with this byte, so it is none of the pairs, and lies before all of them.
pub const POINT: &[u8] = &[0];

/// Pairs in one leaf. Fewer make a random change or a short scan cheaper (a scan from a leaf copies all of it), more
/// compress better; 128 read a hundred rows in 8 µs where 1024 took 24.
const FANOUT: usize = 128;
/// Pairs that a leaf holds at least, but for a few: a full one is cut in halves.
pub const LEAF_PAIRS: usize = FANOUT / 2;
/// Of leaves that were read: one that was written stays, read again or not, because sled marks it as not yet flushed for ever.
/// sled counts roughly, too: what it holds is up to four times as much.
const CACHE_BYTES: usize = 96 << 20;
/// A handle that is dropped flushes, unless sled believes that its own thread will; that one never wakes up.
const NEVER_MS: usize = 1 << 50;
/// How long a directory may be locked before it is taken for unusable.
const LOCKED_MAX: Duration = Duration::from_secs(2);
/// Of zstd. Higher levels save little on pairs this small.
const COMPRESSION: i32 = 1;

/// Pairs in one sled batch: it locks all of the leaves that it touches against readers.
pub const BATCH_PAIRS: usize = 1024;

pub type Db = sled::Db<FANOUT>;
pub type Rows = sled::Iter<FANOUT>;

/// One directory, open.
pub struct Generation {
    pub db: Db,
    pub path: PathBuf,
    pub point: Option<Point>,
}

impl Generation {
    pub fn reader(&self, health: &Health) -> Reader {
        Reader::new(self.db.clone(), &self.path, health)
    }

    /// An empty one.
    fn create(path: PathBuf) -> Result<Self> {
        if path.exists() {
            remove(&path)?;
        }
        let db = open_db(&path)?;
        Ok(Self { db, path, point: None })
    }

    /// All pairs, without the point.
    pub fn rows(&self) -> Rows {
        self.db.range::<&[u8], _>((Bound::Excluded(POINT), Bound::Unbounded))
    }

    pub fn rows_from(&self, from: &[u8]) -> Rows {
        self.db.range::<&[u8], _>(from..)
    }

    pub fn flush(&self) -> Result<()> {
        self.db.flush().map(|_| ()).map_err(|e| failed("write", &self.path, &e))
    }

    pub fn remove(&self, key: &[u8]) -> Result<()> {
        self.db.remove(key).map(|_| ()).map_err(|e| failed("write", &self.path, &e))
    }

    pub fn apply(&self, batch: sled::Batch) -> Result<()> {
        self.db.apply_batch(batch).map_err(|e| failed("write", &self.path, &e))
    }
}

/// An error of sled, as the node has to see it.
pub fn failed(what: &str, path: &Path, error: &io::Error) -> Error {
    disk::failed(&format!("{what} the checkpoint"), path, &io::Error::new(error.kind(), reason(error)))
}

/// What is wrong, without the places in sled's source that it puts in front: paths of the machine that built it, which tell an
/// operator nothing.
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.rsplit(" -> ").next().unwrap_or_default().to_owned()
}

/// The newer of the current directory and the newest usable snapshot, or an empty one.
pub fn open(dir: &Path, snapshots: &Snapshots) -> Result<Generation> {
    fs::create_dir_all(dir).map_err(|e| disk::failed("create", dir, &e))?;
    let named = current(dir)?;
    let found = named.as_deref().and_then(|path| usable(dir, path));
    if found.is_none() {
        set_aside(dir, named.as_deref())?;
    }
    sweep(dir, found.as_ref().map(|found| found.path.as_path()))?;
    let known = found.as_ref().and_then(|found| found.point.as_ref()?.index());
    for file in snapshots.newest_first() {
        let point = match Reading::open(&file).map(|reading| reading.point().clone()) {
            Ok(point) if known.is_some() && point.index() <= known => break,
            Ok(point) => point,
            Err(e) => {
                tracing::error!("the snapshot is not usable: {e}");
                continue;
            }
        };
        match build(dir, named.as_deref(), &file, || ()) {
            Ok(built) => {
                tracing::warn!(index = point.index(), "rebuilt the checkpoint from a snapshot");
                adopt(dir, &built)?;
                drop(found);
                sweep(dir, Some(&built.path))?;
                return Ok(built);
            }
            Err(e @ Error::Refused(_)) => {
                tracing::error!("the snapshot is not usable: {e}");
                // Its header is whole: Raft would go on from it, as from one that is newer than the checkpoint.
                snapshots.set_aside(&file)?;
            }
            Err(e) => return Err(e),
        }
    }
    match found {
        Some(found) => Ok(found),
        None => {
            let fresh = Generation::create(next(dir, named.as_deref()))?;
            adopt(dir, &fresh)?;
            Ok(fresh)
        }
    }
}

/// A new directory with the contents of a snapshot, verified and on disk. It does not count before it is adopted. Calls
/// `step` as it gets on.
pub fn build(dir: &Path, before: Option<&Path>, file: &Path, step: impl Fn()) -> Result<Generation> {
    let reading = Reading::open(file)?;
    let path = next(dir, before);
    remove(&path)?;
    let built = fill(&path, reading, step);
    match &built {
        Ok(_) => disk::sync_parent(&path)?,
        Err(_) => remove(&path)?,
    }
    built
}

/// From now on this directory counts.
pub fn adopt(dir: &Path, generation: &Generation) -> Result<()> {
    let name = generation.path.file_name().expect("made by next").to_string_lossy();
    disk::replace(&dir.join(CURRENT), name.as_bytes())
}

/// Says that a directory may not be used again; the next start sets it aside.
pub fn mark_unusable(path: &Path) {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return };
    if let Err(e) = disk::replace(&dir.join(UNUSABLE), name.as_encoded_bytes()) {
        tracing::error!("the next start will have to find out by itself: {e}");
    }
}

/// Deletes a directory, if it is there.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(disk::failed("remove", path, &e)),
        _ => Ok(()),
    }
}

/// sled starts `sync` twice before it looks at its files: an open waits for all that the machine has not written yet. And it is
/// these processes that may hold the lock of a directory which another store of this one has just let go.
pub fn open_db(path: &Path) -> Result<Db> {
    let config = sled::Config::new()
        .path(path)
        .cache_capacity_bytes(CACHE_BYTES)
        .flush_every_ms(Some(NEVER_MS))
        .zstd_compression_level(COMPRESSION);
    disk::unlocked(LOCKED_MAX, || config.open()).map_err(|e| failed("open", path, &e))
}

/// The directory, if it opens and nobody has found it damaged. sled was seen to panic on damage.
fn usable(dir: &Path, path: &Path) -> Option<Generation> {
    let name = path.file_name()?.as_encoded_bytes();
    if fs::read(dir.join(UNUSABLE)).is_ok_and(|marked| marked == name) {
        tracing::error!("the checkpoint in {} was found damaged and will be built anew", path.display());
        return None;
    }
    if !path.is_dir() {
        tracing::error!("there is no checkpoint in {}; it will be built anew", path.display());
        return None;
    }
    match catch_unwind(AssertUnwindSafe(|| load(path))) {
        Ok(Ok(found)) => Some(found),
        Ok(Err(e)) => {
            tracing::error!("the checkpoint is not usable and will be built anew: {e}");
            None
        }
        Err(_) => {
            tracing::error!("sled panicked on its files in {}; the checkpoint will be built anew", path.display());
            None
        }
    }
}

fn load(path: &Path) -> Result<Generation> {
    let io = |e| failed("read", path, &e);
    let db = open_db(path)?;
    let point = db.get(POINT).map_err(io)?.map(|bytes| codec::decode::<Point>(Kind::Meta, &bytes)).transpose()?;
    let found = Generation { db, path: path.to_path_buf(), point };
    let unknown = found.point.is_none() && found.rows().next().transpose().map_err(io)?.is_some();
    match unknown {
        true => Err(Error::refused(format!("{} holds pairs of an unknown point", path.display()))),
        false => Ok(found),
    }
}

/// The directory that `CURRENT` names. One that names none is damage: what is there cannot be trusted.
pub fn current(dir: &Path) -> Result<Option<PathBuf>> {
    let file = dir.join(CURRENT);
    let number = |name: Vec<u8>| std::str::from_utf8(&name).ok()?.trim().parse::<u64>().ok();
    match fs::read(&file) {
        Ok(name) => Ok(number(name).map(|number| dir.join(number.to_string()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(disk::failed("read", &file, &e)),
    }
}

/// Keeps an unusable directory under another name, and none of those before it.
fn set_aside(dir: &Path, path: Option<&Path>) -> Result<()> {
    if let Some(path) = path.filter(|path| path.exists()) {
        let aside = dir.join(ASIDE);
        remove(&aside)?;
        fs::rename(path, &aside).map_err(|e| disk::failed("move aside", path, &e))?;
    }
    match fs::remove_file(dir.join(UNUSABLE)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(disk::failed("remove", &dir.join(UNUSABLE), &e)),
        _ => Ok(()),
    }
}

/// Removes the directories that do not count: of an installation that was cut short, or of before the last one.
fn sweep(dir: &Path, keep: Option<&Path>) -> Result<()> {
    let entries = fs::read_dir(dir).map_err(|e| disk::failed("read", dir, &e))?;
    let paths = entries.flatten().map(|entry| entry.path());
    let numbered = |path: &PathBuf| path.file_name().and_then(|name| name.to_str()?.parse::<u64>().ok()).is_some();
    for path in paths.filter(numbered).filter(|path| Some(path.as_path()) != keep) {
        remove(&path)?;
    }
    Ok(())
}

/// The directory after this one.
fn next(dir: &Path, before: Option<&Path>) -> PathBuf {
    let number = |path: &Path| path.file_name()?.to_str()?.parse::<u64>().ok();
    dir.join((before.and_then(number).unwrap_or(0) + 1).to_string())
}

#[cfg(test)]
mod tests {
    use std::thread;

    use rustix::fs::{FlockOperation, flock};

    use super::*;

    #[test]
    fn a_directory_that_is_locked_for_a_moment_is_not_built_anew() {
        let temp = tempfile::tempdir().expect("a folder");
        let (dir, snapshots) = (temp.path().join("state"), temp.path().join("snapshots"));
        let snapshots = Snapshots::open(&snapshots).expect("a folder");
        let path = open(&dir, &snapshots).expect("an empty one").path;
        let lock = fs::File::open(&path).expect("it is there");
        flock(&lock, FlockOperation::NonBlockingLockExclusive).expect("it was let go");
        let holder = thread::spawn(move || {
            thread::sleep(Duration::from_millis(100));
            drop(lock);
        });
        assert_eq!(open(&dir, &snapshots).expect("it opens").path, path);
        assert!(!dir.join(ASIDE).exists());
        holder.join().expect("it only sleeps");
    }
}
