//! The nodes of a cluster, over admin HTTP and the command line: any node is asked, the leader decides.

#[path = "nodes/http.rs"]
mod http;
#[path = "nodes/inside.rs"]
mod inside;

use std::{net::SocketAddr, process::Stdio, time::Duration};

use inside::{Running, addresses};
use moim::{config::Config, node::ExitReason};
use serde_json::{Value, json};
use tokio::{
    process::Command,
    time::{sleep, timeout},
};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

struct Node {
    name: String,
    admin: SocketAddr,
    running: Running,
    _data: tempfile::TempDir,
}

struct Cluster {
    nodes: Vec<Node>,
    peers: Vec<String>,
}

impl Cluster {
    /// Three voters, ready.
    async fn start() -> Self {
        let addresses = addresses(9);
        let peers = (0..3).map(|i| addresses[i * 3].to_string()).collect();
        let mut cluster = Self { nodes: Vec::new(), peers };
        for i in 0..3 {
            cluster.add(&format!("node{}", i + 1), &addresses[i * 3..i * 3 + 3], Some(3));
        }
        for i in 0..3 {
            cluster.ready(i).await;
        }
        cluster
    }

    fn add(&mut self, name: &str, addresses: &[SocketAddr], expect: Option<usize>) {
        let data = tempfile::tempdir().expect("a folder");
        let [peer, client, admin] = addresses.try_into().expect("three");
        let alone = inside::config(name, data.path().join("data"), [client, admin, peer]);
        let running = Running::start(Config { join: self.peers.clone(), expect, ..alone });
        self.nodes.push(Node { name: name.to_owned(), admin, running, _data: data });
    }

    async fn ready(&self, i: usize) {
        let ready = async {
            while self.ask(i, "GET", "/readyz", "").await.is_none_or(|(status, _)| status != 200) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, ready).await.expect("ready");
    }

    async fn ask(&self, i: usize, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
        http::ask(self.nodes[i].admin, method, path, http::LOCAL, body).await
    }

    async fn json(&self, i: usize, method: &str, path: &str, body: Value) -> (u16, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (status, answer) = self.ask(i, method, path, &body).await.expect("an answer");
        (status, serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{path} is not JSON: {answer}")))
    }

    async fn nodes(&self, i: usize) -> Value {
        let (status, body) = self.json(i, "GET", "/v1/nodes", Value::Null).await;
        assert_eq!(status, 200, "{body}");
        body
    }

    /// Whose row satisfies it, soon.
    async fn until(&self, i: usize, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let seen = async {
            loop {
                let nodes = self.nodes(i).await;
                if holds(&nodes) {
                    return nodes;
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        match timeout(PATIENCE, seen).await {
            Ok(nodes) => nodes,
            Err(_) => panic!("{what}: {}", self.nodes(i).await),
        }
    }

    async fn leader(&self) -> usize {
        let nodes = self.until(0, "a leader", |nodes| row(nodes, "leader", &json!(true)).is_some()).await;
        let leader = row(&nodes, "leader", &json!(true)).expect("it was there")["name"].clone();
        self.nodes.iter().position(|node| leader == node.name.as_str()).expect("it is one of them")
    }

    /// Exit code, standard output and standard error of `moim node …` against one node.
    async fn moim(&self, i: usize, args: &[&str]) -> (Option<i32>, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_moim"));
        command.arg("node").args(args).args(["--admin", &self.nodes[i].admin.to_string()]);
        let output = timeout(PATIENCE, command.stdin(Stdio::null()).kill_on_drop(true).output()).await;
        let output = output.expect("it ends").expect("it runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    async fn stop(mut self) {
        for node in &mut self.nodes {
            node.running.tell_to_stop();
        }
        for node in self.nodes {
            node.running.ended(PATIENCE).await.expect("no error");
        }
    }
}

fn row<'a>(nodes: &'a Value, key: &str, value: &Value) -> Option<&'a Value> {
    nodes["nodes"].as_array().expect("rows").iter().find(|row| row[key] == *value)
}

fn names<'a>(nodes: &'a Value, role: &str) -> Vec<&'a str> {
    let rows = nodes["nodes"].as_array().expect("rows").iter().filter(|row| row["role"] == role);
    rows.map(|row| row["name"].as_str().expect("a name")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fourth_node_joins_learns_votes_when_it_is_told_to_and_is_removed() {
    let mut c = Cluster::start().await;
    let four = addresses(3);
    c.add("node4", &four, None);
    c.ready(3).await;
    let leader = c.leader().await;
    let (asked, other) = ((leader + 1) % 3, (leader + 2) % 3);

    let why = "3 were expected when the cluster formed";
    let nodes = c
        .until(asked, "it says why it learns", |nodes| {
            row(nodes, "name", &json!("node4")).is_some_and(|row| row["note"].as_str().is_some_and(|n| n.contains(why)))
        })
        .await;
    assert_eq!((&nodes["expected"], &nodes["voters"], &nodes["consistency"]), (&json!(3), &json!(3), &json!("local")));
    assert_eq!(names(&nodes, "learner"), ["node4"]);
    assert_eq!(names(&nodes, "voter"), ["node1", "node2", "node3"]);
    let said = async {
        loop {
            let (status, text) = c.ask(3, "GET", "/readyz?verbose", "").await.expect("an answer");
            if status == 200 && text.contains("learner: ") && text.contains(why) {
                return text;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    let text = timeout(PATIENCE, said).await.expect("it says so itself");
    assert!(text.starts_with("ready\n"), "a learner may have clients: {text}");
    assert_eq!(c.ask(3, "GET", "/readyz", "").await.expect("an answer"), (200, "ready".to_owned()));
    let (code, out, _) = c.moim(other, &["list"]).await;
    assert!(
        code == Some(0) && out.contains("node4 (learner): ") && out.contains("3 voters; 1 of them may fail"),
        "{out}"
    );

    let (code, out, error) = c.moim(other, &["promote", "node4"]).await;
    assert_eq!(code, Some(0), "{error}");
    assert!(out.contains("node4 votes: 4 voters, 3 formed the cluster; 1 of them may fail"), "{out}");
    let (status, body) = c.json(asked, "POST", "/v1/nodes", json!({ "name": "node4" })).await;
    assert_eq!((status, &body["role"]), (200, &json!("voter")), "a second time it is so already");

    // The leader itself, asked at another node: it hands over first.
    let (code, out, error) = c.moim(other, &["remove", &c.nodes[leader].name]).await;
    assert_eq!(code, Some(0), "{error}");
    assert!(out.contains("is removed for good: 3 voters; 1 of them may fail"), "{out}");
    let removed = c.nodes.remove(leader);
    let ended = removed.running.ended(PATIENCE).await;
    assert_eq!(ended.expect("no error"), ExitReason::Removed);
    let (status, body) = c.json(1, "DELETE", &format!("/v1/nodes/{}", removed.name), Value::Null).await;
    assert_eq!((status, &body["error"]["code"]), (404, &json!("not_found")));
    let nodes = c.nodes(0).await;
    assert!(names(&nodes, "voter").len() == 3 && names(&nodes, "learner").is_empty(), "{nodes}");
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_be_unsafe_is_refused_with_its_reason_and_exits_3() {
    let mut c = Cluster::start().await;
    let leader = c.leader().await;
    let (dead, alive) = ((leader + 1) % 3, (leader + 2) % 3);
    let (dead_name, alive_name) = (c.nodes[dead].name.clone(), c.nodes[alive].name.clone());
    let table = [
        ("POST", "/v1/nodes", json!({}), 400, "bad_request"),
        ("POST", "/v1/nodes", json!({ "name": "node1", "id": "1" }), 400, "bad_request"),
        ("POST", "/v1/nodes", json!({ "name": "node1", "role": "learner" }), 400, "bad_request"),
        ("POST", "/v1/nodes", json!({ "name": "node1", "vote": true }), 400, "bad_request"),
        ("POST", "/v1/nodes", json!({ "name": "node9" }), 404, "not_found"),
        ("POST", "/v1/nodes", json!({ "name": "node1", "replace": "node9" }), 404, "not_found"),
        ("POST", "/v1/nodes", json!({ "name": "node1", "replace": "node2" }), 409, "refused"),
        ("POST", "/v1/nodes", json!({ "name": "node2", "replace": "node2" }), 409, "refused"),
        ("DELETE", "/v1/nodes/node9", Value::Null, 404, "not_found"),
        ("POST", "/v1/cluster/leader", json!({ "to": "node1" }), 400, "bad_request"),
        ("POST", "/v1/cluster/leader", json!({ "node": "node9" }), 404, "not_found"),
        ("PUT", "/v1/nodes", Value::Null, 405, "method_not_allowed"),
    ];
    for (method, path, body, status, code) in table {
        let (seen, answer) = c.json(alive, method, path, body.clone()).await;
        assert_eq!((seen, &answer["error"]["code"]), (status, &json!(code)), "{method} {path} {body}: {answer}");
    }
    let (code, _, error) = c.moim(leader, &["replace", &alive_name]).await;
    assert!(code == Some(3) && error.contains("no new node") && error.contains("an empty data folder"), "{error}");
    // Leadership goes where it is wanted, and back, whichever node is asked.
    let (status, body) = c.json(dead, "POST", "/v1/cluster/leader", json!({ "node": alive_name })).await;
    assert_eq!(status, 200, "{body}");
    c.until(dead, "it leads", |nodes| {
        row(nodes, "leader", &json!(true)).is_some_and(|row| row["name"] == alive_name.as_str())
    })
    .await;
    let back = c.nodes[leader].name.clone();
    assert_eq!(c.json(dead, "POST", "/v1/cluster/leader", json!({ "node": back })).await.0, 200);
    c.until(alive, "it leads again", |nodes| {
        row(nodes, "leader", &json!(true)).is_some_and(|row| row["name"] == back.as_str())
    })
    .await;

    c.nodes[dead].running.tell_to_stop();
    c.until(alive, "it is missed", |nodes| {
        row(nodes, "name", &json!(dead_name)).is_some_and(|row| row["up"] == json!(false))
    })
    .await;
    let (code, _, error) = c.moim(leader, &["remove", &alive_name]).await;
    assert_eq!(code, Some(3), "{error}");
    assert!(error.contains("1 of 2 voters would be up, and 2 are needed: bring the others back"), "{error}");
    let (code, _, error) = c.moim(leader, &["remove", "node9"]).await;
    assert!(code == Some(2) && error.contains("no node \"node9\""), "{code:?} {error}");
    let (code, out, error) = c.moim(leader, &["remove", &dead_name]).await;
    assert_eq!(code, Some(0), "{error}");
    assert!(out.contains("2 voters, 3 formed the cluster; none of them may fail"), "{out}");
    let (code, out, _) = c.moim(alive, &["list", "--json"]).await;
    let listed: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((code, names(&listed, "voter").len(), &listed["voters"]), (Some(0), 2, &json!(2)));
    // Who has no quorum any more does not lead, whatever it remembers.
    c.nodes[alive].running.tell_to_stop();
    let unled = async {
        while c.json(leader, "GET", "/v1/cluster", Value::Null).await.1["leader"] != Value::Null {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, unled).await.expect("nobody leads");
    let (_, cluster) = c.json(leader, "GET", "/v1/cluster", Value::Null).await;
    assert!(row(&cluster, "leader", &json!(true)).is_none(), "{cluster}");
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_waits_for_others_is_shown_under_its_name() {
    let addresses = addresses(5);
    let peers = [addresses[0], addresses[3], addresses[4]].map(|peer| peer.to_string());
    let mut c = Cluster { nodes: Vec::new(), peers: peers.to_vec() };
    c.add("first", &addresses[..3], Some(3));
    let asked = async {
        loop {
            match c.ask(0, "GET", "/v1/cluster", "").await {
                Some((200, body)) => return serde_json::from_str::<Value>(&body).expect("JSON"),
                _ => sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let cluster = timeout(PATIENCE, asked).await.expect("an answer");
    let row = row(&cluster, "role", &json!("joining")).expect("itself");
    assert_eq!((&row["name"], &row["peer"]), (&json!("first"), &json!(peers[0])), "{cluster}");
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_nobody_is_called_the_leader_and_nothing_else_is_blamed() {
    let mut c = Cluster::start().await;
    let leader = c.leader().await;
    let others = [(leader + 1) % 3, (leader + 2) % 3];
    // The leader as such knows nothing of it for a while.
    others.iter().for_each(|other| c.nodes[*other].running.tell_to_stop());
    c.until(leader, "it has no quorum", |nodes| row(nodes, "leader", &json!(true)).is_none()).await;
    let (_, metrics) = c.ask(leader, "GET", "/metrics", "").await.expect("an answer");
    assert!(metrics.contains("\nmoim_raft_leader 0\n"), "{metrics}");
    assert!(c.nodes(leader).await["nodes"].as_array().expect("rows").iter().all(|row| row["up"].is_null()));
    let (code, out, _) = c.moim(leader, &["list"]).await;
    assert!(code == Some(0) && out.contains("there is no leader with a quorum now"), "{out}");

    let gone = c.nodes[others[0]].name.clone();
    for what in ["replace", "promote", "remove"] {
        let (code, _, error) = c.moim(leader, &[what, &gone]).await;
        assert_eq!(code, Some(1), "{what}: {error}");
        assert!(error.contains("there is no leader with a quorum now") && !error.contains("new node"), "{error}");
    }
    let (status, body) = c.json(leader, "POST", "/v1/cluster/leader", Value::Null).await;
    assert_eq!((status, &body["error"]["code"]), (503, &json!("unavailable")), "{body}");
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_add_says_what_to_run_and_waits_until_it_votes() {
    let mut c = Cluster::start().await;
    let leader = c.leader().await;
    let (code, _, error) = c.moim(leader, &["add", "node1"]).await;
    assert!(code == Some(2) && error.contains("node1 already"), "{code:?} {error}");
    let (code, out, error) = c.moim(leader, &["add", "node4", "--wait", "0"]).await;
    assert_eq!(code, Some(1), "{error}");
    assert!(out.contains("moim serve --name node4 --join ") && c.peers.iter().all(|peer| out.contains(peer)), "{out}");
    assert!(error.contains("node4 has not joined"), "{error}");

    let four = addresses(3);
    c.add("node4", &four, None);
    let added = c.moim(leader, &["add", "node4", "--voter"]).await;
    // It was quick, and had joined before the command looked: then it is told so.
    if added.0 == Some(2) {
        assert!(added.2.contains("moim node promote node4"), "{}", added.2);
    } else {
        assert!(added.0 == Some(0) && added.1.contains("node4 votes: 4 voters"), "{added:?}");
    }
    c.stop().await;
}
