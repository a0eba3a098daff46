//! openraft over this network: three real Rafts with their storage in memory, then a fourth that needs a snapshot.

#[path = "support/memory.rs"]
mod memory;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use memory::{Log, Machine};
use moim_raft::{
    error::{Error, Result},
    identity::{Belongs, Identity},
    net::{App, CallRequest, CallResponse, Heard, Local, Network, RaftConsensus, Remote, Secret, serve},
    raft::{NodeId, Payload, Peer, TypeConfig},
};
use openraft::{Config, Raft, SnapshotPolicy, async_runtime::WatchReceiver};
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

struct Nothing;

impl App for Nothing {
    fn call(&self, _: Remote, _: CallRequest) -> BoxFuture<'_, Result<CallResponse>> {
        Box::pin(async { Err(Error::refused("not in this test")) })
    }

    fn bus(&self, _: NodeId, _: Bytes) {}
}

struct Node {
    id: NodeId,
    peer: Peer,
    raft: Raft<TypeConfig, Machine>,
    machine: Machine,
    heard: Heard,
    stop: CancellationToken,
    _tasks: JoinSet<()>,
}

async fn start(temp: &TempDir, name: &str) -> Node {
    let mut identity = Identity::open(temp.path().join(name)).unwrap();
    identity.set_belongs(Belongs::Settled { cluster: "one".into(), founding: vec![] }).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = Peer { name: name.into(), addr: listener.local_addr().unwrap().to_string() };
    let machine = Machine::new(identity.dir().to_owned());
    let local = Arc::new(Local::new(identity, peer.clone(), Secret::new("secret")));
    let config = Config {
        heartbeat_interval: 50,
        // A busy machine must not pass for a dead leader.
        election_timeout_min: 1000,
        election_timeout_max: 2000,
        enable_pre_vote: Some(true),
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: 0,
        ..Config::default()
    };
    let network = Network::new(Arc::clone(&local));
    let config = Arc::new(config.validate().unwrap());
    let raft = Raft::new(local.node(), config, network, Log::default(), machine.clone()).await.unwrap();
    let (heard, stop) = (Heard::default(), CancellationToken::new());
    let consensus = Arc::new(RaftConsensus::new(raft.clone(), heard.clone(), |_, _| Ok(())));
    let mut tasks = JoinSet::new();
    tasks.spawn(serve(listener, Arc::clone(&local), consensus, Arc::new(Nothing), stop.clone()));
    Node { id: local.node(), peer, raft, machine, heard, stop, _tasks: tasks }
}

impl Node {
    async fn write(&self, payload: Bytes) {
        self.raft.client_write(Payload(payload)).await.unwrap();
    }

    fn payloads(&self) -> Vec<Bytes> {
        self.machine.state.lock().unwrap().payloads.clone()
    }

    fn leader(&self) -> Option<NodeId> {
        self.raft.metrics().borrow_watched().current_leader
    }

    /// Followers know a leader as soon as it speaks to them; it takes writes once a quorum's answers have come back.
    fn takes_writes(&self) -> bool {
        self.leader() == Some(self.id) && self.raft.metrics().borrow_watched().last_quorum_acked.is_some()
    }
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_rafts_elect_replicate_hand_over_and_bring_a_fourth_up_by_snapshot() {
    let temp = TempDir::new().unwrap();
    let nodes = [start(&temp, "a").await, start(&temp, "b").await, start(&temp, "c").await];
    let members: BTreeMap<NodeId, Peer> = nodes.iter().map(|node| (node.id, node.peer.clone())).collect();
    assert!(nodes.iter().all(|node| node.heard.last().is_none()));
    nodes[0].raft.initialize(members).await.unwrap();
    until("a leads", || nodes.iter().all(|node| node.leader() == Some(nodes[0].id)) && nodes[0].takes_writes()).await;

    let payloads: Vec<Bytes> = (0..200_u32).map(|n| Bytes::from(vec![n as u8; 1000])).collect();
    for payload in &payloads {
        nodes[0].write(payload.clone()).await;
    }
    until("all applied", || nodes.iter().all(|node| node.payloads() == payloads)).await;
    assert!(nodes[1..].iter().all(|node| node.heard.last().unwrap().elapsed() < Duration::from_secs(1)));

    // Handing over is a matter of milliseconds; an election would take the lease and a time-out, two seconds at the least.
    let begun = Instant::now();
    nodes[0].raft.trigger().transfer_leader(nodes[1].id).await.unwrap();
    until("b leads", || nodes[1].takes_writes()).await;
    assert!(begun.elapsed() < Duration::from_millis(1500), "{:?}", begun.elapsed());

    // The log is purged, so a new node can come up by snapshot only.
    nodes[1].write(Bytes::from_static(b"after")).await;
    let last = nodes[1].raft.metrics().borrow_watched().last_log_index;
    nodes[1].raft.trigger().snapshot().await.unwrap();
    until("purged", || nodes[1].raft.metrics().borrow_watched().purged.map(|id| id.index) == last).await;
    let fourth = start(&temp, "d").await;
    nodes[1].raft.add_learner(fourth.id, fourth.peer.clone(), true).await.unwrap();
    until("d has all", || fourth.payloads().len() == payloads.len() + 1).await;
    assert_eq!(fourth.machine.state.lock().unwrap().installed, 1);

    // Cut off: a follower that hears nothing any more notes nothing, whatever openraft's metrics say.
    nodes[2].stop.cancel();
    sleep(Duration::from_millis(300)).await;
    assert!(nodes[2].heard.last().unwrap().elapsed() > Duration::from_millis(150));
    for node in nodes.iter().chain([&fourth]) {
        node.raft.shutdown().await.unwrap();
    }
}
