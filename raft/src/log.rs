//! Raft's log and vote for openraft, on the write-ahead log in [`crate::wal`].
//!
//! What openraft asks for (`RaftLogStorage`, `RaftLogReader` of openraft 0.10):
//!
//! * All writes are one sequence, votes included. Here each one changes the entries in memory and is queued for the disk
//!   under the same lock, so memory and file never disagree about the order.
//! * An entry can be read as soon as `append` returns, and counts as stored once its callback is called: after the sync.
//! * `save_vote` returns after the sync. `truncate_after` and `purge` need not wait: what is written after them lies
//!   behind them in the file. A crash that undoes one of them undoes all that was built on it.
//! * After a purge beyond the last entry, the purged id is the last id.
//!
//! The newest entries are in memory, bounded in bytes ([`Options::cache_bytes`]) and by what waits for the disk; of an older one
//! only its place is, in 16 bytes, and it is read back from its file with its checksum verified. One that does not verify is
//! as final as a failed write.

mod tail;

use std::{
    fmt::Debug,
    io,
    ops::{Bound, RangeBounds},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::{Stream, TryStreamExt, stream};
use openraft::{
    OptionalSend,
    storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage},
};
use tokio::sync::oneshot;

use self::tail::{Plan, Tail};
pub use crate::wal::Options;
use crate::{
    codec,
    error::{Error, Result},
    fail,
    raft::{Entry, LogId, TypeConfig, Vote},
    wal::{
        self, Done, Room, Wal,
        record::{Place, Record},
    },
    wire::{WireEntry, WireLogId, WireVote},
};

/// Bytes that one read of a peer's replication, or of apply, takes at most; it asks again for the rest. One entry is
/// always given, however long.
pub const READ_BYTES_MAX: u64 = 4 << 20;

/// The log of one node. Clones are the same log; openraft owns one and is the only writer.
#[derive(Clone)]
pub struct Log(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    wal: Wal,
    /// Also held by what is queued, which says where it was written.
    tail: Arc<Mutex<Tail>>,
}

/// Reads one record of the file. Each entry is decoded, so that one of a later version is refused at the start.
fn replay(tail: &mut Tail, record: Record<'_>, place: Place) -> Result<()> {
    match record {
        Record::Entry { index, .. } => {
            entry(&record)?;
            let too_many = |_| Error::refused("more segments than this version can count");
            tail.found(index, place, record.bytes()).map_err(too_many)?;
        }
        Record::Vote(body) => tail.vote = Some(codec::from_body::<WireVote>(&body)?.into()),
        Record::Truncate { next } => tail.truncate(next, None),
        Record::Purge { body, .. } => drop(tail.purge(log_id(&body)?)),
        Record::Committed(body) => tail.committed = Some(log_id(&body)?),
    }
    Ok(())
}

impl Log {
    /// Opens the log in the folder `dir`, which is made if it is not there (its parent must be). Blocks while it reads.
    ///
    /// Refused, with one line saying why and what to do, if it is damaged, shorter than what was acknowledged, or in use.
    pub fn open(dir: &Path, options: Options) -> Result<Self> {
        let mut tail = Tail::new(options.cache_bytes);
        let wal = Wal::open(dir, options, |record, place| replay(&mut tail, record, place))?;
        let last = tail.last_extent().map(|extent| wal::read(dir, &[extent], |record| entry(&record))).transpose()?;
        tail.set_last(last.iter().flatten().map(|entry| entry.log_id).next());
        Ok(Self(Arc::new(Inner { dir: dir.to_path_buf(), wal, tail: Arc::new(Mutex::new(tail)) })))
    }

    /// Writes what is queued and ends the thread; later writes fail. Call it after openraft has shut down.
    ///
    /// Fatal if the log had failed before.
    pub async fn close(&self) -> Result<()> {
        let log = self.clone();
        tokio::task::spawn_blocking(move || log.0.wal.close()).await.map_err(Error::fatal)?
    }

    /// Waits for the first error of the disk, which is final: the node has to exit. Never returns on a log that is well,
    /// nor on one that was closed well.
    pub async fn fatal(&self) -> Error {
        let mut failure = self.0.wal.failure();
        if let Ok(why) = failure.wait_for(Option::is_some).await {
            return Error::fatal(why.as_deref().unwrap_or_default());
        }
        std::future::pending().await
    }

    /// Bytes of all files of the log.
    pub fn size_bytes(&self) -> u64 {
        self.0.wal.bytes()
    }

    /// Bytes of the entries after `index`.
    pub fn bytes_after(&self, index: u64) -> u64 {
        self.tail().bytes_after(index)
    }

    /// Bytes of all entries.
    pub fn bytes_in_all(&self) -> u64 {
        self.tail().bytes_in_all()
    }

    /// The lowest index from which on the entries up to `last` have no more than `bytes`; `last + 1` if none does.
    pub fn reach_back(&self, last: u64, bytes: u64) -> u64 {
        self.tail().reach_back(last, bytes)
    }

    /// Whether the entry at `index` is on the disk, or was and is purged.
    pub fn is_stored(&self, index: u64) -> bool {
        self.tail().is_stored(index)
    }

    /// The index of the last entry, purged ones included.
    pub fn last_index(&self) -> Option<u64> {
        self.tail().last().map(|id| id.index)
    }

    /// Entries in memory, and entries in all.
    pub fn counts(&self) -> (usize, usize) {
        self.tail().counts()
    }

    fn tail(&self) -> MutexGuard<'_, Tail> {
        lock(&self.0.tail)
    }

    /// Entries of `start..end` that the log holds, up to `limit` bytes of them, but at least one.
    async fn read(&self, start: u64, end: u64, limit: u64) -> io::Result<Vec<Entry>> {
        loop {
            let Plan { first, stored, cached } = self.tail().plan(start, end, limit);
            if stored.is_empty() {
                return Ok(cached);
            }
            let log = self.clone();
            let read = move || wal::read(&log.0.dir, &stored, |record| entry(&record));
            match tokio::task::spawn_blocking(read).await.map_err(io::Error::other)? {
                Ok(mut entries) => {
                    entries.extend(cached);
                    return Ok(entries);
                }
                // Its file went while it was being read.
                Err(_) if self.tail().starts_after(first) => {}
                Err(e) => {
                    self.0.wal.fail(&e);
                    return Err(e.into());
                }
            }
        }
    }

    async fn room(&self, records: &[Record<'static>]) -> Result<Room> {
        if let Some(why) = &*self.0.wal.failure().borrow() {
            return Err(Error::fatal(why));
        }
        Ok(self.0.wal.room(records.iter().map(Record::bytes).sum()).await)
    }
}

impl RaftLogReader<TypeConfig> for Log {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = half_open(&range);
        self.read(start, end, u64::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start, end, READ_BYTES_MAX).await
    }

    /// What apply reads after a start can be all of the log: never more than a part of it is in memory.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = half_open(&range);
        let log = self.clone();
        let parts = stream::try_unfold(start, move |start| {
            let log = log.clone();
            async move {
                let part = log.read(start, end, READ_BYTES_MAX).await?;
                let next = part.last().map(|entry| entry.log_id.index + 1);
                Ok::<_, io::Error>(next.map(|next| (stream::iter(part.into_iter().map(Ok)), next)))
            }
        });
        Box::pin(parts.try_flatten())
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.tail().vote)
    }
}

impl RaftLogStorage<TypeConfig> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let tail = self.tail();
        Ok(LogState { last_purged_log_id: tail.purged, last_log_id: tail.last() })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        fail::point("vote-before-save")?;
        let records = vec![Record::Vote(codec::body(&WireVote::from(vote))?.into())];
        let room = self.room(&records).await?;
        let (done, synced) = oneshot::channel();
        {
            let mut tail = self.tail();
            tail.vote = Some(*vote);
            // Nobody listens any more if openraft was shut down meanwhile.
            self.0.wal.submit(records, room, Done::new(|outcome| drop(done.send(outcome.map(|_| ())))));
        }
        synced.await.map_err(io::Error::other)??;
        fail::point("vote-after-save")?;
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let Some(committed) = committed else { return Ok(()) };
        let record = Record::Committed(codec::body(&WireLogId::from(&committed))?.into());
        self.tail().committed = Some(committed);
        self.0.wal.hint(committed.index, record).await;
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.tail().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let records = entries.iter().map(record).collect::<Result<Vec<_>>>()?;
        let room = self.room(&records).await?;
        let mut tail = self.tail();
        let follows = |next: Option<u64>, entry: &Entry| {
            let index = entry.log_id.index;
            next.is_none_or(|next| next == index).then_some(Some(index + 1))
        };
        if entries.iter().try_fold(tail.next(), follows).is_none() {
            return Err(io::Error::other(format!("a hole: entries after {:?} that do not follow it", tail.last())));
        }
        let queued = tail.append(entries, records.iter().map(Record::bytes));
        let noted = Arc::clone(&self.0.tail);
        let done = Done::new(move |outcome| {
            let outcome = outcome.map(|place| lock(&noted).written(queued, place));
            callback.io_completed(outcome);
        });
        self.0.wal.submit(records, room, done);
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let next = last.map_or(0, |id| id.index + 1);
        let records = vec![Record::Truncate { next }];
        let room = self.room(&records).await?;
        let mut tail = self.tail();
        if tail.purged.as_ref().is_some_and(|purged| next <= purged.index) {
            return Err(io::Error::other(format!("cannot truncate from {next} on, it is purged to {:?}", tail.purged)));
        }
        if tail.next().is_some_and(|end| next < end) {
            tail.truncate(next, last);
            self.0.wal.submit(records, room, Done::none());
        }
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        fail::point("purge")?;
        let first = upto.index + 1;
        let records = vec![Record::Purge { first, body: codec::body(&WireLogId::from(&upto))?.into() }];
        let room = self.room(&records).await?;
        // Many entries take a while to free: after the lock is released.
        let _purged = {
            let mut tail = self.tail();
            if tail.purged.as_ref().is_some_and(|purged| upto.index <= purged.index) {
                return Ok(());
            }
            self.0.wal.submit(records, room, Done::none());
            tail.purge(upto)
        };
        Ok(())
    }
}

fn log_id(body: &[u8]) -> Result<LogId> {
    Ok(codec::from_body::<WireLogId>(body)?.into())
}

/// Refused if the entry is longer than what can be read back.
fn record(entry: &Entry) -> Result<Record<'static>> {
    let body = codec::body(&WireEntry::from(entry))?;
    if body.len() > codec::BODY_BYTES_MAX {
        return Err(Error::refused(format!("entry {} has {} bytes, too many for the log", entry.log_id, body.len())));
    }
    Ok(Record::Entry { index: entry.log_id.index, body: body.into() })
}

/// The opposite of [`record`].
fn entry(record: &Record<'_>) -> Result<Entry> {
    let Record::Entry { index, body } = record else {
        return Err(Error::fatal(format!("{record:?} stands where an entry should")));
    };
    let entry: Entry = codec::from_body::<WireEntry>(body)?.try_into()?;
    match entry.log_id.index == *index {
        true => Ok(entry),
        false => Err(Error::refused(format!("entry {} stands for index {index}", entry.log_id))),
    }
}

fn lock(tail: &Mutex<Tail>) -> MutexGuard<'_, Tail> {
    tail.lock().unwrap_or_else(PoisonError::into_inner)
}

fn half_open(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}
