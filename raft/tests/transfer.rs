//! Snapshots between nodes, over links that break: what has arrived is not sent again, and neither memory nor heartbeats pay.

mod support;

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use moim_raft::{
    net::{Network, SnapshotFile},
    raft::{Peer, SnapshotMeta, TypeConfig, Vote},
    wire::WireLogId,
};
use openraft::{
    errors::ReplicationClosed,
    network::{RPCOption, RaftNetworkFactory, RaftNetworkV2},
    raft::AppendEntriesRequest,
    storage::Snapshot,
};
use support::Node;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, timeout},
};

const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

type Sent = Snapshot<openraft::type_config::alias::CommittedLeaderIdOf<TypeConfig>, u64, Peer, SnapshotFile>;

async fn pair(temp: &TempDir) -> (Node, Node) {
    let a = Node::member(&temp.path().join("a"), "one", "secret").await;
    let b = Node::member(&temp.path().join("b"), "one", "secret").await;
    (a, b)
}

/// A file of so many bytes, most of them holes, each MiB told from the others and the whole from that of another mark.
fn snapshot(temp: &TempDir, mark: u8, bytes: u64) -> Sent {
    let path = temp.path().join(format!("snapshot-{mark}"));
    let file = File::create(&path).unwrap();
    file.set_len(bytes).unwrap();
    for at in (0..bytes).step_by(MIB as usize) {
        file.write_all_at(&[mark, (at / MIB) as u8], at).unwrap();
    }
    let meta =
        SnapshotMeta { last_log_id: Some(WireLogId { term: 1, node: 7, index: 812 }.into()), ..Default::default() };
    Snapshot { meta, snapshot: SnapshotFile { path } }
}

/// A link that counts what goes to the listener, and breaks once so many bytes did.
struct Link {
    addr: String,
    carried: Arc<AtomicU64>,
    breaks_at: Arc<AtomicU64>,
}

async fn link(to: &str) -> Link {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let (carried, breaks_at) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(u64::MAX)));
    let (counted, limit, to) = (carried.clone(), breaks_at.clone(), to.to_owned());
    tokio::spawn(async move {
        loop {
            let (mut dialer, _) = listener.accept().await.unwrap();
            let mut node = TcpStream::connect(&to).await.unwrap();
            let (counted, limit) = (counted.clone(), limit.clone());
            tokio::spawn(async move {
                let (mut there, mut back) = (vec![0; 64 << 10], vec![0; 64 << 10]);
                loop {
                    tokio::select! {
                        read = dialer.read(&mut there) => match read {
                            Ok(n @ 1..) if node.write_all(&there[..n]).await.is_ok() => {
                                let carried = counted.fetch_add(n as u64, Ordering::SeqCst) + n as u64;
                                if carried >= limit.load(Ordering::SeqCst) {
                                    return;
                                }
                            }
                            _ => return,
                        },
                        read = node.read(&mut back) => match read {
                            Ok(n @ 1..) if dialer.write_all(&back[..n]).await.is_ok() => {}
                            _ => return,
                        },
                    }
                }
            });
        }
    });
    Link { addr, carried, breaks_at }
}

async fn send(network: &Network, to: &Node, addr: &str, what: Sent) -> Result<(), String> {
    let peer = Peer { name: "peer".into(), addr: addr.to_owned() };
    let mut client = network.clone().new_snapshot_client(to.id, &peer).await;
    let never = std::future::pending::<ReplicationClosed>();
    let sent = client.full_snapshot(Vote::new_committed(4, 7), what, never, RPCOption::new(PATIENCE)).await;
    sent.map(|_| ()).map_err(|e| e.to_string())
}

fn installed(node: &Node) -> Vec<SnapshotFile> {
    node.raft.installed.lock().unwrap().drain(..).map(|(_, file)| file).collect()
}

#[tokio::test]
async fn a_broken_transfer_goes_on_where_it_was() {
    let temp = TempDir::new().unwrap();
    let (a, b) = pair(&temp).await;
    let (network, link) = (Network::new(Arc::clone(&a.local)), link(&b.addr).await);
    for break_at in [12 * MIB, 20 * MIB] {
        link.breaks_at.store(break_at, Ordering::SeqCst);
        send(&network, &b, &link.addr, snapshot(&temp, 1, 30 * MIB)).await.unwrap_err();
        // The other side sees the break a little later.
        assert!(installed(&b).is_empty());
    }
    link.breaks_at.store(u64::MAX, Ordering::SeqCst);
    send(&network, &b, &link.addr, snapshot(&temp, 1, 30 * MIB)).await.unwrap();
    let files = installed(&b);
    assert_eq!(files.len(), 1);
    assert!(same(&files[0].path, &temp.path().join("snapshot-1")));
    let carried = link.carried.load(Ordering::SeqCst);
    // What was under way when the link broke goes twice, each time.
    assert!((30 * MIB..44 * MIB).contains(&carried), "{carried} bytes for 30 MiB");
}

#[tokio::test]
async fn what_has_arrived_of_another_file_under_the_same_name_is_not_gone_on_from() {
    let temp = TempDir::new().unwrap();
    let (a, b) = pair(&temp).await;
    let (network, link) = (Network::new(Arc::clone(&a.local)), link(&b.addr).await);
    link.breaks_at.store(5 * MIB, Ordering::SeqCst);
    send(&network, &b, &link.addr, snapshot(&temp, 1, 10 * MIB)).await.unwrap_err();
    link.breaks_at.store(u64::MAX, Ordering::SeqCst);
    send(&network, &b, &link.addr, snapshot(&temp, 2, 10 * MIB)).await.unwrap();
    let files = installed(&b);
    assert!(same(&files[0].path, &temp.path().join("snapshot-2")));
}

/// Compares files without having them in memory, where a test beside this one looks.
fn same(one: &Path, other: &Path) -> bool {
    let [one, other] = [one, other].map(|path| File::open(path).unwrap());
    let len = one.metadata().unwrap().len();
    let part = |file: &File, at: u64| {
        let mut bytes = vec![0; (len - at).min(MIB) as usize];
        file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    };
    len == other.metadata().unwrap().len()
        && (0..len).step_by(MIB as usize).all(|at| part(&one, at) == part(&other, at))
}

fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_300_mib_stays_out_of_memory_and_out_of_the_way_of_heartbeats() {
    let temp = TempDir::new().unwrap();
    let (a, b) = pair(&temp).await;
    let network = Network::new(Arc::clone(&a.local));
    let what = snapshot(&temp, 3, 300 * MIB);
    let before = resident_bytes();
    let (sending, addr) = (network.clone(), b.addr.clone());
    let (peer, id) = (Peer { name: "peer".into(), addr: b.addr.clone() }, b.id);
    let beats = tokio::spawn(async move {
        let mut client = network.clone().new_heartbeat_client(id, &peer).await;
        let (mut count, mut most) = (0, 0);
        loop {
            let vote = Vote::new_committed(4, 7);
            let beat = AppendEntriesRequest { vote, prev_log_id: None, entries: vec![], leader_commit: None };
            let beat = client.append_entries(beat, RPCOption::new(Duration::from_millis(500)));
            beat.await.expect("a heartbeat is answered in time");
            count += 1;
            most = resident_bytes().max(most);
            if count % 20 == 0 {
                eprintln!("{count} heartbeats, {} MiB more than before", most.saturating_sub(before) / MIB);
            }
            assert!(most.saturating_sub(before) < 64 * MIB, "{} MiB more than before", (most - before) / MIB);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let began = Instant::now();
    timeout(PATIENCE, send(&sending, &b, &addr, what)).await.expect("in time").unwrap();
    assert!(!beats.is_finished(), "{:?}", beats.await);
    beats.abort();
    assert!(began.elapsed() >= Duration::from_secs(5), "the bandwidth is bounded: {:?}", began.elapsed());
    let files = installed(&b);
    assert_eq!(files[0].path.metadata().unwrap().len(), 300 * MIB);
}
