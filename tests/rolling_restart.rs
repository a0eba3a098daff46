//! `moim rolling-restart` against a scripted cluster: what it touches, in which order, and when it stops.

use std::{path::PathBuf, process::Stdio, sync::Arc};

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::StatusCode,
    routing::{get, post},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, process::Command, sync::Mutex};
use tokio_util::task::AbortOnDropHandle;

/// Three nodes behind one admin listener. A node is restarted when the restart command has left a file with its name.
struct Script {
    leader: &'static str,
    folder: PathBuf,
    /// Answers every drain with a refusal.
    refuse: bool,
    /// Is not ready from the start.
    sick: Option<&'static str>,
    /// Whoever runs this interrupts it while that one is restarted.
    interrupted: Option<&'static str>,
    /// Its restart command fails.
    fails: Option<&'static str>,
    /// Never comes back from its restart.
    lost: Option<&'static str>,
    drained: Vec<String>,
}

type Shared = Arc<Mutex<Script>>;

impl Script {
    fn node(&self, name: &str) -> Value {
        let restarted = self.folder.join(name).exists();
        let drained = self.drained.iter().any(|other| other == name);
        let away = restarted && self.lost == Some(name);
        let ready = self.sick != Some(name) && (restarted || !drained);
        json!({
            "name": name, "role": "voter", "leader": name == self.leader, "lag": 0, "version": "0.1.0",
            "ready": if away { Value::Null } else { json!(ready) }, "why": ["sick"], "draining": drained && !restarted,
            "sockets": if drained { 0 } else { 2 }, "incarnation": 1 + u64::from(restarted && !away),
        })
    }
}

async fn cluster(State(script): State<Shared>) -> Json<Value> {
    let script = script.lock().await;
    let nodes = ["a", "b", "c"].map(|name| script.node(name));
    Json(json!({ "term": 1, "applied": 9, "nodes": nodes }))
}

async fn drain(State(script): State<Shared>, Path(name): Path<String>) -> (StatusCode, Json<Value>) {
    let mut script = script.lock().await;
    if script.refuse {
        let error = json!({ "error": { "code": "drain_refused", "message": "node b is draining" } });
        return (StatusCode::CONFLICT, Json(error));
    }
    script.drained.push(name);
    (StatusCode::OK, Json(json!({})))
}

#[derive(serde::Deserialize)]
struct After {
    after: usize,
}

/// Each drain moved two clients: one in 100 ms, one in as many as the drain's number times 1,000.
async fn gaps(State(script): State<Shared>, Query(After { after }): Query<After>) -> Json<Value> {
    let position = script.lock().await.drained.len();
    let gaps: Vec<Value> = (after + 1..=position)
        .flat_map(|n| [json!({ "sid": "x", "ms": 100 }), json!({ "sid": "y", "ms": n * 1000 })])
        .collect();
    Json(json!({ "position": position, "applied": 0, "resumed": gaps.len(), "fresh": 0, "gaps": gaps }))
}

struct Run {
    code: Option<i32>,
    out: String,
    error: String,
    drained: Vec<String>,
    restarted: Vec<String>,
}

async fn run(change: impl FnOnce(&mut Script)) -> Run {
    let folder = tempfile::tempdir().expect("a folder");
    let mut script = Script {
        leader: "a",
        folder: folder.path().to_path_buf(),
        refuse: false,
        sick: None,
        interrupted: None,
        fails: None,
        lost: None,
        drained: Vec::new(),
    };
    change(&mut script);
    let (fails, interrupted) = (script.fails.unwrap_or_default(), script.interrupted.unwrap_or_default());
    let shared = Arc::new(Mutex::new(script));
    let routes = Router::new()
        .route("/v1/cluster", get(cluster))
        .route("/v1/gaps", get(gaps))
        .route("/v1/nodes/{name}/drain", post(drain))
        .with_state(shared.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    let _server = AbortOnDropHandle::new(tokio::spawn(async move { axum::serve(listener, routes).await }));

    let restart = format!(
        "test {{name}} != '{interrupted}' || {{ kill -INT $PPID; exec sleep 30; }}; \
         test {{name}} != '{fails}' && echo {{name}} >> {0}/order && touch {0}/{{name}}",
        folder.path().display()
    );
    let output = Command::new(env!("CARGO_BIN_EXE_moim"))
        .args(["rolling-restart", "--json", "--timeout", "1", "--admin", &address, "--restart", &restart])
        .stdin(Stdio::null())
        .output()
        .await
        .expect("the binary runs");
    let order = std::fs::read_to_string(folder.path().join("order")).unwrap_or_default();
    Run {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        error: String::from_utf8_lossy(&output.stderr).into_owned(),
        drained: shared.lock().await.drained.clone(),
        restarted: order.lines().map(str::to_string).collect(),
    }
}

#[tokio::test]
async fn each_node_is_drained_then_restarted_and_the_leader_is_last() {
    let run = run(|_| {}).await;
    assert_eq!(run.code, Some(0), "{}", run.error);
    assert_eq!(run.drained, ["b", "c", "a"]);
    assert_eq!(run.restarted, ["b", "c", "a"]);
    let report: Value = serde_json::from_str(&run.out).expect("JSON");
    assert_eq!((&report["moved"], &report["recovered"]), (&json!(6), &json!(6)));
    assert_eq!(report["gap_ms"], json!({ "p50": 100, "p99": 3000, "max": 3000 }));
    assert_eq!(report["nodes"][1]["gap_ms"]["max"], 2000, "a step counts its own clients only");
}

#[tokio::test]
async fn nothing_is_touched_when_a_node_is_not_ready() {
    let run = run(|script| script.sick = Some("c")).await;
    assert_eq!(run.code, Some(3));
    assert!(run.error.contains("c: sick"), "{}", run.error);
    assert!(run.drained.is_empty() && run.restarted.is_empty());
}

#[tokio::test]
async fn a_refused_drain_stops_with_its_reason() {
    let run = run(|script| script.refuse = true).await;
    assert_eq!(run.code, Some(3));
    assert!(run.error.contains("node b is draining"), "{}", run.error);
    assert!(run.restarted.is_empty());
}

#[tokio::test]
async fn a_node_that_does_not_come_back_stops_the_rest() {
    let run = run(|script| script.lost = Some("c")).await;
    assert_eq!(run.code, Some(1));
    assert!(run.error.contains("stopped at c"), "{}", run.error);
    assert_eq!(run.restarted, ["b", "c"], "the leader was not touched");
    assert!(
        run.error.contains("c is not in service: see its log, start it if it is down, and run this again"),
        "{}",
        run.error
    );
}

#[tokio::test]
async fn a_node_that_is_left_draining_is_named_with_the_way_back() {
    let run = run(|script| script.fails = Some("c")).await;
    assert_eq!(run.code, Some(1));
    assert_eq!((run.drained, run.restarted), (vec!["b".to_owned(), "c".to_owned()], vec!["b".to_owned()]));
    assert!(run.error.contains("stopped at c") && run.error.contains("c is still draining"), "{}", run.error);
    assert!(run.error.contains("\"moim undrain c --admin 127.0.0.1:"), "{}", run.error);
}

#[tokio::test]
async fn who_is_interrupted_says_how_the_node_is_left() {
    let run = run(|script| script.interrupted = Some("c")).await;
    assert_eq!(run.code, Some(1), "{}", run.error);
    assert!(
        run.error.contains("stopped at c: it was interrupted") && run.error.contains("moim undrain c"),
        "{}",
        run.error
    );
    assert_eq!((run.drained, run.restarted), (vec!["b".to_owned(), "c".to_owned()], vec!["b".to_owned()]));
}
