//! No sticky sessions: a request for a session of another node is passed on to that node, once.
//!
//! The way is a *tunnel*: a connection to the node's peer port, on a lane of its own, on which HTTP is spoken as on the
//! client port. One request at a time has it, a WebSocket has it for life. So a poll that is held for long delays nobody,
//! what a client does not read is not read for it either, a client that goes away takes its request with it, and a node
//! that dies is noticed at once. The node at the other end serves a tunnel like any client's connection, within the same
//! limits.
//!
//! What always holds:
//! * A request is passed on at most once: what comes out of a tunnel never goes into another.
//! * Whatever goes wrong on the way is answered "session unknown": the client starts afresh, anywhere, and recovers.
//! * Nobody waits for a node that does not answer: while something is on its way to a node, it is asked again and again
//!   whether it lives. A process that is gone closes its tunnels by itself, a machine that is cut off or a process that
//!   stands still does not.
//!
//! The price of a relayed WebSocket is that each of its bytes passes two nodes, and that it ends when either of them stops:
//! clients that name `transports: ["websocket"]` never have one.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use futures_util::{
    future::BoxFuture,
    stream::{self, StreamExt},
};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::upgrade::OnUpgrade;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use super::tunnel::Dial;
use super::{
    ask::UNKNOWN_SID,
    connection::CLOSE_TIMEOUT,
    socketio::PATH,
    transport::Transport,
    tunnel::{Answer, Tunnels, carry, inward, outward},
};

/// Requests of a node that is leaving that are let go of at once.
const RELEASES: usize = 16;
/// How often a node is asked whether it lives while something is on its way to it.
const PROBE_EVERY: Duration = Duration::from_millis(500);
/// How long it may take to say so.
const PROBE_TIMEOUT: Duration = Duration::from_millis(1500);
/// How often in a row it may fail to. Two, because a machine that is merely busy was seen to miss one; so a node that stands
/// still is noticed within four seconds.
const MISSES_MAX: u32 = 2;

/// Lets a transport go as a drain does.
pub type LetGo = Arc<dyn Fn(Transport) -> BoxFuture<'static, ()> + Send + Sync>;

/// What the relay has to know of the cluster.
#[derive(Clone)]
pub struct Others {
    /// This node's tag.
    pub me: u64,
    pub dial: Dial,
    /// Whether a node is up, as far as the cluster knows.
    pub is_up: Arc<dyn Fn(u64) -> bool + Send + Sync>,
    pub let_go: LetGo,
}

/// Passes requests on. Cheap to clone.
#[derive(Clone)]
pub struct Relay(Arc<Inner>);

struct Inner {
    others: Others,
    tunnels: Tunnels,
    passing: Mutex<HashMap<u64, Passing>>,
    watched: Mutex<HashMap<u64, Watched>>,
    last: AtomicU64,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// A node that something is on its way to.
struct Watched {
    users: usize,
    /// Comes true when it does not answer, or when nobody is left to whom it matters.
    over: CancellationToken,
}

/// A request that is on its way, or a WebSocket.
#[derive(Clone)]
struct Passing {
    to: u64,
    id: String,
    websocket: bool,
}

impl Relay {
    pub fn new(others: Others) -> Self {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let tunnels = Tunnels::new(others.dial.clone(), tasks.clone(), stop.clone());
        let (passing, watched) = (Mutex::default(), Mutex::default());
        Self(Arc::new(Inner { others, tunnels, passing, watched, last: AtomicU64::new(0), tasks, stop }))
    }

    /// Of a node that has no others.
    pub fn alone(me: u64) -> Self {
        let dial: Dial = Arc::new(|_| Box::pin(std::future::ready(Err(io::ErrorKind::HostUnreachable.into()))));
        let let_go: LetGo = Arc::new(|transport| Box::pin(async move { transport.close_gently().await }));
        Self::new(Others { me, dial, is_up: Arc::new(|_| false), let_go })
    }

    /// This node's tag.
    pub fn me(&self) -> u64 {
        self.0.others.me
    }

    /// WebSockets that pass through this node to others.
    pub fn websockets(&self) -> usize {
        lock(&self.0.passing).values().filter(|passing| passing.websocket).count()
    }

    /// Passes a request for the session `id` on to its node.
    pub(super) async fn pass_on(
        &self,
        to: u64,
        id: &str,
        request: Request<Full<Bytes>>,
        client: SocketAddr,
    ) -> Response<Body> {
        if !(self.0.others.is_up)(to) {
            return UNKNOWN_SID.response();
        }
        let passing = self.enter(Passing { to, id: id.to_owned(), websocket: false });
        match self.exchange(passing, request, client).await {
            Ok(response) => response,
            Err(why) => {
                tracing::debug!(node = %format_args!("{to:016x}"), "a request was not passed on: {why}");
                UNKNOWN_SID.response()
            }
        }
    }

    async fn exchange(
        &self,
        passing: Entry,
        mut request: Request<Full<Bytes>>,
        client: SocketAddr,
    ) -> Result<Response<Body>, axum::BoxError> {
        let to = passing.to;
        let mut tunnel = self.0.tunnels.get(to).await?;
        let from = request.extensions_mut().remove::<OnUpgrade>();
        let mut response = tokio::select! {
            response = tunnel.send_request(outward(request, client)) => response?,
            () = passing.over.cancelled() => return Err("its node does not answer".into()),
        };
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let (parts, body) = response.into_parts();
            let body = Answer::new(body, self.0.tunnels.clone(), to, tunnel, passing);
            return Ok(Response::from_parts(inward(parts), Body::new(body)));
        }
        let from = from.ok_or("it was not an upgrade")?;
        let there = hyper::upgrade::on(&mut response);
        let stop = self.0.stop.clone();
        passing.is_websocket();
        self.0.tasks.spawn(stop.run_until_cancelled_owned(async move {
            if let (Ok(here), Ok(there)) = tokio::join!(from, there) {
                tokio::select! {
                    () = carry(here, there) => {}
                    () = passing.over.cancelled() => {}
                }
            }
        }));
        Ok(response.map(|_| Body::empty()))
    }

    /// Asks a node whether it lives until `over`, which it brings about if it does not.
    async fn watch(self, node: u64, over: CancellationToken) {
        let mut misses = 0;
        while over.run_until_cancelled(sleep(PROBE_EVERY)).await.is_some() {
            let lives = matches!(timeout(PROBE_TIMEOUT, self.probe(node)).await, Ok(Ok(())));
            misses = if lives { 0 } else { misses + 1 };
            let gone = misses == MISSES_MAX || !(self.0.others.is_up)(node);
            let mut watched = lock(&self.0.watched);
            if gone && !over.is_cancelled() {
                tracing::info!(node = %format_args!("{node:016x}"), "does not answer: its relayed clients are let go");
                watched.remove(&node);
                return over.cancel();
            }
        }
    }

    async fn probe(&self, node: u64) -> Result<(), axum::BoxError> {
        let mut tunnel = self.0.tunnels.get(node).await?;
        let response = tunnel.send_request(Request::get("/livez").body(Full::default())?).await?;
        response.into_body().collect().await?;
        self.0.tunnels.keep(node, tunnel);
        Ok(())
    }

    /// Lets go of all that passes through this node, which is leaving: its polls end with a noop and come again elsewhere,
    /// its WebSockets are closed by their own nodes as in a drain, one at each of these `moments`.
    pub async fn leave(&self, moments: impl Iterator<Item = Instant>) {
        let all: Vec<Passing> = lock(&self.0.passing).values().cloned().collect();
        let (websockets, polls): (Vec<_>, Vec<_>) = all.into_iter().partition(|passing| passing.websocket);
        stream::iter(polls).for_each_concurrent(RELEASES, |passing| self.ask_release(passing)).await;
        for (passing, moment) in websockets.into_iter().zip(moments) {
            sleep_until(moment).await;
            let relay = self.clone();
            self.0.tasks.spawn(async move { relay.ask_release(passing).await });
        }
    }

    async fn ask_release(&self, passing: Passing) {
        let asked = async {
            let mut tunnel = self.0.tunnels.get(passing.to).await?;
            let mut request = Request::new(Full::default());
            *request.method_mut() = Method::DELETE;
            *request.uri_mut() = format!("{PATH}/?EIO=4&transport=polling&sid={}", passing.id).try_into()?;
            Ok::<_, axum::BoxError>(tunnel.send_request(request).await?)
        };
        // Whoever is not let go of is cut when this node stops, and recovers.
        if let Ok(Err(why)) = timeout(CLOSE_TIMEOUT * 2, asked).await {
            tracing::debug!("a relayed client was not let go of: {why}");
        }
    }

    /// The other side of [`leave`](Self::leave).
    pub(super) async fn release(&self, transport: Transport) -> Response<Body> {
        match transport.is_websocket() {
            true => (self.0.others.let_go)(transport).await,
            false => transport.release(),
        }
        Response::new(Body::empty())
    }

    /// How many requests and WebSockets are passing through.
    pub fn len(&self) -> usize {
        lock(&self.0.passing).len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends all tunnels and waits for them.
    pub async fn close(&self) {
        self.0.stop.cancel();
        self.0.tunnels.clear();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    fn enter(&self, passing: Passing) -> Entry {
        let key = self.0.last.fetch_add(1, Relaxed);
        let to = passing.to;
        lock(&self.0.passing).insert(key, passing);
        let mut watched = lock(&self.0.watched);
        let watch = watched.entry(to).or_insert_with(|| {
            let (over, stop) = (CancellationToken::new(), self.0.stop.clone());
            self.0.tasks.spawn(stop.run_until_cancelled_owned(self.clone().watch(to, over.clone())));
            Watched { users: 0, over }
        });
        watch.users += 1;
        Entry { relay: self.clone(), key, to, over: watch.over.clone() }
    }
}

/// A line in the table of what passes; gone with it.
struct Entry {
    relay: Relay,
    key: u64,
    to: u64,
    over: CancellationToken,
}

impl Entry {
    fn is_websocket(&self) {
        if let Some(passing) = lock(&self.relay.0.passing).get_mut(&self.key) {
            passing.websocket = true;
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        lock(&self.relay.0.passing).remove(&self.key);
        let mut watched = lock(&self.relay.0.watched);
        // Once its node did not answer, another watch may have been begun, which is not its own.
        if let Some(watch) = watched.get_mut(&self.to).filter(|_| !self.over.is_cancelled()) {
            watch.users -= 1;
            if watch.users == 0 {
                watch.over.cancel();
                watched.remove(&self.to);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics under this lock")
}
