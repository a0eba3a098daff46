//! Long-polling as a client meets it: what waits, what ends, what is refused, and the way to a WebSocket.

mod edge;

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use edge::*;
use moim::adapter::SocketRef;
use moim::client::{Encoded, Limits, Lost, Outlet, socketio};
use tokio::{sync::mpsc, time::timeout};

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
async fn a_poll_that_waits_when_an_accepted_upgrade_is_lost_says_so() {
    let node = Node::plain().await;
    node.namespace("/");
    let path = node.polling().await;
    node.post(&path, "40").await;
    polled(&node, &path, "42").await;
    let upgrade = path.replace("/socket.io/?EIO=4&transport=polling", "");
    let lost = async {
        loop {
            let Ok(mut ws) = node.upgrade(&upgrade).await else { continue };
            send(&mut ws, "2probe").await;
            assert_eq!(text(&mut ws).await.unwrap(), "3probe");
            // Each is let go; the next one has longer to wait.
            for _ in 0..6 {
                assert_eq!(node.get(&path).await, (200, "6".to_owned()));
            }
            let mut waiting = node.ask("GET", &path, "").await;
            // A round trip, so that the poll comes before the loss; if not, it is an ordinary one, which something has to answer.
            node.request("POST", &path, "3").await;
            drop(ws);
            node.request("POST", &path, "3").await;
            node.io.emit("said", &1).await.ok();
            match answer(&mut waiting).await {
                (200, packets) => assert!(["6", r#"42["said",1]"#].contains(&&*packets), "{packets}"),
                other => return other,
            }
        }
    };
    assert_eq!(timeout(SOON, lost).await.expect("in time"), unknown());
    assert_eq!(node.get(&path).await, unknown());
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

fn unknown() -> (u16, String) {
    (400, UNKNOWN.to_owned())
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
    let unknown = unknown();
    assert_eq!(
        answer(&mut waiting).await,
        unknown,
        "which makes every client come back: some take a close packet for the end"
    );
    timeout(SOON, ended.recv()).await.expect("socketioxide lets go of it").unwrap();
    assert_eq!(node.get(&path).await, unknown);
    assert!(node.transports.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_that_waits_when_its_client_leaves_ends_with_a_noop() {
    let node = Node::plain().await;
    node.namespace("/");
    let path = node.polling().await;
    node.post(&path, "40").await;
    polled(&node, &path, "42").await;
    let mut waiting = node.ask("GET", &path, "").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    node.post(&path, "1").await;
    assert_eq!(answer(&mut waiting).await, (200, "6".to_owned()), "as the protocol has it");
    assert_eq!(node.get(&path).await, unknown());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gentle_close_of_a_polling_transport_comes_after_what_was_queued() {
    let node = Node::plain().await;
    node.drain_all();
    let path = node.polling().await;
    node.post(&path, "40").await;
    let mut seen = Vec::new();
    loop {
        let (status, body) = node.get(&path).await;
        if status != 200 {
            assert_eq!((status, body), unknown());
            break;
        }
        seen.extend(body.split('\x1e').map(str::to_owned));
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
    let hub = node.hub.clone();
    node.io.ns("/", async move |socket: SocketRef| {
        let transport = socketio::transport(&socket).unwrap();
        let outlet = Outlet::new(&hub, socket, transport).unwrap().with_limit(200_000);
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
