//! A write-ahead log: an ordered stream of records in numbered files, synced in groups by one thread.
//!
//! It holds what no promise can do without, Raft's log and vote, so it is small and refuses rather than guesses.
//!
//! # What always holds
//!
//! * A job is answered `Ok` only after everything up to it was synced; answers come in the order of jobs.
//! * A commit point is a hint: nobody waits for it, and it is written with the next group or when the mark moves, behind the
//!   entries that it is about.
//! * The first error of a write or sync is final: that job and all later ones get it, nothing is tried again.
//! * A segment is synced before its successor is made, and the folder when a file is made or removed.
//! * Behind the end of the last segment there may be zeros ([`Options::ahead_bytes`]); no record consists of zeros. A segment that
//!   has a successor, and a log that was closed, ends where its last record ends.
//! * Each segment starts with the vote, the purge and the commit point of that time, and says which indexes the log
//!   held; so files go as soon as their entries are purged, and a file that is missed shows.
//!
//! # What is found at opening
//!
//! A crash may tear the end of what was not synced; anything else that is not as it was written refuses with one line.
//! Three things tell them apart:
//!
//! 1. Each group starts with an empty record, written only after the group before it was synced. A damaged place with
//!    such a record behind it was therefore synced once.
//! 2. Each segment names the length of the one before it.
//! 3. The *mark*, a file of its own, holds a place up to which the log was synced. It is moved and synced at each new
//!    segment, at [`Wal::close`], at opening, and at least every [`Options::mark_every`] behind a write. A log that is shorter
//!    refuses, and so does one whose last segment is gone.
//!
//! What is *not* found, if the process ended without [`Wal::close`], for the time that the mark may lag
//! ([`Options::mark_every`], one second):
//!
//! * damage to the last group that was ever written: it looks like a write that a crash has torn, and is dropped as one;
//! * groups after the mark of which no byte is left, because the file was cut or its end zeroed: it looks like a log that
//!   was never longer.
//!
//! Either takes a disk that loses what it said it had synced, or a hand in the folder. After [`Wal::close`], and for all
//! that is older than the mark, both refuse.
//!
//! A record's header has its own checksum, and it covers where the record was written: a damaged length cannot swallow what
//! follows, and old bytes in a tail are never taken for a record.

mod flusher;
mod mark;
mod read;
pub mod record;
mod recover;
mod segment;
mod state;

use std::{
    fmt,
    fs::{self, File},
    io,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Sender},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

pub use self::read::{Extent, read};
use self::{
    flusher::Flusher,
    record::{Place, Record},
};
use crate::error::{Error, Result};

/// Bytes that may wait for the disk. Past it, [`Wal::room`] waits, and with it the one who wants to write.
pub const QUEUE_BYTES_MAX: usize = 64 << 20;
/// A group takes no more jobs once it has this many bytes; the rest is the next group.
pub const GROUP_BYTES_MAX: usize = 8 << 20;

/// Why the log had to stop. One line.
pub type Failure = Arc<str>;
/// Syncs a segment's data.
pub type SyncFn = Arc<dyn Fn(&File) -> io::Result<()> + Send + Sync>;

#[derive(Clone)]
pub struct Options {
    /// A segment that has reached this many bytes is followed by a new one. It can be longer by one group.
    pub segment_bytes: u64,
    /// Bytes of the newest entries that [`crate::log`] keeps in memory, what it spends on each included. Older ones are
    /// read from the files.
    pub cache_bytes: usize,
    /// Zeros that are kept written behind the end of the log: a sync of what overwrites them need not make the file longer,
    /// which costs it a third.
    pub ahead_bytes: u64,
    /// The mark lags no further behind than this.
    pub mark_every: Duration,
    /// [`File::sync_data`]; tests count, hold up and fail it.
    pub sync: SyncFn,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            cache_bytes: 32 << 20,
            ahead_bytes: 1 << 20,
            mark_every: Duration::from_secs(1),
            sync: Arc::new(File::sync_data),
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "segments of {} bytes, mark every {:?}", self.segment_bytes, self.mark_every)
    }
}

/// Room in the queue; given back once the job that holds it is answered.
pub struct Room(#[allow(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

type Answer = dyn FnOnce(io::Result<Place>) + Send;

/// Called exactly once with a job's outcome, on the flusher's thread; it must not block. The place is that of the job's first
/// record, the others follow it without a gap. (That of a commit point says nothing.) Dropped unanswered, it says so.
pub struct Done(Option<Box<Answer>>);

impl Done {
    pub fn new(call: impl FnOnce(io::Result<Place>) + Send + 'static) -> Self {
        Self(Some(Box::new(call)))
    }

    /// For those who need no answer.
    pub fn none() -> Self {
        Self(None)
    }

    fn answer(mut self, outcome: io::Result<Place>) {
        if let Some(call) = self.0.take() {
            call(outcome);
        }
    }
}

impl Drop for Done {
    fn drop(&mut self) {
        if let Some(call) = self.0.take() {
            call(Err(io::Error::other("the log is closed")));
        }
    }
}

/// Records that are written together, in order.
struct Job {
    records: Vec<Record<'static>>,
    /// Where they were written.
    place: Place,
    done: Done,
    _room: Room,
}

impl Job {
    fn bytes(&self) -> usize {
        self.records.iter().map(Record::bytes).sum()
    }

    fn answer(self, failure: Option<&Failure>) {
        self.done.answer(failure.map_or(Ok(self.place), |why| Err(io::Error::other(why.to_string()))));
    }
}

/// How far the file, and what is about to be written to it, has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reach {
    /// The index behind the last entry.
    next: u64,
    /// Jobs since the log was opened.
    jobs: u64,
}

impl Reach {
    fn covers(self, other: Self) -> bool {
        // An index alone may be that of an entry which a job on its way takes out.
        self.next >= other.next && self.jobs >= other.jobs
    }
}

/// The newest commit point, until it is written.
#[derive(Default)]
struct Hint {
    /// With where the file has to be before it means the entries that it is about.
    committed: Option<(Reach, Record<'static>)>,
    /// The flusher sleeps until a job comes.
    resting: bool,
}

impl Hint {
    /// The commit point, if the file may say so by now.
    fn point(&self, file: Reach) -> Option<&Record<'static>> {
        self.committed.as_ref().filter(|(from, _)| file.covers(*from)).map(|(_, record)| record)
    }

    fn take(&mut self, file: Reach) -> Option<Record<'static>> {
        self.committed.take_if(|(from, _)| file.covers(*from)).map(|(_, record)| record)
    }
}

/// An open log. See the module.
pub struct Wal {
    queue: Mutex<Option<Sender<Job>>>,
    hint: Arc<Mutex<Hint>>,
    /// Jobs that were queued since the opening; changed under the queue's lock.
    jobs: AtomicU64,
    thread: Mutex<Option<JoinHandle<()>>>,
    room: Arc<Semaphore>,
    bytes: Arc<AtomicU64>,
    failure: Arc<watch::Sender<Option<Failure>>>,
}

impl Wal {
    /// Opens the log in `dir`, making the folder and the log if there are none, and hands every record to `visit`, in
    /// order, from the oldest segment on, with where it lies. Blocks while it reads; holds one segment in memory at a time.
    ///
    /// Refused if it is damaged, shorter than what was synced, or in use; also with the error of `visit`.
    pub fn open(dir: &Path, options: Options, visit: impl FnMut(Record<'_>, Place) -> Result<()>) -> Result<Self> {
        let fatal = |e: io::Error| Error::fatal(format!("cannot open the log in {}: {e}", dir.display()));
        if !dir.exists() {
            fs::create_dir(dir).map_err(fatal)?;
            let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            segment::sync_dir(parent).map_err(fatal)?;
        }
        let recovered = recover::recover(dir, visit)?;
        let failure = Arc::new(watch::channel(None).0);
        let bytes = Arc::new(AtomicU64::new(0));
        let hint = Arc::<Mutex<Hint>>::default();
        let (hints, written, failed) = (Arc::clone(&hint), Arc::clone(&bytes), Arc::clone(&failure));
        let flusher = Flusher::new(dir.to_path_buf(), options, recovered, hints, written, failed).map_err(fatal)?;
        let (queue, jobs) = mpsc::channel();
        let run = move || flusher.run(&jobs);
        let thread = thread::Builder::new().name("log".into()).spawn(run).map_err(fatal)?;
        Ok(Self {
            queue: Mutex::new(Some(queue)),
            hint,
            jobs: AtomicU64::new(0),
            thread: Mutex::new(Some(thread)),
            room: Arc::new(Semaphore::new(QUEUE_BYTES_MAX)),
            bytes,
            failure,
        })
    }

    /// Waits until `bytes` more may be queued. More than the whole queue takes the whole queue.
    pub async fn room(&self, bytes: usize) -> Room {
        let permits = bytes.clamp(1, QUEUE_BYTES_MAX) as u32;
        Room(Arc::clone(&self.room).acquire_many_owned(permits).await.expect("the semaphore is never closed"))
    }

    /// Queues `records`, to be written in this order after all that were submitted before. Never blocks. No record is
    /// longer than [`record::BODY_BYTES_MAX`].
    ///
    /// A record that would leave a hole is a bug, and stops the log with an error.
    pub fn submit(&self, records: Vec<Record<'static>>, room: Room, done: Done) {
        let job = Job { records, place: Place::default(), done, _room: room };
        if let Some(queue) = &*self.queue.lock().unwrap_or_else(PoisonError::into_inner) {
            self.jobs.fetch_add(1, Ordering::Relaxed);
            // A flusher that is gone cannot take it: then it is dropped, which answers it.
            let _ = queue.send(job);
        }
    }

    /// Notes that all entries up to `index`, as submitted so far, are committed; the file will say so in `committed`. The flusher is woken only when it
    /// would sleep for good: a wake-up for each would cost a node as much as a message to a peer.
    pub async fn hint(&self, index: u64, committed: Record<'static>) {
        let woken = {
            let mut hint = self.hint.lock().unwrap_or_else(PoisonError::into_inner);
            let from = Reach { next: index + 1, jobs: self.jobs.load(Ordering::Relaxed) };
            hint.committed = Some((from, committed));
            std::mem::take(&mut hint.resting)
        };
        if woken {
            self.submit(Vec::new(), self.room(0).await, Done::none());
        }
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The first and final error, once there is one.
    pub fn failure(&self) -> watch::Receiver<Option<Failure>> {
        self.failure.subscribe()
    }

    /// What was written could not be read back: as final as a failed write.
    pub fn fail(&self, why: &Error) {
        let (Error::Unavailable(why) | Error::Refused(why) | Error::Fatal(why)) = why;
        tracing::error!("{why}");
        self.failure.send_if_modified(|failure| {
            let first = failure.is_none();
            failure.get_or_insert_with(|| Failure::from(why.as_str()));
            first
        });
    }

    /// Writes what is queued, moves the mark to the end, and ends the thread. Later jobs are answered with an error.
    /// Blocks. Closing twice does no harm.
    pub fn close(&self) -> Result<()> {
        drop(self.queue.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // If it has panicked, it has left that as its failure.
            let _ = thread.join();
        }
        match &*self.failure.borrow() {
            None => Ok(()),
            Some(why) => Err(Error::fatal(why)),
        }
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        let _ = self.close();
    }
}

/// Whether there is a log in that folder, whole or not. The first opening makes one that is never without a segment again.
///
/// Fatal if the folder cannot be looked into.
pub fn is_there(dir: &Path) -> Result<bool> {
    match segment::list(dir) {
        Ok(numbers) => Ok(!numbers.is_empty()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::fatal(format!("cannot look into {}: {e}", dir.display()))),
    }
}

/// Refuses to start on the log in `dir`: what is wrong, and the way on.
fn refuse<T>(dir: &Path, what: impl fmt::Display) -> Result<T> {
    Err(Error::refused(format!(
        "the log in {} is not what was written: {what}. Restore this node's data folder as a whole, or start with an empty \
         one, so that it joins its cluster as a new node",
        dir.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_point_is_not_written_before_its_entries_nor_for_those_that_they_replace() {
        let reach = |next, jobs| Reach { next, jobs };
        let mut hint = Hint { committed: Some((reach(5, 3), Record::Committed(b"4".into()))), resting: false };
        // The second: the entries from an earlier term, of which a truncation is still queued.
        for early in [reach(4, 3), reach(9, 2)] {
            assert!(hint.point(early).is_none() && hint.take(early).is_none());
        }
        assert!(hint.point(reach(5, 3)).is_some() && hint.take(reach(5, 3)).is_some());
        assert!(hint.point(reach(5, 3)).is_none() && hint.take(reach(5, 3)).is_none());
    }
}
