//! The client port as a client meets it: real sockets, real WebSockets, socketioxide behind.

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
use moim::client::{
    Ack, Encoded, Gate, Limits, Lost, Outlet, Relay, Transports, outgoing::ARMED_MAX, serve, socketio, tag,
};
use serde_json::value::RawValue;
use socketioxide::handler::ConnectHandler;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};
use tokio_util::sync::CancellationToken;

const UNKNOWN: &str = r#"{"code":1,"message":"Session ID unknown"}"#;
const NODE: u64 = 0xab;
const SOON: Duration = Duration::from_secs(10);

struct Node {
    address: String,
    transports: Transports,
    io: SocketIo,
    admit: Arc<AtomicBool>,
    ready: Arc<AtomicBool>,
    token: CancellationToken,
    served: JoinHandle<()>,
}

impl Node {
    async fn start(limits: Limits) -> Self {
        Self::with(limits, socketio::Settings::default()).await
    }

    async fn with(limits: Limits, settings: socketio::Settings) -> Self {
        let (transports, relay) = (Transports::default(), Relay::alone(NODE));
        let (service, io) = socketio::service(&settings, transports.clone(), relay, Router::new(), Hub::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (admit, ready) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(true)));
        let check = |flag: &Arc<AtomicBool>, word| {
            let flag = flag.clone();
            Arc::new(move || if flag.load(SeqCst) { Ok(()) } else { Err(word) }) as moim::client::listener::Check
        };
        let gate = Gate { admit: check(&admit, "draining"), ready: check(&ready, "behind"), live: Arc::new(|| Ok(())) };
        let token = CancellationToken::new();
        let served = tokio::spawn(serve(listener, mpsc::channel(1).1, service, gate, limits, token.clone()));
        Self { address, transports, io, admit, ready, token, served }
    }

    async fn plain() -> Self {
        Self::start(Limits::default()).await
    }

    /// A namespace whose middleware arms our reply.
    fn namespace(&self, path: &'static str) {
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

    async fn websocket(&self) -> WebSocketStream<TcpStream> {
        let mut ws = self.upgrade("").await.expect("upgraded");
        assert!(text(&mut ws).await.unwrap().starts_with("0{"), "OPEN comes first");
        ws
    }

    async fn upgrade(&self, query: &str) -> tokio_tungstenite::tungstenite::Result<WebSocketStream<TcpStream>> {
        let tcp = TcpStream::connect(&self.address).await.unwrap();
        let url = format!("ws://{}/socket.io/?EIO=4&transport=websocket{query}", self.address);
        tokio_tungstenite::client_async(url, tcp).await.map(|(ws, _)| ws)
    }

    /// Status and body of a GET.
    async fn get(&self, path: &str) -> (u16, String) {
        self.request("GET", path, "").await
    }

    async fn request(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut tcp = self.ask(method, path, body).await;
        answer(&mut tcp).await
    }

    /// A request whose answer is still to be read.
    async fn ask(&self, method: &str, path: &str, body: &str) -> TcpStream {
        let mut tcp = TcpStream::connect(&self.address).await.unwrap();
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n");
        // A server that has heard enough may have closed already.
        tcp.write_all(format!("{head}\r\n{body}").as_bytes()).await.ok();
        tcp
    }

    /// A session over long-polling: its path.
    async fn polling(&self) -> String {
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
    async fn poll(&self, path: &str) -> Vec<String> {
        let (status, body) = self.get(path).await;
        assert_eq!(status, 200, "{body}");
        body.split('\x1e').map(str::to_owned).collect()
    }

    async fn post(&self, path: &str, body: &str) {
        assert_eq!(self.request("POST", path, body).await, (200, "ok".to_owned()));
    }
}

async fn answer(tcp: &mut TcpStream) -> (u16, String) {
    let mut bytes = Vec::new();
    timeout(SOON, tcp.read_to_end(&mut bytes)).await.expect("closed in time").ok();
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    (head.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0), body.to_owned())
}

/// The next text message, pings left out; `None` when the transport has ended in whichever way.
async fn text(ws: &mut WebSocketStream<TcpStream>) -> Option<String> {
    loop {
        match timeout(SOON, ws.next()).await.expect("an answer in time") {
            Some(Ok(Message::Text(ping))) if ping.as_str() == "2" => continue,
            Some(Ok(Message::Text(text))) => return Some(text.to_string()),
            _ => return None,
        }
    }
}

async fn send(ws: &mut WebSocketStream<TcpStream>, packet: &str) {
    ws.send(Message::text(packet)).await.unwrap();
}

/// CONNECTs and waits for `ready`: socketioxide answers before it runs the connect handler, and drops events until then.
async fn connect(ws: &mut WebSocketStream<TcpStream>, namespace: &str) {
    send(ws, &format!("40{namespace}")).await;
    assert!(text(ws).await.unwrap().starts_with("40"));
    assert!(text(ws).await.unwrap().contains("ready"));
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waits = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, waits).await.expect(what);
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_reply_is_ours_in_each_namespace() {
    let node = Node::plain().await;
    node.namespace("/");
    node.namespace("/group-chat");
    let mut ws = node.websocket().await;
    send(&mut ws, "40").await;
    send(&mut ws, "40/group-chat,").await;
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(text(&mut ws).await.unwrap());
    }
    seen.sort();
    let wanted = [
        r#"40/group-chat,{"sid":"ours","pid":"secret"}"#,
        r#"40{"sid":"ours","pid":"secret"}"#,
        r#"42/group-chat,["ready",1]"#,
        r#"42["ready",1]"#,
    ];
    assert_eq!(seen, wanted);
    assert_eq!(node.transports.len(), 1, "one transport, however many namespaces");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_in_the_middleware_is_a_transport_close_and_never_44() {
    let node = Node::plain().await;
    let middleware = async |socket: SocketRef| {
        tokio::time::sleep(Duration::from_millis(20)).await;
        socketio::transport(&socket).unwrap().cut();
        Err::<(), _>("no quorum")
    };
    node.io.ns("/", (async || ()).with(middleware));
    for _ in 0..20 {
        let mut ws = node.websocket().await;
        send(&mut ws, "40").await;
        assert_eq!(text(&mut ws).await, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_header_is_closed_and_so_is_silence() {
    let node = Node::start(Limits { header_timeout: Duration::from_millis(300), ..Limits::default() }).await;
    let mut silent = TcpStream::connect(&node.address).await.unwrap();
    answer(&mut silent).await;
    let mut tcp = TcpStream::connect(&node.address).await.unwrap();
    let (mut reads, mut writes) = tcp.split();
    let trickle = async {
        for byte in "GET /livez HTTP/1.1\r\nhost: ".bytes().chain(std::iter::repeat(b'x')) {
            writes.write_all(&[byte]).await.ok();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let mut seen = Vec::new();
    tokio::select! {
        _ = trickle => {}
        end = timeout(SOON, reads.read_to_end(&mut seen)) => { end.expect("closed").ok(); }
    }
    assert!(!String::from_utf8_lossy(&seen).contains("200"));
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_headers_are_refused() {
    let node = Node::plain().await;
    let mut tcp = TcpStream::connect(&node.address).await.unwrap();
    let many: String = (0..100).map(|n| format!("h{n}: 1\r\n")).collect();
    tcp.write_all(format!("GET /livez HTTP/1.1\r\n{many}\r\n").as_bytes()).await.unwrap();
    assert_eq!(answer(&mut tcp).await.0, 431);
}

#[tokio::test(flavor = "multi_thread")]
async fn new_handshakes_are_turned_away_and_sessions_go_on() {
    let node = Node::plain().await;
    node.namespace("/");
    node.namespace("/group-chat");
    let mut ws = node.websocket().await;
    connect(&mut ws, "").await;
    node.admit.store(false, SeqCst);
    let path = "/socket.io/?EIO=4&transport=websocket";
    assert_eq!(node.get(path).await, (503, "draining".to_owned()));
    assert!(node.upgrade("").await.is_err());
    // An old session is served.
    connect(&mut ws, "/group-chat,").await;
    node.admit.store(true, SeqCst);
    node.websocket().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_are_answered_in_one_word() {
    let node = Node::plain().await;
    assert_eq!(node.get("/livez").await, (200, "live".to_owned()));
    assert_eq!(node.get("/readyz").await, (200, "ready".to_owned()));
    node.ready.store(false, SeqCst);
    assert_eq!(node.get("/readyz").await, (503, "behind".to_owned()));
    assert_eq!(node.get("/nothing").await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_transports_and_foreign_sids_are_refused_in_socket_ios_words() {
    let node = Node::plain().await;
    let unknown = (400, r#"{"code":0,"message":"Transport unknown"}"#.to_owned());
    assert_eq!(node.get("/socket.io/?EIO=4&transport=webtransport").await, unknown);
    assert_eq!(node.get("/socket.io/").await, unknown);
    let old = (400, r#"{"code":5,"message":"Unsupported protocol version"}"#.to_owned());
    assert_eq!(node.get("/socket.io/?EIO=3&transport=polling").await, old);
    let stale = tag::tagged(NODE, "AAAAAAAAAAAAAAHs".parse().unwrap());
    let elsewhere = tag::tagged(NODE + 1, "AAAAAAAAAAAAAAHs".parse().unwrap());
    for sid in ["AAAAAAAAAAAAAAHs", "x", "", &stale, &elsewhere] {
        let answer = node.get(&format!("/socket.io/?EIO=4&transport=polling&sid={sid}")).await;
        assert_eq!(answer, (400, UNKNOWN.to_owned()), "{sid}");
    }
    let bad = (400, r#"{"code":3,"message":"Bad request"}"#.to_owned());
    assert_eq!(node.get("/socket.io/?EIO=4&transport=websocket").await, bad, "without an upgrade");
    let post = node.request("POST", "/socket.io/?EIO=4&transport=polling", "x").await;
    assert_eq!(post, (400, r#"{"code":2,"message":"Bad handshake method"}"#.to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn past_the_cap_a_connection_is_turned_away_at_once_and_room_comes_back() {
    let node = Node::start(Limits { connections: 2, ..Limits::default() }).await;
    let ws = node.websocket().await;
    let _second = node.websocket().await;
    let mut third = TcpStream::connect(&node.address).await.unwrap();
    assert_eq!(answer(&mut third).await, (503, "full".to_owned()));
    drop(ws);
    let again = async {
        while node.upgrade("").await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, again).await.expect("a closed WebSocket gives its place back");
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_returns_when_all_connections_are_closed() {
    let node = Node::plain().await;
    node.namespace("/");
    let mut ws = node.websocket().await;
    send(&mut ws, "40").await;
    let _idle = TcpStream::connect(&node.address).await.unwrap();
    until("adopted", || node.transports.len() == 1).await;
    node.token.cancel();
    timeout(SOON, node.served).await.expect("in time").unwrap();
    assert!(node.transports.is_empty());
    while text(&mut ws).await.is_some() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_connects_leave_no_record() {
    let node = Node::plain().await;
    node.namespace("/");
    for _ in 0..20 {
        let mut batch = Vec::new();
        for n in 0..50 {
            let mut ws = node.websocket().await;
            send(&mut ws, "40").await;
            if n % 2 == 0 {
                text(&mut ws).await.unwrap();
            }
            batch.push(ws);
        }
        for (n, mut ws) in batch.into_iter().enumerate() {
            if n % 3 == 0 {
                ws.close(None).await.ok();
            }
        }
    }
    until("no record", || node.transports.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_websocket_is_learnt_from_its_stream() {
    let node = Node::plain().await;
    let (transports, mut seen) = mpsc::unbounded_channel();
    node.io.ns("/", async move |socket: SocketRef| {
        transports.send((socket.id, socketio::transport(&socket).unwrap())).ok();
    });
    let mut ws = node.websocket().await;
    send(&mut ws, "40").await;
    let (sid, transport) = timeout(SOON, seen.recv()).await.unwrap().unwrap();
    assert!(transport.is_websocket());
    assert_eq!(transport.peer(), ws.get_ref().local_addr().unwrap());
    // A session that began as a WebSocket is nobody's to poll or upgrade, whatever id is made up for it.
    for id in [sid.to_string(), tag::tagged(NODE, sid)] {
        let again = node.get(&format!("/socket.io/?EIO=4&transport=polling&sid={id}")).await;
        assert_eq!(again, (400, UNKNOWN.to_owned()));
    }
    ws.close(None).await.unwrap();
    timeout(SOON, transport.closed()).await.expect("in time");
    assert!(node.transports.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gentle_close_reaches_the_client_as_1012_after_what_was_queued() {
    let node = Node::plain().await;
    node.io.ns("/", async |socket: SocketRef| {
        let transport = socketio::transport(&socket).unwrap();
        let outlet = Outlet::new(socket, transport.clone());
        outlet.event(&Encoded::from_json("moim:drain", r#"{"within":1}"#.to_owned()).unwrap()).unwrap();
        transport.drained(0).await;
        transport.close_gently().await;
    });
    let mut ws = node.websocket().await;
    send(&mut ws, "40").await;
    assert!(text(&mut ws).await.unwrap().starts_with("40{"));
    assert_eq!(text(&mut ws).await.unwrap(), r#"42["moim:drain",{"within":1}]"#);
    match timeout(SOON, ws.next()).await.unwrap() {
        Some(Ok(Message::Close(Some(frame)))) => assert_eq!(u16::from(frame.code), 1012),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_acks_and_volatiles_arrive_as_they_were_encoded_and_are_all_counted() {
    let node = Node::plain().await;
    let args =
        || [r#"{"text":[1,"é\u0000"]}"#, r#""m1.abcd.0""#].map(|arg| RawValue::from_string(arg.to_owned()).unwrap());
    node.io.ns("/group-chat", async move |socket: SocketRef| {
        let transport = socketio::transport(&socket).unwrap();
        let outlet = Arc::new(Outlet::new(socket.clone(), transport));
        socket.on("ask", async move |ack: Ack| {
            outlet.event(&Encoded::new("mess\"age", args().into())).unwrap();
            outlet.ack(ack, &RawValue::from_string(r#"{"ok":true}"#.to_owned()).unwrap()).unwrap();
            // Would wait for ever, had more been counted than is written.
            outlet.transport().drained(0).await;
            outlet.volatile(&Encoded::from_json("typing", "{}".to_owned()).unwrap());
        });
        socket.emit("ready", &1).ok();
    });
    let mut ws = node.websocket().await;
    connect(&mut ws, "/group-chat,").await;
    send(&mut ws, r#"42/group-chat,1234["ask"]"#).await;
    let (event, ack, volatile) =
        (text(&mut ws).await.unwrap(), text(&mut ws).await.unwrap(), text(&mut ws).await.unwrap());
    assert_eq!(event, r#"42/group-chat,["mess\"age",{"text":[1,"é\u0000"]},"m1.abcd.0"]"#);
    assert_eq!(ack, r#"43/group-chat,1234[{"ok":true}]"#);
    assert_eq!(volatile, r#"42/group-chat,["typing",{}]"#);
    assert_eq!(
        Encoded::new("mess\"age", args().into()).bytes("/group-chat"),
        2 + event.len(),
        "what is counted is what is written"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_full_queue_nothing_more_arrives() {
    let node = Node::plain().await;
    let (done, mut result) = mpsc::unbounded_channel();
    let (gone, mut ended) = mpsc::unbounded_channel();
    node.io.ns("/", async move |socket: SocketRef| {
        let gone = gone.clone();
        socket.on_disconnect(async move || {
            gone.send(()).ok();
        });
        let transport = socketio::transport(&socket).unwrap();
        let outlet = Arc::new(Outlet::new(socket.clone(), transport).with_limit(200_000));
        let done = done.clone();
        socket.on("go", async move |ack: Ack| {
            let filler = "x".repeat(10_000);
            let (mut sent, mut stuck) = (0, false);
            let why = loop {
                let json = format!(r#"{{"n":{sent},"f":"{filler}"}}"#);
                match outlet.event(&Encoded::from_json("message", json).unwrap()) {
                    Ok(()) => sent += 1,
                    Err(why) => break why,
                }
                if !stuck {
                    stuck = timeout(Duration::from_millis(200), outlet.transport().drained(100_000)).await.is_err();
                }
            };
            let small = Encoded::from_json("message", r#"{"n":"after the gap"}"#.to_owned()).unwrap();
            assert_eq!(outlet.event(&small), Err(why));
            assert_eq!(outlet.ack(ack, &RawValue::from_string("true".to_owned()).unwrap()), Err(why));
            outlet.volatile(&small);
            done.send((sent, why, outlet.lost())).ok();
        });
        socket.emit("ready", &1).ok();
    });
    let mut ws = node.websocket().await;
    connect(&mut ws, "").await;
    send(&mut ws, r#"421["go"]"#).await;
    // The client reads nothing until the server has given up.
    let (sent, why, lost) = timeout(SOON, result.recv()).await.unwrap().unwrap();
    assert_eq!((why, lost), (Lost::Full, Some(Lost::Full)));
    timeout(SOON, ended.recv()).await.expect("socketioxide lets go of it, though its writer was stuck").unwrap();
    let mut next = 0;
    while let Some(packet) = text(&mut ws).await {
        assert!(packet.starts_with(&format!(r#"42["message",{{"n":{next},"#)), "{}", &packet[..packet.len().min(40)]);
        next += 1;
    }
    assert!(next > 0 && next <= sent, "{next} of {sent}");
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_one_namespace_ends_its_outlet_and_not_the_connection() {
    let node = Node::plain().await;
    let (outlets, mut made) = mpsc::unbounded_channel();
    let (left, mut gone) = mpsc::unbounded_channel();
    for path in ["/", "/group-chat"] {
        let (outlets, left) = (outlets.clone(), left.clone());
        node.io.ns(path, async move |socket: SocketRef| {
            let left = left.clone();
            socket.on_disconnect(async move || {
                left.send(()).ok();
            });
            let transport = socketio::transport(&socket).unwrap();
            outlets.send(Outlet::new(socket, transport)).ok();
        });
    }
    let mut ws = node.websocket().await;
    send(&mut ws, "40").await;
    let stays = timeout(SOON, made.recv()).await.unwrap().unwrap();
    send(&mut ws, "40/group-chat,").await;
    let leaves = timeout(SOON, made.recv()).await.unwrap().unwrap();
    send(&mut ws, "41/group-chat,").await;
    timeout(SOON, gone.recv()).await.unwrap().unwrap();
    let event = Encoded::from_json("message", "1".to_owned()).unwrap();
    assert_eq!(leaves.event(&event), Err(Lost::Closed));
    assert_eq!(leaves.lost(), Some(Lost::Closed));
    stays.event(&event).unwrap();
    assert!(text(&mut ws).await.unwrap().starts_with("40{"));
    assert!(text(&mut ws).await.unwrap().starts_with("40/group-chat,{"));
    assert_eq!(text(&mut ws).await.unwrap(), r#"42["message",1]"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn past_the_payload_bounds_the_transport_is_closed() {
    let node = Node::plain().await;
    node.namespace("/");
    let most = socketio::Settings::default().max_payload;
    let event = |length: usize| format!(r#"42["{}"]"#, "x".repeat(length - 6));
    let attachments = |n: usize| format!(r#"45{n}-["file",{{"_placeholder":true,"num":0}}]"#);
    let cases = [
        (event(most), true),
        (event(most + 1), false),
        (attachments(socketio::ATTACHMENTS), true),
        (attachments(socketio::ATTACHMENTS + 1), false),
        (attachments(1_000_000), false),
    ];
    for (packet, stays) in cases {
        let mut ws = node.websocket().await;
        connect(&mut ws, "").await;
        ws.send(Message::text(packet.as_str())).await.ok();
        let end = async { while let Some(Ok(Message::Text(_) | Message::Ping(_))) = ws.next().await {} };
        let closed = timeout(Duration::from_millis(500), end).await.is_ok();
        assert_eq!(closed, !stays, "{}", &packet[..12]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn past_the_bound_of_armed_replies_the_connection_is_cut() {
    let node = Node::plain().await;
    node.io.ns("/", async |socket: SocketRef| {
        let transport = socketio::transport(&socket).unwrap();
        for n in 0..ARMED_MAX {
            assert!(!transport.is_closed());
            transport.arm(format!("never {n}").into_bytes(), Vec::new());
        }
        assert!(transport.is_closed());
    });
    let mut ws = node.websocket().await;
    send(&mut ws, "40").await;
    while text(&mut ws).await.is_some() {}
}

/// Polls until a packet begins so; what came before it is passed over.
async fn polled(node: &Node, path: &str, start: &str) -> String {
    loop {
        if let Some(found) = node.poll(path).await.into_iter().find(|packet| packet.starts_with(start)) {
            return found;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn over_long_polling_the_connect_reply_is_ours_too() {
    let node = Node::plain().await;
    node.namespace("/");
    node.namespace("/group-chat");
    let path = node.polling().await;
    node.post(&path, "40\x1e40/group-chat,").await;
    let mut seen = Vec::new();
    while seen.len() < 4 {
        seen.extend(node.poll(&path).await);
    }
    seen.sort();
    let wanted = [
        r#"40/group-chat,{"sid":"ours","pid":"secret"}"#,
        r#"40{"sid":"ours","pid":"secret"}"#,
        r#"42/group-chat,["ready",1]"#,
        r#"42["ready",1]"#,
    ];
    assert_eq!(seen, wanted);
    assert_eq!(node.transports.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_ends_the_poll_and_goes_on_as_a_websocket() {
    let node = Node::plain().await;
    node.namespace("/");
    node.namespace("/group-chat");
    let path = node.polling().await;
    node.post(&path, "40").await;
    polled(&node, &path, "42").await;
    let mut waiting = node.ask("GET", &path, "").await;
    let upgrade = path.replace("/socket.io/?EIO=4&transport=polling", "");
    let mut ws = node.upgrade(&upgrade).await.expect("upgraded");
    assert!(node.upgrade(&upgrade).await.is_err(), "one at a time");
    send(&mut ws, "2probe").await;
    assert_eq!(text(&mut ws).await.unwrap(), "3probe");
    assert_eq!(answer(&mut waiting).await, (200, "6".to_owned()), "the poll that waited was let go");
    send(&mut ws, "5").await;
    // The reply to a CONNECT that is said now goes another way, and is ours all the same.
    connect(&mut ws, "/group-chat,").await;
    let bad = (400, r#"{"code":3,"message":"Bad request"}"#.to_owned());
    assert_eq!(node.get(&path).await, bad, "a poll of a WebSocket session");
    assert_eq!(node.request("POST", &path, "3").await, bad, "a post to one");
    let transport = node.transports.all().pop().expect("one");
    assert!(transport.is_websocket() && !transport.is_relayed());
    transport.drained(0).await;
    drop(ws);
    timeout(SOON, transport.closed()).await.expect("its end is the session's");
    assert_eq!(node.get(&path).await, (400, UNKNOWN.to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_that_comes_to_nothing_costs_the_session_nothing() {
    let node = Node::plain().await;
    node.io.ns("/", async |socket: SocketRef| {
        socket.on("say", async |socket: SocketRef| socket.emit("said", &1).unwrap());
        socket.emit("ready", &1).ok();
    });
    let path = node.polling().await;
    node.post(&path, "40").await;
    polled(&node, &path, "42").await;
    let upgrade = path.replace("/socket.io/?EIO=4&transport=polling", "");
    let mut frames: Vec<&[&str]> = vec![&[], &["2"], &["2probe"], &["2probe", "3"], &["2probe", "50"]];
    frames.extend([&["5"][..], &["2probe", "2probe"]]);
    for frames in frames {
        // There may be another one as soon as the last one is over.
        let offered = async {
            loop {
                if let Ok(ws) = node.upgrade(&upgrade).await {
                    return ws;
                }
            }
        };
        let mut ws = timeout(SOON, offered).await.expect("in time");
        for frame in frames {
            send(&mut ws, frame).await;
        }
        // Until the client has chosen, its session polls on, whatever the WebSocket does.
        node.post(&path, r#"42["say"]"#).await;
        assert_eq!(polled(&node, &path, "42").await, r#"42["said",1]"#, "{frames:?}");
    }
    assert!(!node.transports.all()[0].is_websocket());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_packets_that_wait_are_all_there_after_an_upgrade() {
    let node = Node::plain().await;
    node.io.ns("/", async |socket: SocketRef| {
        for n in 0..100 {
            socket.emit("message", &(n, "x".repeat(10_000))).unwrap();
        }
    });
    let path = node.polling().await;
    node.post(&path, "40").await;
    let mut seen: Vec<String> = node.poll(&path).await;
    let mut ws = node.upgrade(&path.replace("/socket.io/?EIO=4&transport=polling", "")).await.unwrap();
    send(&mut ws, "2probe").await;
    assert_eq!(text(&mut ws).await.unwrap(), "3probe");
    send(&mut ws, "5").await;
    while seen.iter().filter(|packet| packet.starts_with("42")).count() < 100 {
        seen.push(text(&mut ws).await.expect("more"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_polling_transport_is_cut_from_inside() {
    let node = Node::plain().await;
    let (gone, mut ended) = mpsc::unbounded_channel();
    node.io.ns("/", async move |socket: SocketRef| {
        let gone = gone.clone();
        socket.on_disconnect(async move || gone.send(()).unwrap());
        socket.emit("ready", &1).ok();
    });
    let path = node.polling().await;
    node.post(&path, "40").await;
    polled(&node, &path, "42").await;
    let mut waiting = node.ask("GET", &path, "").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    node.transports.all()[0].cut();
    assert_eq!(answer(&mut waiting).await, (200, "1".to_owned()), "Engine.IO's close");
    timeout(SOON, ended.recv()).await.expect("socketioxide lets go of it").unwrap();
    assert_eq!(node.get(&path).await, (400, UNKNOWN.to_owned()));
    assert!(node.transports.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gentle_close_of_a_polling_transport_comes_after_what_was_queued() {
    let node = Node::plain().await;
    node.io.ns("/", async |socket: SocketRef| {
        let transport = socketio::transport(&socket).unwrap();
        let outlet = Outlet::new(socket, transport.clone());
        outlet.event(&Encoded::from_json("moim:drain", r#"{"within":1}"#.to_owned()).unwrap()).unwrap();
        transport.close_gently().await;
    });
    let path = node.polling().await;
    node.post(&path, "40").await;
    let mut seen = Vec::new();
    while seen.last().map(String::as_str) != Some("1") {
        seen.extend(node.poll(&path).await);
    }
    assert!(seen.contains(&r#"42["moim:drain",{"within":1}]"#.to_owned()), "{seen:?}");
    assert_eq!(node.request("POST", &path, "3").await, (400, UNKNOWN.to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_end_of_a_polling_session_is_learnt() {
    let settings = socketio::Settings {
        ping_interval: Duration::from_millis(100),
        ping_timeout: Duration::from_millis(200),
        connect_timeout: Duration::from_secs(1),
        ..Default::default()
    };
    let node = Node::with(Limits::default(), settings).await;
    node.namespace("/");
    let none = || node.transports.is_empty();
    node.polling().await;
    until("no CONNECT, no pong", none).await;
    let path = node.polling().await;
    node.post(&path, "40").await;
    polled(&node, &path, "42").await;
    until("no pong", none).await;
    let path = node.polling().await;
    node.post(&path, "40\x1e1").await;
    until("its own close", none).await;
    // Here pings are 25 s apart.
    let node = Node::plain().await;
    node.namespace("/");
    let path = node.polling().await;
    node.post(&path, "40").await;
    polled(&node, &path, "42").await;
    let waiting = node.ask("GET", &path, "").await;
    // Nobody can see from outside when it waits; before, it is a request that never came, and the next ping tells.
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(waiting);
    until("a poll that is given up", || node.transports.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_polls_at_once_end_the_session() {
    let node = Node::plain().await;
    let path = node.polling().await;
    let mut first = node.ask("GET", &path, "").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(node.get(&path).await, (400, String::new()));
    assert_eq!(answer(&mut first).await, (200, "1".to_owned()));
    assert!(node.transports.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_past_the_bound_or_of_rubbish_ends_the_session() {
    let node = Node::plain().await;
    node.namespace("/");
    let most = socketio::Settings::default().max_payload;
    let event = |length: usize| format!(r#"42["{}"]"#, "x".repeat(length - 6));
    for (post, status) in [(event(most), 200), (event(most + 1), 413), ("rubbish".to_owned(), 400)] {
        let path = node.polling().await;
        node.post(&path, "40").await;
        polled(&node, &path, "42").await;
        assert_eq!(node.request("POST", &path, &post).await.0, status);
        let open = node.request("POST", &path, "3").await.0 == 200;
        assert_eq!(open, status == 200, "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_poll_is_poisoned_by_bytes() {
    let node = Node::plain().await;
    let (done, mut result) = mpsc::unbounded_channel();
    node.io.ns("/", async move |socket: SocketRef| {
        let transport = socketio::transport(&socket).unwrap();
        let outlet = Outlet::new(socket, transport).with_limit(200_000);
        let filler = Encoded::from_json("message", format!("\"{}\"", "x".repeat(10_000))).unwrap();
        let sent = (0..1000).take_while(|_| outlet.event(&filler).is_ok()).count();
        done.send((sent, outlet.lost())).ok();
    });
    let path = node.polling().await;
    node.post(&path, "40").await;
    let (sent, lost) = timeout(SOON, result.recv()).await.unwrap().unwrap();
    assert!((15..=20).contains(&sent), "{sent}");
    assert_eq!(lost, Some(Lost::Full));
    assert_eq!(node.get(&path).await, (400, UNKNOWN.to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn while_draining_a_session_polls_on_and_is_not_upgraded() {
    let node = Node::plain().await;
    node.namespace("/");
    let path = node.polling().await;
    node.admit.store(false, SeqCst);
    node.post(&path, "40").await;
    polled(&node, &path, "42").await;
    assert!(node.upgrade(&path.replace("/socket.io/?EIO=4&transport=polling", "")).await.is_err());
    assert_eq!(node.get("/socket.io/?EIO=4&transport=polling").await, (503, "draining".to_owned()));
    node.post(&path, "3").await;
}
