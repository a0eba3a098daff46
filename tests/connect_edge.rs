//! CONNECTs that socketioxide would ignore, as they come over each transport.

mod edge;

use std::{sync::Arc, time::Duration};

use edge::*;
use moim::adapter::SocketRef;
use serde_json::{Value, json};
use socketioxide::{extract::Data, handler::ConnectHandler};
use tokio::{net::TcpStream, sync::Semaphore};
use tokio_tungstenite::WebSocketStream;

type WebSocket = WebSocketStream<TcpStream>;

/// Three namespaces: at once, when there is a permit, and never for number 1.
async fn node() -> (Node, Arc<Semaphore>) {
    let node = Node::plain().await;
    node.namespace("/");
    let gate = Arc::new(Semaphore::new(0));
    let opens = gate.clone();
    let waits = async move || {
        opens.acquire().await.unwrap().forget();
        Ok::<_, std::io::Error>(())
    };
    let connected = async |socket: SocketRef, Data::<Value>(auth)| {
        socket.emit("ready", &auth).ok();
    };
    node.io.ns("/slow", connected.with(waits));
    let refuses = async |Data::<Value>(auth)| if auth == json!({"n": 1}) { Err("unauthorized") } else { Ok(()) };
    node.io.ns("/never", connected.with(refuses));
    (node, gate)
}

/// What comes, until all of these have.
async fn all(ws: &mut WebSocket, starts: &[&str]) {
    for start in starts {
        let packet = text(ws).await.unwrap_or_else(|| panic!("closed before {start}"));
        assert!(packet.starts_with(start), "{packet} for {start}");
    }
}

async fn says(ws: &mut WebSocket, packets: &[&str]) {
    for packet in packets {
        send(ws, packet).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_connect_that_would_be_ignored_closes_the_websocket() {
    let (node, _gate) = node().await;
    for (first, second) in [
        ("40", "40"),
        ("40", "40/,{}"),
        ("40/never,{\"n\":2}", "40/never,{\"n\":2}"),
        ("40/never,{\"n\":2}", "40/never,{\"n\":3}"),
    ] {
        let mut ws = node.websocket().await;
        says(&mut ws, &[first]).await;
        all(&mut ws, &["40", "42"]).await;
        says(&mut ws, &[second]).await;
        assert_eq!(text(&mut ws).await, None, "{first} {second}");
    }
    // Not answered yet, and somebody else.
    let mut ws = node.websocket().await;
    says(&mut ws, &["40/slow,{\"n\":1}", "40/slow,{\"n\":2}"]).await;
    assert_eq!(text(&mut ws).await, None);
    until("no transport is left", || node.transports.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_connect_again_is_answered_once() {
    let (node, gate) = node().await;
    let mut ws = node.websocket().await;
    says(&mut ws, &["40/slow,{\"n\":1}", "40/slow,{\"n\":1}", "40/never,{\"n\":2}"]).await;
    all(&mut ws, &["40/never,{", "42/never,"]).await;
    gate.add_permits(2);
    all(&mut ws, &["40/slow,{", "42/slow,"]).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    says(&mut ws, &["40"]).await;
    all(&mut ws, &["40{", "42["]).await;
    assert_eq!(gate.available_permits(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_left_or_refused_may_be_asked_for_again() {
    let (node, _gate) = node().await;
    let mut ws = node.websocket().await;
    for _ in 0..3 {
        says(&mut ws, &["40"]).await;
        all(&mut ws, &["40{", "42["]).await;
        says(&mut ws, &["41", "40/never,{\"n\":1}"]).await;
        all(&mut ws, &["44/never,"]).await;
        says(&mut ws, &["40/nowhere,"]).await;
        all(&mut ws, &["44/nowhere,"]).await;
        says(&mut ws, &["40/never,{\"n\":2}"]).await;
        all(&mut ws, &["40/never,{", "42/never,"]).await;
        says(&mut ws, &["41/never,"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn over_long_polling_too_however_many_packets_a_post_has() {
    let (node, _gate) = node().await;
    let unknown = (400, UNKNOWN.to_owned());
    let path = node.polling().await;
    node.post(&path, "40\x1e40/slow,{\"n\":1}\x1e40/slow,{\"n\":1}\x1e40/nowhere,").await;
    polled(&node, &path, "42").await;
    node.post(&path, "41\x1e40\x1e40/nowhere,").await;
    polled(&node, &path, "42").await;
    node.post(&path, "41").await;
    for body in ["40\x1e40/,", "42[1]\x1e40/slow,{\"n\":1}\x1e40/slow,{\"n\":2}"] {
        let path = node.polling().await;
        assert_eq!(node.request("POST", &path, body).await, unknown, "{body}");
        assert_eq!(node.get(&path).await, unknown);
    }
    let path = node.polling().await;
    node.post(&path, "40").await;
    polled(&node, &path, "42").await;
    let mut poll = node.ask("GET", &path, "").await;
    assert_eq!(node.request("POST", &path, "40").await, unknown);
    assert_eq!(answer(&mut poll).await, unknown, "and so is the poll that waits");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_asked_for_by_a_post_is_known_on_the_websocket() {
    let (node, _gate) = node().await;
    let path = node.polling().await;
    node.post(&path, "40\x1e40/never,{\"n\":2}").await;
    polled(&node, &path, "42").await;
    let mut ws = node.upgrade(&path.replace("/socket.io/?EIO=4&transport=polling", "")).await.unwrap();
    says(&mut ws, &["2probe"]).await;
    while text(&mut ws).await.unwrap() != "3probe" {}
    // All in one go: what follows the choice is heard from its first byte.
    says(&mut ws, &["5", "41/never,", "40/never,{\"n\":2}"]).await;
    while !text(&mut ws).await.unwrap().starts_with("40/never,") {}
    says(&mut ws, &["40"]).await;
    while text(&mut ws).await.is_some() {}
    until("no transport is left", || node.transports.is_empty()).await;
}
