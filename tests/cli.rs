//! The built binary, as an operator meets it: exit codes, and errors that say what to do next.

mod binary;
#[path = "nodes/ports.rs"]
mod ports;

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use axum::{Json, Router, http::Uri, routing::get};
use binary::{end, moim, within};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

#[test]
fn a_wrong_flag_exits_2_and_names_the_right_one() {
    let (code, error) = end(moim(&["serve", "--drain-windw", "3s"]));
    assert_eq!(code, Some(2));
    assert!(error.contains("--drain-window"), "{error}");

    let (code, error) = end(moim(&["serve", "--auth", "open", "--drain-window", "3"]));
    assert_eq!(code, Some(2));
    assert!(error.contains("--drain-window") && error.contains("500ms, 120s"), "{error}");
}

#[test]
fn serve_wants_to_be_told_how_users_are_known() {
    let (code, error) = end(moim(&["serve"]));
    assert_eq!(code, Some(2));
    assert!(error.contains("--auth open"), "{error}");
    let (code, error) = end(moim(&["serve", "--auth", "jwt"]));
    assert_eq!(code, Some(2));
    assert!(error.contains("not there yet"), "{error}");
}

#[test]
fn a_wrong_file_is_refused_with_line_and_column() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("moim.toml");
    std::fs::write(&file, "auth = \"open\"\n[drain]\nwindw = \"3s\"\n").expect("written");
    for command in [&["serve"][..], &["config", "check"]] {
        let mut command = moim(command);
        command.arg("--config").arg(&file);
        let (code, error) = end(command);
        assert_eq!(code, Some(2));
        assert!(
            error.contains("moim.toml:3:1: unknown setting \"drain.windw\"; did you mean \"drain.window\""),
            "{error}"
        );
    }
    let mut missing = moim(&["serve"]);
    missing.env("MOIM_CONFIG", folder.path().join("none.toml"));
    let (code, error) = end(missing);
    assert_eq!(code, Some(2));
    assert!(error.contains("none.toml"), "{error}");
}

#[test]
fn a_wrong_variable_is_refused() {
    let mut command = moim(&["serve", "--auth", "open"]);
    command.env("MOIM_DRAIN_WINDW", "3s");
    let (code, error) = end(command);
    assert_eq!(code, Some(2));
    assert!(error.contains("MOIM_DRAIN_WINDOW"), "{error}");
}

#[test]
fn a_flag_wins_over_the_environment_and_that_over_the_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("moim.toml");
    std::fs::write(&file, "[drain]\nwindow = \"2s\"\ndelay = \"2s\"\ndeadline = \"20s\"\n").expect("written");
    let mut command = moim(&["config", "show", "--drain-window", "4s"]);
    command.env("MOIM_CONFIG", &file).env("MOIM_DRAIN_WINDOW", "3s").env("MOIM_DRAIN_DELAY", "3s");
    let text = String::from_utf8(command.output().expect("the binary runs").stdout).expect("text");
    let line = |key: &str| text.lines().find(|line| line.starts_with(key)).unwrap_or_default().split_whitespace();
    assert_eq!(line("drain.window").collect::<Vec<_>>(), ["drain.window", "4s", "--drain-window"]);
    assert_eq!(line("drain.delay").collect::<Vec<_>>(), ["drain.delay", "3s", "environment", "MOIM_DRAIN_DELAY"]);
    let place = format!("{}:4:12", file.display());
    assert_eq!(line("drain.deadline").collect::<Vec<_>>(), ["drain.deadline", "20s", &place]);
    assert_eq!(line("session.ttl").collect::<Vec<_>>(), ["session.ttl", "2m", "default"]);
}

#[test]
fn nobody_to_ask_exits_1_and_says_how_to_name_a_node() {
    let free = ports::address();
    let (code, error) = end(moim(&["status", "--admin", &free.to_string()]));
    assert_eq!(code, Some(1));
    assert!(error.contains("--admin HOST:PORT"), "{error}");
}

/// Each of three machines has its admin on loopback: an address that all of them name is that of whoever reads it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_meant_for_one_node_is_passed_on_by_whichever_is_asked() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    let nodes = ["a", "b", "c"].map(|name| json!({ "name": name, "admin": address }));
    let (tell, mut posted) = mpsc::unbounded_channel();
    let post = async move |uri: Uri| tell.send(uri.to_string()).map(|()| Json(json!({}))).map_err(|e| e.to_string());
    let routes = Router::new().route("/v1/cluster", get(Json(json!({ "nodes": nodes })))).fallback(post);
    let _server = AbortOnDropHandle::new(tokio::spawn(async move { axum::serve(listener, routes).await }));
    for what in ["drain", "undrain"] {
        let command = moim(&[what, "b", "--admin", &address]);
        let (code, error) = tokio::task::spawn_blocking(|| end(command)).await.expect("no panic");
        assert_eq!(code, Some(0), "{error}");
        assert_eq!(posted.recv().await, Some(format!("/v1/nodes/b/{what}")));
    }
}

#[test]
fn a_rolling_restart_wants_to_know_how_and_explains_it() {
    let (code, error) = end(moim(&["rolling-restart"]));
    assert_eq!(code, Some(2));
    assert!(error.contains("--restart 'kill -TERM $(cat DIR/{name}.pid)'"), "{error}");
}

/// A development cluster of this test's own, stopped with it.
struct Dev {
    process: Child,
    port: u16,
    folder: PathBuf,
}

/// A port whose neighbours up to `+300` are most likely free too: below the ephemeral range, another one for each test.
fn base_port(test: u16) -> u16 {
    20_000 + (std::process::id() % 10) as u16 * 1_000 + test * 350
}

impl Dev {
    fn start(port: u16) -> Self {
        let mut command = moim(&["dev", "--port", &port.to_string()]);
        let mut process = command.stdout(Stdio::piped()).spawn().expect("the binary runs");
        let output = BufReader::new(process.stdout.take().expect("piped"));
        let mut lines = output.lines().map_while(Result::ok);
        let hint = lines.find(|line| line.contains("kill -9 $(cat ")).expect("dev becomes ready and says what to try");
        // What it prints later must have a reader, or it would fail to print.
        std::thread::spawn(move || lines.count());
        let file = hint.split("$(cat ").nth(1).and_then(|rest| rest.strip_suffix(')')).expect("a pid file");
        Self { process, port, folder: Path::new(file).parent().expect("in a folder").to_path_buf() }
    }

    fn pids(&self) -> Vec<String> {
        let read = |n| std::fs::read_to_string(self.folder.join(format!("node{n}.pid"))).expect("a pid file");
        (1..=3).map(|n| read(n).trim().to_string()).collect()
    }

    fn signal(&self, name: &str, pid: &str) {
        assert!(Command::new("kill").args([name, pid]).status().expect("kill runs").success());
    }

    fn is_ready(&self, node: u16) -> bool {
        use std::io::{Read, Write};
        let Ok(mut stream) = std::net::TcpStream::connect(("127.0.0.1", self.port + node)) else { return false };
        let _ = stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer.starts_with("HTTP/1.1 200")
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A process that has ended and that nobody waited for counts as gone.
fn is_gone(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_none_or(|rest| rest.is_empty() || rest.trim_start().starts_with('Z'))
}

#[test]
fn dev_starts_killed_and_stopped_nodes_again_and_leaves_nothing_behind() {
    let mut dev = Dev::start(base_port(0));
    let before = dev.pids();
    dev.signal("-9", &before[1]);
    dev.signal("-TERM", &before[2]);
    assert!(
        within(20, || {
            let now = dev.pids();
            now[1] != before[1] && now[2] != before[2] && (0..=3).all(|node| dev.is_ready(node))
        }),
        "both come back"
    );

    let after = dev.pids();
    assert_eq!(after[0], before[0], "and nobody else was touched");
    dev.signal("-TERM", &dev.process.id().to_string());
    let mut code = None;
    assert!(within(15, || {
        code = dev.process.try_wait().expect("a child");
        code.is_some()
    }));
    assert_eq!(code.and_then(|code| code.code()), Some(0));
    assert!(after.iter().all(|pid| is_gone(pid)));
    assert!(!dev.folder.exists(), "its data is gone");
}

#[test]
fn dev_killed_with_9_takes_its_nodes_with_it() {
    let mut dev = Dev::start(base_port(1));
    let nodes = dev.pids();
    dev.process.kill().expect("it runs");
    assert!(within(15, || nodes.iter().all(|pid| is_gone(pid))), "no node outlives its parent");
}

#[test]
fn dev_names_a_port_in_use_before_it_starts_anything() {
    let port = base_port(2);
    // The last of its ports: had it started things as it went, nodes would be running by now.
    let _taken = TcpListener::bind(("127.0.0.1", port + 203)).expect("a free port");
    let mut command = moim(&["dev", "--port", &port.to_string()]);
    let Output { status, stdout, stderr } = command.output().expect("the binary runs");
    assert_eq!(status.code(), Some(1));
    let error = String::from_utf8_lossy(&stderr);
    assert!(error.contains(&format!("port {} is in use", port + 203)) && error.contains("--port"), "{error}");
    assert!(stdout.is_empty());
}
