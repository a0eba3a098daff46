//! How much of the log stays, in a cluster: who was away for a short while needs no snapshot, and who needs one gets one.

mod cluster;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use cluster::{Cluster, Node, SNAPSHOT_EVERY, say, until};
use moim_raft::{Store, Ticket, command::Holder};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::timeout,
};

/// So many entries: the next is proposed when the one before is applied.
async fn entries(node: &Node, by: &Holder, count: u64) {
    for n in 0..count {
        node.call(say(by, format!("{n} {}", "x".repeat(1000)))).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_away_for_a_short_while_catches_up_from_the_log() {
    let mut c = Cluster::new(3).await;
    let leader = c.leader().await;
    let away = (leader + 1) % 3;
    let by = c.node(leader).open_in_lobby("client").await;
    // Snapshots are there, and the log does not reach back to its beginning any more.
    entries(c.node(leader), &by, SNAPSHOT_EVERY * 3).await;
    for _ in 0..3 {
        c.stop(away).await;
        entries(c.node(leader), &by, SNAPSHOT_EVERY / 2).await;
        c.reopen(away).await;
        c.all_started().await;
        c.agree().await;
        assert_eq!(c.node(away).installed.load(Ordering::SeqCst), 0);
    }
}

/// Carries the bulk lane slowly until it may go fast, and everything else at once.
async fn slow_bulk(listener: TcpListener, to: String, bulk: Arc<AtomicUsize>, open: watch::Receiver<bool>) {
    loop {
        let (mut dialer, _) = listener.accept().await.unwrap();
        let (to, bulk, mut open) = (to.clone(), bulk.clone(), open.clone());
        tokio::spawn(async move {
            let Ok(mut node) = TcpStream::connect(to).await else { return };
            // Magic and versions, the header of a frame, which step it is, and its first field: the lane.
            let mut first = [0; 12 + 10 + 2];
            let Ok(_) = dialer.read_exact(&mut first).await else { return };
            const BULK: u8 = 3;
            if first[23] != BULK || node.write_all(&first).await.is_err() {
                _ = node.write_all(&first).await;
                _ = tokio::io::copy_bidirectional(&mut dialer, &mut node).await;
                return;
            }
            bulk.fetch_add(1, Ordering::SeqCst);
            let ((mut from, mut back), (mut answers, mut there)) = (dialer.into_split(), node.into_split());
            let slowly = async {
                let mut bytes = vec![0; 16 << 10];
                while let Ok(n @ 1..) = from.read(&mut bytes).await {
                    // Not so slowly that the link is taken for a broken one.
                    _ = timeout(Duration::from_millis(400), open.wait_for(|open| *open)).await;
                    if there.write_all(&bytes[..n]).await.is_err() {
                        break;
                    }
                }
            };
            tokio::select! {
                () = slowly => {}
                _ = tokio::io::copy(&mut answers, &mut back) => {}
            }
        });
    }
}

/// Proposes without end, one after another.
async fn load(store: Store, by: Holder, go: Arc<AtomicBool>, count: Arc<AtomicUsize>) {
    let window = Arc::new(tokio::sync::Semaphore::new(4));
    while go.load(Ordering::SeqCst) {
        let permit = window.clone().acquire_owned().await.unwrap();
        let count = count.clone();
        store.propose(
            say(&by, "load"),
            Ticket::new(move |outcome| {
                count.fetch_add(usize::from(outcome.is_ok()), Ordering::SeqCst);
                drop(permit);
            }),
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_install_under_load_is_one_snapshot_and_the_rest_comes_from_the_log() {
    let bulk = Arc::new(AtomicUsize::new(0));
    let (open, opened) = watch::channel(false);
    let (mut listeners, mut addrs) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let behind = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let before = TcpListener::bind("127.0.0.1:0").await.unwrap();
        addrs.push(before.local_addr().unwrap().to_string());
        let behind_at = behind.local_addr().unwrap().to_string();
        tokio::spawn(slow_bulk(before, behind_at, bulk.clone(), opened.clone()));
        listeners.push(behind);
    }
    let mut c = Cluster::with(listeners, addrs, 3).await;
    let leader = c.leader().await;
    let away = (leader + 1) % 3;
    let by = c.node(leader).open_in_lobby("client").await;
    c.stop(away).await;
    entries(c.node(leader), &by, SNAPSHOT_EVERY * 4).await;
    c.store(leader).hand_over().await;
    let leader = c.leader().await;
    let term = c.store(leader).status().term;
    c.reopen(away).await;
    until(|| bulk.load(Ordering::SeqCst) > 0).await;

    let (go, count) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let loading = tokio::spawn(load(c.store(leader), by, go.clone(), count.clone()));
    until(|| count.load(Ordering::SeqCst) as u64 > SNAPSHOT_EVERY * 2).await;
    assert_eq!(c.node(away).installed.load(Ordering::SeqCst), 0, "the load came while the snapshot was on its way");
    open.send_replace(true);
    until(|| c.node(away).installed.load(Ordering::SeqCst) > 0).await;
    // It is one of the cluster again while the load goes on.
    c.all_started().await;
    go.store(false, Ordering::SeqCst);
    loading.await.unwrap();
    c.agree().await;
    assert_eq!(bulk.load(Ordering::SeqCst), 1, "one snapshot was sent");
    assert_eq!(c.node(away).installed.load(Ordering::SeqCst), 1);
    assert_eq!(c.store(leader).status().term, term, "nobody was missed");
}
