//! The client port: accepts, bounds and tracks connections, answers probes, turns new handshakes away.
//!
//! What always holds: each connection counts against the cap until its descriptor is closed, and belongs to a task that
//! `serve` waits for; after `serve` has returned there is none left. Nobody can hold a connection without speaking: a
//! request's header has [`Limits::header_timeout`], a WebSocket has socketioxide's `connect_timeout` and its pings.
//!
//! A tunnel, on which another node passes its clients' requests on (see `relay`), is a connection like any other; but what
//! it says of a client's address is believed, and it is kept longer between two requests.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header::RETRY_AFTER};
use hyper::{body::Incoming, server::conn::http1, service::Service as _};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::Service;

use super::{ask::is_beginning, stream::ClientStream, tunnel};

/// Bounds of the client port.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at once, WebSockets included. One more is answered 503 and closed.
    pub connections: usize,
    /// From the start of a connection (or the end of a request) to the end of the next request's header. Then it is closed.
    pub header_timeout: Duration,
    /// Header fields of a request. With more it is answered 431.
    pub headers: usize,
    /// Bytes of a request's header; less than 8 KiB counts as 8 KiB. With more it is answered 431.
    pub header_bytes: usize,
    /// How long a client may take nothing of what is written to it. Then the kernel resets the connection, also one that is
    /// closed here already and still has bytes to give: whoever does not read holds nothing for longer. (Linux.)
    pub stall_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 20_000,
            header_timeout: Duration::from_secs(10),
            headers: 64,
            header_bytes: 16 * 1024,
            stall_timeout: Duration::from_secs(60),
        }
    }
}

/// From the end of a request on a tunnel to the next one; longer than the other end keeps a tunnel that it does not use.
const TUNNEL_TIMEOUT: Duration = Duration::from_secs(60);

/// Of a request that another node passed on: the client's address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Relayed(pub SocketAddr);

/// A question with two answers: yes, or one word why not.
pub type Check = Arc<dyn Fn() -> Result<(), &'static str> + Send + Sync>;

/// What the port is told about the node.
#[derive(Clone)]
pub struct Gate {
    /// Whether a new Engine.IO session or WebSocket may be opened: not while starting, draining or without a quorum. What
    /// else belongs to a session that there is already is not asked about.
    pub admit: Check,
    /// `GET /readyz`: whether a balancer should send clients.
    pub ready: Check,
    /// `GET /livez`: whether the process is worth keeping.
    pub live: Check,
}

/// Serves `service` on `listener`, and on the `tunnels` of other nodes, until `token` is cancelled; then accepts no more,
/// cuts what is still open, and returns when all is closed. Each request carries its
/// [`Connection`](super::Connection) in its extensions.
pub async fn serve<S>(
    listener: TcpListener,
    mut tunnels: mpsc::Receiver<TcpStream>,
    service: S,
    gate: Gate,
    limits: Limits,
    token: CancellationToken,
) where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    let tasks = TaskTracker::new();
    let slots = Arc::new(Semaphore::new(limits.connections));
    let of_clients = limits.clone();
    let of_tunnels = Limits { header_timeout: TUNNEL_TIMEOUT, ..limits };
    loop {
        let (tcp, is_tunnel) = tokio::select! {
            () = token.cancelled() => break,
            tcp = accept(&listener) => (tcp, false),
            Some(tcp) = tunnels.recv() => (tcp, true),
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            turn_away(tcp);
            continue;
        };
        bound_stall(&tcp, limits.stall_timeout);
        // An error means that the peer has gone already.
        let Ok(stream) = ClientStream::new(tcp, Some(slot)) else { continue };
        let limits = if is_tunnel { &of_tunnels } else { &of_clients }.clone();
        tasks.spawn(connection(stream, is_tunnel, service.clone(), gate.clone(), limits, token.clone()));
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

/// The next connection. A failure of a connection that is about to be is passed over; any other (no descriptors left, no
/// memory) lasts, so it is waited out.
async fn accept(listener: &TcpListener) -> TcpStream {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    loop {
        match listener.accept().await {
            Ok((tcp, _)) => return tcp,
            Err(e) if matches!(e.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept a client connection");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Who is stuck writing to a client sees nothing else of the connection, so the kernel is asked. An error means that the
/// peer has gone already.
fn bound_stall(tcp: &TcpStream, time: Duration) {
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(tcp).set_tcp_user_timeout(Some(time)).ok();
    #[cfg(not(target_os = "linux"))]
    let _ = (tcp, time);
}

/// Answers 503 without reading: there is no room to wait for this client's request.
fn turn_away(tcp: TcpStream) {
    let answer =
        b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 4\r\n\r\nfull";
    // A fresh socket's buffer takes this; if not, the client sees a closed connection, which says the same.
    tcp.try_write(answer).ok();
}

/// One connection, from its first byte until its descriptor is closed, upgraded or not.
async fn connection<S>(
    stream: ClientStream,
    is_tunnel: bool,
    service: S,
    gate: Gate,
    limits: Limits,
    token: CancellationToken,
) where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    let connection = stream.connection();
    let service = TowerToHyperService::new(service);
    let of = connection.clone();
    let answer = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(of.clone());
        let client = request.headers_mut().remove(tunnel::CLIENT);
        if is_tunnel {
            let client = client.and_then(|client| client.to_str().ok()?.parse().ok()).unwrap_or(of.peer());
            request.extensions_mut().insert(Relayed(client));
        }
        let early = answer_early(&request, &gate);
        let service = service.clone();
        async move {
            match early {
                Some(response) => Ok(response),
                None => service.call(request).await,
            }
        }
    });
    let http = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_headers(limits.headers)
        .max_buf_size(limits.header_bytes.max(8 * 1024))
        .serve_connection(TokioIo::new(stream), answer)
        .with_upgrades();
    // Boxed: a WebSocket is done with it after its first request, and would keep the room for it as long as it lives.
    let http = Box::pin(http);
    let whole = async {
        // An error is the client's doing: it has gone, or did not speak HTTP in time.
        if let Err(error) = http.await {
            tracing::debug!(peer = %connection.peer(), %error, "client connection ended");
        }
        // After an upgrade socketioxide has the stream.
        connection.closed().await;
    };
    token.run_until_cancelled(whole).await;
    connection.cut();
}

/// Probes, and sessions and WebSockets that are not admitted.
fn answer_early<B>(request: &Request<B>, gate: &Gate) -> Option<Response<Body>> {
    match request.uri().path() {
        "/livez" => Some(word((gate.live)(), "live")),
        "/readyz" => Some(word((gate.ready)(), "ready")),
        _ if is_beginning(request.uri()) => match (gate.admit)() {
            Ok(()) => None,
            refused => Some(word(refused, "")),
        },
        _ => None,
    }
}

fn word(check: Result<(), &'static str>, yes: &'static str) -> Response<Body> {
    let Err(why_not) = check else { return Response::new(Body::from(Bytes::from_static(yes.as_bytes()))) };
    let mut response = Response::new(Body::from(why_not));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}
