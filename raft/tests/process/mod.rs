//! Nodes as processes of their own, so that they can be killed, stopped and cut off like real ones.
//!
//! A node is this very program, started again: the test (or bench) binary runs itself with [`ROLE`] in its environment. A
//! test file needs a test named [`ENTRY`] for that, a bench calls [`enter`] first thing in `main`:
//!
//! ```ignore
//! #[test]
//! fn process_node() {
//!     process::enter();
//! }
//! ```
//!
//! Orders and answers go over the child's stdin and stdout, one a line, see [`node`]. What always holds:
//!
//! * A node answers for itself only: its orders come through a pipe that no other process has, it makes its own
//!   listener, and each start has a higher incarnation than the one before, which [`Fleet`] checks.
//! * It dies with its parent, however that ends: its stdin closes, and if it is stopped just then, the kernel wakes it
//!   with a hang-up, because it leads a process group that nobody is left to look after.
//! * What it said before it was killed is heard: the pipe is read to its end before [`Process::ended`] returns.

#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod fill;
pub mod fleet;
pub mod ledger;
pub mod load;
pub mod mount;
pub mod node;
pub mod proxy;
pub mod random;

use std::{
    collections::HashMap,
    process::{ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

pub use fleet::{Fleet, Options};
pub use ledger::Ledger;
pub use load::Load;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, Command},
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};

/// Set in the environment of a process that is to be a node; its value is where it listens.
pub const ROLE: &str = "MOIM_PROCESS_NODE";
/// The test that turns a test binary into a node.
pub const ENTRY: &str = "process_node";
/// Longer than any order takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Becomes a node and never returns, if this process was started as one.
pub fn enter() {
    if let Ok(listen) = std::env::var(ROLE) {
        node::run(&listen);
    }
}

/// The parent's end of one node.
pub struct Process {
    pub pid: u32,
    /// Where it listens.
    pub addr: String,
    child: Child,
    stdin: tokio::sync::Mutex<ChildStdin>,
    orders: AtomicU64,
    answers: Answers,
    reader: JoinHandle<()>,
}

type Answers = Arc<Mutex<HashMap<u64, oneshot::Sender<Result<String, String>>>>>;

impl Process {
    /// Starts a node that listens on `listen` (port 0 for any) and waits until it does. What it says unasked goes to
    /// `heard`, line by line.
    pub async fn spawn(listen: &str, heard: impl Fn(&str) + Send + 'static) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", ENTRY, "--nocapture"])
            .env(ROLE, listen)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .expect("this program can be started again");
        let (listening, address) = oneshot::channel();
        let answers = Answers::default();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let reader = tokio::spawn(read(lines, answers.clone(), listening, heard));
        let addr = timeout(PATIENCE, address).await.expect("it starts in time").expect("it listens");
        let (pid, stdin) = (child.id().unwrap(), tokio::sync::Mutex::new(child.stdin.take().unwrap()));
        Self { pid, addr, child, stdin, orders: AtomicU64::new(1), answers, reader }
    }

    /// Gives an order and waits for its answer; an error when it says no, is gone, or does not answer in time.
    pub async fn ask(&self, order: &str) -> Result<String, String> {
        let number = self.orders.fetch_add(1, Ordering::Relaxed);
        let (tell, told) = oneshot::channel();
        self.answers.lock().unwrap().insert(number, tell);
        let line = format!("{number} {order}\n");
        if let Err(e) = self.stdin.lock().await.write_all(line.as_bytes()).await {
            return Err(format!("it is gone: {e}"));
        }
        // Its end closes the pipe; then the reader drops whoever waits.
        match timeout(PATIENCE, told).await {
            Ok(answer) => answer.unwrap_or_else(|_| Err("it is gone".to_owned())),
            Err(_) => Err(format!("`{order}` was not answered in time")),
        }
    }

    /// Gives an order whose answer nobody waits for.
    pub async fn tell(&self, order: &str) {
        let number = self.orders.fetch_add(1, Ordering::Relaxed);
        // To one that is gone there is nothing to tell.
        _ = self.stdin.lock().await.write_all(format!("{number} {order}\n").as_bytes()).await;
    }

    /// `STOP`, `CONT`, `KILL`.
    pub fn signal(&self, name: &str) {
        let sent = std::process::Command::new("kill").args([&format!("-{name}"), &self.pid.to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "process {} is not there to get {name}", self.pid);
    }

    /// `kill -9`, whatever it is doing. Returns when all it said was heard.
    pub async fn kill(mut self) {
        // It may have ended by itself meanwhile.
        _ = self.child.start_kill();
        self.ended().await;
    }

    /// Waits until it has ended by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        let status = timeout(PATIENCE, self.child.wait()).await.expect("it ends in time").unwrap();
        timeout(PATIENCE, &mut self.reader).await.expect("its pipe is closed").unwrap();
        status
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }
}

async fn read(
    mut lines: tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
    answers: Answers,
    listening: oneshot::Sender<String>,
    heard: impl Fn(&str),
) {
    let mut listening = Some(listening);
    while let Ok(Some(line)) = lines.next_line().await {
        // libtest talks on the same pipe.
        let Some(line) = line.strip_prefix(node::MARK) else { continue };
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word.parse::<u64>() {
            Ok(number) => {
                let Some(tell) = answers.lock().unwrap().remove(&number) else { continue };
                let (verdict, words) = rest.split_once(' ').unwrap_or((rest, ""));
                _ = tell.send(if verdict == "ok" { Ok(words.to_owned()) } else { Err(words.to_owned()) });
            }
            Err(_) if word == "listening" => _ = listening.take().map(|tell| tell.send(rest.to_owned())),
            Err(_) => heard(line),
        }
    }
    answers.lock().unwrap().clear();
}

/// `key=value` among words.
pub fn value<'a>(words: &'a str, key: &str) -> Option<&'a str> {
    words.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

/// The same, parsed; a missing or odd one is a bug of the harness.
#[track_caller]
pub fn parsed<T: std::str::FromStr>(words: &str, key: &str) -> T {
    let found = value(words, key).and_then(|value| value.parse().ok());
    found.unwrap_or_else(|| panic!("no usable `{key}` in `{words}`"))
}
