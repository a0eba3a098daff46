//! Tunnels: connections to other nodes on which one request at a time is passed on, or a WebSocket for life.
//!
//! What always holds: a tunnel is used again only when all of the last answer was read; one whose answer was given up is
//! closed with it, which is how the other end learns that nobody waits any more.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{
    HeaderValue, Request,
    header::{self, HeaderName},
};
use http_body::{Frame, SizeHint};
use http_body_util::Full;
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
    upgrade::Upgraded,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncWriteExt, copy, split},
    net::TcpStream,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::connection::CLOSE_TIMEOUT;

/// Tells the other end the address of the client. Taken from a tunnel only.
pub(super) const CLIENT: HeaderName = HeaderName::from_static("moim-client");

/// How long a node may take to accept a tunnel. A dead process refuses at once; a busy machine takes its time.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
/// Tunnels to one node that are kept for the next request; more are closed.
const IDLE_MAX: usize = 64;
/// How long they are kept: less than the other end waits for a request.
const IDLE_TIME: Duration = Duration::from_secs(20);

/// Makes a connection to a node's peer port.
pub type Dial = Arc<dyn Fn(u64) -> BoxFuture<'static, io::Result<TcpStream>> + Send + Sync>;

pub(super) type Tunnel = SendRequest<Full<Bytes>>;

/// By node, with the time of their last use.
type Idle = HashMap<u64, Vec<(Tunnel, Instant)>>;

/// Makes tunnels, and keeps those that nothing goes through. Cheap to clone.
#[derive(Clone)]
pub(super) struct Tunnels {
    dial: Dial,
    idle: Arc<Mutex<Idle>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Tunnels {
    /// What each tunnel needs to be driven goes to `tasks`, until `stop`.
    pub fn new(dial: Dial, tasks: TaskTracker, stop: CancellationToken) -> Self {
        Self { dial, idle: Arc::default(), tasks, stop }
    }

    /// An idle tunnel to a node, or a new one.
    pub async fn get(&self, to: u64) -> Result<Tunnel, axum::BoxError> {
        while let Some((tunnel, since)) = self.idle().get_mut(&to).and_then(Vec::pop) {
            if tunnel.is_ready() && since.elapsed() < IDLE_TIME {
                return Ok(tunnel);
            }
        }
        let stream = timeout(DIAL_TIMEOUT, (self.dial)(to)).await??;
        notice_death(&stream)?;
        let (tunnel, driver) = http1::handshake(TokioIo::new(stream)).await?;
        let stop = self.stop.clone();
        // An error is told to whoever waits for an answer.
        self.tasks.spawn(async move { stop.run_until_cancelled(driver.with_upgrades()).await });
        Ok(tunnel)
    }

    /// Nothing goes through this one any more.
    pub fn keep(&self, to: u64, tunnel: Tunnel) {
        let mut idle = self.idle();
        let tunnels = idle.entry(to).or_default();
        tunnels.retain(|(tunnel, since)| !tunnel.is_closed() && since.elapsed() < IDLE_TIME);
        if tunnels.len() < IDLE_MAX {
            tunnels.push((tunnel, Instant::now()));
        }
    }

    pub fn clear(&self) {
        self.idle().clear();
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().expect("nothing panics under this lock")
    }
}

/// The request as it goes into a tunnel: what belongs to the client's connection stays, its address goes along.
pub(super) fn outward(mut request: Request<Full<Bytes>>, client: SocketAddr) -> Request<Full<Bytes>> {
    let headers = request.headers_mut();
    let upgrade = headers.contains_key(header::UPGRADE);
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::CONTENT_LENGTH, header::EXPECT] {
        headers.remove(name);
    }
    headers.remove("keep-alive");
    if upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
    if let Ok(client) = HeaderValue::try_from(client.to_string()) {
        headers.insert(CLIENT, client);
    }
    *request.version_mut() = http::Version::HTTP_11;
    request
}

/// The head of an answer as it leaves for the client.
pub(super) fn inward(mut parts: http::response::Parts) -> http::response::Parts {
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::DATE] {
        parts.headers.remove(name);
    }
    parts
}

/// Probes an idle connection, so that a node that vanished without a word is noticed within about three seconds.
fn notice_death(stream: &TcpStream) -> io::Result<()> {
    let second = Duration::from_secs(1);
    let probes = socket2::TcpKeepalive::new().with_time(second).with_interval(second).with_retries(2);
    socket2::SockRef::from(stream).set_tcp_keepalive(&probes)
}

/// Carries bytes between a client and its node until one of them is done; then the other has a moment to finish.
pub(super) async fn carry(here: Upgraded, there: Upgraded) {
    let (mut from_client, mut to_client) = split(TokioIo::new(here));
    let (mut from_node, mut to_node) = split(TokioIo::new(there));
    // An error means that this direction has ended.
    let up = async {
        copy(&mut from_client, &mut to_node).await.ok();
        to_node.shutdown().await.ok();
    };
    let down = async {
        copy(&mut from_node, &mut to_client).await.ok();
        to_client.shutdown().await.ok();
    };
    let (mut up, mut down) = (pin!(up), pin!(down));
    tokio::select! {
        () = &mut up => { timeout(CLOSE_TIMEOUT, down).await.ok(); }
        () = &mut down => { timeout(CLOSE_TIMEOUT, up).await.ok(); }
    }
}

/// The body of an answer; when all of it was read, the tunnel is free again.
pub(super) struct Answer<P> {
    body: Incoming,
    back: Option<(Tunnels, u64, Tunnel)>,
    /// Whoever counts it.
    _passing: P,
}

impl<P> Answer<P> {
    pub fn new(body: Incoming, tunnels: Tunnels, to: u64, tunnel: Tunnel, passing: P) -> Self {
        Self { body, back: Some((tunnels, to, tunnel)), _passing: passing }
    }
}

impl<P: Unpin> http_body::Body for Answer<P> {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let whole = match &frame {
            None => true,
            Some(Ok(_)) => self.body.is_end_stream(),
            Some(Err(_)) => false,
        };
        if whole && let Some((tunnels, to, tunnel)) = self.back.take() {
            tunnels.keep(to, tunnel);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
