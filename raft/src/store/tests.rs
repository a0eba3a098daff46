//! Inside the crate, because only here Raft and the checkpoints can end without their store.

use std::time::Duration;

use crate::{
    Error,
    cluster::{Cluster, until},
};

#[tokio::test]
async fn a_store_whose_raft_has_stopped_by_itself_says_so() {
    let c = Cluster::of(1, 1).await;
    let store = c.store(0);
    let running = tokio::time::timeout(Duration::from_millis(100), store.fatal()).await;
    assert!(running.is_err(), "nothing has stopped yet: {running:?}");
    store.0.consensus.raft.shutdown().await.unwrap();
    let why = tokio::time::timeout(Duration::from_secs(10), store.fatal()).await.expect("it is told");
    assert!(matches!(&why, Error::Fatal(why) if why.contains("stopped")), "{why:?}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_thread_of_checkpoints_gives_way_and_no_other() {
    let _c = Cluster::of(1, 1).await;
    // Of this process, in which other tests are starting theirs.
    until(|| niceness("checkpoint") == ["5"]).await;
    assert_eq!(niceness("log"), ["0"]);
}

/// Of all threads of a name.
#[cfg(target_os = "linux")]
fn niceness(name: &str) -> Vec<String> {
    let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    // One that has ended meanwhile is not there.
    let stats = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("stat")).ok());
    let of_name = stats.filter_map(|stat| {
        let fields = stat.split_once(&format!("({name}) "))?.1;
        // The 19th of all, as proc(5) counts; in front of these are the id and the name.
        fields.split(' ').nth(16).map(str::to_owned)
    });
    of_name.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
}

/// By the time that somebody asks, Raft may have ended of it, and its driver may have said so.
#[tokio::test]
async fn a_checkpoint_that_failed_is_told_before_what_it_did_to_raft() {
    let c = Cluster::of(1, 1).await;
    let store = c.store(0);
    store.0.checkpoints.fail("no room");
    store.0.fatal.send_replace(Some(Error::fatal("somebody is gone")));
    assert_eq!(store.fatal().await.why(), "no room");
}
