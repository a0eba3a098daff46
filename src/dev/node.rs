//! One node of the development cluster: a child process that is started again whenever it ends.
//!
//! The child's standard input is a pipe that this process holds and never writes to. Closing it asks the child to stop,
//! and the system closes it when this process dies in whatever way: no node is ever left behind.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::cli::print;

/// Drains are quick here: the balancer looks five times a second, and nobody wants to wait for Ctrl-C.
const SETTINGS: [&str; 5] =
    ["--auth=open", "--drain-delay=200ms", "--drain-window=2s", "--drain-deadline=6s", "--parent-stdin"];
/// The nodes' own deadline and a little.
const STOP_WITHIN: Duration = Duration::from_secs(8);
/// After a crash, so that one at every start does not become a busy loop. After a clean exit there is no pause.
const PAUSE_AFTER_CRASH: Duration = Duration::from_secs(2);
/// A node that ends sooner than this has not been restarted by anybody.
const SHORT_LIFE: Duration = Duration::from_millis(500);

/// Name, ports and files of one node.
#[derive(Clone)]
pub struct Node {
    pub name: String,
    pub client: u16,
    pub admin: u16,
    pub peer: u16,
    /// The cluster's folder; the node's own is in it.
    pub folder: PathBuf,
    /// Peer ports of all nodes.
    pub peers: Vec<u16>,
}

impl Node {
    pub fn log(&self) -> PathBuf {
        self.folder.join(format!("{}.log", self.name))
    }

    /// Keeps the node running until `shutdown`, then stops it.
    pub async fn supervise(self, shutdown: CancellationToken) {
        while !shutdown.is_cancelled() {
            let started = Instant::now();
            let ended = match self.spawn() {
                Ok(mut child) => {
                    // Waiting would close it, and closing it means stop.
                    let stdin = child.stdin.take();
                    tokio::select! {
                        ended = child.wait() => ended,
                        () = shutdown.cancelled() => {
                            drop(stdin);
                            return stopped(child).await;
                        }
                    }
                }
                Err(error) => Err(error),
            };
            if matches!(&ended, Ok(status) if status.success()) && started.elapsed() > SHORT_LIFE {
                print(&format!("{} stopped cleanly; starting it again\n", self.name));
                continue;
            }
            print(&format!(
                "{} {}; starting it again in {} s\n",
                self.name,
                describe(&ended),
                PAUSE_AFTER_CRASH.as_secs()
            ));
            if let Some(line) = last_line(&self.log()) {
                print(&format!("  its log ends: {line}\n"));
            }
            shutdown.run_until_cancelled(sleep(PAUSE_AFTER_CRASH)).await;
        }
    }

    fn spawn(&self) -> io::Result<Child> {
        let log = File::options().create(true).append(true).open(self.log())?;
        let local = |port: u16| format!("127.0.0.1:{port}");
        let join: Vec<String> = self.peers.iter().map(|port| local(*port)).collect();
        let child = Command::new(std::env::current_exe()?)
            .arg("serve")
            .args(["--name", &self.name])
            .arg("--data")
            .arg(self.folder.join(&self.name))
            .args(["--client", &local(self.client), "--admin", &local(self.admin), "--peer", &local(self.peer)])
            .args(["--join", &join.join(","), "--expect", &self.peers.len().to_string()])
            .args(SETTINGS)
            .env_remove("MOIM_CONFIG")
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0) // Ctrl-C is for us; the nodes hear of it in order.
            .kill_on_drop(true)
            .spawn()?;
        if let Some(pid) = child.id() {
            std::fs::write(self.folder.join(format!("{}.pid", self.name)), format!("{pid}\n"))?;
        }
        Ok(child)
    }
}

/// Waits, and then does not wait any more.
async fn stopped(mut child: Child) {
    if timeout(STOP_WITHIN, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

fn describe(ended: &io::Result<ExitStatus>) -> String {
    match ended {
        Ok(status) => format!("ended ({status})"),
        Err(error) => format!("could not be started ({error})"),
    }
}

/// The last line of the end of a file: logs can be long.
fn last_line(path: &Path) -> Option<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(4096))).ok()?;
    let mut end = Vec::new();
    file.take(4096).read_to_end(&mut end).ok()?;
    String::from_utf8_lossy(&end).lines().rfind(|line| !line.trim().is_empty()).map(str::to_string)
}
