//! Snapshot files that are damaged, or gone: whoever needs one gets a whole one in the end, and a start goes on from what is left.

mod cluster;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
};

use cluster::{Cluster, Node, SNAPSHOT_EVERY, say, until};
use moim_raft::{command::Holder, log::Log, snapshot::Reading, wal::Options};

/// So many entries: the next is proposed when the one before is applied.
async fn entries(node: &Node, by: &Holder, count: u64) {
    for n in 0..count {
        node.call(say(by, format!("{n} {}", "x".repeat(1000)))).await;
    }
}

/// Finished files, the newest first.
fn snapshots(data: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(data.join("snapshots")).unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|e| e == "moim")).collect();
    // Names sort as what they cover does.
    files.sort_unstable_by(|a, b| b.cmp(a));
    files
}

fn covers(snapshot: &Path) -> u64 {
    Reading::open(snapshot).unwrap().point().index().unwrap()
}

/// Enough entries for a snapshot more, and some, so that the log need not go on from the one before it by itself.
async fn another_snapshot(node: &Node, by: &Holder, data: &Path) -> PathBuf {
    let before = snapshots(data).first().cloned();
    entries(node, by, SNAPSHOT_EVERY + 50).await;
    until(|| snapshots(data).first() > before.as_ref()).await;
    snapshots(data).remove(0)
}

/// The indexes of the first and the last entry that the log of a stopped node has.
async fn ends_of_log(data: &Path) -> (u64, u64) {
    let log = Log::open(&data.join("log"), Options::default()).unwrap();
    let (last, entries) = (log.last_index().unwrap(), log.counts().1 as u64);
    log.close().await.unwrap();
    (last + 1 - entries, last)
}

/// Changes one byte in the middle.
fn damage(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(file, bytes).unwrap();
}

/// A new node comes, and gets what all have.
async fn one_more_arrives(c: &mut Cluster) {
    let new = c.add("new").await;
    c.all_started().await;
    c.agree().await;
    assert!(c.node(new).installed.load(Ordering::SeqCst) > 0, "not conclusive: it came from the log");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_log_begins_after_the_newest_readable_snapshot_a_start_writes_another() {
    let mut c = Cluster::new(1).await;
    let (by, data) = (c.node(0).open_in_lobby("client").await, c.data(0));
    let first = another_snapshot(c.node(0), &by, &data).await;
    let kept = data.join("kept");
    fs::copy(&first, &kept).unwrap();
    for _ in 0..4 {
        another_snapshot(c.node(0), &by, &data).await;
    }
    c.stop(0).await;
    let (first_entry, _) = ends_of_log(&data).await;
    assert!(covers(&kept) + 1 < first_entry, "not conclusive: the log goes on from it");
    snapshots(&data).iter().for_each(|newer| fs::remove_file(newer).unwrap());
    fs::rename(&kept, &first).unwrap();

    c.reopen(0).await;
    c.all_started().await;
    one_more_arrives(&mut c).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_a_checkpoint_is_ahead_of_the_log_a_start_writes_a_snapshot_of_it() {
    let mut c = Cluster::new(1).await;
    let (by, data) = (c.node(0).open_in_lobby("client").await, c.data(0));
    let snapshot = another_snapshot(c.node(0), &by, &data).await;
    entries(c.node(0), &by, 10).await;
    c.stop(0).await;
    let before = data.join("before");
    fs::create_dir(&before).unwrap();
    for file in fs::read_dir(data.join("log")).unwrap().map(|file| file.unwrap()) {
        fs::copy(file.path(), before.join(file.file_name())).unwrap();
    }
    c.reopen(0).await;
    c.all_started().await;
    entries(c.node(0), &by, 10).await;
    c.stop(0).await;
    // As after a power cut that took what was not synced yet.
    fs::remove_dir_all(data.join("log")).unwrap();
    fs::rename(&before, data.join("log")).unwrap();
    assert_eq!(snapshots(&data).first(), Some(&snapshot), "not conclusive: there is a newer one");
    assert!(covers(&snapshot) < ends_of_log(&data).await.1);

    c.reopen(0).await;
    c.all_started().await;
    one_more_arrives(&mut c).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_snapshot_is_damaged_writes_another_for_who_needs_it() {
    let mut c = Cluster::new(3).await;
    let leader = c.leader().await;
    let (by, data) = (c.node(leader).open_in_lobby("client").await, c.data(leader));
    for _ in 0..3 {
        another_snapshot(c.node(leader), &by, &data).await;
    }
    let newest = snapshots(&data).remove(0);
    damage(&newest);
    let damaged = fs::read(&newest).unwrap();

    one_more_arrives(&mut c).await;
    assert_eq!(c.leader().await, leader, "not conclusive: another one sent its own");
    assert!(snapshots(&data).iter().all(|file| fs::read(file).unwrap() != damaged), "it is still there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_without_checkpoint_and_newest_snapshot_goes_on_from_the_one_before() {
    // Before the only one there is the beginning of the log.
    for count in [1, 2] {
        let mut c = Cluster::new(1).await;
        let (by, data) = (c.node(0).open_in_lobby("client").await, c.data(0));
        for _ in 0..count {
            another_snapshot(c.node(0), &by, &data).await;
        }
        // By the time that it has started again, all is purged that may be.
        c.stop(0).await;
        c.reopen(0).await;
        c.all_started().await;
        entries(c.node(0), &by, 10).await;
        let (index, hash) = c.store(0).hash_at(None).unwrap();
        c.stop(0).await;
        assert!(count == 1 || ends_of_log(&data).await.0 > 0, "not conclusive: nothing was purged");
        let newest = snapshots(&data).remove(0);
        damage(&newest);
        fs::write(data.join("state").join("CURRENT"), "damaged").unwrap();

        c.reopen(0).await;
        c.all_started().await;
        assert_eq!(c.store(0).hash_at(Some(index)), Ok((index, hash)));
        assert!(!newest.exists(), "it is not moved aside");
    }
}
