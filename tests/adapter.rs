//! socketioxide's adapter across three nodes: at least what socketioxide's own end-to-end tests ask of its Redis adapter,
//! with 10 clients over 3 nodes, and then what happens when one of the nodes is killed or stops answering.
//!
//! The nodes are processes, so that they can be killed: this very binary, told by its environment to be a node.

#[path = "nodes/client.rs"]
mod client;
#[path = "nodes/cluster.rs"]
mod cluster;
#[path = "nodes/handlers.rs"]
mod handlers;
#[path = "nodes/http.rs"]
mod http;
#[path = "nodes/inside.rs"]
mod inside;

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};
use tokio::time::Instant;

use client::Client;
use cluster::Cluster;

/// What no caller waits longer than, whatever happens to other nodes.
const BOUND: Duration = Duration::from_secs(1);

/// Not a test: the process of a node. See [`cluster`].
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the tests, as the process of a node"]
async fn node() {
    cluster::run_as_told(handlers::handlers()).await;
}

fn sids(clients: &[Client]) -> BTreeSet<String> {
    clients.iter().map(|client| client.sid.clone()).collect()
}

fn texts(list: &Value) -> BTreeSet<String> {
    let texts: Vec<String> = list.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect();
    let set: BTreeSet<String> = texts.iter().cloned().collect();
    assert_eq!(set.len(), texts.len(), "each once: {texts:?}");
    set
}

/// Clients that have heard an event of this name, once all have heard what was sent after it on the same way.
async fn hearers(by: &Client, clients: &[Client], name: &str) -> BTreeSet<String> {
    by.call("fence", json!(null)).await;
    let mut heard = BTreeSet::new();
    for client in clients {
        client.expect("fence").await;
        match client.take(name).len() {
            0 => {}
            1 => _ = heard.insert(client.sid.clone()),
            more => panic!("{} heard {name} {more} times", client.sid),
        }
    }
    heard
}

#[tokio::test(flavor = "multi_thread")]
async fn broadcasts_reach_all_nodes() {
    let cluster = Cluster::start().await;
    let clients = cluster.clients(10).await;
    for client in &clients {
        for name in ["broadcast", "volatile_broadcast"] {
            client.call(name, json!(null)).await;
            for other in &clients {
                let args = other.expect(name).await;
                assert_eq!(args, json!([format!("hello from {}", client.sid), null]), "and no string is the last");
            }
        }
    }
    // 40 KiB and binary data pass; what is too large for the bus is told, and stays on its node.
    let blob = "x".repeat(40 << 10);
    assert_eq!(clients[0].call("emit_text", json!(blob)).await, json!([true]));
    for other in &clients {
        assert_eq!(other.expect("text").await, json!([{ "text": blob }]));
    }
    assert_eq!(clients[0].call("emit_text", json!("x".repeat(70 << 10))).await, json!([false]));
    clients[0].call("emit_binary", json!(null)).await;
    for other in &clients {
        assert_eq!(other.expect("binary").await, json!([{ "_placeholder": true, "num": 0 }]));
        assert_eq!(other.attachment().await, [1, 2, 3]);
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rooms_and_senders_and_nodes_are_excepted() {
    let cluster = Cluster::start().await;
    let clients = cluster.clients(10).await;
    let all = sids(&clients);
    let without = |left_out: &[&Client]| {
        let left_out: BTreeSet<String> = left_out.iter().map(|client| client.sid.clone()).collect();
        all.difference(&left_out).cloned().collect::<BTreeSet<_>>()
    };
    let [a, b, c] = [&clients[0], &clients[1], &clients[2]];
    a.call("enter", json!("few")).await;
    b.call("enter", json!("few")).await;
    b.call("enter", json!("other")).await;

    a.call("to_all_but_me", json!(null)).await;
    assert_eq!(hearers(a, &clients, "to_all_but_me").await, without(&[a]));
    c.call("to_room", json!(["few"])).await;
    assert_eq!(hearers(c, &clients, "to_room").await, sids(&clients[..2]));
    c.call("to_room", json!(["few", "other"])).await;
    assert_eq!(hearers(c, &clients, "to_room").await, sids(&clients[..2]), "once, also who is in both");
    a.call("to_room", json!(["few"])).await;
    assert_eq!(
        hearers(a, &clients, "to_room").await,
        without(&clients.iter().filter(|x| x.sid != b.sid).collect::<Vec<_>>())
    );
    c.call("to_room", json!([a.sid])).await;
    assert_eq!(hearers(c, &clients, "to_room").await, sids(&clients[..1]), "a socket's own room");
    a.call("within_room", json!(["few"])).await;
    assert_eq!(hearers(a, &clients, "within_room").await, sids(&clients[..2]));
    c.call("except_rooms", json!(["other"])).await;
    assert_eq!(hearers(c, &clients, "except_rooms").await, without(&[b]));
    c.call("except_rooms", json!([a.sid, b.sid])).await;
    assert_eq!(hearers(c, &clients, "except_rooms").await, without(&[a, b]));
    for client in &clients[..3] {
        client.call("local", json!(null)).await;
        let here = clients.iter().filter(|other| other.node == client.node).map(|other| other.sid.clone()).collect();
        assert_eq!(hearers(client, &clients, "local").await, here);
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn acks_come_back_from_all_nodes() {
    let cluster = Cluster::start().await;
    let clients = cluster.clients(10).await;
    let expected: BTreeSet<String> = clients.iter().map(|client| format!("ack from {}", client.sid)).collect();
    for client in &clients {
        let answers = client.call("broadcast_with_ack", json!(null)).await;
        assert_eq!(texts(&answers[0]), expected);
    }
    // Acks bear the sids that their clients know.
    let all: BTreeSet<String> = sids(&clients);
    assert_eq!(texts(&clients[0].call("who_acks", json!(null)).await[0]), all);
    // Who does not answer becomes an error after the time-out, and the others do not wait for him.
    clients[4].answers(false);
    let asked = Instant::now();
    let answers = clients[0].call("acks_within", json!(400)).await;
    assert!(asked.elapsed() >= Duration::from_millis(400));
    assert_eq!(answers[0][&clients[4].sid], json!("ack timeout error"), "{answers}");
    assert_eq!(answers[0].as_object().unwrap().values().filter(|ack| **ack == json!("ok")).count(), 9);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_and_rooms_are_seen_and_moved_from_any_node() {
    let cluster = Cluster::start().await;
    let clients = cluster.clients(10).await;
    let own: BTreeSet<String> =
        ["room1", "room2", "room4", "room5"].map(str::to_owned).into_iter().chain(sids(&clients)).collect();
    for client in &clients {
        let found = client.call("fetch_sockets", json!(null)).await;
        assert_eq!(texts(&found[0]), sids(&clients), "public sids, and no Engine.IO id");
        assert_eq!(texts(&client.call("rooms", json!(null)).await[0]), own);
    }
    let a = &clients[0];
    a.call("join_room", json!(null)).await;
    let joined: BTreeSet<String> = own.iter().cloned().chain(["room7".to_owned()]).collect();
    for client in &clients {
        assert_eq!(texts(&client.call("rooms", json!(null)).await[0]), joined, "at once on all nodes");
        assert!(texts(&client.call("own_rooms", json!(null)).await[0]).contains("room7"));
    }
    a.call("leave_room", json!(null)).await;
    for client in &clients {
        assert!(!texts(&client.call("rooms", json!(null)).await[0]).contains("room4"));
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_remote_socket_is_acted_upon() {
    let cluster = Cluster::start().await;
    let clients = cluster.clients(10).await;
    // From each node to a socket of each node, its own too.
    for from in &clients[..3] {
        for to in &clients[3..6] {
            from.call("emit_from_remote_sock", json!(to.sid)).await;
            assert_eq!(to.expect("emit").await[0], json!(format!("hello from {}", from.sid)));
            let ack = from.call("emit_with_ack_from_remote_sock", json!(to.sid)).await;
            assert_eq!(ack, json!([format!("ack from {}", to.sid)]));
            from.call("join_room_from_remote_sock", json!(to.sid)).await;
            let room = format!("hello from {}", from.sid);
            assert!(texts(&from.call("get_rooms_remote_sock", json!(to.sid)).await[0]).contains(&room));
            from.call("leave_room_from_remote_sock", json!([to.sid, room])).await;
            assert!(!texts(&from.call("get_rooms_remote_sock", json!(to.sid)).await[0]).contains(&room));
        }
    }
    for client in &clients {
        assert!(client.take("emit").is_empty(), "nobody else heard it");
    }
    for (from, to) in [(0, 3), (0, 4), (0, 5)] {
        clients[from].call("disconnect_remote_sock", json!(clients[to].sid)).await;
        clients[to].disconnected().await;
    }
    let rest: Vec<Client> = clients.into_iter().filter(|client| !client.is_disconnected()).collect();
    assert_eq!(rest.len(), 7);
    let found = rest[0].call("fetch_sockets", json!(null)).await;
    assert_eq!(texts(&found[0]), sids(&rest));
    rest[0].emit("disconnect_socket", json!(null)).await;
    for client in &rest {
        client.disconnected().await;
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_remote_socket_stays_the_right_one_when_its_client_moves() {
    let cluster = Cluster::start().await;
    let [here, _, mut client] = cluster.clients(3).await.try_into().ok().unwrap();
    here.call("keep_remote_sock", json!(client.sid)).await;
    // Where it was fetched, on a third node, on the handler's own, and back.
    for node in [2, 1, 0, 2] {
        if client.node != node {
            let auth = json!({ "pid": client.pid });
            let moved = Client::connect_as(cluster.clients[node], node, &auth).await;
            assert_eq!(moved.sid, client.sid);
            client = moved;
            // The handler's node has applied it too.
            let path = format!("/v1/sids/{}?consistency=linearizable", client.sid);
            assert!(cluster::get(cluster.admins[0], &path).await.unwrap().0.contains(" 200 "));
        }
        here.call("emit_to_kept_sock", json!(null)).await;
        assert_eq!(client.expect("kept").await[0], json!(format!("hello from {}", here.sid)), "on node {node}");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_is_cut_off_and_nobody_else_notices() {
    let cluster = Cluster::start().await;
    let clients = cluster.clients(4).await;
    let [sender, slow, other, beside] = clients.try_into().ok().unwrap();
    sender.call("enter", json!("sender")).await;
    slow.pause(true);
    // More than the kernel takes for it.
    const TIMES: usize = 500;
    for _ in 0..TIMES {
        sender.call("emit_text", json!("x".repeat(40 << 10))).await;
        for client in [&other, &beside] {
            client.expect("text").await;
        }
    }
    slow.pause(false);
    slow.disconnected().await;
    let heard = slow.take("text").len();
    assert!(heard < TIMES, "all {heard} events were kept for it");
    assert_eq!(texts(&sender.call("fetch_sockets", json!(null)).await[0]), sids(&[sender, other, beside]));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dies_holds_nobody_up() {
    let mut cluster = Cluster::start().await;
    let clients = cluster.clients(9).await;
    let (here, there): (Vec<Client>, Vec<Client>) = clients.into_iter().partition(|client| client.node != 2);
    for client in &there[1..] {
        client.answers(false);
    }
    // Acks that a dying node owes become errors; nobody waits for the time-out of 30 s.
    let pending = here[0].ask("acks_within", json!(30_000)).await;
    until_acked(&here[0], &there[0]).await;
    let killed = Instant::now();
    cluster.kill(2).await;
    let acks = pending.await.unwrap();
    assert!(killed.elapsed() < BOUND, "{:?}", killed.elapsed());
    for client in &here {
        assert_eq!(acks[0][&client.sid], json!("ok"), "{acks}");
    }
    assert_eq!(acks[0][&there[0].sid], json!("ok"), "what had come is kept");
    for client in &there[1..] {
        assert!(acks[0][&client.sid].as_str().unwrap().contains("Closed"), "{acks}");
    }
    without_it(&here).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_hangs_holds_nobody_up() {
    let cluster = Cluster::start().await;
    let clients = cluster.clients(9).await;
    let (here, there): (Vec<Client>, Vec<Client>) = clients.into_iter().partition(|client| client.node != 2);
    for client in &there[1..] {
        client.answers(false);
    }
    let pending = here[0].ask("acks_within", json!(30_000)).await;
    until_acked(&here[0], &there[0]).await;
    let stopped = Instant::now();
    cluster.hang(2);
    let acks = pending.await.unwrap();
    assert!(stopped.elapsed() < BOUND, "{:?}", stopped.elapsed());
    assert_eq!(acks[0].as_object().unwrap().len(), 9, "{acks}");
    without_it(&here).await;
    cluster.stop().await;
}

/// Waits until `asker` has been told of the ack of this one: then its node has said by whom acks are due.
async fn until_acked(asker: &Client, one: &Client) {
    while asker.expect("acked").await[0] != json!({ "by": one.sid }) {}
}

/// Everything goes on for those who are left, and nothing takes longer than the bound.
async fn without_it(here: &[Client]) {
    let timed = async |name: &str| {
        let asked = Instant::now();
        let answer = here[0].call(name, json!(null)).await;
        assert!(asked.elapsed() < BOUND, "{name} took {:?}", asked.elapsed());
        answer
    };
    assert_eq!(texts(&timed("fetch_sockets").await[0]), sids(here));
    assert_eq!(texts(&timed("broadcast_with_ack").await[0]).len(), here.len());
    timed("rooms").await;
    timed("join_room").await;
    timed("leave_room").await;
    timed("broadcast").await;
    for client in here {
        client.expect("broadcast").await;
        let rooms = texts(&client.call("own_rooms", json!(null)).await[0]);
        assert!(rooms.contains("room7") && !rooms.contains("room4"));
    }
}
