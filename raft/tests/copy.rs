//! A copy of a data folder that is started beside its original: two processes that say they are one node.

mod cluster;

use std::{fs, path::Path};

use cluster::{Cluster, Node, PATIENCE, say, until};
use moim_raft::command::Holder;
use tokio::{net::TcpListener, time::timeout};

/// Number of the copy among the nodes; it is the third one's.
const COPY: usize = 3;

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => _ = fs::copy(entry.path(), target).unwrap(),
        }
    }
}

/// A cluster of three whose last node is stopped and has a copy, which is called the same.
async fn with_a_copy() -> (Cluster, Holder) {
    let mut c = Cluster::new(3).await;
    let by = c.node(0).open_in_lobby("client").await;
    c.node(0).call(say(&by, "before")).await;
    c.agree().await;
    c.stop(2).await;
    c.names.push(c.names[2].clone());
    c.levels.push(c.levels[2]);
    copy(&c.data(2), &c.data(COPY));
    (c, by)
}

/// The original runs again, and knows what its copy does not.
async fn with_an_old_copy() -> Cluster {
    let (mut c, by) = with_a_copy().await;
    c.reopen(2).await;
    c.all_started().await;
    c.node(1).call(say(&by, "after")).await;
    c.agree().await;
    c
}

/// Starts the copy. It says that it is at `addr`, or where it listens.
async fn start(c: &mut Cluster, addr: Option<String>) -> Node {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listens = listener.local_addr().unwrap().to_string();
    c.addrs.push(addr.unwrap_or_else(|| listens.clone()));
    c.listens.push(listens);
    c.try_open(COPY, listener).await.expect("it looks for its cluster")
}

fn waits(node: &Node) -> bool {
    let refused = node.store.status().refused;
    refused.is_some_and(|why| why.contains("runs at") && why.contains("copy of its data folder"))
}

/// Each of the others is stopped in turn while the copy tries to be the node that it was copied from.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_beside_its_original_is_told_so_and_nobody_takes_it_for_the_node() {
    let mut c = with_an_old_copy().await;
    let (original, addr) = (c.store(2).node(), c.addrs[2].clone());
    let copy = start(&mut c, None).await;
    until(|| waits(&copy)).await;
    for away in [0, 1] {
        c.stop(away).await;
        // Two of three: they need each other, and the copy's word would be as good as the original's.
        let by = c.node(2).open_in_lobby(&format!("client{away}")).await;
        c.node(1 - away).call(say(&by, format!("without {away}"))).await;
        c.reopen(away).await;
        c.all_started().await;
    }
    assert!(!*copy.store.started().borrow() && waits(&copy), "{:?}", copy.store.status());
    for node in c.running() {
        let peers = node.store.status().peers;
        assert!(peers.iter().any(|(id, peer)| *id == original && peer.addr == addr), "{peers:?}");
        until(|| node.texts() == ["before", "after", "without 0", "without 1"]).await;
    }
    c.agree().await;
    copy.store.close().await.unwrap();
}

/// A machine that was cloned: it also says that it is where the original is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_claims_the_address_of_its_original_is_told_so() {
    let mut c = with_an_old_copy().await;
    let addr = c.addrs[2].clone();
    let copy = start(&mut c, Some(addr)).await;
    until(|| waits(&copy)).await;
    assert!(!*copy.store.started().borrow());
    c.agree().await;
    copy.store.close().await.unwrap();
}

/// A folder that was moved by copying it, and the old place is started again by mistake.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_copy_has_become_the_node_the_original_is_the_one_that_is_told() {
    let (mut c, by) = with_a_copy().await;
    let copy = start(&mut c, None).await;
    timeout(PATIENCE, copy.store.started().wait_for(|started| *started)).await.expect("it has moved").unwrap();
    c.nodes.push(Some(copy));
    c.reopen(2).await;
    until(|| waits(c.node(2))).await;
    c.node(COPY).call(say(&by, "after")).await;
    c.stop(2).await;
    c.agree().await;
}
