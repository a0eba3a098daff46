//! A room of 20,000 members: what a join does, says and sends is what its limits allow, however large the room is.
//!
//! The members come straight through a store; then a node is started on its folder, and clients come.

#[path = "nodes/inside.rs"]
mod inside;

use std::{
    collections::BTreeSet,
    net::{SocketAddr, TcpListener},
    path::Path,
    time::Duration,
};

use futures_util::{SinkExt, StreamExt};
use inside::Running;
use moim_raft::{
    Feeds, Play, Secret, Store, Ticket,
    command::{Command, Effect, Holder, Limits, Namespace, NodeInfo, Reply, Room, Sid, User},
};
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message};

const MEMBERS: usize = 20_000;
/// On their way at once.
const SLICE: usize = 1000;
/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn user(n: usize) -> User {
    User::new(format!("member-{n:05}")).unwrap()
}

fn session(n: usize) -> (Sid, [u8; 32]) {
    let mut pid = [0; 32];
    pid[..8].copy_from_slice(&(n as u64).to_be_bytes());
    (Sid::parse(&format!("{n:_>16}")).unwrap(), pid)
}

/// Fills the room and gives the effects of each join.
async fn fill(data: &Path, port: TcpListener) -> Vec<Vec<Effect>> {
    port.set_nonblocking(true).unwrap();
    let peer = port.local_addr().unwrap().to_string();
    let config = moim_raft::Config {
        data: data.to_owned(),
        info: NodeInfo { levels: moim_raft::level::KNOWN, name: "one".to_owned(), peer, ..NodeInfo::default() },
        join: Vec::new(),
        expect: 1,
        secret: Secret::default(),
        limits: Limits::default(),
        node_timeout: Duration::from_secs(5),
        replace_after: PATIENCE,
        session_ttl: Duration::from_secs(600),
        presence_grace: Duration::from_secs(600),
        heartbeat: Duration::from_millis(50),
        election: Duration::from_millis(250),
        snapshot_every: 1_000_000,
    };
    let (store, Feeds { mut plays, .. }) = Box::pin(Store::open(config, port.try_into().unwrap())).await.unwrap();
    let player = tokio::spawn(async move {
        while let Some(Play::Commands(commands)) = plays.recv().await {
            commands.into_iter().for_each(|(applied, ticket)| ticket.answer(Ok(&applied)));
        }
    });
    let mut started = store.started();
    timeout(PATIENCE, started.wait_for(|started| *started)).await.unwrap().unwrap();
    let (ns, room) = (Namespace::new("/").unwrap(), Room::new("large").unwrap());
    let mut effects = Vec::new();
    for first in (0..MEMBERS).step_by(SLICE) {
        let (tell, mut told) = mpsc::unbounded_channel();
        for n in first..first + SLICE {
            let (sid, pid) = session(n);
            let open = Command::Open { sid: sid.clone(), ns: ns.clone(), user: user(n), guest: false, pid };
            store.propose(open, Ticket::nobody());
            let tell = tell.clone();
            let joined = Ticket::new(move |outcome| tell.send(outcome.cloned()).unwrap());
            store.propose(Command::Join { by: Holder { sid, generation: 1 }, room: room.clone() }, joined);
        }
        drop(tell);
        while let Some(applied) = timeout(PATIENCE, told.recv()).await.expect("in time") {
            let applied = applied.expect("it is the only node");
            effects.push(applied.effects);
            assert_eq!(applied.reply, Reply::Joined { count: effects.len() as u64 });
        }
    }
    store.close().await.unwrap();
    player.await.unwrap();
    effects
}

struct Client {
    ws: WebSocketStream<MaybeTlsStream<TcpStream>>,
    asked: u64,
    /// Events that came meanwhile.
    events: Vec<Value>,
}

impl Client {
    async fn connect(address: SocketAddr, user: &str) -> Self {
        let (ws, _) = connect_async(url(address)).await.unwrap();
        let mut client = Self { ws, asked: 0, events: Vec::new() };
        client.send(format!("40{}", json!({ "user": user }))).await;
        while !client.events.iter().any(|event| event[0] == "ready") {
            client.hear().await;
        }
        client
    }

    async fn send(&mut self, packet: String) {
        self.ws.send(Message::text(packet)).await.unwrap();
    }

    /// The next packet; events are kept.
    async fn hear(&mut self) -> String {
        let message = timeout(PATIENCE, self.ws.next()).await.expect("in time").expect("open").unwrap();
        let packet = message.into_text().unwrap().to_string();
        if let Some(event) = packet.strip_prefix("42") {
            self.events.push(serde_json::from_str(event).unwrap());
        }
        packet
    }

    /// The answer to a request, and the bytes of its packet.
    async fn ask(&mut self, event: &str, payload: Value) -> (Value, usize) {
        self.asked += 1;
        let asked = self.asked;
        self.send(format!("42{asked}{}", json!([event, payload]))).await;
        loop {
            let packet = self.hear().await;
            if let Some(answer) = packet.strip_prefix(&format!("43{asked}")) {
                let mut answer: Value = serde_json::from_str(answer).unwrap();
                assert_eq!(answer[0]["ok"], json!(true), "{answer}");
                return (answer[0].take(), packet.len());
            }
        }
    }

    fn named(&self, names: &[&str]) -> Vec<&Value> {
        self.events.iter().filter(|event| names.iter().any(|name| event[0] == *name)).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_of_20_000_costs_a_join_what_its_limits_say() {
    let data = tempfile::tempdir().unwrap();
    let [client, admin, peer] = inside::addresses(3).try_into().expect("three");
    let folder = data.path().join("data");
    let effects = fill(&folder, TcpListener::bind(peer).unwrap()).await;
    assert_eq!(effects.len(), MEMBERS);
    for (n, effects) in effects.iter().enumerate() {
        let [Effect::Member { .. }, Effect::Entry { .. }] = effects.as_slice() else {
            panic!("member {n}: {effects:?}")
        };
    }

    let mut running = Running::start(inside::config("one", folder, [client, admin, peer]));
    let ready = async {
        while connect_async(url(client)).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, ready).await.expect("ready");

    let mut watcher = Client::connect(client, "watcher").await;
    watcher.ask("join", json!("large")).await;
    let mut joiner = Client::connect(client, "joiner").await;
    let (answer, bytes) = joiner.ask("join", json!("large")).await;
    assert_eq!(answer["count"], json!(MEMBERS + 2));
    let first: Vec<String> = (0..99).map(|n| user(n).as_str().to_owned()).collect();
    let named: Vec<&str> = answer["users"].as_array().unwrap().iter().map(|user| user.as_str().unwrap()).collect();
    assert_eq!(named.len(), 100, "the first of them");
    assert_eq!((named[0], &named[1..]), ("joiner", first.iter().map(String::as_str).collect::<Vec<_>>().as_slice()));
    assert!(bytes < 100 * 20 + 200, "{bytes} bytes");

    // Nobody is told who is online; who joins is told, once.
    let mut member = Client::connect(client, "member-19999").await;
    assert_eq!(member.events[0][1]["rooms"], json!(["large"]));
    member.send("41".to_owned()).await;
    joiner.send("41".to_owned()).await;
    let (all, mut after) = (&mut BTreeSet::new(), Value::Null);
    let mut pages = 0;
    loop {
        let mut query = json!({ "room": "large", "limit": 1000 });
        if !after.is_null() {
            query["after"] = after;
        }
        let (mut page, bytes) = watcher.ask("users", query).await;
        assert!(bytes < 1000 * 50, "{bytes} bytes");
        pages += 1;
        all.extend(page["users"].as_array().unwrap().iter().map(|each| each["user"].as_str().unwrap().to_owned()));
        after = page["next"].take();
        if after.is_null() {
            break;
        }
    }
    assert_eq!((pages, all.len()), (21, MEMBERS + 2), "each once");
    watcher.ask("message", json!({ "room": "large", "text": "mark" })).await;
    let heard =
        |names: &[&str]| watcher.named(names).into_iter().map(|event| event[1]["user"].clone()).collect::<Vec<_>>();
    assert_eq!(heard(&["joined"]), [json!("watcher"), json!("joiner")]);
    assert!(heard(&["online", "offline", "left"]).is_empty());

    running.tell_to_stop();
    running.ended(PATIENCE).await.unwrap();
}

fn url(address: SocketAddr) -> String {
    format!("ws://{address}/socket.io/?EIO=4&transport=websocket")
}
