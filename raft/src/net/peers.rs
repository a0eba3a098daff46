//! Requests of the layers above to other nodes, and the bus.
//!
//! `call` has one lazily dialed connection a peer, shared by all callers. The bus has a small queue and a task a peer: sending
//! never waits, and what does not fit, or cannot be delivered now, is dropped and counted. A tunnel is a connection of its own
//! that is handed up as it is: whatever goes through it delays nothing else.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    net::TcpStream,
    sync::{OnceCell, mpsc},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{CallRequest, CallResponse, Lane, Local, handshake, link::Link};
use crate::{
    codec,
    error::{Error, Result},
    raft::{NodeId, Peer},
};

/// Frames that wait for one peer on the bus; the next is dropped.
pub const BUS_QUEUE_MAX: usize = 1024;
/// A larger frame is refused on the bus, so a full queue of one peer is 64 MiB at the very most.
pub const BUS_BYTES_MAX: usize = 64 << 10;
/// After a peer of the bus was not reached, it is tried again after this.
const BUS_RETRY: Duration = Duration::from_millis(250);
/// A peer that takes nothing off its connection for so long gets a new one: the path may be broken.
const BUS_STUCK_MAX: Duration = Duration::from_secs(2);
/// Connections for `call`; those that are closed go first when there are more.
const LINKS_MAX: usize = 256;

/// Where a call goes. An address alone is for nodes whose id is not known yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Target {
    addr: String,
    node: Option<NodeId>,
}

/// Dialed once for all who wait for it.
type Dialed = Arc<OnceCell<Link>>;

/// The other nodes, as the layers above reach them.
pub struct Peers {
    local: Arc<Local>,
    links: Mutex<HashMap<Target, Dialed>>,
    bus: Mutex<BTreeMap<NodeId, BusPeer>>,
    dropped: Arc<AtomicU64>,
}

struct BusPeer {
    peer: Peer,
    queue: mpsc::Sender<Bytes>,
    _task: JoinSet<()>,
}

impl Peers {
    pub fn new(local: Arc<Local>) -> Self {
        Self { local, links: Mutex::default(), bus: Mutex::default(), dropped: Arc::default() }
    }

    /// Asks the node that is known to be at `addr`.
    ///
    /// # Errors
    /// `Unavailable` when it is not reached or does not answer in time (then the outcome is unknown); `Refused` when
    /// another node is there, or it refuses.
    pub async fn call(
        &self,
        node: NodeId,
        addr: &str,
        request: &CallRequest,
        within: Duration,
    ) -> Result<CallResponse> {
        self.ask(Target { addr: addr.to_owned(), node: Some(node) }, request, within).await
    }

    /// Asks whoever is at `addr`.
    pub async fn call_addr(&self, addr: &str, request: &CallRequest, within: Duration) -> Result<CallResponse> {
        self.ask(Target { addr: addr.to_owned(), node: None }, request, within).await
    }

    async fn ask(&self, target: Target, request: &CallRequest, within: Duration) -> Result<CallResponse> {
        let body = Bytes::from(codec::body(request)?);
        let deadline = Instant::now() + within;
        let cell = self.link(&target);
        let dialing = cell.get_or_try_init(|| self.dial(&target));
        let late = |_| Error::unavailable(format!("{} does not answer within {within:?}", target.addr));
        let link = timeout(within, dialing).await.map_err(late)??;
        let answer = link.request(body, deadline.saturating_duration_since(Instant::now())).await?;
        codec::from_body(&answer)
    }

    async fn dial(&self, target: &Target) -> Result<Link> {
        let (stream, _) = handshake::dial(&self.local, &target.addr, Lane::Call, target.node).await?;
        Ok(Link::new(stream))
    }

    /// A connection of its own to the node that is known to be at `addr`, for the layers above on both sides.
    ///
    /// # Errors
    /// `Unavailable` when it is not reached; `Refused` when another node is there, or it refuses.
    pub async fn tunnel(&self, node: NodeId, addr: &str) -> Result<TcpStream> {
        Ok(handshake::dial(&self.local, addr, Lane::Tunnel, Some(node)).await?.0)
    }

    /// A member has said, over a connection of its own, that it is at `addr`: it is looked for there first.
    pub fn has_moved(&self, node: NodeId, addr: &str) {
        self.local.moved.is_at(node, addr);
    }

    /// The link to `target`, or a place where one will be.
    fn link(&self, target: &Target) -> Dialed {
        let usable = |cell: &Dialed| cell.get().is_none_or(|link| !link.is_closed());
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if links.len() >= LINKS_MAX {
            links.retain(|_, cell| cell.get().is_some_and(|link| !link.is_closed()));
        }
        let cell = links.entry(target.clone()).or_default();
        if !usable(cell) {
            *cell = Dialed::default();
        }
        Arc::clone(cell)
    }

    /// Who is on the bus from now on, this node excepted. Queues and connections of those who stay are kept.
    pub fn set_peers(&self, peers: impl IntoIterator<Item = (NodeId, Peer)>) {
        let mut bus = self.bus.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = std::mem::take(&mut *bus);
        for (node, peer) in peers.into_iter().filter(|(node, _)| *node != self.local.node()) {
            let kept = before.remove(&node).filter(|old| old.peer == peer);
            bus.insert(node, kept.unwrap_or_else(|| self.bus_peer(node, peer)));
        }
    }

    /// Sends to one peer of the bus, or to all. Never waits; delivered at most once, in order, or not at all.
    pub fn bus_send(&self, to: Option<NodeId>, bytes: &Bytes) -> Result<()> {
        if bytes.len() > BUS_BYTES_MAX {
            return Err(Error::refused(format!("{} bytes are over the bus's bound of {BUS_BYTES_MAX}", bytes.len())));
        }
        for (node, peer) in &*self.bus.lock().unwrap_or_else(PoisonError::into_inner) {
            if to.is_none_or(|to| to == *node) && peer.queue.try_send(bytes.clone()).is_err() {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Frames of the bus that were dropped since the start, counted once for each peer.
    pub fn bus_dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn bus_peer(&self, node: NodeId, peer: Peer) -> BusPeer {
        let (queue, frames) = mpsc::channel(BUS_QUEUE_MAX);
        let mut task = JoinSet::new();
        let (local, addr, dropped) = (Arc::clone(&self.local), peer.addr.clone(), Arc::clone(&self.dropped));
        task.spawn(run_bus(local, node, addr, frames, dropped));
        BusPeer { peer, queue, _task: task }
    }
}

/// Works one peer's queue off. Old news is no news: while the peer is away its queue is emptied, not kept.
async fn run_bus(
    local: Arc<Local>,
    node: NodeId,
    addr: String,
    mut frames: mpsc::Receiver<Bytes>,
    dropped: Arc<AtomicU64>,
) {
    let mut link: Option<Link> = None;
    let mut full_since: Option<Instant> = None;
    while let Some(frame) = frames.recv().await {
        if link.as_ref().is_none_or(Link::is_closed) {
            let dialed = handshake::dial(&local, &addr, Lane::Bus, Some(node)).await;
            link = dialed.ok().map(|(stream, _)| Link::new(stream));
        }
        let Some(open) = &link else {
            let mut lost = 1;
            while frames.try_recv().is_ok() {
                lost += 1;
            }
            dropped.fetch_add(lost, Ordering::Relaxed);
            sleep(BUS_RETRY).await;
            continue;
        };
        if open.offer(frame).unwrap_or(false) {
            full_since = None;
            continue;
        }
        dropped.fetch_add(1, Ordering::Relaxed);
        if full_since.get_or_insert_with(Instant::now).elapsed() > BUS_STUCK_MAX {
            (link, full_since) = (None, None);
        }
    }
}
