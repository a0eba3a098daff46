//! `GET /metrics` of three nodes, around the restart of one and the death of another.

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

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use client::Client;
use cluster::Cluster;
use serde_json::json;

/// How long clients stay away.
const AWAY: Duration = Duration::from_millis(300);
const NAMES: [(&str, &str); 16] = [
    ("moim_session_gap_seconds", "histogram"),
    ("moim_sessions_resumed_total", "counter"),
    ("moim_replays_refused_total", "counter"),
    ("moim_messages_replayed_total", "counter"),
    ("moim_commit_seconds", "histogram"),
    ("moim_sync_seconds", "histogram"),
    ("moim_batch_commands", "histogram"),
    ("moim_sockets", "gauge"),
    ("moim_slow_consumers_disconnected_total", "counter"),
    ("moim_bus_frames_dropped_total", "counter"),
    ("moim_raft_term", "gauge"),
    ("moim_raft_leader", "gauge"),
    ("moim_raft_committed_index", "gauge"),
    ("moim_raft_applied_index", "gauge"),
    ("moim_raft_lag_entries", "gauge"),
    ("moim_raft_log_bytes", "gauge"),
];

/// Not a test: the process of a node. See [`cluster`].
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the tests, as the process of a node"]
async fn node() {
    cluster::run_as_told(handlers::handlers()).await;
}

/// Samples by name and labels.
struct Scrape {
    text: String,
    samples: BTreeMap<String, f64>,
}

impl Scrape {
    async fn of(admin: SocketAddr) -> Self {
        let (head, text) = cluster::get(admin, "/metrics").await.unwrap();
        assert!(head.starts_with("HTTP/1.1 200") && head.contains("text/plain; version=0.0.4"), "{head}");
        let samples = text.lines().filter(|line| !line.starts_with('#')).map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        });
        Self { samples: samples.collect(), text }
    }

    fn get(&self, name: &str) -> f64 {
        *self.samples.get(name).unwrap_or_else(|| panic!("{name} is not in\n{}", self.text))
    }

    fn gaps(&self, cause: &str) -> (f64, f64) {
        let of = |part| self.get(&format!("moim_session_gap_seconds_{part}{{cause=\"{cause}\"}}"));
        (of("count"), of("sum"))
    }
}

async fn scrape(cluster: &Cluster) -> Vec<Scrape> {
    let mut all = Vec::new();
    for admin in &cluster.admins {
        all.push(Scrape::of(*admin).await);
    }
    all
}

/// The clients of a node that has gone go on elsewhere, a while later.
async fn move_on(cluster: &Cluster, clients: Vec<Client>, to: [usize; 2]) -> Vec<Client> {
    for client in &clients {
        client.disconnected().await;
    }
    tokio::time::sleep(AWAY).await;
    let mut moved = Vec::new();
    for (n, client) in clients.into_iter().enumerate() {
        let node = to[n % 2];
        let back = Client::connect_as(cluster.clients[node], node, &json!({ "pid": client.pid })).await;
        assert_eq!(back.sid, client.sid, "the same session");
        moved.push(back);
    }
    moved
}

#[tokio::test(flavor = "multi_thread")]
async fn every_name_is_there_from_the_start() {
    let cluster = Cluster::start().await;
    let all = scrape(&cluster).await;
    for Scrape { text, .. } in &all {
        for (name, kind) in NAMES {
            let help = text.lines().find_map(|line| line.strip_prefix(&format!("# HELP {name} ")));
            assert!(help.is_some_and(|help| !help.is_empty()), "{name} has no help in\n{text}");
            assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{name} is no {kind} in\n{text}");
        }
    }
    for node in &all {
        assert_eq!(node.get("moim_sessions_resumed_total"), 0.0, "zero is said too");
        assert_eq!(node.gaps("killed"), (0.0, 0.0));
        assert_eq!(node.get("moim_replays_refused_total{cause=\"trimmed\"}"), 0.0);
        for name in ["moim_batch_commands_count", "moim_commit_seconds_count", "moim_sync_seconds_count"] {
            assert!(node.get(name) >= 1.0, "{name}");
        }
        assert!(node.get("moim_raft_term") >= 1.0 && node.get("moim_raft_applied_index") >= 1.0);
        assert!(node.get("moim_raft_log_bytes") > 0.0);
    }
    assert_eq!(all.iter().map(|node| node.get("moim_raft_leader")).sum::<f64>(), 1.0);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_were_moved_are_counted_where_they_live_on() {
    let mut cluster = Cluster::start().await;
    let mut clients = Vec::new();
    for _ in 0..6 {
        clients.push(Client::connect(cluster.clients[2], 2).await);
    }
    for client in &clients {
        assert_eq!(client.call("join", json!("room")).await[0]["ok"], json!(true));
    }
    assert_eq!(scrape(&cluster).await[2].get("moim_sockets"), 6.0);

    // Their node is stopped in order, and started again.
    cluster.end(2).await;
    let mut clients = move_on(&cluster, clients, [0, 1]).await;
    cluster.start_again(2).await;
    let all = scrape(&cluster).await;
    let gaps: Vec<(f64, f64)> = all.iter().map(|node| node.gaps("drain")).collect();
    assert_eq!(gaps.iter().map(|gap| gap.0).collect::<Vec<_>>(), [3.0, 3.0, 0.0]);
    assert!(gaps.iter().map(|gap| gap.1).sum::<f64>() >= 6.0 * AWAY.as_secs_f64(), "{gaps:?}");
    assert_eq!(all.iter().map(|node| node.get("moim_sockets")).collect::<Vec<_>>(), [3.0, 3.0, 0.0]);
    // The joins at least: nobody told them apart from what they had seen, for they gave no offset.
    assert!(all.iter().map(|node| node.get("moim_messages_replayed_total")).sum::<f64>() >= 6.0);

    // The node of three of them is killed. Their gap begins then, not when the node is declared down, on a node that was
    // up all the time: one that has just started has heard nothing of it yet, and would take it for a takeover.
    let there: Vec<Client> = clients.extract_if(.., |client| client.node == 1).collect();
    cluster.kill(1).await;
    let moved = move_on(&cluster, there, [0, 0]).await;
    let all = [Scrape::of(cluster.admins[0]).await, Scrape::of(cluster.admins[2]).await];
    let gaps: Vec<(f64, f64)> = all.iter().map(|node| node.gaps("killed")).collect();
    assert_eq!(gaps.iter().map(|gap| gap.0).collect::<Vec<_>>(), [3.0, 0.0], "{gaps:?}");
    assert!(gaps.iter().all(|(count, sum)| *sum >= count * AWAY.as_secs_f64()), "{gaps:?}");
    assert_eq!(all.iter().map(|node| node.get("moim_sessions_resumed_total")).collect::<Vec<_>>(), [6.0, 0.0]);

    // A connection that nobody knows to be dead is taken over.
    let auth = json!({ "pid": moved[0].pid });
    let back = Client::connect_as(cluster.clients[2], 2, &auth).await;
    assert_eq!(back.sid, moved[0].sid);
    assert_eq!(Scrape::of(cluster.admins[2]).await.gaps("takeover").0, 1.0);
    cluster.stop().await;
}
