//! Checkpoints: the applied state in sled, derived and disposable.
//!
//! ```text
//! state/CURRENT      the number of the directory that counts
//! state/7/           sled: all pairs of one point of the log, and that point
//! state/unusable     the number of a directory that was found damaged
//! state/aside/       the last one that was, for whoever wants to know why
//! ```
//!
//! The truth is the log and the snapshot files; sled holds what a start would otherwise have to apply again, and what does
//! not have to be in memory. What always holds:
//! - Between two checkpoints sled is the state at one point of the log. One thread writes to it, and does one thing at a
//!   time: a checkpoint, a snapshot or a copy of what is there (the next checkpoint waits), an installation.
//! - A checkpoint is atomic: all of its changes and its point reach the disk in one flush, or none.
//! - Nothing is acknowledged on sled's word. A start believes it at once and proves it in the background; damage that is
//!   found at any time ends the node with a line that says so, and the next start rebuilds it by itself.
//! - What replaces everything (an installed snapshot) goes to a new directory, which counts once `CURRENT` names it.

mod fill;
mod generation;
mod reader;
mod verify;
mod watch;
mod writer;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Sender, channel},
    },
    thread::JoinHandle,
};

use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch as latest};

pub use generation::LEAF_PAIRS;
pub use reader::{Reader, Stored};
pub use watch::Patience;

use crate::{
    error::{Error, Result},
    kv::{KeyBytes, Kv, Overlay, Rows, Sum},
    raft::LogId,
    snapshot::Snapshots,
    wire::{WireLogId, WireStoredMembership},
};
use generation::Generation;
use watch::Pulse;
use writer::{Job, Writer};

/// Which point of the log a checkpoint or a snapshot is, and what its pairs add up to. Stored: only ever add at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    pub applied: Option<WireLogId>,
    pub membership: WireStoredMembership,
    pub hash: u128,
    pub pairs: u64,
}

impl Point {
    pub fn sum(&self) -> Sum {
        Sum { pairs: self.pairs, hash: self.hash }
    }

    pub fn index(&self) -> Option<u64> {
        self.applied.map(|id| id.index)
    }
}

/// A copy of tables at one index of the log.
#[derive(Debug)]
pub struct Copied {
    pub index: u64,
    /// In the order in which they were asked for.
    pub tables: Vec<Rows>,
}

/// How the checkpoints of this run stand.
#[derive(Clone, Debug, Default)]
struct Progress {
    written: u64,
    /// The first failure, which is final for the node.
    failed: Option<String>,
    /// Everything that was found at the start, or built since, was read again and adds up.
    verified: bool,
}

/// What everybody who holds sled's files sees and says of them.
#[derive(Clone, Debug)]
pub struct Health {
    progress: Arc<latest::Sender<Progress>>,
    reading: Pulse,
    writing: Pulse,
}

impl Health {
    fn new() -> Self {
        let progress = Arc::new(latest::channel(Progress::default()).0);
        Self { progress, reading: Pulse::default(), writing: Pulse::default() }
    }

    /// The first failure, which is final for the node. It need not come to that: a process in which sled does not answer
    /// is ended by force.
    pub async fn failure(&self) -> String {
        let mut progress = self.progress.subscribe();
        let failed = progress.wait_for(|progress| progress.failed.is_some()).await;
        failed.ok().and_then(|progress| progress.failed.clone()).unwrap_or_default()
    }

    /// The same, if there is one by now.
    pub fn failed(&self) -> Option<String> {
        self.progress.borrow().failed.clone()
    }

    /// Whether everything that was found at the start was read again and adds up.
    pub fn is_verified(&self) -> bool {
        self.progress.borrow().verified
    }

    pub(crate) fn fail(&self, why: &str) {
        self.progress.send_if_modified(|progress| {
            let first = progress.failed.is_none();
            if first {
                tracing::error!("{why}");
                progress.failed = Some(why.to_owned());
            }
            first
        });
    }

    /// The directory may not be used again.
    fn damaged(&self, path: &Path, what: &str) {
        generation::mark_unusable(path);
        self.fail(&format!(
            "the checkpoint in {} is damaged: {what}; the next start of this node rebuilds it by itself",
            path.display()
        ));
    }
}

/// The handle of the thread that writes to sled.
pub struct Base {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    watch: Option<(Sender<()>, JoinHandle<()>)>,
    health: Health,
    asked: u64,
    stopping: Arc<AtomicBool>,
}

/// What a start goes on from.
pub struct Found {
    pub kv: Kv,
    /// `None` before the first checkpoint.
    pub point: Option<Point>,
}

impl Base {
    /// Opens the newer of the checkpoint below `dir` and the newest usable snapshot, which is built into a checkpoint
    /// first. Nothing of it is read as a whole: a background task proves that the checkpoint adds up.
    ///
    /// # Errors
    /// `Fatal` when the disk fails.
    pub fn open(dir: &Path, snapshots: &Snapshots) -> Result<(Self, Found)> {
        Self::open_watched(dir, snapshots, Patience::default())
    }

    /// As [`Base::open`], with a word on how long sled may take for something.
    pub fn open_watched(dir: &Path, snapshots: &Snapshots, patience: Patience) -> Result<(Self, Found)> {
        let health = Health::new();
        let found = generation::open(dir, snapshots)?;
        let stopping = Arc::new(AtomicBool::new(false));
        let reader = found.reader(&health);
        let kv = Kv::on(reader, found.point.as_ref().map(Point::sum).unwrap_or_default());
        let point = found.point.clone();
        let (jobs, receiver) = channel();
        let writer = Writer::new(found, snapshots.clone(), health.clone(), stopping.clone());
        let thread = std::thread::Builder::new()
            .name("checkpoint".to_owned())
            .spawn(move || writer.run(&receiver))
            .map_err(|e| Error::fatal(format!("cannot start the checkpoint thread: {e}")))?;
        let watch = watch(dir, &health, patience)?;
        let base = Self { jobs: Some(jobs), thread: Some(thread), watch: Some(watch), health, asked: 0, stopping };
        Ok((base, Found { kv, point }))
    }

    /// How many checkpoints were written since the start.
    pub fn written(&self) -> u64 {
        self.health.progress.borrow().written
    }

    /// True while a checkpoint is waiting or being written: what changes meanwhile goes with the next.
    pub fn is_busy(&self) -> bool {
        self.asked > self.written()
    }

    /// Writes what changed since the last checkpoint, behind whatever was asked before.
    pub fn checkpoint(&mut self, changes: Arc<Overlay>, point: Point) {
        self.asked += 1;
        self.send(Job::Checkpoint(changes, point));
    }

    /// Drops what is large where nobody waits for it.
    pub fn discard(&self, changes: Arc<Overlay>) {
        self.send(Job::Discard(changes));
    }

    /// Writes a snapshot of the checkpoint that was asked for last. The next one waits until it is whole.
    pub fn snapshot(&self) -> oneshot::Receiver<Result<(PathBuf, Point)>> {
        self.ask(Job::Snapshot)
    }

    /// Copies the pairs below these prefixes, as they are in the checkpoint that was asked for last.
    pub fn copy(&self, tables: Vec<KeyBytes>) -> oneshot::Receiver<Result<Copied>> {
        self.ask(|tell| Job::Copy { tables, tell })
    }

    /// Replaces all of it by a received snapshot, which becomes one of the node's own. `Refused` when the file is damaged
    /// or of another point than `expected`: then everything is as it was.
    pub fn install(&self, file: &Path, expected: Option<LogId>) -> oneshot::Receiver<Result<Found>> {
        let (file, expected) = (file.to_path_buf(), expected.as_ref().map(WireLogId::from));
        self.ask(|tell| Job::Install { file, expected, tell })
    }

    fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<Result<T>>) -> Job) -> oneshot::Receiver<Result<T>> {
        let (tell, told) = oneshot::channel();
        self.send(job(tell));
        told
    }

    fn send(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // A thread that is gone has said why.
            _ = jobs.send(job);
        }
    }

    /// Waits until no checkpoint is waiting or being written.
    pub async fn idle(&self) -> Result<()> {
        let asked = self.asked;
        let mut progress = self.health.progress.subscribe();
        let done = progress.wait_for(|progress| progress.written >= asked || progress.failed.is_some()).await;
        match done.map(|progress| progress.failed.clone()) {
            Ok(None) => Ok(()),
            Ok(Some(why)) => Err(Error::fatal(why)),
            Err(_) => Err(Error::fatal("the checkpoint thread is gone")),
        }
    }

    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Writes the checkpoints that are waiting and ends the thread.
    pub fn close(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
        if let Some((open, thread)) = self.watch.take() {
            drop(open);
            _ = thread.join();
        }
    }
}

fn watch(dir: &Path, health: &Health, patience: Patience) -> Result<(Sender<()>, JoinHandle<()>)> {
    let (open, closed) = channel();
    let (dir, health) = (dir.to_path_buf(), health.clone());
    let thread = std::thread::Builder::new()
        .name("checkpoint watch".to_owned())
        .spawn(move || watch::run(&dir, &health, patience, &closed))
        .map_err(|e| Error::fatal(format!("cannot start the thread that watches checkpoints: {e}")))?;
    Ok((open, thread))
}

impl Drop for Base {
    fn drop(&mut self) {
        self.close();
    }
}
