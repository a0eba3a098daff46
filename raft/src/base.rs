//! Checkpoints: the applied state in sled, derived and disposable.
//!
//! The truth is the log and the snapshot files. sled holds what a start would otherwise have to apply again: a point in
//! the log and all pairs of that point, written as one atomic batch and then flushed. A checkpoint carries the hash of
//! the whole state; one that does not open, panics, or does not add up is moved aside and built anew, loudly and by
//! itself. Nothing is ever acknowledged on its word.
//!
//! sled's handle is `Send` but not `Sync`, so one thread owns it. A replacement of everything (an installed snapshot)
//! goes to a new directory; the file `CURRENT` names the one that counts.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{
    codec::{self, Kind},
    disk,
    error::{Error, Result},
    state::State,
    wire::{WireLogId, WireStoredMembership},
};

const CURRENT: &str = "CURRENT";
/// sled's own cache; the pairs are in memory anyhow.
const CACHE_BYTES: usize = 64 << 20;
/// Pairs are stored behind this byte, so that the row of the point can never be one of them.
const PAIR: u8 = 1;
const POINT: &[u8] = &[0];

type Db = sled::Db<1024>;
type Changes = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// Which point of the log a checkpoint is, and what its pairs add up to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    pub applied: Option<WireLogId>,
    pub membership: WireStoredMembership,
    pub hash: u128,
}

/// What a start found.
pub struct Found {
    pub state: State,
    pub point: Point,
}

enum Job {
    Changes(Changes, Point),
    /// What was there before goes.
    Everything(Changes, Point),
}

/// The handle of the thread that owns sled.
pub struct Base {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    busy: Arc<AtomicBool>,
    failed: watch::Receiver<Option<String>>,
}

impl Base {
    /// Opens the checkpoint below `dir`. There may be none, or one that is not usable: that one is moved aside, and the
    /// caller starts from the newest snapshot file and the log.
    pub fn open(dir: &Path) -> Result<(Self, Option<Found>)> {
        fs::create_dir_all(dir).map_err(|e| disk::failed("create", dir, &e))?;
        let current = read_current(dir)?;
        let (db, path, found) = match current.as_deref().and_then(|path| Some((usable(path)?, path))) {
            Some(((db, found), path)) => (db, path.to_path_buf(), Some(found)),
            None => {
                let path = fresh_directory(dir, current.as_deref())?;
                let db = open_db(&path)?;
                write_current(dir, &path)?;
                (db, path, None)
            }
        };
        let (jobs, receiver) = channel();
        let (fail, failed) = watch::channel(None);
        let busy = Arc::new(AtomicBool::new(false));
        let writer = Writer { dir: dir.to_path_buf(), db, path, busy: busy.clone() };
        let thread = std::thread::Builder::new()
            .name("checkpoint".to_owned())
            .spawn(move || writer.run(&receiver, &fail))
            .map_err(|e| Error::fatal(format!("cannot start the checkpoint thread: {e}")))?;
        Ok((Self { jobs: Some(jobs), thread: Some(thread), busy, failed }, found))
    }

    /// True while a checkpoint is being written. At most one is: what changes meanwhile goes with the next.
    pub fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Acquire)
    }

    /// Writes what changed since the last checkpoint.
    pub fn write(&self, changes: Changes, point: Point) {
        self.send(Job::Changes(changes, point));
    }

    /// Replaces all of it, for an installed snapshot.
    pub fn replace(&self, state: &State, point: Point) {
        let pairs = state.pairs().map(|(key, value)| (key.to_vec(), Some(value.to_vec()))).collect();
        self.send(Job::Everything(pairs, point));
    }

    fn send(&self, job: Job) {
        self.busy.store(true, Ordering::Release);
        if let Some(jobs) = &self.jobs {
            // A thread that is gone has said why in `failed`.
            _ = jobs.send(job);
        }
    }

    /// The first failure, which is final for the node.
    pub fn failed(&self) -> watch::Receiver<Option<String>> {
        self.failed.clone()
    }

    /// Writes what is queued and ends the thread.
    pub fn close(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}

impl Drop for Base {
    fn drop(&mut self) {
        self.close();
    }
}

/// What the thread owns.
struct Writer {
    dir: PathBuf,
    db: Db,
    path: PathBuf,
    busy: Arc<AtomicBool>,
}

impl Writer {
    fn run(mut self, jobs: &Receiver<Job>, fail: &watch::Sender<Option<String>>) {
        while let Ok(job) = jobs.recv() {
            // sled asserts where it could return; a panic there must not pass for a checkpoint that is still running.
            let done = catch_unwind(AssertUnwindSafe(|| self.carry_out(job)));
            let why = match done {
                Ok(Ok(())) => None,
                Ok(Err(e)) => Some(e.to_string()),
                Err(_) => Some("sled panicked while it wrote a checkpoint".to_owned()),
            };
            if why.is_some() {
                fail.send_replace(why);
                return;
            }
            self.busy.store(false, Ordering::Release);
        }
    }

    fn carry_out(&mut self, job: Job) -> Result<()> {
        match job {
            Job::Changes(changes, point) => write(&self.db, changes, &point, &self.path),
            Job::Everything(pairs, point) => {
                let path = fresh_directory(&self.dir, Some(&self.path))?;
                let db = open_db(&path)?;
                write(&db, pairs, &point, &path)?;
                write_current(&self.dir, &path)?;
                drop(std::mem::replace(&mut self.db, db));
                let old = std::mem::replace(&mut self.path, path);
                // Not needed any more; if it stays, the next start removes it.
                _ = fs::remove_dir_all(old);
                Ok(())
            }
        }
    }
}

fn write(db: &Db, changes: Changes, point: &Point, path: &Path) -> Result<()> {
    let mut batch = sled::Batch::default();
    for (key, value) in changes {
        let key = [&[PAIR], &key[..]].concat();
        match value {
            Some(value) => batch.insert(key, value),
            None => batch.remove(key),
        }
    }
    batch.insert(POINT, codec::encode(Kind::Meta, point)?);
    let done = db.apply_batch(batch).and_then(|()| db.flush());
    done.map(|_| ()).map_err(|e| disk::failed("write the checkpoint", path, &e))
}

fn open_db(path: &Path) -> Result<Db> {
    let config = sled::Config::new().path(path).cache_capacity_bytes(CACHE_BYTES).flush_every_ms(None);
    config.open().map_err(|e| disk::failed("open the checkpoint", path, &e))
}

/// The checkpoint at `path`, if it opens and adds up. sled was seen to panic on damage, and to hide it.
fn usable(path: &Path) -> Option<(Db, Found)> {
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let db = open_db(path)?;
        let found = load(&db, path)?;
        Ok::<_, Error>(found.map(|found| (db, found)))
    }));
    match opened {
        // None yet: the process ended before its first checkpoint.
        Ok(Ok(usable)) => usable,
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

fn load(db: &Db, path: &Path) -> Result<Option<Found>> {
    let io = |e| disk::failed("read the checkpoint", path, &e);
    let point = db.get(POINT).map_err(io)?.map(|bytes| codec::decode::<Point>(Kind::Meta, &bytes)).transpose()?;
    let mut pairs = Vec::new();
    for row in db.iter() {
        let (key, value) = row.map_err(io)?;
        if let Some((&PAIR, key)) = key.split_first() {
            pairs.push((key.to_vec(), value.to_vec()));
        }
    }
    let Some(point) = point else {
        let damaged = || Error::refused(format!("{} holds pairs of an unknown point", path.display()));
        return if pairs.is_empty() { Ok(None) } else { Err(damaged()) };
    };
    let state = State::load(pairs);
    if state.hash() != point.hash {
        return Err(Error::refused(format!("{} does not add up to its hash", path.display())));
    }
    Ok(Some(Found { state, point }))
}

fn read_current(dir: &Path) -> Result<Option<PathBuf>> {
    let file = dir.join(CURRENT);
    match fs::read(&file) {
        // Anything else than a number is damage: then nothing here can be trusted.
        Ok(name) => Ok(std::str::from_utf8(&name)
            .ok()
            .and_then(|name| name.trim().parse::<u64>().ok())
            .map(|number| dir.join(number.to_string()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(disk::failed("read", &file, &e)),
    }
}

fn write_current(dir: &Path, path: &Path) -> Result<()> {
    let name = path.file_name().expect("made by fresh_directory").to_string_lossy();
    disk::replace(&dir.join(CURRENT), name.as_bytes())
}

/// The directory after `current`, empty. An unusable current one is kept aside under another name; leftovers go.
fn fresh_directory(dir: &Path, current: Option<&Path>) -> Result<PathBuf> {
    let number = |path: &Path| path.file_name()?.to_str()?.parse::<u64>().ok();
    let path = dir.join((current.and_then(number).unwrap_or(0) + 1).to_string());
    if path.exists() {
        fs::remove_dir_all(&path).map_err(|e| disk::failed("remove", &path, &e))?;
    }
    Ok(path)
}
