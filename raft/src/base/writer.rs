//! The one thread that writes to sled.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError},
    },
};

use tokio::sync::oneshot;

use super::{
    Copied, Found, Generation, Health, Point, Stored,
    generation::{self, BATCH_PAIRS, POINT},
    verify::Verify,
};
use crate::{
    codec::{self, Kind},
    error::{Error, Result},
    fail,
    kv::{KeyBytes, Kv, Overlay, Rows},
    raft::LogId,
    snapshot::Snapshots,
    wire::WireLogId,
};

/// What to do about a disk that failed.
const FAILED: &str = "Make room or repair the disk, then start this node again: what it has acknowledged is kept";

/// How much nicer this thread is than the others.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 5;

/// What the thread is asked to do, in this order.
pub enum Job {
    Checkpoint(Arc<Overlay>, Point),
    Discard(Arc<Overlay>),
    Snapshot(oneshot::Sender<Result<(PathBuf, Point)>>),
    Copy { tables: Vec<KeyBytes>, tell: oneshot::Sender<Result<Copied>> },
    Install { file: PathBuf, expected: Option<WireLogId>, tell: oneshot::Sender<Result<Found>> },
}

pub struct Writer {
    on: Generation,
    snapshots: Snapshots,
    health: Health,
    stopping: Arc<AtomicBool>,
    /// Until everything was read once.
    verify: Option<Verify>,
}

impl Writer {
    pub fn new(on: Generation, snapshots: Snapshots, health: Health, stopping: Arc<AtomicBool>) -> Self {
        Self { on, snapshots, health, stopping, verify: Some(Verify::new()) }
    }

    pub fn run(mut self, jobs: &Receiver<Job>) {
        give_way();
        loop {
            let job = match &self.verify {
                Some(verify) => jobs.recv_timeout(verify.pause),
                None => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            // sled asserts where it could return; a panic there must not pass for a checkpoint that is still running.
            let pulse = self.health.writing.clone();
            let work = || match job {
                Ok(job) => self.carry_out(job).map(|()| true),
                Err(RecvTimeoutError::Timeout) => self.verify_more().map(|()| true),
                Err(RecvTimeoutError::Disconnected) => Ok(false),
            };
            let done = pulse.within(|| catch_unwind(AssertUnwindSafe(work)));
            match done {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => return,
                Ok(Err(e @ Error::Refused(_))) => break self.health.damaged(&self.on.path, e.why()),
                Ok(Err(e)) => break self.health.fail(&format!("{}. {FAILED}", e.why())),
                Err(_) => break self.health.damaged(&self.on.path, "sled panicked"),
            }
        }
        // The last handle that goes would flush what is there of a checkpoint that failed, and abort if it cannot.
        std::mem::forget(self.on.db);
    }

    fn carry_out(&mut self, job: Job) -> Result<()> {
        match job {
            Job::Checkpoint(changes, point) => {
                self.checkpoint(&changes, point)?;
                self.health.progress.send_modify(|progress| progress.written += 1);
            }
            Job::Discard(changes) => drop(changes),
            Job::Snapshot(tell) => answer(tell, self.snapshot(), |e| matches!(e, Error::Unavailable(_)))?,
            Job::Copy { tables, tell } => answer(tell, self.copy(&tables), |e| matches!(e, Error::Unavailable(_)))?,
            Job::Install { file, expected, tell } => {
                let done = self.install(&file, expected);
                // The file is at fault, and nothing has changed.
                answer(tell, done, |e| matches!(e, Error::Refused(_)))?;
            }
        }
        Ok(())
    }

    /// Several batches, so that readers never wait for all of them; what makes them one is that sled writes them in one
    /// flush. The point is gone in the first and back in the last: whatever went wrong, half of it is no checkpoint.
    /// Keys are removed one by one, because a batch leaves leaves behind that are empty for ever.
    fn checkpoint(&mut self, changes: &Overlay, point: Point) -> Result<()> {
        fail::point("checkpoint-before-batch")?;
        let mut batch = sled::Batch::default();
        batch.remove(POINT);
        for (nth, (key, value)) in changes.iter().enumerate() {
            if let Some(verify) = &mut self.verify {
                verify.note(&self.on, key, value)?;
            }
            match value {
                Some(value) => batch.insert(key, value),
                None => self.on.remove(key)?,
            }
            if nth % BATCH_PAIRS == BATCH_PAIRS - 1 {
                self.on.apply(std::mem::take(&mut batch))?;
            }
        }
        batch.insert(POINT, codec::encode(Kind::Meta, &point)?);
        self.on.apply(batch)?;
        self.on.flush()?;
        fail::point("checkpoint-after-flush")?;
        self.on.point = Some(point);
        Ok(())
    }

    fn snapshot(&mut self) -> Result<(PathBuf, Point)> {
        let point = self.on.point.clone().ok_or_else(|| Error::unavailable("there is no checkpoint yet"))?;
        let path = self.snapshots.write(self.read(self.on.rows()), &point)?;
        // It was read as a whole, and adds up.
        self.verified();
        Ok((path, point))
    }

    fn copy(&self, tables: &[KeyBytes]) -> Result<Copied> {
        let copy = |prefix: &KeyBytes| {
            let mut rows = Rows::default();
            for row in self.read(self.on.rows_from(prefix)) {
                let (key, value) = row?;
                let Some(key) = key.strip_prefix(prefix.as_slice()) else { break };
                rows.push(key, &value);
            }
            Ok(rows)
        };
        let tables = tables.iter().map(copy).collect::<Result<_>>()?;
        Ok(Copied { tables, index: self.on.point.as_ref().and_then(Point::index).unwrap_or(0) })
    }

    /// So many that a node which stops need not wait for all of them.
    fn read(&self, rows: generation::Rows) -> impl Iterator<Item = Result<(Stored, Stored)>> {
        rows.map(|row| {
            self.health.writing.step();
            match self.stopping.load(Ordering::Relaxed) {
                true => Err(Error::unavailable("the node is stopping")),
                false => row.map_err(|e| Error::refused(generation::reason(&e))),
            }
        })
    }

    fn verify_more(&mut self) -> Result<()> {
        if let Some(verify) = &mut self.verify
            && verify.step(&self.on)?
        {
            self.verified();
        }
        Ok(())
    }

    fn verified(&mut self) {
        self.verify = None;
        self.health.progress.send_modify(|progress| progress.verified = true);
    }

    /// Each step leaves a folder from which a start goes on: with the old state until `adopt`, or, as soon as the file
    /// has its own name, by building the new one again.
    fn install(&mut self, file: &Path, expected: Option<WireLogId>) -> Result<Found> {
        let dir = self.on.path.parent().expect("made below a folder").to_path_buf();
        let built = generation::build(&dir, Some(&self.on.path), file, || self.health.writing.step())?;
        let point = built.point.clone().expect("a built one has its point");
        if point.applied.map(LogId::from) != expected.map(LogId::from) {
            let path = built.path.clone();
            drop(built);
            generation::remove(&path)?;
            return Err(Error::refused("the snapshot is of another point than its offer said"));
        }
        let kept = self.snapshots.adopt(file, &point)?;
        fail::point("install-before-current")?;
        generation::adopt(&dir, &built)?;
        fail::point("install-after-current")?;
        let old = std::mem::replace(&mut self.on, built);
        self.verified();
        tracing::info!(file = %kept.display(), "installed a snapshot");
        // Readers that still hold it read on in files without a name.
        generation::remove(&old.path)?;
        Ok(Found { kv: Kv::on(self.on.reader(&self.health), point.sum()), point: Some(point) })
    }
}

/// A checkpoint has seconds, and whoever waits for a commit has not. With two cores, three nodes and 256 proposers on a
/// follower: p99 a quarter less, joins a tenth more. Not further: apply waits for a checkpoint that is far behind.
fn give_way() {
    // Elsewhere it would be the whole process.
    #[cfg(target_os = "linux")]
    if let Err(e) = rustix::process::nice(NICENESS) {
        tracing::warn!("checkpoints are not written with less priority: {e}");
    }
}

/// Tells whoever waits, and gives an error that ends the thread. They hear the reason, too: it may be they who end the node
/// first.
fn answer<T>(tell: oneshot::Sender<Result<T>>, done: Result<T>, harmless: impl Fn(&Error) -> bool) -> Result<()> {
    let fatal = done.as_ref().err().filter(|e| !harmless(e)).cloned();
    // Openraft does not wait any more when it is being stopped.
    _ = tell.send(done);
    fatal.map_or(Ok(()), Err)
}
