//! The drain of a node that is told to stop: no longer than somebody is left.

mod edge;
#[path = "nodes/http.rs"]
mod http;
#[path = "nodes/inside.rs"]
mod inside;

use std::{net::SocketAddr, time::Duration};

use edge::{connect, text};
use inside::Running;
use moim::config::Config;
use moim::node::ExitReason;
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_tungstenite::WebSocketStream;

/// Longer than anything here takes on a busy machine, and far shorter than the window.
const PATIENCE: Duration = Duration::from_secs(30);
const WINDOW: Duration = Duration::from_secs(3600);

struct Node {
    client: SocketAddr,
    running: Running,
    _data: tempfile::TempDir,
}

impl Node {
    async fn start() -> Self {
        let data = tempfile::tempdir().expect("a folder");
        let [client, admin, peer] = inside::addresses(3).try_into().expect("three");
        let mut config: Config = inside::config("node1", data.path().to_owned(), [client, admin, peer]);
        config.drain.window = WINDOW;
        config.drain.deadline = WINDOW * 2;
        let running = Running::start(config);
        let ready = async {
            while http::ask(client, "GET", "/readyz", http::LOCAL, "").await.is_none_or(|(status, _)| status != 200) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, ready).await.expect("ready");
        Self { client, running, _data: data }
    }

    /// A client that is ready.
    async fn websocket(&self) -> WebSocketStream<TcpStream> {
        let url = format!("ws://{}/socket.io/?EIO=4&transport=websocket", self.client);
        let tcp = TcpStream::connect(self.client).await.expect("accepted");
        let (mut ws, _) = tokio_tungstenite::client_async(url, tcp).await.expect("upgraded");
        assert!(text(&mut ws).await.expect("open").starts_with("0{"));
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
    let mut node = Node::start().await;
    let mut ws = node.websocket().await;
    node.running.tell_to_stop();
    closed(&mut ws).await;
    assert_eq!(node.running.ended(PATIENCE).await.expect("no error"), ExitReason::Shutdown);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_before_its_turn_is_not_waited_for() {
    let mut node = Node::start().await;
    let (mut one, mut two) = (node.websocket().await, node.websocket().await);
    node.running.tell_to_stop();
    tokio::select! {
        () = closed(&mut one) => drop(two),
        () = closed(&mut two) => drop(one),
    }
    assert_eq!(node.running.ended(PATIENCE).await.expect("no error"), ExitReason::Shutdown);
}
