//! `moim node`: which nodes the cluster has, and changes of them.
//!
//! A node joins by itself when it is started with `--join`, and gets a vote by itself up to the number of voters that formed
//! the cluster. So `add` starts nothing: it says what to run, and waits for it. The rest is one word to the leader each.

use std::time::Duration;

use clap::{Args, Subcommand};
use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{
    Failure,
    admin::{Admin, AdminArgs, NO_LEADER},
    print, table,
};

const POLL_EVERY: Duration = Duration::from_millis(500);

#[derive(Args)]
#[command(after_help = "\
Examples:
  moim node list --admin 127.0.0.1:3101
  moim node add node4 --voter
  moim node replace node2        an empty disk takes the place of the lost one
  moim node remove node3")]
pub struct NodeCommand {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Show the nodes, who votes, and what each learner waits for
    List {
        #[command(flatten)]
        admin: AdminArgs,
        /// The node's own answer, as JSON
        #[arg(long)]
        json: bool,
    },
    /// Say how to start a new node, and wait until it has joined
    Add {
        /// The name that it will have
        name: String,
        #[command(flatten)]
        admin: AdminArgs,
        /// Give it a vote, also beyond the number of voters that formed the cluster
        #[arg(long)]
        voter: bool,
        /// Seconds to wait for it
        #[arg(long, value_name = "SECONDS", default_value_t = 300)]
        wait: u64,
    },
    /// Give a learner a vote
    Promote {
        /// The node's name, or its id
        name: String,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Give the vote of a node to another; the old one is removed for good
    Replace {
        /// The node whose vote it is: name or id
        old: String,
        /// Who gets it: name or id [default: the new node of the same name]
        #[arg(long, value_name = "NODE")]
        by: Option<String>,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Remove a node for good
    Remove {
        /// The node's name, or its id
        name: String,
        #[command(flatten)]
        admin: AdminArgs,
    },
}

/// What `GET /v1/nodes` says.
#[derive(Deserialize)]
struct Nodes {
    expected: Option<u64>,
    voters: u64,
    nodes: Vec<Row>,
}

#[derive(Clone, Deserialize)]
struct Row {
    id: String,
    name: String,
    peer: String,
    role: String,
    leader: bool,
    up: Option<bool>,
    lag: Option<u64>,
    note: Option<String>,
}

/// Who was changed.
#[derive(Deserialize)]
struct Changed {
    id: String,
    name: String,
}

impl NodeCommand {
    pub async fn run(self) -> Result<(), Failure> {
        match self.what {
            What::List { admin, json } => list(&admin.into(), json).await,
            What::Add { name, admin, voter, wait } => add(&admin.into(), &name, voter, Duration::from_secs(wait)).await,
            What::Promote { name, admin } => promote(&admin.into(), &name).await,
            What::Replace { old, by, admin } => replace(&admin.into(), &old, by.as_deref().unwrap_or(&old)).await,
            What::Remove { name, admin } => remove(&admin.into(), &name).await,
        }
    }
}

async fn nodes(admin: &Admin) -> Result<Nodes, Failure> {
    admin.read("/v1/nodes").await
}

async fn list(admin: &Admin, json: bool) -> Result<(), Failure> {
    if json {
        let answer: Value = admin.read("/v1/nodes").await?;
        print(&format!("{answer:#}\n"));
    } else {
        print(&render(&nodes(admin).await?));
    }
    Ok(())
}

fn render(nodes: &Nodes) -> String {
    let unknown = || "-".to_owned();
    let row = |node: &Row| {
        [
            node.name.clone(),
            node.role.clone(),
            if node.leader { "*" } else { "" }.to_owned(),
            node.up.map_or_else(unknown, |up| if up { "yes" } else { "no" }.to_owned()),
            node.lag.map_or_else(unknown, |lag| lag.to_string()),
            node.peer.clone(),
            node.id.clone(),
        ]
    };
    let rows: Vec<_> = nodes.nodes.iter().map(row).collect();
    let mut text = table(["NAME", "ROLE", "LEADER", "UP", "LAG", "PEER", "ID"], &rows);
    for (node, note) in nodes.nodes.iter().filter_map(|node| Some((node, node.note.as_ref()?))) {
        text += &format!("{} ({}): {note}\n", node.name, node.role);
    }
    text + &match nodes.voters {
        0 => "this node is in no cluster yet; \"moim status\" says what it waits for\n".to_owned(),
        // How many may fail is past asking.
        _ if !nodes.nodes.iter().any(|node| node.leader) => NO_LEADER.to_owned(),
        _ => format!("{}\n", nodes.sum()),
    }
}

impl Nodes {
    /// How many vote, and how many of them may fail.
    fn sum(&self) -> String {
        let may_fail = match self.voters.saturating_sub(1) / 2 {
            0 => "none of them may fail".to_owned(),
            some => format!("{some} of them may fail at a time"),
        };
        let voters = if self.voters == 1 { "1 voter".to_owned() } else { format!("{} voters", self.voters) };
        match self.expected.filter(|expected| *expected != self.voters) {
            Some(expected) => format!("{voters}, {expected} formed the cluster; {may_fail}"),
            None => format!("{voters}; {may_fail}"),
        }
    }
}

async fn add(admin: &Admin, name: &str, voter: bool, wait: Duration) -> Result<(), Failure> {
    let before = nodes(admin).await?;
    let known: Vec<String> = before.nodes.iter().map(|node| node.id.clone()).collect();
    if before.nodes.iter().any(|node| node.name == name && node.up == Some(true)) {
        return Err(Failure::Usage(format!(
            "there is a node {name} already, and it is up; \"moim node promote {name}\" gives a learner a vote"
        )));
    }
    let join: Vec<&str> = before.nodes.iter().map(|node| node.peer.as_str()).collect();
    print(&format!(
        "Start it where it is to run, with an empty data folder and the cluster's secret:\n\n  \
         moim serve --name {name} --join {} --peer ADDR --cluster-secret-file FILE --auth …\n\n\
         Waiting for it, for {} s.\n",
        join.join(","),
        wait.as_secs()
    ));
    let until = Instant::now() + wait;
    let mut joined = None;
    let mut why = format!("{name} has not joined; its log says what it waits for");
    loop {
        let now = nodes(admin).await?;
        let new = now.nodes.iter().find(|node| node.name == name && !known.contains(&node.id));
        if let Some(node) = new {
            if joined.is_none() {
                print(&format!("{name} has joined (id {}).\n", node.id));
            }
            joined = Some(node.id.clone());
            if node.role == "voter" {
                print(&format!("{name} votes: {}.\n", now.sum()));
                return Ok(());
            }
            if !voter {
                let note = node.note.clone().unwrap_or_default();
                print(&format!("It serves clients as a learner: {note}\n"));
                return Ok(());
            }
            match vote(admin, json!({ "id": node.id })).await {
                Ok(_) => continue,
                // It is catching up, as a rule; the last word is what counts.
                Err(Failure::Unsafe(refused)) => why = refused,
                Err(e) => return Err(e),
            }
        }
        if Instant::now() >= until {
            return Err(Failure::failed(format!("{why}. \"moim node list\" shows where it stands")));
        }
        sleep(POLL_EVERY).await;
    }
}

async fn promote(admin: &Admin, name: &str) -> Result<(), Failure> {
    let changed = vote(admin, json!({ "name": name })).await?;
    print(&format!("{} votes: {}.\n", changed.name, nodes(admin).await?.sum()));
    Ok(())
}

async fn replace(admin: &Admin, old: &str, by: &str) -> Result<(), Failure> {
    let changed = vote(admin, json!({ "name": by, "replace": old })).await?;
    print(&format!(
        "{} (id {}) votes in the place of {old}, which is removed for good: {}.\n",
        changed.name,
        changed.id,
        nodes(admin).await?.sum()
    ));
    Ok(())
}

async fn vote(admin: &Admin, wanted: Value) -> Result<Changed, Failure> {
    admin.change(Method::POST, "/v1/nodes", Some(&wanted)).await
}

async fn remove(admin: &Admin, name: &str) -> Result<(), Failure> {
    let changed: Changed = admin.change(Method::DELETE, &format!("/v1/nodes/{name}"), None).await?;
    let sum = nodes(admin).await.map(|nodes| nodes.sum()).unwrap_or_default();
    print(&format!(
        "{} (id {}) is removed for good: {sum}.\nIf its process still runs it ends by itself. With an empty data folder the \
         machine can come back as a new node.\n",
        changed.name, changed.id
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_shows_who_votes_and_what_a_learner_waits_for() {
        let nodes: Nodes = serde_json::from_value(json!({
            "applied": 7, "consistency": "local", "expected": 3, "voters": 3,
            "nodes": [
                { "id": "11", "name": "a", "peer": "a:1", "role": "voter", "leader": true, "up": true, "lag": 0, "note": null },
                { "id": "22", "name": "b", "peer": "b:1", "role": "voter", "leader": false, "up": false, "lag": 12, "note": null },
                { "id": "33", "name": "b", "peer": "b:1", "role": "learner", "leader": false, "up": null, "lag": null,
                  "note": "it waits" },
            ],
        }))
        .expect("an answer");
        let expected = "\
NAME  ROLE     LEADER  UP   LAG  PEER  ID
a     voter    *       yes  0    a:1   11
b     voter            no   12   b:1   22
b     learner          -    -    b:1   33
b (learner): it waits
3 voters; 1 of them may fail at a time
";
        assert_eq!(render(&nodes), expected);
        let unled = nodes.nodes.iter().map(|node| Row { leader: false, ..node.clone() }).collect();
        let text = render(&Nodes { nodes: unled, ..nodes });
        assert!(text.contains("\nthere is no leader with a quorum now: ") && !text.contains("may fail"), "{text}");
        let text = render(&Nodes { expected: None, voters: 0, nodes: Vec::new() });
        assert!(text.contains("\nthis node is in no cluster yet") && !text.contains("leader"), "{text}");
        let sum = |voters, expected| Nodes { expected, voters, nodes: Vec::new() }.sum();
        assert_eq!(sum(2, Some(3)), "2 voters, 3 formed the cluster; none of them may fail");
        assert_eq!(sum(5, None), "5 voters; 2 of them may fail at a time");
        assert_eq!(sum(1, Some(1)), "1 voter; none of them may fail");
    }
}
