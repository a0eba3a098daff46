//! Nodes with a real network and a Raft that only notes what it is told.
#![allow(dead_code)] // Each test file uses its part.

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use moim_raft::{
    error::{Error, Result},
    form::Former,
    identity::{Belongs, Identity},
    net::{App, CallRequest, CallResponse, Consensus, Leadership, Local, Peers, Remote, Secret, SnapshotFile, serve},
    raft::{NodeId, Peer, SnapshotMeta, TypeConfig, Vote},
};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, TransferLeaderResponse, VoteRequest,
    VoteResponse,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

/// Notes what it is told and agrees to everything.
#[derive(Default)]
pub struct Notes {
    pub initialized: AtomicBool,
    pub appended: Mutex<Vec<AppendEntriesRequest<TypeConfig>>>,
    pub votes: Mutex<Vec<(bool, VoteRequest<TypeConfig>)>>,
    pub installed: Mutex<Vec<(SnapshotMeta, SnapshotFile)>>,
}

impl Consensus for Notes {
    fn append(
        &self,
        rpc: AppendEntriesRequest<TypeConfig>,
    ) -> BoxFuture<'_, Result<AppendEntriesResponse<TypeConfig>>> {
        self.appended.lock().unwrap().push(rpc);
        Box::pin(async { Ok(AppendEntriesResponse::Success) })
    }

    fn vote(&self, rpc: VoteRequest<TypeConfig>) -> BoxFuture<'_, Result<VoteResponse<TypeConfig>>> {
        self.votes.lock().unwrap().push((false, rpc.clone()));
        Box::pin(async move { Ok(VoteResponse::new(rpc.vote, rpc.last_log_id, true)) })
    }

    fn pre_vote(&self, rpc: VoteRequest<TypeConfig>) -> BoxFuture<'_, Result<VoteResponse<TypeConfig>>> {
        self.votes.lock().unwrap().push((true, rpc.clone()));
        Box::pin(async move { Ok(VoteResponse::new(rpc.vote, rpc.last_log_id, false)) })
    }

    fn transfer(
        &self,
        rpc: TransferLeaderRequest<TypeConfig>,
    ) -> BoxFuture<'_, Result<TransferLeaderResponse<TypeConfig>>> {
        let expected = *rpc.from_leader();
        Box::pin(async move {
            Ok(Err(openraft::raft::TransferLeaderError::VoteChanged { expected, actual: Vote::new(99, 1) }))
        })
    }

    fn install(&self, vote: Vote, meta: SnapshotMeta, file: SnapshotFile) -> BoxFuture<'_, Result<Vote>> {
        self.installed.lock().unwrap().push((meta, file));
        Box::pin(async move { Ok(vote) })
    }

    fn initialized(&self) -> BoxFuture<'_, Result<bool>> {
        Box::pin(async { Ok(self.initialized.load(Ordering::SeqCst)) })
    }
}

/// `Ask("<ms> …")` is answered with the same bytes after so many milliseconds; the bus goes into a channel.
pub struct TestApp {
    pub former: Arc<Former>,
    pub bus: mpsc::UnboundedSender<(NodeId, Bytes)>,
    pub tunnels: mpsc::UnboundedSender<TcpStream>,
    /// Whether this node plays the leader that takes learners in.
    pub leads: AtomicBool,
    pub joined: Mutex<Vec<NodeId>>,
    /// Whether it fails to answer `Form`, as a node does that stops in the middle.
    pub deaf: AtomicBool,
    /// Milliseconds between making an answer about forming and sending it.
    pub delay: AtomicU64,
    /// Requests about forming that were answered, or are about to be.
    pub asked: AtomicU64,
}

impl App for TestApp {
    fn call(&self, from: Remote, request: CallRequest) -> BoxFuture<'_, Result<CallResponse>> {
        Box::pin(async move {
            if self.deaf.load(Ordering::SeqCst) && matches!(request, CallRequest::Form { .. }) {
                return Err(Error::unavailable("deaf"));
            }
            if let Some(answer) = self.former.answer(&from, &request).await {
                self.asked.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(self.delay.load(Ordering::SeqCst))).await;
                return Ok(answer);
            }
            match request {
                CallRequest::Ask(bytes) => {
                    let text = String::from_utf8_lossy(&bytes);
                    let ms = text.split(' ').next().and_then(|ms| ms.parse().ok()).unwrap_or(0);
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                    Ok(CallResponse::Ask(bytes))
                }
                CallRequest::Join { id, .. } if self.leads.load(Ordering::SeqCst) => {
                    self.joined.lock().unwrap().push(id);
                    Ok(CallResponse::Join(Leadership::Leader(Ok(()))))
                }
                CallRequest::Join { .. } => Ok(CallResponse::Join(Leadership::NotLeader { leader: None })),
                other => Err(Error::refused(format!("{other:?} is not for this test"))),
            }
        })
    }

    fn bus(&self, from: NodeId, bytes: Bytes) {
        let _ = self.bus.send((from, bytes));
    }

    fn tunnel(&self, stream: TcpStream) {
        let _ = self.tunnels.send(stream);
    }
}

pub struct Node {
    pub id: NodeId,
    pub addr: String,
    pub local: Arc<Local>,
    pub peers: Arc<Peers>,
    pub raft: Arc<Notes>,
    pub app: Arc<TestApp>,
    pub former: Arc<Former>,
    pub bus: mpsc::UnboundedReceiver<(NodeId, Bytes)>,
    pub tunnels: mpsc::UnboundedReceiver<TcpStream>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Node {
    /// A node on the data folder `dir`, listening on `addr` (port 0 for any).
    pub async fn start(dir: &Path, addr: &str, secret: &str, expect: usize) -> Node {
        Self::start_as(Identity::open(dir).unwrap(), addr, secret, expect).await
    }

    /// One that is in `cluster` already.
    pub async fn member(dir: &Path, cluster: &str, secret: &str) -> Node {
        Self::member_at(dir, "127.0.0.1:0", cluster, secret).await
    }

    pub async fn member_at(dir: &Path, addr: &str, cluster: &str, secret: &str) -> Node {
        let mut identity = Identity::open(dir).unwrap();
        identity.set_belongs(Belongs::Settled { cluster: cluster.to_owned(), founding: Vec::new() }).unwrap();
        Self::start_as(identity, addr, secret, 3).await
    }

    async fn start_as(identity: Identity, addr: &str, secret: &str, expect: usize) -> Node {
        let listener = TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let name = identity.dir().file_name().unwrap().to_string_lossy().into_owned();
        let peer = Peer { name, addr: addr.clone() };
        let local = Arc::new(Local::new(identity, peer, Secret::new(secret)));
        let peers = Arc::new(Peers::new(Arc::clone(&local)));
        let raft = Arc::new(Notes::default());
        let former = Arc::new(Former::new(Arc::clone(&local), Arc::clone(&peers), raft.clone(), expect));
        let (bus_in, bus) = mpsc::unbounded_channel();
        let (tunnels_in, tunnels) = mpsc::unbounded_channel();
        let app = Arc::new(TestApp {
            former: Arc::clone(&former),
            bus: bus_in,
            tunnels: tunnels_in,
            leads: AtomicBool::new(false),
            joined: Mutex::default(),
            deaf: AtomicBool::new(false),
            delay: AtomicU64::new(0),
            asked: AtomicU64::new(0),
        });
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve(listener, Arc::clone(&local), raft.clone(), app.clone(), stop.clone()));
        Node { id: local.node(), addr, local, peers, raft, app, former, bus, tunnels, stop, task }
    }

    /// Ends it as a crash would: nothing is said to anybody.
    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }

    pub async fn ask(&self, of: &Node, text: &str, within: Duration) -> Result<CallResponse> {
        let request = CallRequest::Ask(Bytes::copy_from_slice(text.as_bytes()));
        self.peers.call(of.id, &of.addr, &request, within).await
    }
}
