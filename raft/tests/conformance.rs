//! openraft's own suite for stores, on our log and our state machine: as they are, and opened anew before each step.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::Stream;
use moim_raft::{
    base::Base,
    level,
    log::{Log, Options},
    machine::{Builder, Machine},
    net::SnapshotFile,
    propose::Proposals,
    raft::{Entry, LogId, SnapshotMeta, StoredMembership, TypeConfig, Vote},
    snapshot::Snapshots,
};
use openraft::{
    LogState, OptionalSend, StorageError,
    storage::{EntryResponder, IOFlushed, RaftLogReader, RaftLogStorage, RaftStateMachine},
    testing::log::{StoreBuilder, Suite},
    type_config::alias::SnapshotOf,
};
use tempfile::TempDir;
use tokio::sync::{MappedMutexGuard, Mutex, MutexGuard, mpsc, oneshot};

type Snapshot = SnapshotOf<TypeConfig, SnapshotFile>;

/// sled starts `sync`, and a process that is being started holds all files of its parent for a moment: also the lock of a log
/// that was closed meanwhile. A log that is opened in that moment is told that it is in use. Nothing else is tried again.
fn open_log(dir: &Path, options: &Options) -> Log {
    for _ in 0..100 {
        match Log::open(&dir.join("log"), options.clone()) {
            Err(e) if e.to_string().contains("in use") => std::thread::sleep(Duration::from_millis(1)),
            opened => return opened.expect("the log opens"),
        }
    }
    panic!("the log of before is still open");
}

fn open_machine(dir: &Path) -> (Machine, oneshot::Receiver<()>) {
    let snapshots = Snapshots::open(&dir.join("snapshots")).expect("the snapshots open");
    let (base, found) = Base::open(&dir.join("state"), &snapshots).expect("the checkpoint opens");
    let (feed, _nobody) = mpsc::channel(1);
    let proposals = Arc::new(Proposals::default());
    Machine::open(1, level::KNOWN, base, found, snapshots, proposals, feed, Default::default())
        .expect("the machine opens")
}

/// Stores as a node has them.
struct Plain(Options);

impl StoreBuilder<TypeConfig, Log, Machine, TempDir> for Plain {
    async fn build(&self) -> Result<(TempDir, Log, Machine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().expect("a temp folder");
        let (log, machine) = (open_log(dir.path(), &self.0), open_machine(dir.path()).0);
        Ok((dir, log, machine))
    }
}

/// A log that is closed and opened before each step. Readers share it.
#[derive(Clone)]
struct ReopenedLog {
    dir: PathBuf,
    log: Arc<Mutex<Option<Log>>>,
}

impl ReopenedLog {
    async fn reopened(&self) -> MappedMutexGuard<'_, Log> {
        let mut log = self.log.lock().await;
        // The last handle that goes closes it.
        drop(log.take());
        MutexGuard::map(log, |log| log.insert(open_log(&self.dir, &Options::default())))
    }
}

impl RaftLogReader<TypeConfig> for ReopenedLog {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: std::ops::RangeBounds<u64> + Clone + std::fmt::Debug + OptionalSend,
    {
        self.reopened().await.try_get_log_entries(range).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.reopened().await.limited_get_log_entries(start, end).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        self.reopened().await.read_vote().await
    }
}

impl RaftLogStorage<TypeConfig> for ReopenedLog {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        self.reopened().await.get_log_state().await
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.reopened().await.save_vote(vote).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.reopened().await.save_committed(committed).await
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        self.reopened().await.read_committed().await
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.reopened().await.append(entries, callback).await
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.reopened().await.truncate_after(last).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.reopened().await.purge(upto).await
    }
}

/// A state machine that is closed and opened before each step.
struct ReopenedMachine {
    dir: PathBuf,
    open: Option<(Machine, oneshot::Receiver<()>)>,
}

impl ReopenedMachine {
    async fn reopened(&mut self) -> &mut Machine {
        if let Some((machine, gone)) = self.open.take() {
            drop(machine);
            _ = gone.await;
        }
        &mut self.open.insert(open_machine(&self.dir)).0
    }
}

impl RaftStateMachine<TypeConfig> for ReopenedMachine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        self.reopened().await.applied_state().await
    }

    async fn apply<S>(&mut self, entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + Send,
    {
        self.reopened().await.apply(entries).await
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        self.reopened().await.get_snapshot_builder().await
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, file: SnapshotFile) -> io::Result<()> {
        self.reopened().await.install_snapshot(meta, file).await
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        self.reopened().await.get_current_snapshot().await
    }
}

struct Reopened;

impl StoreBuilder<TypeConfig, ReopenedLog, ReopenedMachine, TempDir> for Reopened {
    async fn build(&self) -> Result<(TempDir, ReopenedLog, ReopenedMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().expect("a temp folder");
        let machine = ReopenedMachine { dir: dir.path().to_path_buf(), open: None };
        let log = ReopenedLog { dir: dir.path().to_path_buf(), log: Arc::default() };
        Ok((dir, log, machine))
    }
}

/// On a thread with room for a future that is made of the whole suite's.
fn run<L, M>(stores: impl StoreBuilder<TypeConfig, L, M, TempDir> + 'static)
where
    L: RaftLogStorage<TypeConfig> + 'static,
    M: RaftStateMachine<TypeConfig> + 'static,
{
    let suite = move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(Suite::test_all(stores)).unwrap();
    };
    std::thread::Builder::new().stack_size(32 << 20).spawn(suite).unwrap().join().unwrap();
}

#[test]
fn openrafts_suite_passes() {
    run(Plain(Options::default()));
}

#[test]
fn openrafts_suite_passes_with_a_segment_a_group() {
    run(Plain(Options { segment_bytes: 1, mark_every: Duration::from_millis(1), ..Options::default() }));
}

#[test]
fn openrafts_suite_passes_when_everything_is_opened_anew_before_each_step() {
    run(Reopened);
}
