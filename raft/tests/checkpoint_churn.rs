//! Checkpoints that empty leaves, again and again, while others read.
//!
//! sled's batches were seen to leave emptied leaves behind for ever, and later versions of it mend a deadlock between two
//! batches that merge such leaves. So here only one thread writes, keys go one by one, and a watch ends a process in which
//! sled does not answer: this test would be ended by it.

#[allow(dead_code, reason = "each test uses what it needs of it")]
mod disk;

use std::time::Duration;

use moim_raft::{
    base::{Base, Found, Patience, Point},
    kv::Kv,
    snapshot::Snapshots,
    wire::{WireLogId, WireMembership, WireStoredMembership},
};

const ROUNDS: u64 = 150;
/// Pairs that come and go in a round: a dozen leaves.
const PAIRS: u64 = 1500;
/// Rounds that a pair stays.
const STAYS: u64 = 3;

fn key(round: u64, n: u64) -> Vec<u8> {
    // Beside what stays for good, so that leaves are emptied between others that are not.
    [&[0x30][..], &(round % 7).to_be_bytes(), &round.to_be_bytes(), &n.to_be_bytes()].concat()
}

fn point(kv: &Kv, index: u64) -> Point {
    let membership = WireStoredMembership { id: None, membership: WireMembership { voters: vec![], nodes: vec![] } };
    let applied = Some(WireLogId { index, term: 1, node: 1 });
    Point { applied, membership, hash: kv.sum().hash, pairs: kv.sum().pairs }
}

#[test]
fn leaves_that_are_emptied_for_ever_hold_up_neither_writers_nor_readers() {
    let dir = disk::temporary();
    let snapshots = Snapshots::open(&dir.path().join("snapshots")).unwrap();
    let patience = Patience { read: Duration::from_secs(5), write: Duration::from_secs(20) };
    let (mut base, Found { mut kv, .. }) = Base::open_watched(&dir.path().join("state"), &snapshots, patience).unwrap();
    let mut reads = 0;
    for round in 0..ROUNDS {
        (0..PAIRS).for_each(|n| kv.put(key(round, n).into(), n.to_be_bytes().into()));
        if let Some(old) = round.checked_sub(STAYS) {
            assert!((0..PAIRS).all(|n| kv.delete(&key(old, n))));
        }
        let point = point(&kv, round + 1);
        base.checkpoint(kv.freeze(), point);
        // As apply and everybody who looks does, through what is being written.
        while base.is_busy() {
            let n = reads % PAIRS;
            assert!(kv.has(&key(round, n)));
            assert_eq!(kv.scan_from(&[0x30], std::ops::Bound::Unbounded).take(300).count(), 300);
            reads += 1;
            assert_eq!(base.health().failed(), None);
        }
        base.discard(kv.thaw().unwrap());
    }
    assert_eq!(kv.iter().count() as u64, PAIRS * STAYS);
    assert!(reads > ROUNDS, "not conclusive");
}
