//! openraft's storage in memory: a log, and a state machine that keeps all payloads in order.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    fs, io,
    ops::RangeBounds,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use moim_raft::{
    codec,
    net::SnapshotFile,
    raft::{Done, Entry, LogId, Payload, SnapshotMeta, StoredMembership, TypeConfig, Vote},
};
use openraft::{
    EntryPayload, OptionalSend, RaftSnapshotBuilder,
    storage::{EntryResponder, IOFlushed, LogState, RaftLogReader, RaftLogStorage, RaftStateMachine, Snapshot},
    type_config::alias::SnapshotOf,
};

#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    entries: BTreeMap<u64, Entry>,
    vote: Option<Vote>,
    purged: Option<LogId>,
}

impl RaftLogReader<TypeConfig> for Log {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        Ok(self.0.lock().unwrap().entries.range(range).map(|(_, entry)| entry.clone()).collect())
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.0.lock().unwrap().vote)
    }
}

impl RaftLogStorage<TypeConfig> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let kept = self.0.lock().unwrap();
        let last = kept.entries.last_key_value().map(|(_, entry)| entry.log_id).or(kept.purged);
        Ok(LogState { last_purged_log_id: kept.purged, last_log_id: last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.0.lock().unwrap().vote = Some(*vote);
        Ok(())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.0.lock().unwrap().entries.extend(entries.into_iter().map(|entry| (entry.log_id.index, entry)));
        callback.io_completed(Ok(()));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        drop(self.0.lock().unwrap().entries.split_off(&last.map_or(0, |id| id.index + 1)));
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        let mut kept = self.0.lock().unwrap();
        kept.entries = kept.entries.split_off(&(upto.index + 1));
        kept.purged = Some(upto);
        Ok(())
    }
}

#[derive(Clone)]
pub struct Machine {
    dir: PathBuf,
    pub state: Arc<Mutex<State>>,
}

#[derive(Default)]
pub struct State {
    pub payloads: Vec<Bytes>,
    applied: Option<LogId>,
    membership: StoredMembership,
    /// Snapshots that came from another node.
    pub installed: usize,
}

impl Machine {
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, state: Arc::default() }
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let state = self.state.lock().unwrap();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let mut state = self.state.lock().unwrap();
            state.applied = Some(entry.log_id);
            match entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(Payload(bytes)) => state.payloads.push(bytes),
                EntryPayload::Membership(membership) => {
                    state.membership = StoredMembership::new(Some(entry.log_id), membership);
                }
            }
            if let Some(responder) = responder {
                responder.send(Done);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotFile) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        state.payloads = codec::from_body(&fs::read(&snapshot.path)?)?;
        (state.applied, state.membership) = (meta.last_log_id, meta.last_membership.clone());
        state.installed += 1;
        fs::remove_file(&snapshot.path)
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<TypeConfig, SnapshotFile>>> {
        Ok(Some(self.build_snapshot().await?))
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Machine {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<TypeConfig, SnapshotFile>> {
        let state = self.state.lock().unwrap();
        let path = self.dir.join(format!("snapshot-{}", state.applied.map_or(0, |id| id.index)));
        fs::write(&path, codec::body(&state.payloads)?)?;
        let meta = SnapshotMeta { last_log_id: state.applied, last_membership: state.membership.clone() };
        Ok(Snapshot { meta, snapshot: SnapshotFile { path } })
    }
}
