//! A state on a disk of its own, with the log that it was made from.

use std::path::PathBuf;

use moim_raft::{
    base::{Base, Found, Point},
    command::Batch,
    raft::LogId,
    snapshot::{Reading, Snapshots},
    state::{Outcome, State},
    wire::{WireLogId, WireMembership, WireStoredMembership},
};
use tempfile::TempDir;

pub struct Disk {
    dir: TempDir,
    snapshots: Snapshots,
    base: Option<Base>,
    pub state: State,
    thawed: u64,
    /// All that was applied, and what came of it.
    log: Vec<(Batch, Outcome)>,
    applied: usize,
}

impl Disk {
    pub fn new() -> Self {
        // In memory where that is possible: what is asked of this disk is not speed.
        let shm = PathBuf::from("/dev/shm");
        let dir = tempfile::tempdir_in(if shm.is_dir() { shm } else { std::env::temp_dir() }).unwrap();
        let snapshots = Snapshots::open(&dir.path().join("snapshots")).unwrap();
        let (base, found) = Base::open(&dir.path().join("state"), &snapshots).unwrap();
        let state = State::on(found.kv);
        Self { dir, snapshots, base: Some(base), state, thawed: 0, log: Vec::new(), applied: 0 }
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
        let received = self.dir.path().join("received");
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
        let (base, found) = Base::open(&self.dir.path().join("state"), &self.snapshots).unwrap();
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
        assert!(self.base().health().failed().is_none());
    }
}
