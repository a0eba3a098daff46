//! A client port for tests: real sockets, real WebSockets, socketioxide behind.
#![allow(dead_code, reason = "each test file uses some of it")]

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::Router;
use futures_util::{SinkExt, StreamExt};
use moim::adapter::{Hub, SocketIo, SocketRef};
use moim::client::{Encoded, Gate, Limits, Outlet, Relay, Transports, serve, socketio};
use socketioxide::handler::ConnectHandler;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, Message},
};
use tokio_util::sync::CancellationToken;

pub const UNKNOWN: &str = r#"{"code":1,"message":"Session ID unknown"}"#;
pub const NODE: u64 = 0xab;
pub const SOON: Duration = Duration::from_secs(10);

pub struct Node {
    pub address: String,
    pub transports: Transports,
    pub io: SocketIo,
    pub hub: Hub,
    pub admit: Arc<AtomicBool>,
    pub ready: Arc<AtomicBool>,
    pub token: CancellationToken,
    pub served: JoinHandle<()>,
}

impl Node {
    pub async fn start(limits: Limits) -> Self {
        Self::with(limits, socketio::Settings::default()).await
    }

    pub async fn with(limits: Limits, settings: socketio::Settings) -> Self {
        Self::among(limits, settings, Relay::alone(NODE), mpsc::channel(1).1).await
    }

    /// A node that passes requests on by `relay`, and is passed some over `tunnels`.
    pub async fn among(
        limits: Limits,
        settings: socketio::Settings,
        relay: Relay,
        tunnels: mpsc::Receiver<TcpStream>,
    ) -> Self {
        let (transports, hub) = (Transports::default(), Hub::default());
        let (service, io) = socketio::service(&settings, transports.clone(), relay, Router::new(), hub.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (admit, ready) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(true)));
        let check = |flag: &Arc<AtomicBool>, word| {
            let flag = flag.clone();
            Arc::new(move || if flag.load(SeqCst) { Ok(()) } else { Err(word) }) as moim::client::listener::Check
        };
        let gate = Gate { admit: check(&admit, "draining"), ready: check(&ready, "behind"), live: Arc::new(|| Ok(())) };
        let token = CancellationToken::new();
        let served = tokio::spawn(serve(listener, tunnels, service, gate, limits, token.clone()));
        Self { address, transports, io, hub, admit, ready, token, served }
    }

    pub async fn plain() -> Self {
        Self::start(Limits::default()).await
    }

    /// Who connects is told of a drain, and closed gently.
    pub fn drain_all(&self) {
        let hub = self.hub.clone();
        self.io.ns("/", async move |socket: SocketRef| {
            let transport = socketio::transport(&socket).unwrap();
            let outlet = Outlet::new(&hub, socket, transport.clone()).unwrap();
            outlet.event(&Encoded::from_json("moim:drain", r#"{"within":1}"#.to_owned()).unwrap()).unwrap();
            // Would wait for ever, were less counted as written than was queued.
            transport.drained(0).await;
            transport.close_gently().await;
        });
    }

    /// A namespace whose middleware arms our reply.
    pub fn namespace(&self, path: &'static str) {
        let middleware = async move |socket: SocketRef| {
            let transport = socketio::transport(&socket).expect("it came through the listener");
            transport.arm(socketio::reply(socket.ns(), socket.id), socketio::our_reply(socket.ns(), "ours", "secret"));
            Ok::<(), Infallible>(())
        };
        let connected = async |socket: SocketRef| {
            socket.emit("ready", &1).ok();
        };
        self.io.ns(path, connected.with(middleware));
    }

    pub async fn websocket(&self) -> WebSocketStream<TcpStream> {
        let mut ws = self.upgrade("").await.expect("upgraded");
        assert!(text(&mut ws).await.unwrap().starts_with("0{"), "OPEN comes first");
        ws
    }

    pub async fn upgrade(&self, query: &str) -> tungstenite::Result<WebSocketStream<TcpStream>> {
        let tcp = TcpStream::connect(&self.address).await.unwrap();
        let url = format!("ws://{}/socket.io/?EIO=4&transport=websocket{query}", self.address);
        tokio_tungstenite::client_async(url, tcp).await.map(|(ws, _)| ws)
    }

    /// Status and body of a GET.
    pub async fn get(&self, path: &str) -> (u16, String) {
        self.request("GET", path, "").await
    }

    pub async fn request(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut tcp = self.ask(method, path, body).await;
        answer(&mut tcp).await
    }

    /// A request whose answer is still to be read.
    pub async fn ask(&self, method: &str, path: &str, body: &str) -> TcpStream {
        let mut tcp = TcpStream::connect(&self.address).await.unwrap();
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n");
        // A server that has heard enough may have closed already.
        tcp.write_all(format!("{head}\r\n{body}").as_bytes()).await.ok();
        tcp
    }

    /// A session over long-polling: its path.
    pub async fn polling(&self) -> String {
        let (status, open) = self.get("/socket.io/?EIO=4&transport=polling").await;
        assert_eq!(status, 200, "{open}");
        let open: serde_json::Value = serde_json::from_str(open.strip_prefix('0').unwrap()).unwrap();
        assert_eq!(open["upgrades"], serde_json::json!(["websocket"]));
        let path = format!("/socket.io/?EIO=4&transport=polling&sid={}", open["sid"].as_str().unwrap());
        // socketioxide begins with a ping.
        assert_eq!(self.poll(&path).await, ["2"]);
        self.post(&path, "3").await;
        path
    }

    /// A poll's packets.
    pub async fn poll(&self, path: &str) -> Vec<String> {
        let (status, body) = self.get(path).await;
        assert_eq!(status, 200, "{body}");
        body.split('\x1e').map(str::to_owned).collect()
    }

    pub async fn post(&self, path: &str, body: &str) {
        assert_eq!(self.request("POST", path, body).await, (200, "ok".to_owned()));
    }
}

pub async fn answer(tcp: &mut TcpStream) -> (u16, String) {
    let mut bytes = Vec::new();
    timeout(SOON, tcp.read_to_end(&mut bytes)).await.expect("closed in time").ok();
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    (head.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0), body.to_owned())
}

/// The next message; Engine.IO's pings, of which the first may come at any moment, are left out.
pub async fn next(ws: &mut WebSocketStream<TcpStream>) -> Option<tungstenite::Result<Message>> {
    loop {
        match timeout(SOON, ws.next()).await.expect("an answer in time") {
            Some(Ok(Message::Text(ping))) if ping.as_str() == "2" => continue,
            message => return message,
        }
    }
}

/// The next text message; `None` when the transport has ended in whichever way.
pub async fn text(ws: &mut WebSocketStream<TcpStream>) -> Option<String> {
    match next(ws).await {
        Some(Ok(Message::Text(text))) => Some(text.to_string()),
        _ => None,
    }
}

pub async fn send(ws: &mut WebSocketStream<TcpStream>, packet: &str) {
    ws.send(Message::text(packet)).await.unwrap();
}

/// CONNECTs and waits for `ready`: socketioxide answers before it runs the connect handler, and drops events until then.
pub async fn connect(ws: &mut WebSocketStream<TcpStream>, namespace: &str) {
    send(ws, &format!("40{namespace}")).await;
    assert!(text(ws).await.unwrap().starts_with("40"));
    assert!(text(ws).await.unwrap().contains("ready"));
}

pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waits = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, waits).await.expect(what);
}

/// Polls until a packet begins so; what came before it is passed over.
pub async fn polled(node: &Node, path: &str, start: &str) -> String {
    loop {
        if let Some(found) = node.poll(path).await.into_iter().find(|packet| packet.starts_with(start)) {
            return found;
        }
    }
}
