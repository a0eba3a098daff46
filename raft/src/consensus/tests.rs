//! Inside the crate, because only here Raft can be stopped without its store.

use std::time::Duration;

use crate::cluster::Cluster;

#[tokio::test]
async fn a_store_whose_raft_has_stopped_by_itself_says_so() {
    let c = Cluster::of(1, 1).await;
    let store = c.store(0);
    let running = tokio::time::timeout(Duration::from_millis(100), store.fatal()).await;
    assert!(running.is_err(), "nothing has stopped yet: {running:?}");
    store.changes().consensus.raft.shutdown().await.unwrap();
    let why = tokio::time::timeout(Duration::from_secs(10), store.fatal()).await.expect("it is told");
    assert!(matches!(&why, crate::Error::Fatal(why) if why.contains("stopped")), "{why:?}");
}
