//! The client port as a client meets it: real sockets, real WebSockets, socketioxide behind.

mod edge;

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use edge::*;
use futures_util::{SinkExt, StreamExt};
use moim::adapter::SocketRef;
use moim::client::{Ack, Encoded, Limits, Lost, Outlet, outgoing::ARMED_MAX, socketio, tag};
use moim_raft::command::Sid;
use serde_json::value::RawValue;
use socketioxide::handler::ConnectHandler;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_tungstenite::tungstenite::Message;

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
    node.drain_all();
    let mut ws = node.websocket().await;
    send(&mut ws, "40").await;
    assert!(text(&mut ws).await.unwrap().starts_with("40{"));
    assert_eq!(text(&mut ws).await.unwrap(), r#"42["moim:drain",{"within":1}]"#);
    match next(&mut ws).await {
        Some(Ok(Message::Close(Some(frame)))) => assert_eq!(u16::from(frame.code), 1012),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_acks_and_volatiles_arrive_as_they_were_encoded_and_are_all_counted() {
    let node = Node::plain().await;
    let message = || {
        let args =
            [r#"{"text":[1,"é\u0000"]}"#, r#""m1.abcd.0""#].map(|arg| RawValue::from_string(arg.to_owned()).unwrap());
        Encoded::new("mess\"age", &[&args[0], &args[1]])
    };
    let hub = node.hub.clone();
    node.io.ns("/group-chat", async move |socket: SocketRef| {
        let transport = socketio::transport(&socket).unwrap();
        let outlet = Arc::new(Outlet::new(&hub, socket.clone(), transport).unwrap());
        socket.on("ask", async move |ack: Ack| {
            outlet.event(&message()).unwrap();
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
    assert_eq!(message().bytes("/group-chat"), 2 + event.len(), "what is counted is what is written");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_full_queue_nothing_more_arrives() {
    let node = Node::plain().await;
    let (done, mut result) = mpsc::unbounded_channel();
    let (gone, mut ended) = mpsc::unbounded_channel();
    let hub = node.hub.clone();
    node.io.ns("/", async move |socket: SocketRef| {
        let gone = gone.clone();
        socket.on_disconnect(async move || {
            gone.send(()).ok();
        });
        let transport = socketio::transport(&socket).unwrap();
        let outlet = Arc::new(Outlet::new(&hub, socket.clone(), transport).unwrap().with_limit(200_000));
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

/// As by two CONNECTs at once that are the first to a namespace of a pattern: socketioxide knows the one that was made last.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_in_a_namespace_that_is_made_once_more_is_not_left_there() {
    let node = Node::plain().await;
    let (asks, mut asking) = mpsc::unbounded_channel();
    let make = || {
        let (hub, asks) = (node.hub.clone(), asks.clone());
        let middleware = async move |socket: SocketRef| {
            let (lets, let_in) = oneshot::channel();
            asks.send(lets).ok();
            let_in.await.ok();
            let transport = socketio::transport(&socket).unwrap();
            match hub.name(&socket, &Sid::parse(socket.id.as_str()).unwrap(), &transport) {
                true => Ok(()),
                false => Err("nobody would hear it"),
            }
        };
        let connected = async |socket: SocketRef| {
            socket.emit("ready", &1).ok();
        };
        node.io.ns("/t/1", connected.with(middleware));
    };
    make();
    let (mut inside, mut coming) = (node.websocket().await, node.websocket().await);
    send(&mut inside, "40/t/1,").await;
    timeout(SOON, asking.recv()).await.unwrap().unwrap().send(()).unwrap();
    assert!(text(&mut inside).await.unwrap().starts_with("40/t/1,{"));
    assert_eq!(text(&mut inside).await.unwrap(), r#"42/t/1,["ready",1]"#);
    send(&mut coming, "40/t/1,").await;
    let still_asking = timeout(SOON, asking.recv()).await.unwrap().unwrap();
    make();
    assert_eq!(text(&mut inside).await, None, "cut, so that it comes back");
    still_asking.send(()).unwrap();
    assert_eq!(text(&mut coming).await.unwrap(), r#"44/t/1,{"message":"nobody would hear it"}"#);
    let mut again = node.websocket().await;
    send(&mut again, "40/t/1,").await;
    timeout(SOON, asking.recv()).await.unwrap().unwrap().send(()).unwrap();
    assert!(text(&mut again).await.unwrap().starts_with("40/t/1,{"));
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_one_namespace_ends_its_outlet_and_not_the_connection() {
    let node = Node::plain().await;
    let (outlets, mut made) = mpsc::unbounded_channel();
    let (left, mut gone) = mpsc::unbounded_channel();
    for path in ["/", "/group-chat"] {
        let (outlets, left) = (outlets.clone(), left.clone());
        let hub = node.hub.clone();
        node.io.ns(path, async move |socket: SocketRef| {
            let left = left.clone();
            socket.on_disconnect(async move || {
                left.send(()).ok();
            });
            let transport = socketio::transport(&socket).unwrap();
            outlets.send(Outlet::new(&hub, socket, transport).unwrap()).ok();
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
    assert_eq!(leaves.transport().queued_bytes(), 0, "what was not written is not waited for");
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
