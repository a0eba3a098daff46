//! A node that is a cluster by itself, as its clients meet it: a drain lasts no longer than somebody is left, and who connects
//! waits for a team's handler.

mod edge;
#[path = "nodes/http.rs"]
mod http;
#[path = "nodes/inside.rs"]
mod inside;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use edge::{connect, send, text};
use inside::Running;
use moim::{adapter::SocketRef, config::Config, handlers::Handlers, node::ExitReason};
use tokio::{
    net::TcpStream,
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_tungstenite::WebSocketStream;

/// Longer than anything here takes on a busy machine, and far shorter than the window.
const PATIENCE: Duration = Duration::from_secs(30);
const WINDOW: Duration = Duration::from_secs(3600);
/// Longer than a seat waits for a socket.
const LATE: Duration = Duration::from_secs(6);

struct Node {
    client: SocketAddr,
    running: Running,
    _data: tempfile::TempDir,
}

impl Node {
    async fn start(handlers: Handlers) -> Self {
        Self::with(handlers, |_| {}).await
    }

    async fn with(handlers: Handlers, change: impl FnOnce(&mut Config)) -> Self {
        let data = tempfile::tempdir().expect("a folder");
        let [client, admin, peer] = inside::addresses(3).try_into().expect("three");
        let mut config: Config = inside::config("node1", data.path().join("data"), [client, admin, peer]);
        config.drain.window = WINDOW;
        config.drain.deadline = WINDOW * 2;
        change(&mut config);
        let running = Running::with(config, handlers);
        let ready = async {
            while http::ask(client, "GET", "/readyz", http::LOCAL, "").await.is_none_or(|(status, _)| status != 200) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, ready).await.expect("ready");
        Self { client, running, _data: data }
    }

    /// An Engine.IO session.
    async fn websocket(&self) -> WebSocketStream<TcpStream> {
        let url = format!("ws://{}/socket.io/?EIO=4&transport=websocket", self.client);
        let tcp = TcpStream::connect(self.client).await.expect("accepted");
        let (mut ws, _) = tokio_tungstenite::client_async(url, tcp).await.expect("upgraded");
        assert!(text(&mut ws).await.expect("open").starts_with("0{"));
        ws
    }

    /// A client that is ready.
    async fn client(&self) -> WebSocketStream<TcpStream> {
        let mut ws = self.websocket().await;
        connect(&mut ws, "").await;
        ws
    }
}

/// Until the transport is closed.
async fn closed(ws: &mut WebSocketStream<TcpStream>) {
    while text(ws).await.is_some() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_stops_when_its_only_client_is_gone() {
    let mut node = Node::start(Handlers::default()).await;
    let mut ws = node.client().await;
    node.running.tell_to_stop();
    closed(&mut ws).await;
    assert_eq!(node.running.ended(PATIENCE).await.expect("no error"), ExitReason::Shutdown);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_before_its_turn_is_not_waited_for() {
    let mut node = Node::start(Handlers::default()).await;
    let (mut one, mut two) = (node.client().await, node.client().await);
    node.running.tell_to_stop();
    tokio::select! {
        () = closed(&mut one) => drop(two),
        () = closed(&mut two) => drop(one),
    }
    assert_eq!(node.running.ended(PATIENCE).await.expect("no error"), ExitReason::Shutdown);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_gets_its_ready_however_long_the_handler_takes() {
    let gate = Arc::new(Semaphore::new(0));
    let opens = gate.clone();
    let handlers = Handlers::default().on_connect("/slow", move |_: SocketRef| {
        let opens = opens.clone();
        async move { opens.acquire().await.expect("never closed").forget() }
    });
    let node = Node::start(handlers).await;
    let mut ws = node.websocket().await;
    send(&mut ws, "40/slow,").await;
    assert!(text(&mut ws).await.expect("answered").starts_with("40/slow,{"));
    sleep(LATE).await;
    gate.add_permits(1);
    assert!(text(&mut ws).await.expect("it is still there").starts_with("42/slow,[\"ready\""));
    send(&mut ws, "42/slow,1[\"rooms\"]").await;
    assert_eq!(text(&mut ws).await.expect("an answer"), r#"43/slow,1[{"ok":true,"rooms":[]}]"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn however_small_a_text_may_be_clients_can_connect_and_are_told_what_is_too_large() {
    let node = Node::with(Handlers::default(), |config| config.limits.text = 8).await;
    let mut ws = node.websocket().await;
    let auth = format!(r#"{{"user":"u","token":"{}"}}"#, "x".repeat(8 << 10));
    connect(&mut ws, &auth).await;
    send(&mut ws, r#"421["join","r"]"#).await;
    while !text(&mut ws).await.expect("it is still there").starts_with("431[{\"ok\":true") {}
    for (id, length, answer) in
        [(2, 6, r#"{"ok":true"#), (3, 7, r#""code":"too_large""#), (4, 60 << 10, r#""code":"too_large""#)]
    {
        send(&mut ws, &format!(r#"42{id}["message",{{"room":"r","text":"{}"}}]"#, "x".repeat(length))).await;
        let ack = loop {
            let packet = text(&mut ws).await.expect("it is still there");
            if packet.starts_with(&format!("43{id}")) {
                break packet;
            }
        };
        assert!(ack.contains(answer), "{length}: {ack}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_handler_panics_is_let_go() {
    let handlers = Handlers::default().on_connect("/broken", |_: SocketRef| async { panic!("as the test wants it") });
    let node = Node::start(handlers).await;
    let mut ws = node.websocket().await;
    send(&mut ws, "40/broken,").await;
    assert!(text(&mut ws).await.expect("answered").starts_with("40/broken,{"));
    assert_eq!(text(&mut ws).await, None);
}
