//! A disk that has no room for a checkpoint: why a node ends then is one line, in words for its operator.

#[allow(dead_code, reason = "each test uses what it needs of it")]
#[path = "process/mount.rs"]
mod mount;

use moim_raft::{
    base::{Base, Found, Point},
    snapshot::Snapshots,
    wire::{WireMembership, WireStoredMembership},
};
use mount::Mount;

/// Room for an empty checkpoint, and for little more.
const DISK: &str = "1m";
const PAIRS: u64 = 2000;

/// Bytes that do not compress.
fn noise(seed: u64) -> Vec<u8> {
    let step = |state: &mut u64| {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Some((*state >> 33) as u8)
    };
    std::iter::repeat_n((), 1000).scan(seed, |state, ()| step(state)).collect()
}

#[tokio::test]
async fn a_checkpoint_without_room_says_so_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let disk = match Mount::tmpfs(dir.path().join("small"), DISK) {
        Ok(disk) => disk,
        Err(why) => return eprintln!("SKIPPED, needs root: {why}"),
    };
    let snapshots = Snapshots::open(&dir.path().join("snapshots")).unwrap();
    let (mut base, Found { mut kv, .. }) = Base::open(&disk.path.join("state"), &snapshots).unwrap();
    (0..PAIRS).for_each(|n| kv.put([&[0x30][..], &n.to_be_bytes()].concat().into(), noise(n).into()));
    let membership = WireStoredMembership { id: None, membership: WireMembership { voters: vec![], nodes: vec![] } };
    let point = Point { applied: None, membership, hash: kv.sum().hash, pairs: kv.sum().pairs };
    base.checkpoint(kv.freeze(), point);
    let why = base.idle().await.unwrap_err().to_string();
    assert!(why.starts_with("fatal: cannot write the checkpoint"), "{why}");
    assert!(why.contains("os error 28") && why.contains("Make room"), "{why}");
    assert!(!why.contains(".rs") && !why.contains('\n'), "{why}");
}
