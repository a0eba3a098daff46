//! Three nodes as child processes, which end with this one.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{net::SocketAddr, process::Stdio, time::Duration};

use moim::handlers::Handlers;
use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt,
    process::{Child, Command},
    time::{sleep, timeout},
};

use super::{client::Client, http, inside};

/// Longer than anything takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);
const TOLD: &str = "MOIM_TEST_NODE";

pub struct Cluster {
    nodes: Vec<Option<Child>>,
    told: Vec<Value>,
    pub clients: Vec<SocketAddr>,
    pub admins: Vec<SocketAddr>,
    _data: tempfile::TempDir,
}

impl Cluster {
    pub async fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let addrs = inside::addresses(9);
        let (clients, admins, peers) = (addrs[..3].to_vec(), addrs[3..6].to_vec(), &addrs[6..]);
        let told = (0..3).map(|n| {
            json!({
                "name": format!("node{n}"), "data": data.path().join(n.to_string()), "join": peers,
                "client": clients[n], "admin": admins[n], "peer": peers[n],
            })
        });
        let told = told.collect();
        let mut cluster = Self { nodes: vec![None, None, None], told, clients, admins, _data: data };
        (0..3).for_each(|n| cluster.spawn(n));
        cluster.ready().await;
        cluster
    }

    fn spawn(&mut self, n: usize) {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "node", "--ignored", "--nocapture"])
            .env(TOLD, self.told[n].to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        self.nodes[n] = Some(child.unwrap());
    }

    /// Waits until all nodes are.
    async fn ready(&self) {
        let ready = async {
            for node in &self.clients {
                while !is_ready(*node).await {
                    sleep(Duration::from_millis(20)).await;
                }
            }
        };
        timeout(PATIENCE, ready).await.expect("ready");
    }

    /// Tells a node to stop as a signal does, and waits until it has.
    pub async fn end(&mut self, n: usize) {
        let mut node = self.nodes[n].take().unwrap();
        node.stdin.as_mut().unwrap().write_all(b"stop\n").await.unwrap();
        let ended = timeout(PATIENCE, node.wait()).await.expect("it ends");
        assert!(ended.unwrap().success());
    }

    /// Starts a node again where it was.
    pub async fn start_again(&mut self, n: usize) {
        self.spawn(n);
        self.ready().await;
    }

    /// Clients on one node after another.
    pub async fn clients(&self, count: usize) -> Vec<Client> {
        let mut clients = Vec::new();
        for n in 0..count {
            clients.push(Client::connect(self.clients[n % 3], n % 3).await);
        }
        clients
    }

    pub async fn kill(&mut self, n: usize) {
        let mut node = self.nodes[n].take().unwrap();
        node.start_kill().unwrap();
        node.wait().await.unwrap();
    }

    /// Stops the process in its tracks: its connections stay open, and nobody answers.
    pub fn hang(&self, n: usize) {
        let id = self.nodes[n].as_ref().unwrap().id().unwrap();
        let done = std::process::Command::new("kill").args(["-STOP", &id.to_string()]).status();
        assert!(done.unwrap().success());
    }

    pub async fn stop(mut self) {
        for n in 0..3 {
            if self.nodes[n].is_some() {
                self.kill(n).await;
            }
        }
    }
}

/// Head and body of the answer.
pub async fn get(address: SocketAddr, path: &str) -> std::io::Result<(String, String)> {
    http::request(address, "GET", path, http::LOCAL, "").await
}

async fn is_ready(node: SocketAddr) -> bool {
    get(node, "/readyz").await.is_ok_and(|(head, _)| head.starts_with("HTTP/1.1 200"))
}

/// Is the node that the environment describes, until it is told to stop, or standard input ends.
pub async fn run_as_told(handlers: Handlers) {
    let told = std::env::var(TOLD).expect("the tests run this, as the process of a node");
    let told: Value = serde_json::from_str(&told).unwrap();
    let text = |key: &str| told[key].as_str().unwrap().to_owned();
    let addresses = ["client", "admin", "peer"].map(|key| text(key).parse().unwrap());
    let mut config = inside::config(&text("name"), text("data").into(), addresses);
    config.join = serde_json::from_value(told["join"].clone()).unwrap();
    config.expect = Some(3);
    config.drain.window = Duration::from_millis(200);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    // Of its own, because the runtime would wait for its reading.
    std::thread::spawn(move || {
        let mut lines = std::io::stdin().lines();
        if let Some(Ok(_)) = lines.next() {
            stop.send(()).ok();
        } else {
            std::process::exit(1);
        }
    });
    moim::node::run(config, handlers, async { _ = stopped.await }).await.unwrap();
}
