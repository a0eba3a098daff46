//! `moim dev`: a whole cluster on this machine from nothing, to try things on.
//!
//! The nodes are real processes of this same binary, so that one can be killed; in front of them is the small
//! [`balancer`]. Everything ends with this process, however it ends, and nothing of it is kept.

mod balancer;
mod node;

use std::{
    io,
    path::Path,
    time::{Duration, Instant},
};

use clap::Args;
use http::{Method, StatusCode};
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::node::Node;
use crate::{
    cli::{Failure, print},
    fetch::fetch,
};

/// Far more than a laptop is asked for; the ports of the three kinds do not overlap up to here.
const NODES_MAX: u16 = 9;
const READY_WITHIN: Duration = Duration::from_secs(30);

#[derive(Args)]
#[command(after_help = "\
Examples:
  moim dev                          three nodes; open http://127.0.0.1:3000
  moim dev --nodes 5 --port 4000    clients at 4001…, admin at 4101…, peers at 4201…")]
pub struct Dev {
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=NODES_MAX as i64))]
    nodes: u16,
    /// The balancer's port; node N has this + N, its admin listener 100 more, its peer listener 200 more
    #[arg(long, default_value_t = 3000, value_parser = clap::value_parser!(u16).range(1..=65_000))]
    port: u16,
}

impl Dev {
    pub async fn run(self) -> Result<(), Failure> {
        let mut stop = Stop::new()?;
        let listener = free(self.port).await?;
        for port in (1..=self.nodes).flat_map(|n| [n, 100 + n, 200 + n]).map(|offset| self.port + offset) {
            free(port).await?;
        }
        let folder = tempfile::Builder::new().prefix("moim-dev-").tempdir();
        let folder = folder.map_err(|error| Failure::failed(format!("no temporary folder: {error}; see TMPDIR")))?;
        let nodes = self.nodes_in(folder.path());

        let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
        let started = Instant::now();
        for node in nodes.clone() {
            tasks.spawn(node.supervise(shutdown.clone()));
        }
        let backends = nodes.iter().map(|node| ([127, 0, 0, 1], node.client).into()).collect();
        let balancer = CancellationToken::new();
        let balancer_task = tokio::spawn(balancer::run(listener, backends, balancer.clone()));

        let outcome = tokio::select! {
            outcome = until_stopped(&nodes, started, self.port, folder.path()) => outcome,
            () = stop.asked() => Ok(()),
        };
        print(&format!("Stopping {} nodes; once more Ctrl-C kills them.\n", nodes.len()));
        shutdown.cancel();
        tasks.close();
        tokio::select! {
            () = tasks.wait() => {}
            () = stop.asked() => {} // Children die with their handles.
        }
        balancer.cancel();
        let _ = balancer_task.await;
        remove(folder, outcome.is_err());
        outcome
    }

    fn nodes_in(&self, folder: &Path) -> Vec<Node> {
        let node = |n: u16| Node {
            name: format!("node{n}"),
            client: self.port + n,
            admin: self.port + 100 + n,
            peer: self.port + 200 + n,
            folder: folder.to_path_buf(),
            peers: (1..=self.nodes).map(|n| self.port + 200 + n).collect(),
        };
        (1..=self.nodes).map(node).collect()
    }
}

/// Ctrl-C, SIGTERM and a closed terminal, heard from the moment it is made.
struct Stop {
    interrupt: Signal,
    term: Signal,
    hangup: Signal,
}

impl Stop {
    fn new() -> Result<Self, Failure> {
        let listen =
            |kind| signal(kind).map_err(|error| Failure::failed(format!("cannot listen for signals: {error}")));
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            term: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.term.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

/// Binds `port` on loopback. Done for every port before anything is started, so that nothing is half there.
async fn free(port: u16) -> Result<TcpListener, Failure> {
    TcpListener::bind(("127.0.0.1", port)).await.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => Failure::failed(format!(
            "port {port} is in use; stop what listens there (another \"moim dev\"?) or choose others with --port"
        )),
        _ => Failure::failed(format!("cannot listen on 127.0.0.1:{port}: {error}")),
    })
}

/// Says what to do once all nodes are ready; from then on only the user ends it.
async fn until_stopped(nodes: &[Node], started: Instant, port: u16, folder: &Path) -> Result<(), Failure> {
    let ready = async {
        for node in nodes {
            while !is_ready(node.client).await {
                sleep(Duration::from_millis(20)).await;
            }
        }
    };
    if timeout(READY_WITHIN, ready).await.is_err() {
        let logs: Vec<String> = nodes.iter().map(|node| node.log().display().to_string()).collect();
        return Err(Failure::failed(format!(
            "the nodes are not ready after {} s; their logs are kept: {}",
            READY_WITHIN.as_secs(),
            logs.join(", ")
        )));
    }
    print(&hint(nodes, started.elapsed(), port, folder));
    std::future::pending().await
}

async fn is_ready(port: u16) -> bool {
    let answer = fetch(Method::GET, &format!("127.0.0.1:{port}"), "/readyz", Duration::from_secs(1)).await;
    matches!(answer, Ok((StatusCode::OK, _)))
}

fn hint(nodes: &[Node], took: Duration, port: u16, folder: &Path) -> String {
    let admin: Vec<String> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.admin)).collect();
    let admin = admin.join(",");
    let binary = std::env::current_exe().map_or("moim".into(), |path| path.display().to_string());
    let folder = folder.display();
    let last = nodes.last().map_or("node1", |node| &node.name);
    format!(
        "\
{} nodes are ready after {:.1} s. Open http://127.0.0.1:{port} in two tabs and chat.

Then restart what you are connected to, and watch the page:
  {binary} status --admin {admin}
  {binary} rolling-restart --admin {admin} --restart 'kill -TERM $(cat {folder}/{{name}}.pid)'
  kill -9 $(cat {folder}/{last}.pid)

Logs: {folder}/*.log (removed with all data at the end). Ctrl-C stops everything.
",
        nodes.len(),
        took.as_secs_f64()
    )
}

/// Data of a cluster that never became ready is what its user needs to look at next.
fn remove(folder: TempDir, keep: bool) {
    if keep {
        let _ = folder.keep();
    } else if let Err(error) = folder.close() {
        print(&format!("The temporary folder could not be removed: {error}\n"));
    }
}
