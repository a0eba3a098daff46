//! Requests for another node's sessions, between client ports of one process: who gets them, how often, and what is left
//! when one of the two is gone.

mod edge;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use edge::*;
use futures_util::FutureExt;
use moim::adapter::SocketRef;
use moim::client::{
    Encoded, Limits, Outlet, Relay,
    relay::{Dial, Others},
    socketio,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};

/// Where tunnels to a node end, and how many were opened.
type Peers = Arc<Mutex<HashMap<u64, (SocketAddr, usize)>>>;

fn relay(me: u64, peers: &Peers) -> Relay {
    let (dialed, asked) = (peers.clone(), peers.clone());
    let dial: Dial = Arc::new(move |to| {
        let address = dialed.lock().unwrap().get_mut(&to).map(|(address, count)| {
            *count += 1;
            *address
        });
        async move { TcpStream::connect(address.expect("only nodes that are up are dialed")).await }.boxed()
    });
    Relay::new(Others {
        me,
        dial,
        is_up: Arc::new(move |node| asked.lock().unwrap().contains_key(&node)),
        let_go: Arc::new(|transport| async move { transport.close_gently().await }.boxed()),
    })
}

async fn node(tag: u64, peers: &Peers, limits: Limits) -> (Node, Relay) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    peers.lock().unwrap().insert(tag, (listener.local_addr().unwrap(), 0));
    let (feed, tunnels) = mpsc::channel(16);
    tokio::spawn(async move { while feed.send(listener.accept().await.unwrap().0).await.is_ok() {} });
    let relay = relay(tag, peers);
    let node = Node::among(limits, socketio::Settings::default(), relay.clone(), tunnels).await;
    node.namespace("/");
    (node, relay)
}

async fn pair() -> (Node, Relay, Node, Peers) {
    let peers = Peers::default();
    let (a, relay) = node(1, &peers, Limits::default()).await;
    let (b, _) = node(2, &peers, Limits::default()).await;
    (a, relay, b, peers)
}

/// A session of `node` that has its `ready`: the path of its requests.
async fn session(node: &Node) -> String {
    let path = node.polling().await;
    node.post(&path, "40").await;
    polled(node, &path, "42").await;
    path
}

fn unknown() -> (u16, String) {
    (400, UNKNOWN.to_owned())
}

/// A request as it comes out of a tunnel of `to`.
async fn through_tunnel(peers: &Peers, to: u64, path: &str) -> (u16, String) {
    let address = peers.lock().unwrap()[&to].0;
    let mut tunnel = TcpStream::connect(address).await.unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\nmoim-client: 192.0.2.7:99\r\nconnection: close\r\n\r\n");
    tunnel.write_all(head.as_bytes()).await.unwrap();
    answer(&mut tunnel).await
}

#[tokio::test(flavor = "multi_thread")]
async fn polls_posts_and_upgrades_go_to_the_node_of_the_tag() {
    let (a, relay, b, peers) = pair().await;
    let path = b.polling().await;
    a.post(&path, "40").await;
    assert_eq!(polled(&a, &path, "40").await, r#"40{"sid":"ours","pid":"secret"}"#);
    assert_eq!((a.transports.len(), b.transports.len()), (0, 1));
    for _ in 0..50 {
        a.post(&path, "3").await;
    }
    assert!(peers.lock().unwrap()[&2].1 < 10, "tunnels are used again");
    let mut ws = a.upgrade(&path.replace("/socket.io/?EIO=4&transport=polling", "")).await.expect("upgraded");
    send(&mut ws, "2probe").await;
    assert_eq!(text(&mut ws).await.unwrap(), "3probe");
    send(&mut ws, "5").await;
    send(&mut ws, "41").await;
    connect(&mut ws, "").await;
    let transport = b.transports.all().pop().unwrap();
    assert!(transport.is_relayed() && transport.is_websocket());
    assert_eq!(transport.peer(), ws.get_ref().local_addr().unwrap(), "the client's address came along");
    assert_eq!((relay.websockets(), b.transports.relayed()), (1, 1));
    drop(ws);
    timeout(SOON, transport.closed()).await.expect("its client's end is its own");
    until("no longer counted", || relay.is_empty()).await;
    relay.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connect_that_would_be_ignored_is_noticed_where_the_session_is() {
    let (a, _, b, _) = pair().await;
    let path = session(&b).await;
    a.post(&path, "41\x1e40").await;
    polled(&a, &path, "42").await;
    assert_eq!(a.request("POST", &path, "40").await, unknown());
    until("no transport is left", || b.transports.is_empty()).await;
    let path = session(&b).await;
    let mut ws = a.upgrade(&path.replace("/socket.io/?EIO=4&transport=polling", "")).await.expect("upgraded");
    send(&mut ws, "2probe").await;
    assert_eq!(text(&mut ws).await.unwrap(), "3probe");
    for packet in ["5", "41", "40"] {
        send(&mut ws, packet).await;
    }
    assert!(text(&mut ws).await.unwrap().starts_with("40{"));
    send(&mut ws, "40").await;
    while text(&mut ws).await.is_some() {}
    until("no transport is left", || b.transports.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_passed_on_is_not_passed_on_again() {
    let (_a, _, b, peers) = pair().await;
    let path = session(&b).await;
    assert_eq!(through_tunnel(&peers, 1, &path).await, unknown(), "for a session of another node");
    assert_eq!(peers.lock().unwrap()[&2].1, 0, "nobody was asked");
    let open = through_tunnel(&peers, 1, "/socket.io/?EIO=4&transport=polling").await;
    assert_eq!(open, (400, r#"{"code":3,"message":"Bad request"}"#.to_owned()), "nor is a session opened");
    assert_eq!(b.request("DELETE", &path, "").await.0, 400, "and only a node may let go of another's");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_tunnel_is_believed_about_an_address() {
    let (a, ..) = pair().await;
    let (sent, mut seen) = mpsc::unbounded_channel();
    a.io.ns("/peer", async move |socket: SocketRef| {
        sent.send(socketio::transport(&socket).unwrap().peer()).ok();
    });
    let mut tcp = TcpStream::connect(&a.address).await.unwrap();
    let head = "GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nhost: x\r\nmoim-client: 192.0.2.7:99\r\n";
    tcp.write_all(format!("{head}connection: close\r\n\r\n").as_bytes()).await.unwrap();
    let me = tcp.local_addr().unwrap();
    let open: serde_json::Value = serde_json::from_str(&answer(&mut tcp).await.1[1..]).unwrap();
    let path = format!("/socket.io/?EIO=4&transport=polling&sid={}", open["sid"].as_str().unwrap());
    a.post(&path, "40/peer,").await;
    assert_eq!(timeout(SOON, seen.recv()).await.unwrap(), Some(me));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_takes_its_relayed_poll_along() {
    let (a, relay, b, _) = pair().await;
    let path = session(&b).await;
    let waiting = a.ask("GET", &path, "").await;
    until("passed on", || relay.len() == 1).await;
    // Until it waits there, which nobody can see from outside; a request that never came is none that ended.
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(waiting);
    until("the loss is learnt where the session is", || b.transports.is_empty()).await;
    until("nothing is left", || relay.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_leaves_lets_its_relayed_clients_go() {
    let (a, relay, b, _) = pair().await;
    let path = session(&b).await;
    let mut waiting = a.ask("GET", &path, "").await;
    let websocket = session(&b).await;
    let mut ws = a.upgrade(&websocket.replace("/socket.io/?EIO=4&transport=polling", "")).await.unwrap();
    send(&mut ws, "2probe").await;
    text(&mut ws).await.unwrap();
    send(&mut ws, "5").await;
    until("both", || relay.len() == 2 && b.transports.relayed() == 1).await;
    let let_go = async {
        while !relay.is_empty() {
            relay.leave(std::iter::repeat(tokio::time::Instant::now())).await;
        }
    };
    let (_, poll, last) = tokio::join!(let_go, answer(&mut waiting), text(&mut ws));
    assert_eq!(poll, (200, "6".to_owned()), "polls again, elsewhere");
    assert_eq!(last, None, "closed by its own node");
    assert_eq!(b.transports.len(), 1, "the one that polls lives");
    b.post(&path, "3").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_gone_or_does_not_answer_is_an_unknown_session() {
    let (a, _, b, peers) = pair().await;
    let path = session(&b).await;
    // It takes tunnels, and that is all.
    let deaf = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let real = peers.lock().unwrap().insert(2, (deaf.local_addr().unwrap(), 0)).unwrap();
    let held = tokio::spawn(async move {
        let mut all = Vec::new();
        loop {
            all.push(deaf.accept().await.unwrap());
        }
    });
    let asked = Instant::now();
    assert_eq!(a.get(&path).await, unknown());
    assert!(asked.elapsed() < Duration::from_secs(6), "{:?}", asked.elapsed());
    held.abort();
    // It is not there at all.
    assert_eq!(a.get(&path).await, unknown());
    peers.lock().unwrap().remove(&2);
    assert_eq!(a.get(&path).await, unknown());
    // It is back.
    peers.lock().unwrap().insert(2, real);
    a.post(&path, "3").await;
    // It dies while a poll waits.
    let mut waiting = a.ask("GET", &path, "").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    b.token.cancel();
    let asked = Instant::now();
    assert_eq!(answer(&mut waiting).await, unknown());
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
}

/// The node between is stuck with what the client does not read, and hears nothing of the end on the other side.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_is_let_go_by_the_node_between_too() {
    let peers = Peers::default();
    let (a, relay) = node(1, &peers, Limits { stall_timeout: Duration::from_secs(1), ..Limits::default() }).await;
    let (b, _) = node(2, &peers, Limits::default()).await;
    let hub = b.hub.clone();
    b.io.ns("/flood", async move |socket: SocketRef| {
        let transport = socketio::transport(&socket).unwrap();
        let outlet = Outlet::new(&hub, socket, transport).unwrap().with_limit(200_000);
        let filler = Encoded::from_json("message", format!("\"{}\"", "x".repeat(10_000))).unwrap();
        let mut stuck = false;
        while outlet.event(&filler).is_ok() {
            stuck = stuck || timeout(Duration::from_millis(300), outlet.transport().drained(100_000)).await.is_err();
        }
    });
    let path = b.polling().await;
    let mut ws = a.upgrade(&path.replace("/socket.io/?EIO=4&transport=polling", "")).await.expect("upgraded");
    send(&mut ws, "2probe").await;
    assert_eq!(text(&mut ws).await.unwrap(), "3probe");
    send(&mut ws, "5").await;
    send(&mut ws, "40/flood,").await;
    until("its own node gives it up", || b.transports.is_empty()).await;
    until("the node between too", || relay.is_empty()).await;
    drop(ws);
}

#[tokio::test(flavor = "multi_thread")]
async fn tunnels_count_among_a_nodes_connections() {
    let peers = Peers::default();
    let (a, _) = node(1, &peers, Limits::default()).await;
    let (b, _) = node(2, &peers, Limits { connections: 4, ..Limits::default() }).await;
    let path = session(&b).await;
    let mut others = Vec::new();
    let fill = async {
        while others.len() < 4 {
            let mut tcp = TcpStream::connect(&b.address).await.unwrap();
            tcp.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            let mut status = [0; 12];
            // Places are given back a moment after an answer.
            if tcp.read_exact(&mut status).await.is_ok() && status.ends_with(b"200") {
                others.push(tcp);
            }
        }
    };
    timeout(SOON, fill).await.expect("room for all of them");
    // "Full", or unknown, if that came before the request was written: a client starts afresh with either.
    assert!([400, 503].contains(&a.get(&path).await.0));
    drop(others);
    let again = async { while a.request("POST", &path, "3").await.0 != 200 {} };
    timeout(SOON, again).await.expect("room comes back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_over_the_bound_ends_at_the_first_node() {
    let (a, _, b, peers) = pair().await;
    let path = session(&b).await;
    let large = "x".repeat(socketio::Settings::default().max_payload + 1);
    assert_eq!(a.request("POST", &path, &large).await.0, 413);
    assert_eq!(peers.lock().unwrap()[&2].1, 0);
}
