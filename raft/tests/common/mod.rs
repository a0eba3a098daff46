//! A log together with a model of what it has acknowledged.
#![allow(dead_code, reason = "each test uses its part")]

use std::{
    collections::BTreeMap,
    fs, io,
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use moim_raft::{
    error::Result,
    log::{Log, Options},
    raft::{Entry, LogId, Payload, TypeConfig, Vote},
    wire::{WireEntry, WireLogId, WirePayload, WireVote},
};
use openraft::{
    EntryPayload,
    storage::{IOFlushed, RaftLogReader, RaftLogStorage},
};
use tokio::sync::oneshot;

/// No mark unless something else moves it; next to nothing is kept in memory, so that reads come from the files.
pub fn options(segment_bytes: u64) -> Options {
    Options {
        segment_bytes,
        cache_bytes: 500,
        mark_every: Duration::from_secs(3600),
        ahead_bytes: 64,
        ..Options::default()
    }
}

pub fn open(dir: &Path, options: Options) -> Result<Log> {
    Log::open(dir, options)
}

/// All segments in `dir`, oldest first.
pub fn segments(dir: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    let mut segments: Vec<_> = files.filter(|path| path.extension().is_some_and(|e| e == "wal")).collect();
    segments.sort();
    segments
}

pub fn id(term: u64, index: u64) -> LogId {
    WireLogId { term, node: 1, index }.into()
}

/// An entry whose payload says where it belongs; every third one is long.
pub fn entry(term: u64, index: u64) -> Entry {
    let text = format!("{term}/{index} ").repeat(if index.is_multiple_of(3) { 12 } else { 1 });
    let payload = WirePayload::Normal(Bytes::from(text));
    WireEntry { id: WireLogId { term, node: 1, index }, payload }.try_into().unwrap()
}

/// What a log holds, or must hold. Commit points are a hint and left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    pub entries: Entries,
    pub purged: Option<LogId>,
    pub vote: Option<Vote>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries(pub BTreeMap<u64, (u64, Bytes)>);

impl Entries {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn pop(&mut self) {
        self.0.pop_last();
    }
}

impl Written {
    pub async fn of(log: &Log) -> Self {
        let mut log = log.clone();
        let state = log.get_log_state().await.unwrap();
        let vote = log.read_vote().await.unwrap();
        let entries = log.try_get_log_entries(..).await.unwrap();
        let entries: BTreeMap<_, _> = entries.into_iter().map(|entry| (entry.log_id.index, content(entry))).collect();
        let last = entries.iter().next_back().map(|(index, (term, _))| id(*term, *index));
        assert_eq!(state.last_log_id, last.or(state.last_purged_log_id));
        Self { entries: Entries(entries), purged: state.last_purged_log_id, vote }
    }

    /// Nothing wrong or foreign in it, though entries at the end may be missing.
    pub fn same_but_shorter(&self, whole: &Self) -> bool {
        self.vote == whole.vote
            && self.purged == whole.purged
            && whole.entries.0.iter().take(self.entries.0.len()).eq(self.entries.0.iter())
    }
}

fn content(entry: Entry) -> (u64, Bytes) {
    match entry.payload {
        EntryPayload::Normal(Payload(bytes)) => (entry.log_id.leader_id.term, bytes),
        other => panic!("{other:?} was never written"),
    }
}

/// Every call waits until it is acknowledged, and only then is it in `written`.
pub struct Rig {
    pub log: Log,
    pub written: Written,
}

impl Rig {
    pub fn new(log: Log) -> Self {
        Self { log, written: Written::default() }
    }

    pub async fn vote(&mut self, term: u64) {
        let vote = WireVote { term, node: 1, committed: true }.into();
        self.log.save_vote(&vote).await.unwrap();
        self.written.vote = Some(vote);
    }

    pub async fn append(&mut self, term: u64, indexes: Range<u64>) {
        queue(&mut self.log, term, indexes.clone()).await.unwrap().await.unwrap().unwrap();
        self.log.save_committed(Some(id(term, indexes.start))).await.unwrap();
        self.written.entries.0.extend(indexes.map(|index| (index, content(entry(term, index)))));
    }

    /// Entries from `next` on go. Acknowledged by whatever is written next.
    pub async fn truncate(&mut self, next: u64) {
        let written = &self.written;
        let at = |index| written.entries.0.get(&index).map(|(term, _)| id(*term, index)).or(written.purged);
        let last = next.checked_sub(1).and_then(at);
        self.log.truncate_after(last).await.unwrap();
        self.written.entries.0.split_off(&next);
    }

    /// Entries up to `index` go. Acknowledged by whatever is written next.
    pub async fn purge(&mut self, index: u64) {
        let upto = id(self.written.entries.0.get(&index).map_or(9, |(term, _)| *term), index);
        self.log.purge(upto).await.unwrap();
        self.written.entries.0 = self.written.entries.0.split_off(&(index + 1));
        self.written.purged = Some(upto);
    }
}

/// Appends without waiting; the receiver gets the outcome.
pub async fn queue(log: &mut Log, term: u64, indexes: Range<u64>) -> io::Result<oneshot::Receiver<io::Result<()>>> {
    let (done, outcome) = <TypeConfig as openraft::type_config::TypeConfigExt>::oneshot();
    let entries: Vec<Entry> = indexes.map(|index| entry(term, index)).collect();
    log.append(entries, IOFlushed::signal(done)).await?;
    Ok(outcome)
}
