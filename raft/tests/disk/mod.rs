//! A state on a disk of its own, with the log that it was made from.

use std::{
    path::{Path, PathBuf},
    sync::Once,
    time::Duration,
};

use moim_raft::{
    base::{Base, Found, Patience, Point},
    command::Batch,
    raft::LogId,
    snapshot::{Reading, Snapshots},
    state::{Outcome, State},
    wire::{WireLogId, WireMembership, WireStoredMembership},
};
use tempfile::TempDir;

pub struct Disk {
    dir: PathBuf,
    _temporary: Option<TempDir>,
    snapshots: Snapshots,
    base: Option<Base>,
    pub state: State,
    thawed: u64,
    /// All that was applied, and what came of it.
    log: Vec<(Batch, Outcome)>,
    applied: usize,
    patience: Patience,
}

/// sled runs `sync` twice for each start, which waits for the whole machine's disks. Without a path it is not found, and
/// sled goes on.
fn without_sync() {
    static ONCE: Once = Once::new();
    // SAFETY: nobody in this process reads the environment but whoever starts `sync`, which is behind this.
    ONCE.call_once(|| unsafe { std::env::remove_var("PATH") });
}

/// In memory where that is possible: what is asked of these disks is not speed.
pub fn temporary() -> TempDir {
    let shm = PathBuf::from("/dev/shm");
    tempfile::tempdir_in(if shm.is_dir() { shm } else { std::env::temp_dir() }).unwrap()
}

impl Disk {
    pub fn new() -> Self {
        let dir = temporary();
        let mut disk = Self::at(dir.path(), Vec::new(), Patience::default());
        disk._temporary = Some(dir);
        disk
    }

    /// What is there, and what the log has beyond it.
    pub fn at(dir: &Path, log: Vec<(Batch, Outcome)>, patience: Patience) -> Self {
        without_sync();
        let snapshots = Snapshots::open(&dir.join("snapshots")).unwrap();
        let (base, found) = Base::open_watched(&dir.join("state"), &snapshots, patience).unwrap();
        let (dir, state) = (dir.to_path_buf(), State::default());
        let mut disk =
            Self { dir, _temporary: None, snapshots, base: Some(base), state, thawed: 0, log, applied: 0, patience };
        disk.begin(found);
        disk
    }

    fn base(&mut self) -> &mut Base {
        self.base.as_mut().expect("open between two calls")
    }

    pub fn apply(&mut self, batch: &Batch, expected: &Outcome) {
        self.log.push((batch.clone(), expected.clone()));
        self.replay();
    }

    /// From wherever the state is to the end of the log.
    fn replay(&mut self) {
        for (batch, expected) in &self.log[self.applied..] {
            assert_eq!(self.state.apply(batch), *expected);
        }
        self.applied = self.log.len();
    }

    fn id(&self) -> WireLogId {
        WireLogId { index: self.applied as u64, term: 1, node: 1 }
    }

    fn point(&self) -> Point {
        let membership =
            WireStoredMembership { id: None, membership: WireMembership { voters: vec![], nodes: vec![] } };
        let sum = self.state.kv().sum();
        Point { applied: Some(self.id()), membership, hash: sum.hash, pairs: sum.pairs }
    }

    /// Begins one, and does not wait for it.
    pub fn checkpoint(&mut self) {
        let point = self.point();
        let changes = self.state.kv_mut().freeze();
        self.base().checkpoint(changes, point);
    }

    /// Lets go of what was written, maybe while more is being written.
    pub fn catch_up(&mut self) {
        while self.thawed < self.base().written() {
            self.thawed += 1;
            let written = self.state.kv_mut().thaw().expect("as many as were frozen");
            self.base().discard(written);
        }
    }

    /// Writes one, which must be of this very moment.
    pub fn snapshot(&mut self) -> PathBuf {
        self.checkpoint();
        let (path, point) = self.base().snapshot().blocking_recv().unwrap().unwrap();
        assert_eq!(point, self.point());
        path
    }

    /// The newest snapshot as if it came from a peer, and what came after it.
    pub fn install(&mut self) {
        self.snapshot();
        let Some(file) = self.snapshots.newest_first().pop() else { return };
        let received = self.dir.join("received");
        std::fs::copy(&file, &received).unwrap();
        let id = Reading::open(&file).unwrap().point().applied.map(LogId::from);
        let found = self.base().install(&received, id).blocking_recv().unwrap().unwrap();
        self.thawed = self.base().written();
        self.begin(found);
    }

    /// A clean stop and a start.
    pub fn restart(&mut self) {
        self.checkpoint();
        self.reopen();
    }

    /// What no checkpoint was begun of is gone.
    pub fn lose_overlay(&mut self) {
        self.reopen();
    }

    fn reopen(&mut self) {
        self.base = None;
        self.state = State::default();
        let opened = Base::open_watched(&self.dir.join("state"), &self.snapshots, self.patience);
        let (base, found) = opened.unwrap();
        (self.base, self.thawed) = (Some(base), 0);
        self.begin(found);
    }

    fn begin(&mut self, found: Found) {
        self.state = State::on(found.kv);
        self.applied = found.point.and_then(|point| point.index()).unwrap_or(0) as usize;
        self.replay();
    }

    pub fn compare(&mut self, other: &State) {
        assert_eq!(self.state.kv().sum(), other.kv().sum());
        let (ours, theirs) = (self.state.pairs(), other.pairs());
        assert!(ours.map(|(k, v)| (k.to_vec(), v.to_vec())).eq(theirs.map(|(k, v)| (k.to_vec(), v.to_vec()))));
        assert_eq!(self.failed(), None);
    }

    /// Waits until all of it was read again; what the node would say when it exits.
    pub fn failed(&mut self) -> Option<String> {
        let health = self.base().health();
        while !health.is_verified() && health.failed().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        health.failed()
    }
}
