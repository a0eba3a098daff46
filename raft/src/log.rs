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
//! All entries that are not purged are kept in memory; how many that are is up to the one who makes snapshots.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    io,
    ops::{Bound, RangeBounds},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use openraft::{
    EntryPayload, OptionalSend,
    storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage},
};
use tokio::sync::oneshot;

pub use crate::wal::Options;
use crate::{
    codec,
    error::{Error, Result},
    raft::{Entry, LogId, Payload, TypeConfig, Vote},
    wal::{Done, Room, Wal, record::Record},
    wire::{WireEntry, WireLogId, WireVote},
};

/// Payload bytes that one read of a peer's replication takes at most; it asks again for the rest. One entry is always
/// given, however long.
pub const READ_BYTES_MAX: usize = 4 << 20;

/// The log of one node. Clones are the same log; openraft owns one and is the only writer.
#[derive(Clone)]
pub struct Log(Arc<Inner>);

struct Inner {
    wal: Wal,
    tail: Mutex<Tail>,
}

/// What the file comes to.
#[derive(Default)]
struct Tail {
    entries: BTreeMap<u64, Entry>,
    vote: Option<Vote>,
    purged: Option<LogId>,
    committed: Option<LogId>,
}

impl Tail {
    /// The index of the next entry; `None` while any will do, because there never was one.
    fn next(&self) -> Option<u64> {
        Some(self.last()?.index + 1)
    }

    fn last(&self) -> Option<LogId> {
        self.entries.last_key_value().map(|(_, entry)| entry.log_id).or(self.purged)
    }

    /// Reads one record of the file.
    fn replay(&mut self, record: Record) -> Result<()> {
        match record {
            Record::Entry { index, body } => {
                let entry: Entry = codec::from_body::<WireEntry>(&body)?.try_into()?;
                if entry.log_id.index != index {
                    return Err(Error::refused(format!("entry {} stands for index {index}", entry.log_id)));
                }
                self.entries.insert(index, entry);
            }
            Record::Vote(body) => self.vote = Some(codec::from_body::<WireVote>(&body)?.into()),
            Record::Truncate { next } => drop(self.entries.split_off(&next)),
            Record::Purge { first, body } => {
                self.entries = self.entries.split_off(&first);
                self.purged = Some(log_id(&body)?);
            }
            Record::Committed(body) => self.committed = Some(log_id(&body)?),
        }
        Ok(())
    }

    /// Clones of the entries in `start..end`, up to `bytes` of payload but at least one.
    fn read(&self, start: u64, end: u64, bytes: usize) -> Vec<Entry> {
        if start >= end {
            return vec![];
        }
        let mut left = Some(bytes);
        let within = |(_, entry): &(&u64, &Entry)| {
            let fits = left.is_some();
            left = left.and_then(|left| left.checked_sub(payload_bytes(entry)));
            fits
        };
        self.entries.range(start..end).take_while(within).map(|(_, entry)| entry.clone()).collect()
    }
}

impl Log {
    /// Opens the log in the folder `dir`, which is made if it is not there (its parent must be). Blocks while it reads.
    ///
    /// Refused, with one line saying why and what to do, if it is damaged, shorter than what was acknowledged, or in use.
    pub fn open(dir: &Path, options: Options) -> Result<Self> {
        let mut tail = Tail::default();
        let wal = Wal::open(dir, options, |record| tail.replay(record))?;
        Ok(Self(Arc::new(Inner { wal, tail: Mutex::new(tail) })))
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

    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.0.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn room(&self, records: &[Record]) -> Result<Room> {
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
        Ok(self.tail().read(start, end, usize::MAX))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        Ok(self.tail().read(start, end, READ_BYTES_MAX))
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
        let records = vec![Record::Vote(codec::body(&WireVote::from(vote))?)];
        let room = self.room(&records).await?;
        let (done, synced) = oneshot::channel();
        {
            let mut tail = self.tail();
            tail.vote = Some(*vote);
            // Nobody listens any more if openraft was shut down meanwhile.
            self.0.wal.submit(records, room, Done::new(|outcome| drop(done.send(outcome))));
        }
        synced.await.map_err(io::Error::other)?
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let Some(committed) = committed else { return Ok(()) };
        let records = vec![Record::Committed(codec::body(&WireLogId::from(&committed))?)];
        let room = self.room(&records).await?;
        let mut tail = self.tail();
        tail.committed = Some(committed);
        self.0.wal.submit(records, room, Done::none());
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
        tail.entries.extend(entries.into_iter().map(|entry| (entry.log_id.index, entry)));
        self.0.wal.submit(records, room, Done::new(|outcome| callback.io_completed(outcome)));
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
            tail.entries.split_off(&next);
            self.0.wal.submit(records, room, Done::none());
        }
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        let first = upto.index + 1;
        let records = vec![Record::Purge { first, body: codec::body(&WireLogId::from(&upto))? }];
        let room = self.room(&records).await?;
        // Many entries take a while to free: after the lock is released.
        let _purged = {
            let mut tail = self.tail();
            if tail.purged.as_ref().is_some_and(|purged| upto.index <= purged.index) {
                return Ok(());
            }
            let kept = tail.entries.split_off(&first);
            tail.purged = Some(upto);
            self.0.wal.submit(records, room, Done::none());
            std::mem::replace(&mut tail.entries, kept)
        };
        Ok(())
    }
}

fn log_id(body: &[u8]) -> Result<LogId> {
    Ok(codec::from_body::<WireLogId>(body)?.into())
}

/// Refused if the entry is longer than what can be read back.
fn record(entry: &Entry) -> Result<Record> {
    let body = codec::body(&WireEntry::from(entry))?;
    if body.len() > codec::BODY_BYTES_MAX {
        return Err(Error::refused(format!("entry {} has {} bytes, too many for the log", entry.log_id, body.len())));
    }
    Ok(Record::Entry { index: entry.log_id.index, body })
}

fn payload_bytes(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Normal(Payload(bytes)) => bytes.len(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    }
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
