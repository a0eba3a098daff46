//! `moim rolling-restart`: node after node, the leader last, and what each client saw of it.
//!
//! The next node is touched only when the last one is ready in a later incarnation and has caught up; anything that looks
//! different stops the whole, with the cluster as it is then. What clients saw is read from the replicated log, from a node
//! that is not the one being restarted: a restarted node begins its own counts at zero.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use clap::Args;
use serde::{Deserialize, Serialize};
use tokio::{process::Command, signal::ctrl_c, time::sleep};

use super::{
    Failure,
    admin::{Admin, AdminArgs, Cluster, Node},
    drain::drain,
};

/// A node fewer entries behind than this counts as caught up.
const LAG_MAX: u64 = 100;
/// How long a node may take to drain, and again to come back, unless it is said.
const TIMEOUT_SECONDS: u64 = 90;
const POLL_EVERY: Duration = Duration::from_millis(100);
/// How long clients are waited for whose session is not live again when their node already is. A client that has gone for
/// good never comes, so this ends by itself.
const STRAGGLERS_WITHIN: Duration = Duration::from_secs(5);

#[derive(Args)]
#[command(after_help = "\
Examples:
  moim rolling-restart --admin a:3100,b:3100 --restart 'ssh {name} systemctl restart moim'
  scripts/cluster.sh rolling-restart
  (\"moim dev\" prints the line for its own cluster)")]
pub struct RollingRestart {
    #[command(flatten)]
    admin: AdminArgs,
    /// Shell command that restarts one node; {name} stands for its name
    #[arg(long, value_name = "CMD")]
    restart: Option<String>,
    /// Seconds that each node may take to drain, and again to come back
    #[arg(long, value_name = "SECONDS", default_value_t = TIMEOUT_SECONDS)]
    timeout: u64,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// `GET /v1/gaps?after=<position>`: the sessions that came back after that position, as the asked node's log has them.
#[derive(Default, Deserialize)]
struct Gaps {
    /// Up to where this answer goes; what to ask after next time.
    position: u64,
    gaps: Vec<Gap>,
    /// Sessions that went on.
    resumed: u64,
    /// Clients that had to begin a new session.
    #[serde(default)]
    fresh: u64,
}

#[derive(Deserialize)]
struct Gap {
    ms: u64,
}

/// What the clients of one node saw.
#[derive(Serialize)]
struct Step {
    node: String,
    moved: u64,
    recovered: u64,
    /// Of the whole step, drain included.
    took_ms: u64,
    #[serde(skip)]
    gaps_ms: Vec<u64>,
    #[serde(rename = "gap_ms")]
    gap: Option<Summary>,
}

#[derive(Serialize, Clone, Copy, Debug, PartialEq)]
struct Summary {
    p50: u64,
    p99: u64,
    max: u64,
}

impl RollingRestart {
    pub async fn run(self) -> Result<(), Failure> {
        let Some(command) = self.restart else { return Err(Failure::Usage(HOW_TO_RESTART.into())) };
        let say: fn(&str) = if self.json { |_| {} } else { |text| println!("{text}") };
        let run = Run { admin: Admin::from(self.admin), command, within: Duration::from_secs(self.timeout), say };
        report(&run.all().await?, self.json);
        Ok(())
    }
}

/// Restarts node after node by `command`, as the command line does, and tells `say` how it goes.
///
/// # Errors
/// `Unsafe` before anything was touched, `Failed` at the first doubt.
pub async fn restart_all(admin: AdminArgs, command: String, say: fn(&str)) -> Result<(), Failure> {
    let within = Duration::from_secs(TIMEOUT_SECONDS);
    Run { admin: Admin::from(admin), command, within, say }.all().await.map(|_| ())
}

const HOW_TO_RESTART: &str = "\
say how a node is restarted, with {name} for its name, for example
  --restart 'ssh {name} systemctl restart moim'      machines with systemd
  --restart 'scripts/cluster.sh restart {name}'      the cluster of scripts/cluster.sh
  --restart 'kill -TERM $(cat DIR/{name}.pid)'       the cluster of \"moim dev\", which prints its DIR";

/// Followers first: each hand-over of leadership is a pause for writers, and so there is only one.
fn next<'a>(cluster: &'a Cluster, left: &[String]) -> Option<&'a Node> {
    let candidates = || cluster.nodes.iter().filter(|node| left.contains(&node.name));
    candidates().find(|node| !node.leader).or_else(|| candidates().next())
}

struct Run {
    admin: Admin,
    command: String,
    within: Duration,
    say: fn(&str),
}

impl Run {
    fn say(&self, text: &str) {
        (self.say)(text);
    }

    async fn all(&self) -> Result<Vec<Step>, Failure> {
        let mut left: Vec<String> = self.fit_cluster().await?.nodes.into_iter().map(|node| node.name).collect();
        let mut steps = Vec::new();
        while !left.is_empty() {
            let cluster = self.fit_cluster().await?;
            let next = next(&cluster, &left).ok_or_else(|| {
                Failure::failed(format!(
                    "stopped: {} left the cluster in the meantime; see moim status",
                    left.join(", ")
                ))
            })?;
            left.retain(|name| *name != next.name);
            let step = self.step(&cluster, next).await?;
            self.say(&line(&step.node, step.moved, step.recovered, step.gap, step.took_ms));
            steps.push(step);
        }
        Ok(steps)
    }

    /// The cluster, if nothing speaks against taking one node out of it.
    async fn fit_cluster(&self) -> Result<Cluster, Failure> {
        let cluster = self.admin.cluster().await?;
        let doubts: Vec<String> = cluster
            .nodes
            .iter()
            .filter_map(|node| match node.readiness() {
                Ok(()) if node.lag.unwrap_or(0) < LAG_MAX => None,
                Ok(()) => Some(format!("{} is behind", node.name)),
                Err(why) => Some(format!("{}: {why}", node.name)),
            })
            .collect();
        if !doubts.is_empty() {
            return Err(Failure::Unsafe(format!(
                "not every node is ready ({}); mend that first, then again",
                doubts.join("; ")
            )));
        }
        if !cluster.nodes.iter().any(|node| node.leader) {
            return Err(Failure::Unsafe("the cluster has no leader just now; try again in a moment".into()));
        }
        Ok(cluster)
    }

    /// Takes one node out of service, restarts it, and measures what its clients saw.
    async fn step(&self, cluster: &Cluster, node: &Node) -> Result<Step, Failure> {
        let others = self.admin.others(cluster, &node.name);
        let command = self.command_for(&node.name)?;
        let started = Instant::now();
        let gaps: Gaps = others.read("/v1/gaps?after=0").await?;
        // A place among commands, not the log's index: that counts other entries too, and would skip what comes next.
        let mark = gaps.position;

        let done = tokio::select! {
            done = self.drain_and_restart(&others, node, &command) => done,
            _ = ctrl_c() => Err(stopped(&node.name, "it was interrupted")),
        };
        match done {
            // What is not safe was not begun.
            Err(Failure::Failed(why)) => {
                return Err(Failure::Failed(format!("{why}. {}", self.left(&others, &node.name).await)));
            }
            done => done?,
        }

        let seen = self.moved(&others, mark, node.sockets.unwrap_or(0)).await?;
        let gaps_ms: Vec<u64> = seen.gaps.iter().map(|gap| gap.ms).collect();
        Ok(Step {
            node: node.name.clone(),
            moved: seen.resumed + seen.fresh,
            recovered: seen.resumed,
            took_ms: started.elapsed().as_millis() as u64,
            gap: summary(&gaps_ms),
            gaps_ms,
        })
    }

    async fn drain_and_restart(&self, others: &Admin, node: &Node, command: &str) -> Result<(), Failure> {
        self.say(&format!("{}: draining ({} sockets)", node.name, node.sockets.unwrap_or(0)));
        drain(others, &node.name).await?;
        self.until(others, &node.name, "is not empty", |now| now.sockets == Some(0)).await?;

        self.say(&format!("{}: restarting", node.name));
        restart(&node.name, command).await?;
        self.until(others, &node.name, "is not ready and caught up in a later incarnation", |now| {
            now.readiness().is_ok()
                && now.lag.is_some_and(|lag| lag < LAG_MAX)
                && now.role == node.role
                && now.incarnation > node.incarnation
        })
        .await
    }

    /// How the node is that this stopped at, and how to go on.
    async fn left(&self, others: &Admin, name: &str) -> String {
        let cluster = others.cluster().await.ok();
        let node = cluster.and_then(|cluster| cluster.nodes.into_iter().find(|node| node.name == name));
        let then = "and run this again";
        match node.map(|node| (node.draining, node.ready)) {
            Some((Some(true), _)) => format!(
                "{name} is still draining and gets no clients: restart it by hand, or take it back into service with \
                 \"moim undrain {name} --admin {}\", {then}",
                self.admin
            ),
            Some((_, Some(true))) => format!("{name} is in service; mend what was wrong {then}"),
            _ => format!("{name} is not in service: see its log, start it if it is down, {then}"),
        }
    }

    /// The shell command that restarts this node.
    fn command_for(&self, name: &str) -> Result<String, Failure> {
        // A node's name is a plain word (config checks it), but this one came over the network.
        if !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')) {
            return Err(Failure::Unsafe(format!("the name {name:?} cannot be put into a shell command")));
        }
        Ok(self.command.replace("{name}", name))
    }

    /// Asks the other nodes until `done` holds for `name`. A question without an answer is asked again: the one thing that
    /// may be silent for a moment is the leader in hand-over.
    async fn until(
        &self,
        others: &Admin,
        name: &str,
        not_yet: &str,
        done: impl Fn(&Node) -> bool,
    ) -> Result<(), Failure> {
        let deadline = Instant::now() + self.within;
        loop {
            let last = match others.cluster().await {
                Ok(cluster) => match cluster.nodes.into_iter().find(|node| node.name == name) {
                    Some(node) if done(&node) => return Ok(()),
                    Some(node) => {
                        node.readiness().err().unwrap_or(format!("sockets {:?}, lag {:?}", node.sockets, node.lag))
                    }
                    None => return Err(stopped(name, "it is no longer in the cluster")),
                },
                Err(failure) => failure.to_string(),
            };
            if Instant::now() >= deadline {
                return Err(stopped(name, &format!("it {not_yet} after {} s ({last})", self.within.as_secs())));
            }
            sleep(POLL_EVERY).await;
        }
    }

    /// The sessions that moved since `mark`, once all `expected` are there or the stragglers' time is over.
    async fn moved(&self, others: &Admin, mark: u64, expected: u64) -> Result<Gaps, Failure> {
        let deadline = Instant::now() + STRAGGLERS_WITHIN;
        loop {
            let gaps: Gaps = others.read(&format!("/v1/gaps?after={mark}")).await?;
            if gaps.resumed + gaps.fresh >= expected || Instant::now() >= deadline {
                return Ok(gaps);
            }
            sleep(POLL_EVERY).await;
        }
    }
}

async fn restart(name: &str, command: &str) -> Result<(), Failure> {
    let status = Command::new("sh").arg("-c").arg(command).stdin(Stdio::null()).kill_on_drop(true).status().await;
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(stopped(name, &format!("`{command}` ended with {status}"))),
        Err(error) => Err(stopped(name, &format!("`{command}` could not be run: {error}"))),
    }
}

fn stopped(name: &str, why: &str) -> Failure {
    Failure::failed(format!("stopped at {name}: {why}. The nodes after it were not touched"))
}

/// Nearest-rank percentiles; `None` when nobody moved.
fn summary(gaps_ms: &[u64]) -> Option<Summary> {
    let mut sorted = gaps_ms.to_vec();
    sorted.sort_unstable();
    let rank = |percent: usize| sorted.get((sorted.len() * percent).div_ceil(100).max(1) - 1).copied();
    Some(Summary { p50: rank(50)?, p99: rank(99)?, max: *sorted.last()? })
}

fn line(what: &str, moved: u64, recovered: u64, gap: Option<Summary>, took_ms: u64) -> String {
    let gap = match gap {
        Some(Summary { p50, p99, max }) => format!("gap p50 {p50} ms, p99 {p99} ms, max {max} ms"),
        None => "no gaps".into(),
    };
    format!("{what}: {moved} clients moved, {recovered} recovered, {gap}, took {:.1} s", took_ms as f64 / 1000.0)
}

fn report(steps: &[Step], json: bool) {
    let all: Vec<u64> = steps.iter().flat_map(|step| step.gaps_ms.iter().copied()).collect();
    let sum = |of: fn(&Step) -> u64| steps.iter().map(of).sum::<u64>();
    let (moved, recovered, took) = (sum(|s| s.moved), sum(|s| s.recovered), sum(|s| s.took_ms));
    if json {
        let report = serde_json::json!({
            "nodes": steps, "moved": moved, "recovered": recovered, "gap_ms": summary(&all), "took_ms": took,
        });
        println!("{report:#}");
    } else {
        println!("{}", line("all", moved, recovered, summary(&all), took));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(leader: &str) -> Cluster {
        let nodes: Vec<_> =
            ["a", "b", "c"].iter().map(|name| serde_json::json!({ "name": name, "leader": *name == leader })).collect();
        serde_json::from_value(serde_json::json!({ "nodes": nodes })).expect("an answer")
    }

    #[test]
    fn the_leader_is_last_wherever_leadership_goes() {
        let names = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        assert_eq!(next(&cluster("a"), &names(&["a", "b", "c"])).map(|n| n.name.as_str()), Some("b"));
        assert_eq!(next(&cluster("c"), &names(&["a", "c"])).map(|n| n.name.as_str()), Some("a"));
        assert_eq!(next(&cluster("a"), &names(&["a"])).map(|n| n.name.as_str()), Some("a"));
        assert!(next(&cluster("a"), &names(&["d"])).is_none());
    }

    #[test]
    fn percentiles_are_values_that_some_client_saw() {
        assert_eq!(summary(&[]), None);
        assert_eq!(summary(&[7]), Some(Summary { p50: 7, p99: 7, max: 7 }));
        let hundred: Vec<u64> = (1..=100).rev().collect();
        assert_eq!(summary(&hundred), Some(Summary { p50: 50, p99: 99, max: 100 }));
    }
}
