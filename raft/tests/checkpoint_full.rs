//! A disk that has no room for a checkpoint: why a node ends then is one line, in words for its operator. One that has none for a
//! snapshot, which only shortens the log: the node goes on.

mod cluster;
#[allow(dead_code, reason = "each test uses what it needs of it")]
#[path = "process/mount.rs"]
mod mount;

use std::{fs, path::Path};

use cluster::{Cluster, SNAPSHOT_EVERY, say, until};
use moim_raft::{
    Error,
    base::{Base, Found, Point},
    kv::Kv,
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

/// With that many pairs of which no checkpoint was begun, at the point of all of them.
fn filled(state: &Path, snapshots: &Snapshots) -> (Base, Kv, Point) {
    let (base, Found { mut kv, .. }) = Base::open(state, snapshots).unwrap();
    (0..PAIRS).for_each(|n| kv.put([&[0x30][..], &n.to_be_bytes()].concat().into(), noise(n).into()));
    let membership = WireStoredMembership { id: None, membership: WireMembership { voters: vec![], nodes: vec![] } };
    let point = Point { applied: None, membership, hash: kv.sum().hash, pairs: kv.sum().pairs };
    (base, kv, point)
}

#[tokio::test]
async fn a_checkpoint_without_room_says_so_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let disk = match Mount::tmpfs(dir.path().join("small"), DISK) {
        Ok(disk) => disk,
        Err(why) => return eprintln!("SKIPPED, needs root: {why}"),
    };
    let snapshots = Snapshots::open(&dir.path().join("snapshots")).unwrap();
    let (mut base, mut kv, point) = filled(&disk.path.join("state"), &snapshots);
    base.checkpoint(kv.freeze(), point);
    let why = base.idle().await.unwrap_err().to_string();
    assert!(why.starts_with("fatal: cannot write the checkpoint"), "{why}");
    assert!(why.contains("os error 28") && why.contains("Make room"), "{why}");
    assert!(!why.contains(".rs") && !why.contains('\n'), "{why}");
}

#[tokio::test]
async fn a_snapshot_without_room_leaves_nothing_behind_and_comes_when_there_is_some() {
    let dir = tempfile::tempdir().unwrap();
    let disk = match Mount::tmpfs(dir.path().join("small"), DISK) {
        Ok(disk) => disk,
        Err(why) => return eprintln!("SKIPPED, needs root: {why}"),
    };
    let snapshots = Snapshots::open(&disk.path).unwrap();
    let (mut base, mut kv, point) = filled(&dir.path().join("state"), &snapshots);
    base.checkpoint(kv.freeze(), point.clone());
    let refused = base.snapshot().await.unwrap();
    assert!(matches!(&refused, Err(Error::Unavailable(why)) if why.contains("os error 28")), "{refused:?}");
    assert_eq!(fs::read_dir(&disk.path).unwrap().count(), 0);
    disk.resize("8m");
    let (path, of) = base.snapshot().await.unwrap().expect("there is room");
    assert!(path.exists() && of == point);
    assert_eq!(base.health().failed(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_room_for_a_snapshot_goes_on_and_writes_it_when_there_is_some() {
    let mut c = Cluster::new(1).await;
    let by = c.node(0).open_in_lobby("client").await;
    c.stop(0).await;
    let snapshots = c.data(0).join("snapshots");
    let disk = match Mount::tmpfs(snapshots.clone(), "512k") {
        Ok(disk) => disk,
        Err(why) => return eprintln!("SKIPPED, needs root: {why}"),
    };
    c.reopen(0).await;
    c.all_started().await;
    for n in 0..SNAPSHOT_EVERY * 3 {
        c.node(0).call(say(&by, format!("{n} {}", "x".repeat(1000)))).await;
    }
    assert_eq!(fs::read_dir(&snapshots).unwrap().count(), 0, "one was begun");
    disk.resize("128m");
    until(|| fs::read_dir(&snapshots).unwrap().count() > 0).await;
    c.stop(0).await;
}
