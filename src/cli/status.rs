//! `moim status`: the nodes as one of them sees them.

use clap::Args;
use serde_json::Value;

use super::{
    Failure,
    admin::{Admin, AdminArgs, Cluster, NO_LEADER, Node},
    print, table,
};

#[derive(Args)]
#[command(after_help = "\
Examples:
  moim status --admin 127.0.0.1:3101
  moim status --admin a:3100,b:3100 --json | jq '.nodes[].lag'")]
pub struct Status {
    #[command(flatten)]
    admin: AdminArgs,
    /// The node's own answer, as JSON
    #[arg(long)]
    json: bool,
}

impl Status {
    pub async fn run(self) -> Result<(), Failure> {
        let admin = Admin::from(self.admin);
        if self.json {
            let answer: Value = admin.read("/v1/cluster").await?;
            print(&format!("{answer:#}\n"));
        } else {
            print(&render(&admin.cluster().await?));
        }
        Ok(())
    }
}

const HEADINGS: [&str; 10] =
    ["NAME", "ROLE", "LEADER", "READY", "APPLIED", "LAG", "SOCKETS", "RELAYED", "VERSION", "UPTIME"];

fn render(cluster: &Cluster) -> String {
    let rows: Vec<_> = cluster.nodes.iter().map(row).collect();
    let mut text = table(HEADINGS, &rows);
    // Reasons are sentences; they get lines of their own.
    for node in &cluster.nodes {
        if let Err(why) = node.readiness() {
            text += &format!("{} is not ready: {why}\n", node.name);
        }
        if let Some(note) = &node.note {
            text += &format!("{} has no vote: {note}\n", node.name);
        }
    }
    // Where nobody votes yet, the nodes' own reasons say more.
    if cluster.nodes.iter().any(|node| node.role == "voter") && !cluster.nodes.iter().any(|node| node.leader) {
        text += NO_LEADER;
    }
    if let Some(found) = &cluster.diverged {
        let hashes: Vec<String> = found.hashes.iter().map(|(name, hash)| format!("{name} {hash}")).collect();
        let wrong = if found.wrong.is_empty() { "unknown".to_owned() } else { found.wrong.join(", ") };
        text += &format!("ALARM: the nodes have different states at index {}, wrong: {wrong}\n", found.index);
        text += &format!("  {}\n", hashes.join("\n  "));
    }
    text + &format!("term {}, applied {}\n", cluster.term, cluster.applied)
}

fn row(node: &Node) -> [String; 10] {
    let unknown = || "-".to_string();
    let number = |value: Option<u64>| value.map_or_else(unknown, |value| value.to_string());
    let ready = match (node.ready, node.draining) {
        (_, Some(true)) => "draining",
        (Some(true), _) => "yes",
        (Some(false), _) => "no",
        (None, _) => "?",
    };
    [
        node.name.clone(),
        node.role.clone(),
        if node.leader { "*" } else { "" }.into(),
        ready.into(),
        number(node.applied),
        number(node.lag),
        number(node.sockets),
        number(node.relayed),
        node.version.clone().unwrap_or_else(unknown),
        node.uptime.map_or_else(unknown, uptime),
    ]
}

/// Two units are enough: `3d 4h`, `12m 5s`.
fn uptime(seconds: f64) -> String {
    let s = seconds.max(0.0) as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3_600 => format!("{}m {}s", s / 60, s % 60),
        3_600..86_400 => format!("{}h {}m", s / 3_600, s % 3_600 / 60),
        _ => format!("{}d {}h", s / 86_400, s % 86_400 / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_states_are_an_alarm() {
        let cluster = serde_json::json!({
            "term": 3, "applied": 90, "nodes": [],
            "diverged": { "index": 88, "wrong": ["n3"], "hashes": { "n1": "0a", "n3": "0b" } },
        });
        let text = render(&serde_json::from_value(cluster).expect("an answer"));
        assert!(
            text.contains("ALARM: the nodes have different states at index 88, wrong: n3\n  n1 0a\n  n3 0b\n"),
            "{text}"
        );
    }

    #[test]
    fn a_silent_node_and_one_that_is_not_ready_say_so() {
        let cluster: Cluster = serde_json::from_value(serde_json::json!({
            "term": 3, "applied": 90,
            "nodes": [
                { "name": "node1", "role": "voter", "leader": true, "ready": true, "applied": 90, "lag": 0, "sockets": 12, "relayed": 3,
                  "version": "0.1.0", "uptime": 75, "draining": false },
                { "name": "node2", "role": "voter", "ready": false, "why": ["no leader", "behind"], "uptime": 90061.5 },
                { "name": "n3", "role": "learner", "ready": null, "sockets": null, "note": "it is catching up" },
            ],
        }))
        .expect("an answer");
        let text = render(&cluster);
        let expected = "\
NAME   ROLE     LEADER  READY  APPLIED  LAG  SOCKETS  RELAYED  VERSION  UPTIME
node1  voter    *       yes    90       0    12       3        0.1.0    1m 15s
node2  voter            no     -        -    -        -        -        1d 1h
n3     learner          ?      -        -    -        -        -        -
node2 is not ready: no leader; behind
n3 is not ready: no answer
n3 has no vote: it is catching up
term 3, applied 90
";
        assert_eq!(text, expected);
        let unled = Cluster { nodes: cluster.nodes[1..].to_vec(), ..cluster };
        assert!(render(&unled).contains("\nthere is no leader with a quorum now: "), "{}", render(&unled));
    }
}
