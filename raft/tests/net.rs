//! The network between nodes, over real loopback connections.

mod support;

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use moim_raft::{
    error::Error,
    net::{
        CallRequest, CallResponse, Lane, Network, SnapshotFile,
        handshake::{self, dial},
    },
    raft::{LogId, Payload, Peer, SnapshotMeta, TypeConfig, Vote},
};
use openraft::{
    EntryPayload,
    entry::RaftEntry,
    errors::{RPCError, ReplicationClosed, StreamingError},
    network::{RPCOption, RaftNetworkFactory, RaftNetworkV2},
    raft::{AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest},
    storage::Snapshot,
};
use support::Node;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, timeout},
};

const SECOND: Duration = Duration::from_secs(1);

fn option() -> RPCOption {
    RPCOption::new(5 * SECOND)
}

fn refusal<T>(result: Result<T, Error>) -> String {
    match result {
        Err(Error::Refused(why)) => why,
        Err(other) => panic!("not refused but {other}"),
        Ok(_) => panic!("not refused"),
    }
}

fn peer(of: &Node) -> Peer {
    Peer { name: "peer".into(), addr: of.addr.clone() }
}

async fn pair(temp: &TempDir) -> (Node, Node) {
    let a = Node::member(&temp.path().join("a"), "one", "secret").await;
    let b = Node::member(&temp.path().join("b"), "one", "secret").await;
    (a, b)
}

fn log_id(index: u64) -> LogId {
    moim_raft::wire::WireLogId { term: 1, node: 0, index }.into()
}

fn append(payloads: &[Bytes]) -> AppendEntriesRequest<TypeConfig> {
    let entries = payloads
        .iter()
        .zip(5..)
        .map(|(payload, index)| openraft::Entry::new(log_id(index), EntryPayload::Normal(Payload(payload.clone()))));
    AppendEntriesRequest {
        vote: Vote::new_committed(1, 7),
        prev_log_id: Some(log_id(4)),
        entries: entries.collect(),
        leader_commit: Some(log_id(3)),
    }
}

#[tokio::test]
async fn a_wrong_secret_is_refused_on_every_lane() {
    let temp = TempDir::new().unwrap();
    let a = Node::member(&temp.path().join("a"), "one", "secret").await;
    for (name, secret) in [("b", "wrong"), ("c", "")] {
        let b = Node::member(&temp.path().join(name), "one", secret).await;
        for lane in [Lane::Raft, Lane::Beat, Lane::Call, Lane::Bulk, Lane::Bus, Lane::Tunnel] {
            assert!(refusal(dial(&b.local, &a.addr, lane, Some(a.id)).await).contains("secrets differ"));
            assert!(refusal(dial(&a.local, &b.addr, lane, Some(b.id)).await).contains("secrets differ"));
        }
    }
    assert!(a.raft.appended.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_foreign_cluster_is_refused_in_both_directions_with_both_names() {
    let temp = TempDir::new().unwrap();
    let a = Node::member(&temp.path().join("a"), "one", "secret").await;
    let b = Node::member(&temp.path().join("b"), "two", "secret").await;
    for lane in [Lane::Raft, Lane::Beat, Lane::Call, Lane::Bulk, Lane::Bus, Lane::Tunnel] {
        for (from, to) in [(&a, &b), (&b, &a)] {
            let why = refusal(dial(&from.local, &to.addr, lane, None).await);
            assert!(why.contains("one") && why.contains("two"), "{why}");
        }
    }
}

/// What a node says of its place is a hint: it is tried first, and forgotten where somebody else is, or nobody.
#[tokio::test]
async fn a_node_is_looked_for_where_it_says_that_it_is_and_where_it_was() {
    let temp = TempDir::new().unwrap();
    let (a, b) = pair(&temp).await;
    let nobody = "127.0.0.1:1";
    assert!(matches!(dial(&a.local, nobody, Lane::Raft, Some(b.id)).await, Err(Error::Unavailable(_))));
    a.peers.has_moved(b.id, &b.addr);
    for lane in [Lane::Raft, Lane::Beat, Lane::Call, Lane::Bulk, Lane::Bus, Lane::Tunnel] {
        assert_eq!(dial(&a.local, nobody, lane, Some(b.id)).await.unwrap().1.node, b.id);
    }
    for wrong in [nobody, &a.addr] {
        a.peers.has_moved(b.id, wrong);
        assert_eq!(dial(&a.local, &b.addr, Lane::Raft, Some(b.id)).await.unwrap().1.node, b.id, "{wrong}");
    }
    // It was not there: it says so again, if it is.
    a.peers.has_moved(b.id, &b.addr);
    let (id, addr, folder) = (b.id, b.addr.clone(), temp.path().join("b"));
    b.stop().await;
    assert!(dial(&a.local, nobody, Lane::Raft, Some(id)).await.is_err());
    let b = Node::member_at(&folder, &addr, "one", "secret").await;
    assert!(dial(&a.local, nobody, Lane::Raft, Some(id)).await.is_err());
    a.peers.has_moved(b.id, &b.addr);
    assert_eq!(dial(&a.local, nobody, Lane::Raft, Some(id)).await.unwrap().1.node, b.id);
}

/// A foreign node stops hammering: whatever it wants there, and however often it tries.
#[tokio::test]
async fn whoever_is_refused_knocks_less_and_less_and_is_let_in_soon_after_it_is_welcome() {
    let temp = TempDir::new().unwrap();
    let a = Node::member(&temp.path().join("a"), "one", "secret").await;
    let b = Node::member(&temp.path().join("b"), "two", "secret").await;
    let (door, knocks) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), Arc::new(AtomicUsize::new(0)));
    let (addr, behind, counted) = (door.local_addr().unwrap().to_string(), b.addr.clone(), knocks.clone());
    let mut network = Network::new(Arc::clone(&a.local));
    let carrying = tokio::spawn(async move {
        loop {
            let (mut dialer, _) = door.accept().await.unwrap();
            counted.fetch_add(1, Ordering::SeqCst);
            let mut node = TcpStream::connect(&behind).await.unwrap();
            tokio::spawn(async move { _ = tokio::io::copy_bidirectional(&mut dialer, &mut node).await });
        }
    });
    let there = Peer { name: "peer".into(), addr: addr.clone() };
    let mut client = network.new_heartbeat_client(b.id, &there).await;
    let (began, mut tries) = (Instant::now(), 0);
    while began.elapsed() < 4 * SECOND {
        let sent = client.append_entries(append(&[]), option()).await;
        let Err(RPCError::Unreachable(why)) = sent else { panic!("{sent:?}") };
        assert!(why.to_string().contains("different clusters"), "{why}");
        tries += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // After 0, 100, 300, 700, 1500 and 3100 ms.
    let knocked = knocks.load(Ordering::SeqCst);
    assert!(tries > 50 && (3..=6).contains(&knocked), "{knocked} knocks of {tries} tries");
    assert!(a.local.refused().is_some_and(|why| why.contains("different clusters")), "{:?}", a.local.refused());

    // The right one is there now.
    carrying.abort();
    _ = carrying.await;
    let c = Node::member_at(&temp.path().join("c"), &addr, "one", "secret").await;
    dial(&a.local, &addr, Lane::Beat, Some(c.id)).await.expect("another one may be asked for at once");
    let began = Instant::now();
    while let Err(why) = dial(&a.local, &addr, Lane::Beat, Some(b.id)).await {
        if why.to_string().contains("is wanted") {
            break;
        }
        assert!(began.elapsed() < 8 * SECOND, "{why}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_node_without_a_cluster_may_only_call() {
    let temp = TempDir::new().unwrap();
    let a = Node::member(&temp.path().join("a"), "one", "secret").await;
    let b = Node::start(&temp.path().join("b"), "127.0.0.1:0", "secret", 3).await;
    dial(&b.local, &a.addr, Lane::Call, None).await.unwrap();
    for lane in [Lane::Raft, Lane::Beat, Lane::Bulk, Lane::Bus, Lane::Tunnel] {
        assert!(refusal(dial(&b.local, &a.addr, lane, Some(a.id)).await).contains("different clusters"));
    }
}

#[tokio::test]
async fn a_node_is_never_its_own_peer() {
    let temp = TempDir::new().unwrap();
    let (a, _b) = pair(&temp).await;
    assert!(refusal(dial(&a.local, &a.addr, Lane::Raft, None).await).contains("both ends"));
}

/// The addresses of two nodes are mixed up: nothing reaches the wrong one.
#[tokio::test]
async fn swapped_nodes_are_told_apart() {
    let temp = TempDir::new().unwrap();
    let (a, b) = pair(&temp).await;
    let c = Node::member(&temp.path().join("c"), "one", "secret").await;
    let mut network = Network::new(Arc::clone(&a.local));
    for (wanted, there) in [(&b, &c), (&c, &b)] {
        let why = refusal(dial(&a.local, &there.addr, Lane::Raft, Some(wanted.id)).await);
        assert!(why.contains(&format!("{:016x} is wanted", wanted.id)), "{why}");
        let mut client = network.new_client(wanted.id, &peer(there)).await;
        let sent = client.append_entries(append(&[]), option()).await;
        assert!(matches!(sent, Err(RPCError::Unreachable(_))), "{sent:?}");
        assert!(there.raft.appended.lock().unwrap().is_empty());
        let called = a.peers.call(wanted.id, &there.addr, &CallRequest::Probe, SECOND).await;
        assert!(refusal(called).contains("is wanted"));
    }
}

#[tokio::test]
async fn another_protocol_version_is_refused_and_named_at_both_ends() {
    let temp = TempDir::new().unwrap();
    let (a, _b) = pair(&temp).await;
    // From the future to us.
    let mut stream = TcpStream::connect(&a.addr).await.unwrap();
    stream.write_all(b"moimpeer\x00\x07\x00\x09").await.unwrap();
    let mut answer = Vec::new();
    timeout(3 * SECOND, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, b"moimpeer\x00\x01\x00\x01");
    // From us to the future.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let future = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"moimpeer\x00\x07\x00\x09").await.unwrap();
        stream
    });
    let why = refusal(dial(&a.local, &addr, Lane::Raft, None).await);
    assert!(why.contains("7 to 9 there, 1 to 1 here"), "{why}");
    future.await.unwrap();
}

#[tokio::test]
async fn garbage_is_closed_without_an_answer() {
    let temp = TempDir::new().unwrap();
    let (a, b) = pair(&temp).await;
    for garbage in [&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..], &[0; 64], &[0xff; 64]] {
        let mut stream = TcpStream::connect(&a.addr).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        let mut answer = Vec::new();
        let _ = timeout(3 * SECOND, stream.read_to_end(&mut answer)).await.expect("closed in time");
        assert!(answer.is_empty(), "{answer:?}");
    }
    b.ask(&a, "0", SECOND).await.unwrap();
}

#[tokio::test]
async fn four_gibibytes_declared_are_refused_before_and_after_the_handshake() {
    let temp = TempDir::new().unwrap();
    let (a, b) = pair(&temp).await;
    let declared = [1, 5, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
    let mut stranger = TcpStream::connect(&a.addr).await.unwrap();
    stranger.write_all(&[&b"moimpeer\x00\x01\x00\x01"[..], &declared].concat()).await.unwrap();
    let (mut friend, _) = dial(&b.local, &a.addr, Lane::Call, Some(a.id)).await.unwrap();
    friend.write_all(&declared).await.unwrap();
    for mut stream in [stranger, friend] {
        let closed = timeout(SECOND, stream.read_to_end(&mut Vec::new())).await;
        assert!(closed.is_ok(), "it waits for the bytes");
    }
    b.ask(&a, "0", SECOND).await.unwrap();
}

#[tokio::test]
async fn who_says_nothing_is_closed_in_time() {
    let temp = TempDir::new().unwrap();
    let (a, b) = pair(&temp).await;
    let mut silent = TcpStream::connect(&a.addr).await.unwrap();
    let closed = timeout(handshake::HANDSHAKE_TIMEOUT + SECOND, silent.read_to_end(&mut Vec::new())).await;
    assert!(closed.is_ok());
    // And as dialer: somebody listens but never answers.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let begun = Instant::now();
    let dialed = dial(&b.local, &addr, Lane::Raft, None).await;
    assert!(matches!(dialed, Err(Error::Unavailable(_))) && begun.elapsed() < handshake::HANDSHAKE_TIMEOUT + SECOND);
}

/// 300 requests over one connection, of which the later ones are answered sooner.
#[tokio::test]
async fn answers_out_of_order_come_to_those_who_asked() {
    let temp = TempDir::new().unwrap();
    let (a, b) = pair(&temp).await;
    let asked = (0..300_u64).map(|n| {
        let (a, b) = (&a, &b);
        async move {
            let text = format!("{} question {n}", 300 - n);
            let CallResponse::Ask(answer) = a.ask(b, &text, 5 * SECOND).await.unwrap() else { panic!() };
            assert_eq!(answer, text.as_bytes());
        }
    });
    let begun = Instant::now();
    futures_util::future::join_all(asked).await;
    assert!(begun.elapsed() < 3 * SECOND, "one after another they take 45 s; took {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_call_ends_by_its_deadline_and_a_link_is_made_anew() {
    let temp = TempDir::new().unwrap();
    let (a, b) = pair(&temp).await;
    let begun = Instant::now();
    let late = a.ask(&b, "5000", Duration::from_millis(100)).await;
    assert!(matches!(late, Err(Error::Unavailable(_))) && begun.elapsed() < SECOND);
    a.ask(&b, "0", SECOND).await.unwrap();
    let (dir, addr) = (temp.path().join("b"), b.addr.clone());
    b.stop().await;
    drop(late);
    // The node is started again at the same address: the next call, or the one after it, finds the new process.
    let b = restart(&dir, &addr).await;
    let deadline = Instant::now() + 3 * SECOND;
    while a.ask(&b, "0", SECOND).await.is_err() {
        assert!(Instant::now() < deadline);
    }
}

async fn restart(dir: &std::path::Path, addr: &str) -> Node {
    Node::start(dir, addr, "secret", 3).await
}

#[tokio::test]
async fn raft_requests_arrive_whole_and_answers_return() {
    let temp = TempDir::new().unwrap();
    let (a, b) = pair(&temp).await;
    let mut network = Network::new(Arc::clone(&a.local));
    let mut client = network.new_client(b.id, &peer(&b)).await;
    let rpc = append(&[Bytes::from_static(b"x"), Bytes::from(vec![7; 100_000])]);
    let reply = client.append_entries(rpc.clone(), option()).await.unwrap();
    assert_eq!(reply, AppendEntriesResponse::Success);
    let got = b.raft.appended.lock().unwrap().pop().unwrap();
    assert_eq!((got.vote, got.prev_log_id, got.leader_commit), (rpc.vote, rpc.prev_log_id, rpc.leader_commit));
    assert_eq!(got.entries, rpc.entries);

    let mut beat = network.new_heartbeat_client(b.id, &peer(&b)).await;
    beat.append_entries(append(&[]), option()).await.unwrap();
    let mut rpc = VoteRequest::<TypeConfig>::new(Vote::new(3, a.id), Some(log_id(9)));
    rpc.leadership_transfer = true;
    assert!(beat.vote(rpc.clone(), option()).await.unwrap().vote_granted);
    assert!(!beat.pre_vote(rpc.clone(), option()).await.unwrap().vote_granted, "a default would grant it");
    assert_eq!(*b.raft.votes.lock().unwrap(), [(false, rpc.clone()), (true, rpc)]);
    let from = Vote::new_committed(2, a.id);
    let transferred = beat.transfer_leader(TransferLeaderRequest::new(from, b.id, None), option()).await.unwrap();
    let changed = openraft::raft::TransferLeaderError::VoteChanged { expected: from, actual: Vote::new(99, 1) };
    assert_eq!(transferred, Err(changed));
}

/// openraft bounds an append by number of entries only.
#[tokio::test]
async fn entries_over_the_byte_bound_go_in_parts() {
    let temp = TempDir::new().unwrap();
    let (a, b) = pair(&temp).await;
    let mut client = Network::new(Arc::clone(&a.local)).new_client(b.id, &peer(&b)).await;
    let entries = vec![Bytes::from(vec![1; 6 << 20]); 7];
    let reply = client.append_entries(append(&entries), RPCOption::new(30 * SECOND)).await.unwrap();
    assert_eq!(reply, AppendEntriesResponse::PartialSuccess(Some(log_id(6))));
    assert_eq!(b.raft.appended.lock().unwrap()[0].entries.len(), 2);
}

#[tokio::test]
async fn a_peer_that_is_away_is_unreachable() {
    let temp = TempDir::new().unwrap();
    let (a, b) = pair(&temp).await;
    let (id, at) = (b.id, peer(&b));
    b.stop().await;
    let mut client = Network::new(Arc::clone(&a.local)).new_heartbeat_client(id, &at).await;
    let reply = client.append_entries(append(&[]), option()).await;
    assert!(matches!(reply, Err(RPCError::Unreachable(_))), "{reply:?}");
}

fn snapshot_of(
    temp: &TempDir,
    len: usize,
) -> (Vec<u8>, Snapshot<openraft::type_config::alias::CommittedLeaderIdOf<TypeConfig>, u64, Peer, SnapshotFile>) {
    let bytes: Vec<u8> = (0..len).map(|n| (n as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    let path = temp.path().join("snapshot");
    fs::write(&path, &bytes).unwrap();
    let meta = SnapshotMeta { last_log_id: Some(log_id(812)), ..Default::default() };
    (bytes, Snapshot { meta, snapshot: SnapshotFile { path } })
}

fn incoming(node: &Node) -> usize {
    let names = fs::read_dir(node.local.dir()).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().starts_with("incoming-")).count()
}

#[tokio::test]
async fn a_snapshot_of_20_mib_arrives_byte_for_byte() {
    let temp = TempDir::new().unwrap();
    let (a, b) = pair(&temp).await;
    let mut client = Network::new(Arc::clone(&a.local)).new_snapshot_client(b.id, &peer(&b)).await;
    for len in [20 << 20, 0, 1, (1 << 20) + 1] {
        let (bytes, snapshot) = snapshot_of(&temp, len);
        let meta = snapshot.meta.clone();
        let vote = Vote::new_committed(4, a.id);
        let never = std::future::pending::<ReplicationClosed>();
        let reply = client.full_snapshot(vote, snapshot, never, RPCOption::new(20 * SECOND)).await.unwrap();
        assert_eq!(reply.vote, vote);
        let (got_meta, file) = b.raft.installed.lock().unwrap().pop().unwrap();
        assert_eq!(got_meta, meta);
        assert!(fs::read(&file.path).unwrap() == bytes, "{len}");
        fs::remove_file(file.path).unwrap();
    }
    assert_eq!(incoming(&b), 0);
}

/// Disk full at an install, which would end the node.
#[tokio::test]
async fn a_snapshot_that_would_find_no_room_is_not_taken_in() {
    let temp = TempDir::new().unwrap();
    let (a, b) = pair(&temp).await;
    let (_, snapshot) = snapshot_of(&temp, 1);
    // A hole: it takes nothing here, and would there.
    fs::File::options().write(true).open(&snapshot.snapshot.path).unwrap().set_len(4 << 40).unwrap();
    let mut client = Network::new(Arc::clone(&a.local)).new_snapshot_client(b.id, &peer(&b)).await;
    let never = std::future::pending::<ReplicationClosed>();
    let option = RPCOption::new(5 * SECOND);
    let sent = timeout(5 * SECOND, client.full_snapshot(Vote::new_committed(4, a.id), snapshot, never, option)).await;
    let error = sent.expect("nothing of it is waited for").unwrap_err();
    assert!(error.to_string().contains("not taken in: it may take 8388608 MiB"), "{error}");
    assert_eq!((incoming(&b), b.raft.installed.lock().unwrap().len()), (0, 0));
}

#[tokio::test]
async fn a_cancelled_snapshot_is_not_installed_and_the_next_one_takes_its_place() {
    let temp = TempDir::new().unwrap();
    let (a, b) = pair(&temp).await;
    let mut client = Network::new(Arc::clone(&a.local)).new_snapshot_client(b.id, &peer(&b)).await;
    let (_, snapshot) = snapshot_of(&temp, 20 << 20);
    let dir = b.local.dir().to_owned();
    // Cancelled when some of it has arrived.
    let cancel = async move {
        while !fs::read_dir(&dir).unwrap().any(|entry| {
            let entry = entry.unwrap();
            entry.file_name().to_string_lossy().starts_with("incoming-") && entry.metadata().unwrap().len() > 0
        }) {
            tokio::task::yield_now().await;
        }
        ReplicationClosed::new("no longer leader")
    };
    let sent = client.full_snapshot(Vote::new_committed(4, a.id), snapshot, cancel, option()).await;
    assert!(matches!(sent, Err(StreamingError::Closed(_))), "{sent:?}");
    assert_eq!(incoming(&b), 1, "what has arrived waits for more of it");
    assert!(b.raft.installed.lock().unwrap().is_empty());
    let (bytes, mut snapshot) = snapshot_of(&temp, 3 << 20);
    snapshot.meta.last_log_id = Some(log_id(900));
    let never = std::future::pending::<ReplicationClosed>();
    client.full_snapshot(Vote::new_committed(4, a.id), snapshot, never, option()).await.unwrap();
    let (_, file) = b.raft.installed.lock().unwrap().pop().unwrap();
    assert!(fs::read(&file.path).unwrap() == bytes);
    fs::remove_file(file.path).unwrap();
    assert_eq!(incoming(&b), 0);
}

#[tokio::test]
async fn the_bus_delivers_in_order() {
    let temp = TempDir::new().unwrap();
    let (a, mut b) = pair(&temp).await;
    a.peers.set_peers([(a.id, peer(&a)), (b.id, peer(&b))]);
    for n in 0..500_u32 {
        a.peers.bus_send(None, &Bytes::copy_from_slice(&n.to_be_bytes())).unwrap();
    }
    for n in 0..500_u32 {
        let (from, bytes) = timeout(5 * SECOND, b.bus.recv()).await.unwrap().unwrap();
        assert_eq!((from, &bytes[..]), (a.id, &n.to_be_bytes()[..]));
    }
    assert_eq!(a.peers.bus_dropped(), 0);
}

/// A peer that takes the connection and never reads: 200 MB are offered, and nobody waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_bus_drops_counts_and_does_not_block() {
    let temp = TempDir::new().unwrap();
    let (a, b) = pair(&temp).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let stuck = tokio::spawn({
        let local = Arc::clone(&b.local);
        async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            handshake::accept(&local, &mut stream).await.unwrap();
            std::future::pending::<()>().await;
        }
    });
    a.peers.set_peers([(b.id, Peer { name: "stuck".into(), addr })]);
    let frame = Bytes::from(vec![1; 50_000]);
    let begun = Instant::now();
    for _ in 0..4000 {
        a.peers.bus_send(None, &frame).unwrap();
        tokio::task::yield_now().await;
    }
    assert!(begun.elapsed() < 5 * SECOND, "{:?}", begun.elapsed());
    assert!(a.peers.bus_dropped() > 1000, "{}", a.peers.bus_dropped());
    assert!(a.peers.bus_send(None, &Bytes::from(vec![0; 70_000])).is_err(), "a frame over the bound");
    stuck.abort();
}

#[tokio::test]
async fn a_tunnel_is_a_plain_stream_of_bytes_for_as_long_as_both_hold_it() {
    let temp = TempDir::new().unwrap();
    let (a, mut b) = pair(&temp).await;
    let mut here = a.peers.tunnel(b.id, &b.addr).await.unwrap();
    let mut there = timeout(5 * SECOND, b.tunnels.recv()).await.unwrap().unwrap();
    here.write_all(b"GET / HTTP/1.1").await.unwrap();
    let mut seen = [0; 14];
    there.read_exact(&mut seen).await.unwrap();
    assert_eq!(&seen, b"GET / HTTP/1.1", "from its first byte on");
    drop(there);
    assert_eq!(here.read(&mut seen).await.unwrap(), 0);
    assert!(refusal(a.peers.tunnel(b.id + 1, &b.addr).await).contains("is wanted"), "another node is there");
}
