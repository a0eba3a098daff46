//! The same random operations on our log and on the crate `raft-log`, an independent one: the same state, step by step.
//!
//! Its bounds are set so that what is known to be wrong in it stays out of sight: its cache evicts nothing.
//! `MOIM_SEED=<n>` runs one seed.

mod common;

use std::{
    env, io,
    path::Path,
    sync::{
        Arc,
        mpsc::{SyncSender, sync_channel},
    },
};

use common::{entry, id, open, options, queue};
use moim_raft::{
    log::{Log, Options},
    raft::{Entry, LogId, Payload},
    wire::WireVote,
};
use openraft::{
    EntryPayload,
    storage::{RaftLogReader, RaftLogStorage},
};
use raft_log::{
    Config, RaftLog,
    api::{raft_log_writer::RaftLogWriter, types::Types},
};

const SEEDS: u64 = 9;
const STEPS: usize = 150;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Theirs;

impl Types for Theirs {
    /// Term and index.
    type LogId = (u64, u64);
    type LogPayload = String;
    type Vote = (u64, u64);
    type UserData = String;
    type Callback = SyncSender<io::Result<()>>;

    fn log_index(id: &Self::LogId) -> u64 {
        id.1
    }

    fn payload_size(payload: &String) -> u64 {
        payload.len() as u64
    }
}

type Id = (u64, u64);

/// What either of them says that it holds.
#[derive(Debug, PartialEq, Eq)]
struct State {
    entries: Vec<(Id, String)>,
    last: Option<Id>,
    purged: Option<Id>,
    committed: Option<Id>,
    vote: Option<u64>,
}

struct Pair {
    dir: tempfile::TempDir,
    options: Options,
    ours: Log,
    theirs: RaftLog<Theirs>,
}

fn open_theirs(dir: &Path) -> RaftLog<Theirs> {
    let mut config = Config::new(dir.to_str().unwrap());
    config.wal.chunk_max_records = Some(23);
    config.wal.flush_batch_wait = Some(std::time::Duration::ZERO);
    config.log_cache_max_items = Some(usize::MAX);
    config.log_cache_capacity = Some(usize::MAX);
    RaftLog::open(Arc::new(config)).unwrap()
}

impl Pair {
    fn new(options: Options) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("theirs")).unwrap();
        let ours = open(&dir.path().join("ours"), options.clone()).unwrap();
        let theirs = open_theirs(&dir.path().join("theirs"));
        Self { dir, options, ours, theirs }
    }

    async fn vote(&mut self, term: u64) {
        let vote = WireVote { term, node: 1, committed: true }.into();
        self.ours.save_vote(&vote).await.unwrap();
        self.theirs.save_vote((term, 1)).unwrap();
    }

    async fn append(&mut self, term: u64, indexes: std::ops::Range<u64>) {
        queue(&mut self.ours, term, indexes.clone()).await.unwrap().await.unwrap().unwrap();
        let pair = |index| ((term, index), text(entry(term, index)));
        self.theirs.append(indexes.map(pair)).unwrap();
    }

    async fn truncate(&mut self, next: u64, last: Option<Id>) {
        self.ours.truncate_after(last.map(|(term, index)| id(term, index))).await.unwrap();
        self.theirs.truncate(next).unwrap();
    }

    async fn purge(&mut self, upto: Id) {
        self.ours.purge(id(upto.0, upto.1)).await.unwrap();
        self.theirs.purge(upto).unwrap();
    }

    async fn commit(&mut self, upto: Id) {
        self.ours.save_committed(Some(id(upto.0, upto.1))).await.unwrap();
        self.theirs.commit(upto).unwrap();
    }

    async fn reopen(self) -> Self {
        let Self { dir, options, ours, mut theirs } = self;
        ours.close().await.unwrap();
        drop(ours);
        let (flushed, done) = sync_channel(1);
        theirs.flush(true, Some(flushed)).unwrap();
        done.recv().unwrap().unwrap();
        drop(theirs);
        let ours = open(&dir.path().join("ours"), options.clone()).unwrap();
        let theirs = open_theirs(&dir.path().join("theirs"));
        Self { dir, options, ours, theirs }
    }

    async fn ours(&mut self) -> State {
        let state = self.ours.get_log_state().await.unwrap();
        let entries = self.ours.try_get_log_entries(..).await.unwrap();
        State {
            entries: entries.into_iter().map(|entry| (pair(entry.log_id), text(entry))).collect(),
            last: state.last_log_id.map(pair),
            purged: state.last_purged_log_id.map(pair),
            committed: self.ours.read_committed().await.unwrap().map(pair),
            vote: self.ours.read_vote().await.unwrap().map(|vote| vote.leader_id.term),
        }
    }

    fn theirs(&self) -> State {
        let state = self.theirs.log_state();
        let first = state.purged().map_or(0, |id| id.1 + 1);
        let end = state.last().map_or(0, |id| id.1 + 1);
        let entries =
            if first < end { self.theirs.read(first, end).collect::<Result<_, _>>().unwrap() } else { vec![] };
        State {
            entries,
            last: state.last().copied(),
            purged: state.purged().copied(),
            committed: state.committed().copied(),
            vote: state.vote().map(|vote| vote.0),
        }
    }
}

fn pair(id: LogId) -> Id {
    (id.leader_id.term, id.index)
}

fn text(entry: Entry) -> String {
    match entry.payload {
        EntryPayload::Normal(Payload(bytes)) => String::from_utf8(bytes.to_vec()).unwrap(),
        other => panic!("{other:?} was never written"),
    }
}

/// A small generator of numbers, the same for a seed in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

async fn compare(seed: u64) {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let cache_bytes = [0, 700, 1 << 20][dice.roll(3) as usize];
    let segment_bytes = [1, 300, 3000][dice.roll(3) as usize];
    let mut pair = Pair::new(Options { cache_bytes, ..options(segment_bytes) });
    let mut term = 1;
    for step in 0..STEPS {
        let state = pair.theirs();
        let next = state.last.map_or(0, |last| last.1 + 1);
        let committed = state.committed.map_or(0, |id| id.1 + 1).max(state.purged.map_or(0, |id| id.1 + 1));
        let at = |index: u64| state.entries.iter().map(|(id, _)| *id).find(|id| id.1 == index).or(state.purged);
        match dice.roll(12) {
            0 => {
                term += 1;
                pair.vote(term).await;
            }
            // A conflict: what was not committed goes, and entries of an older or of a newer term take its place.
            1 | 2 if next > committed => {
                let from = committed + dice.roll(next - committed);
                let last = from.checked_sub(1).and_then(at);
                pair.truncate(from, last).await;
                let older = last.map_or(1, |last| last.0);
                let count = 1 + dice.roll(4);
                let term = if dice.roll(2) == 0 { older } else { term };
                pair.append(term, from..from + count).await;
            }
            3 if committed > 0 => {
                if let Some(upto) = at(dice.roll(committed)).filter(|id| Some(*id) > state.purged) {
                    pair.purge(upto).await;
                }
            }
            // An installed snapshot beyond the end.
            4 if dice.roll(4) == 0 => {
                let upto = (term, next + dice.roll(20));
                pair.purge(upto).await;
                pair.commit(upto).await;
            }
            5 => pair = pair.reopen().await,
            6 | 7 if next > committed => {
                let upto = at(committed + dice.roll(next - committed)).unwrap();
                pair.commit(upto).await;
            }
            _ => {
                let count = 1 + dice.roll(6);
                pair.append(term, next..next + count).await;
            }
        }
        assert_eq!(pair.ours().await, pair.theirs(), "MOIM_SEED={seed}, step {step}");
    }
    pair = pair.reopen().await;
    assert_eq!(pair.ours().await, pair.theirs(), "MOIM_SEED={seed}, at the end");
}

#[tokio::test]
async fn a_random_history_leaves_the_same_state_as_in_an_independent_log() {
    let given = env::var("MOIM_SEED").ok().map(|seed| seed.parse().expect("a number"));
    for seed in given.map_or(0..SEEDS, |seed| seed..seed + 1) {
        eprintln!("MOIM_SEED={seed}");
        compare(seed).await;
    }
}
