//! A node that is cut off: nothing is lost on its links, it is only held back, and arrives when the cut heals.

mod cluster;
#[path = "process/proxy.rs"]
mod proxy;

use std::time::{Duration, Instant};

use cluster::{Cluster, PATIENCE, lobby, ns, say, sid, until};
use moim_raft::{
    Error, Store, Ticket,
    command::{Command, Holder, Reply, User},
};
use proxy::{Links, Mode};
use tokio::{net::TcpListener, sync::oneshot, time::timeout};

/// The session's life and the node's time-out in these tests, as `cluster` sets them.
const TTL: Duration = Duration::from_secs(3);
const NODE_TIMEOUT: Duration = Duration::from_secs(1);
/// What a look from another node, or a tick, may make of a time.
const SLACK: Duration = Duration::from_millis(200);

async fn cluster_behind_links() -> (Cluster, Links) {
    let (links, mut listeners) = (Links::new(3).await, Vec::new());
    for i in 0..3 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        links.listens(i, &listener.local_addr().unwrap().to_string());
        listeners.push(listener);
    }
    let cluster = Cluster::with(listeners, links.addrs.clone(), 3).await;
    (0..3).for_each(|i| links.is_called(i, cluster.store(i).node()));
    (cluster, links)
}

fn is_attached(store: &Store, name: &str) -> Option<bool> {
    store.read(|state| state.session(&sid(name)).map(|session| state.is_attached(&session)))
}

async fn a_node_that_was_cut_off(leads: bool) {
    let (c, links) = cluster_behind_links().await;
    let leader = c.leader().await;
    let (away, here) = if leads { (leader, (leader + 1) % 3) } else { ((leader + 1) % 3, leader) };
    let moves = c.node(away).open_in_lobby("moves").await;
    c.node(away).open("stays", "stays").await;
    c.node(here).open("other", "other").await;
    let before = c.store(away).incarnation();
    let cut_at = Instant::now();
    links.set_all_of(away, Mode::Hold);

    let (tell, told) = oneshot::channel();
    let ticket = Ticket::new(move |outcome| _ = tell.send(outcome.map(|applied| applied.position)));
    c.store(away).propose(say(&moves, "late"), ticket);
    until(|| is_attached(&c.store(here), "stays") == Some(false)).await;
    let down_at = Instant::now();
    assert!(cut_at.elapsed() >= NODE_TIMEOUT - SLACK, "declared down after {:?}", cut_at.elapsed());
    assert_eq!(is_attached(&c.store(here), "other"), Some(true));

    let mut pid = [0; 32];
    pid[..5].copy_from_slice(b"moves");
    let user = User::new("moves").unwrap();
    let resumed = c.node(here).call(Command::Resume { read: moves.clone(), ns: ns(), user, pid }).await;
    assert!(matches!(resumed.reply, Reply::Seated { generation: 2, .. }), "{resumed:?}");
    let moved = Holder { generation: 2, ..moves };
    c.node(here).call(say(&moved, "from here")).await;
    assert!(c.store(away).linearizable().await.is_err());

    until(|| is_attached(&c.store(here), "stays").is_none()).await;
    assert!(down_at.elapsed() >= TTL - SLACK, "expired after {:?}", down_at.elapsed());
    assert_eq!(is_attached(&c.store(here), "moves"), Some(true));

    links.heal();
    let heard = timeout(PATIENCE, told).await.expect("answered").unwrap();
    assert!(matches!(heard, Err(Error::Unavailable(_))), "{heard:?}");
    until(|| c.store(away).incarnation() > before).await;
    c.all_started().await;
    c.node(away).open_in_lobby("again").await;
    c.node(here).call(say(&moved, "end")).await;
    c.agree().await;
    assert_eq!(c.node(away).texts(), ["from here", "end"], "what it had queued does nothing");
    assert_eq!(is_attached(&c.store(away), "moves"), Some(true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_was_cut_off_starts_again_and_what_it_had_queued_does_nothing() {
    a_node_that_was_cut_off(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_was_cut_off_starts_again_and_what_it_had_queued_does_nothing() {
    a_node_that_was_cut_off(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_leader_lengthens_the_life_of_a_lost_session() {
    let c = Cluster::new(3).await;
    let by = c.node(0).open("lost", "lost").await;
    c.node(0).call(Command::Lost(vec![by])).await;
    tokio::time::sleep(TTL * 2 / 3).await;
    let leader = c.leader().await;
    let handed_over = Instant::now();
    c.store(leader).hand_over().await;
    assert_ne!(c.leader().await, leader);
    until(|| is_attached(&c.store(0), "lost").is_none()).await;
    assert!(handed_over.elapsed() >= TTL - SLACK, "expired {:?} after the new leader began", handed_over.elapsed());
    c.agree().await;
    assert!(c.store(0).read(|state| state.sids_in_room(&ns(), &lobby())).is_empty());
}
