//! The admin port of a real node that is a cluster by itself: whom it lets in, its pages, its errors.

#[path = "nodes/http.rs"]
mod http;
#[path = "nodes/inside.rs"]
mod inside;

use std::{net::SocketAddr, time::Duration};

use futures_util::{SinkExt, StreamExt};
use http::LOCAL;
use inside::Running;
use moim::node::ExitReason;
use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, tungstenite::Message};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Waits for a packet that begins so.
async fn heard(socket: &mut Socket, start: &str) {
    loop {
        let packet = timeout(Duration::from_secs(5), socket.next()).await.expect("in time");
        let packet = packet.expect("open").expect("a packet").into_text().expect("text");
        if packet.starts_with(start) {
            return;
        }
    }
}

struct Node {
    admin: SocketAddr,
    client: SocketAddr,
    running: Running,
    _data: tempfile::TempDir,
}

impl Node {
    async fn start() -> Self {
        let data = tempfile::tempdir().expect("a folder");
        let [client, admin, peer] = inside::addresses(3).try_into().expect("three");
        let running = Running::start(inside::config("node1", data.path().join("data"), [client, admin, peer]));
        let node = Self { admin, client, running, _data: data };
        timeout(Duration::from_secs(10), async {
            while node.try_get("/readyz").await.is_none_or(|(status, _)| status != 200) {
                sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .expect("ready");
        node
    }

    /// Status and body of one request, header lines as they are given.
    async fn ask(&self, method: &str, path: &str, headers: &str) -> Option<(u16, String)> {
        http::ask(self.admin, method, path, headers, "").await
    }

    async fn try_get(&self, path: &str) -> Option<(u16, String)> {
        self.ask("GET", path, LOCAL).await
    }

    async fn json(&self, method: &str, path: &str) -> (u16, Value) {
        let (status, body) = self.ask(method, path, LOCAL).await.expect("an answer");
        (status, serde_json::from_str(&body).unwrap_or_else(|_| panic!("{path} is not JSON: {body}")))
    }

    async fn post(&self, path: &str, body: &str) -> (u16, Value) {
        let (status, body) = http::ask(self.admin, "POST", path, LOCAL, body).await.expect("an answer");
        (status, serde_json::from_str(&body).expect("JSON"))
    }

    async fn read(&self, path: &str) -> Value {
        let (status, body) = self.json("GET", path).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    /// A client of the chat that has joined these rooms; it stays until the stream is dropped.
    async fn client(&self, user: &str, rooms: &[&str]) -> Socket {
        let url = format!("ws://{}/socket.io/?EIO=4&transport=websocket", self.client);
        let (mut socket, _) = tokio_tungstenite::connect_async(url).await.expect("a connection");
        socket.send(Message::text(format!("40{}", json!({ "user": user })))).await.expect("sent");
        heard(&mut socket, "42[\"ready\"").await;
        for (i, room) in rooms.iter().enumerate() {
            socket.send(Message::text(format!("42{i}{}", json!(["join", room])))).await.expect("sent");
            heard(&mut socket, &format!("43{i}[")).await;
        }
        socket
    }

    async fn stop(mut self) {
        self.running.tell_to_stop();
        let ended = self.running.ended(Duration::from_secs(8)).await;
        assert_eq!(ended.expect("no error"), ExitReason::Shutdown);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guard_stands_in_front_of_every_route_and_of_what_is_none() {
    let node = Node::start().await;
    let routes = [
        ("GET", "/livez"),
        ("GET", "/v1/cluster"),
        ("GET", "/v1/nothing"),
        ("PUT", "/v1/cluster"),
        ("POST", "/v1/drain"),
    ];
    let foreign = [
        "Host: moim.example\r\n",
        "Host: localhost\r\nOrigin: http://moim.example\r\n",
        "Host: localhost:3100\r\nOrigin: http://localhost:3000\r\n",
        "Host: localhost\r\nSec-Fetch-Site: cross-site\r\n",
    ];
    for (method, path) in routes {
        for headers in foreign {
            let (status, body) = node.ask(method, path, headers).await.expect("an answer");
            let body: Value = serde_json::from_str(&body).expect("JSON");
            assert_eq!((status, &body["error"]["code"]), (403, &json!("forbidden")), "{method} {path} {headers}");
        }
    }
    assert_eq!(node.try_get("/readyz").await, Some((200, "ready".to_owned())), "nothing was drained by that");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_error_has_one_shape() {
    let node = Node::start().await;
    let table = [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", "/v1/rooms/nowhere", 404, "not_found"),
        ("GET", "/v1/rooms/nowhere/messages", 404, "not_found"),
        ("GET", "/v1/sids/nobody", 404, "not_found"),
        ("GET", "/v1/users/nobody", 404, "not_found"),
        ("GET", "/v1/state/hash?index=999999999", 404, "not_found"),
        ("POST", "/v1/nodes/nobody/drain", 404, "not_found"),
        ("GET", "/v1/rooms/%FF", 400, "bad_request"),
        ("GET", "/v1/rooms?limit=0", 400, "bad_request"),
        ("GET", "/v1/rooms?limit=1001", 400, "bad_request"),
        ("GET", "/v1/sids?limit=-1", 400, "bad_request"),
        ("GET", "/v1/users?limit=", 400, "bad_request"),
        ("GET", "/v1/sids?after=short", 400, "bad_request"),
        ("GET", "/v1/sids?ns=", 400, "bad_request"),
        ("GET", "/v1/gaps?after=x", 400, "bad_request"),
        ("GET", "/v1/state?consistency=maybe", 400, "bad_request"),
        ("GET", "/v1/state/hash?index=x", 400, "bad_request"),
        ("GET", "/v1/cluster?unknown=1", 400, "bad_request"),
        ("GET", "/v1/rooms?prefx=a", 400, "bad_request"),
        ("POST", "/v1/drain?focre=true", 400, "bad_request"),
        ("GET", "/v1/rooms?ns=/nowhere", 404, "not_found"),
        ("GET", "/v1/state?ns=/nowhere", 404, "not_found"),
        ("POST", "/v1/drain?force=perhaps", 400, "bad_request"),
        ("POST", "/v1/emit", 400, "bad_request"),
        ("POST", "/v1/cluster", 405, "method_not_allowed"),
        ("GET", "/v1/drain", 405, "method_not_allowed"),
        ("POST", "/v1/drain", 409, "refused"),
        ("POST", "/v1/cluster/leader", 409, "refused"),
    ];
    for (method, path, status, code) in table {
        let (seen, body) = node.json(method, path).await;
        assert_eq!((seen, &body["error"]["code"]), (status, &json!(code)), "{method} {path}: {body}");
        assert!(body["error"]["message"].as_str().is_some_and(|text| !text.is_empty()), "{method} {path}: {body}");
    }
    assert_eq!(node.try_get("/readyz?unknown=1").await.expect("an answer").0, 200, "a probe may ask what it likes");
    assert_eq!(node.try_get("/v1/rooms?ns=/group-chat").await.expect("an answer").0, 200, "nobody is there yet");
    assert_eq!(node.try_get("/readyz").await, Some((200, "ready".to_owned())), "nothing was drained by that");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_paged_without_gaps_and_tell_one_story() {
    let node = Node::start().await;
    let names: Vec<String> = (0..5).map(|i| format!("room-{i}")).collect();
    let rooms: Vec<&str> = names.iter().map(String::as_str).chain(["elsewhere"]).collect();
    let _ann = node.client("ann", &rooms).await;
    let _again = node.client("ann", &[]).await;
    let _bo = node.client("bo", &["room-0"]).await;

    let pages = async |path: &str, list: &str, key: &str| {
        let (mut seen, mut after) = (Vec::new(), String::new());
        loop {
            let page = node.read(&format!("{path}limit=2{after}&consistency=linearizable")).await;
            let rows = page[list].as_array().expect("rows").clone();
            assert!(rows.len() <= 2);
            seen.extend(rows.into_iter().map(|row| row[key].as_str().expect("a name").to_owned()));
            let Some(next) = page["next"].as_str() else { return seen };
            after = format!("&after={next}");
        }
    };
    assert_eq!(pages("/v1/rooms?prefix=room-&", "rooms", "room").await, names);
    assert_eq!(pages("/v1/users?", "users", "user").await, ["ann", "bo"]);
    let sids = pages("/v1/sids?", "sids", "sid").await;
    assert!(sids.is_sorted() && sids.len() == 3, "{sids:?}");
    assert_eq!(pages("/v1/sids?user=ann&", "sids", "sid").await.len(), 2);
    assert_eq!(pages("/v1/sids?node=node1&", "sids", "sid").await, sids);
    assert!(pages("/v1/sids?node=node2&", "sids", "sid").await.is_empty());
    assert_eq!(pages("/v1/rooms/room-0?", "users", "user").await, ["ann", "bo"]);

    let room = node.read("/v1/rooms/room-0").await;
    assert_eq!((&room["members"], &room["sids"].as_array().map(Vec::len)), (&json!(2), &Some(3)));
    let one = node.read(&format!("/v1/sids/{}", sids[0])).await;
    assert_eq!((&one["attached"], &one["transport"]), (&json!(true), &json!("websocket")), "{one}");
    let user = node.read("/v1/users/ann").await;
    assert_eq!((&user["online"], &user["namespaces"][0]["ns"]), (&json!(true), &json!("/")), "{user}");
    let counts = node.read("/v1/namespaces").await["namespaces"][0].clone();
    assert_eq!(counts, json!({ "ns": "/", "rooms": 6, "users": 2, "sids": 3, "sockets": 3 }));
    let history = node.read("/v1/rooms/room-0/messages?limit=1").await;
    assert_eq!((&history["messages"][0]["user"], &history["more"]), (&json!("bo"), &json!(true)), "{history}");
    let gaps = node.read("/v1/gaps").await;
    assert_eq!((&gaps["resumed"], &gaps["fresh"]), (&json!(0), &json!(3)), "{gaps}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_from_outside_reaches_rooms_users_and_sids_once() {
    let node = Node::start().await;
    let mut ann = node.client("ann", &["here"]).await;
    let mut bo = node.client("bo", &["here", "there"]).await;
    let sids = node.read("/v1/sids?user=bo").await;
    let emit = async |body: Value| node.post("/v1/emit", &body.to_string()).await;

    let everything = json!({
        "rooms": ["here", "there"], "users": ["ann", "bo"], "sids": [sids["sids"][0]["sid"]],
        "event": "note", "args": [{ "n": 1.0 }, "text"],
    });
    assert_eq!(emit(everything).await, (200, json!({ "ok": true, "sockets": 2, "unreachable": [] })));
    assert_eq!(emit(json!({ "users": ["bo"], "event": "bell" })).await.1["sockets"], json!(1));
    assert_eq!(
        emit(json!({ "users": ["bo"], "event": "dot", "args": [1], "volatile": true })).await.1["sockets"],
        json!(1)
    );
    assert_eq!(emit(json!({ "rooms": ["nowhere"], "event": "x", "ns": "/normal-chat" })).await.1["sockets"], json!(0));
    // The string is not the last argument, nor is the name.
    heard(&mut ann, r#"42["note",{"n":1.0},"text",null]"#).await;
    heard(&mut bo, r#"42["note",{"n":1.0},"text",null]"#).await;
    let next = bo.next().await.expect("open").expect("a packet").into_text().expect("text");
    assert_eq!(next.as_str(), r#"42["bell",null]"#, "each socket once");
    heard(&mut bo, r#"42["dot",1]"#).await;

    let refused = [
        json!({ "event": "x" }),
        json!({ "rooms": ["here"] }),
        json!({ "rooms": ["here"], "event": "message" }),
        json!({ "rooms": vec!["here"; 1001], "event": "x" }),
        json!({ "rooms": ["here"], "event": "x", "arguments": [] }),
    ];
    for body in refused {
        let (status, answer) = emit(body.clone()).await;
        assert_eq!((status, &answer["error"]["code"]), (400, &json!("bad_request")), "{body}");
    }
    let (status, answer) = emit(json!({ "ns": "/nothing", "rooms": ["here"], "event": "x" })).await;
    assert_eq!((status, &answer["error"]["code"]), (404, &json!("not_found")), "nobody can be there");
    // One byte more than it takes.
    let event = json!({ "rooms": ["here"], "event": "x", "args": [""] });
    let blob = "x".repeat((1 << 20) + 1 - event.to_string().len());
    assert_eq!(emit(json!({ "rooms": ["here"], "event": "x", "args": [blob] })).await.0, 413);
    assert_eq!(emit(json!({ "rooms": ["here"], "event": "x", "args": [blob[1..]] })).await.1["sockets"], json!(2));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_is_cut_off_and_counted() {
    let node = Node::start().await;
    let slow = async || {
        let (_, text) = node.try_get("/metrics").await.expect("an answer");
        let line = text.lines().find_map(|line| line.strip_prefix("moim_slow_consumers_disconnected_total "));
        line.expect("it is there").to_owned()
    };
    let _silent = node.client("ann", &[]).await;
    assert_eq!(slow().await, "0");
    let large = json!({ "users": ["ann"], "event": "x", "args": ["x".repeat(1_000_000)] }).to_string();
    // The kernel takes a few, the queue one, and then the seat is gone.
    for _ in 0..64 {
        if node.post("/v1/emit", &large).await.1["sockets"] == json!(0) || slow().await == "1" {
            break;
        }
    }
    assert_eq!(slow().await, "1");
    let small = json!({ "users": ["ann"], "event": "x" }).to_string();
    node.post("/v1/emit", &small).await;
    assert_eq!(slow().await, "1", "each is counted once");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_stalls_does_not_hold_the_node_up() {
    let node = Node::start().await;
    let mut half = TcpStream::connect(node.admin).await.expect("a connection");
    half.write_all(b"GET /v1/cluster HTTP/1.1\r\nHost: local").await.expect("sent");
    sleep(Duration::from_millis(50)).await;
    node.stop().await;
}
