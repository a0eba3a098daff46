//! The cluster's nodes for an operator: who they are and what each is waiting for; promote, replace, remove.
//!
//! A node is named by its name, or by its id where a lost disk has left two of one name. Whatever node is asked, the leader
//! decides and does it; what it refuses is a 409 with its reason.

use std::{sync::Arc, time::Duration};

use axum::{Json, extract::State};
use bytes::Bytes;
use http::StatusCode;
use moim_raft::{Change, Error, Member, NodeId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::answer::{Answer, Failure, Named, Read, from_json};
use crate::{health, node::Node};

/// Who was heard of within this is up, in milliseconds.
const UP_WITHIN_MS: u64 = 1000;
/// For how long a change waits until somebody leads. Together with the change itself below what the command line waits.
const ELECTION_MAX: Duration = Duration::from_millis(1500);
const LOOK: Duration = Duration::from_millis(50);

#[derive(Serialize)]
pub struct Nodes {
    /// With how many voters the cluster was formed; up to so many learners are promoted by themselves.
    expected: Option<u64>,
    voters: usize,
    nodes: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    /// A number of 64 bits, as text: JavaScript has no such numbers.
    id: String,
    name: String,
    peer: String,
    role: &'static str,
    leader: bool,
    /// What only a leader can tell is `null` when there is none.
    up: Option<bool>,
    silent_ms: Option<u64>,
    lag: Option<u64>,
    /// Why it is a learner still.
    note: Option<String>,
}

/// `GET /v1/nodes`
pub async fn list(read: Read) -> Answer<Nodes> {
    let (members, leader) = members(&read.node).await;
    let led = leader.is_some();
    let row = |member: Member| Row {
        id: member.node.to_string(),
        leader: leader == Some(member.node),
        role: role(&member),
        up: led.then_some(member.silent_ms < UP_WITHIN_MS),
        silent_ms: led.then_some(member.silent_ms),
        name: member.peer.name,
        peer: member.peer.addr,
        lag: member.lag,
        note: member.note,
    };
    let voters = members.iter().filter(|member| member.voter).count();
    let mut nodes: Vec<Row> = members.into_iter().map(row).collect();
    nodes.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    read.state(|state| state.expected_voters()).map(|expected| Nodes { expected, voters, nodes })
}

fn role(member: &Member) -> &'static str {
    if member.voter { "voter" } else { "learner" }
}

/// As the leader sees them, and who that is; without one that has a quorum, as this node knows them.
async fn members(node: &Node) -> (Vec<Member>, Option<NodeId>) {
    let asked = node.store.members().await;
    let status = node.store.status();
    if let (Ok(members), Some(leader)) = (asked, health::leader(&status)) {
        return (members, Some(leader));
    }
    let known = status.peers.into_iter().map(|(id, peer)| {
        let voter = status.voters.contains(&id);
        Member { node: id, peer, voter, lag: None, silent_ms: 0, note: None }
    });
    (known.collect(), None)
}

/// For a change of them: as a leader sees them that could carry it out. An election is waited for.
async fn led(node: &Node) -> Result<Vec<Member>, Failure> {
    let until = Instant::now() + ELECTION_MAX;
    loop {
        match members(node).await {
            (members, Some(_)) => return Ok(members),
            _ if Instant::now() >= until => return Err(Failure::no_leader()),
            _ => sleep(LOOK).await,
        }
    }
}

/// What is wanted of a node: a vote, in the place of `replace` if that is given.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    name: Option<String>,
    id: Option<String>,
    #[serde(default = "voter")]
    role: String,
    replace: Option<String>,
}

fn voter() -> String {
    "voter".to_owned()
}

/// `POST /v1/nodes`, with `{ name | id, role?: "voter", replace?: name or id }`. A node joins by itself, as a learner; this
/// gives it a vote.
pub async fn post(State(node): State<Arc<Node>>, body: Bytes) -> Result<Json<Value>, Failure> {
    let wanted: Wanted = from_json(&body)
        .ok_or_else(|| Failure::bad_request("the body is { name or id, role: \"voter\", replace: name or id }"))?;
    let new = match (&wanted.name, &wanted.id) {
        (Some(one), None) | (None, Some(one)) => one,
        _ => return Err(Failure::bad_request("say either the name or the id")),
    };
    if wanted.role != "voter" {
        return Err(Failure::bad_request(
            "role is \"voter\": a node is a learner when it joins, and a voter that is to learn is removed and joins again",
        ));
    }
    let members = led(&node).await?;
    let learner = match &wanted.replace {
        Some(old) if old == new => newcomer(&members, new)?,
        _ => find(&members, new, |member| !member.voter)?,
    };
    let change = match &wanted.replace {
        // Only the other of the name can be meant.
        Some(old) => {
            let others: Vec<Member> = members.iter().filter(|member| member.node != learner.node).cloned().collect();
            Change::Replace { old: find(&others, old, |member| member.voter)?.node, new: learner.node }
        }
        None => Change::Promote { node: learner.node },
    };
    carry_out(&node, &change).await?;
    Ok(Json(json!({ "ok": true, "id": learner.node.to_string(), "name": learner.peer.name, "role": "voter" })))
}

/// `DELETE /v1/nodes/{name}`: for good; the id is never used again.
pub async fn remove(State(node): State<Arc<Node>>, Named(name): Named) -> Result<Json<Value>, Failure> {
    let members = led(&node).await?;
    let gone = find(&members, &name, |_| true)?;
    carry_out(&node, &Change::Remove { node: gone.node }).await?;
    Ok(Json(json!({ "ok": true, "id": gone.node.to_string(), "name": gone.peer.name })))
}

async fn carry_out(node: &Node, change: &Change) -> Result<(), Failure> {
    node.store.change(change).await.map_err(|e| match e {
        Error::Refused(why) => Failure::new(StatusCode::CONFLICT, "refused", why),
        e => Failure::unavailable(format!("{}; GET /v1/nodes shows how far it came", e.why())),
    })
}

/// The learner that came under the name of the node whose place it is to take.
fn newcomer<'a>(members: &'a [Member], name: &str) -> Result<&'a Member, Failure> {
    match find(members, name, |member| !member.voter) {
        Ok(found) if !found.voter => Ok(found),
        Err(e) if e.status == StatusCode::CONFLICT => Err(e),
        _ => Err(Failure::new(
            StatusCode::CONFLICT,
            "refused",
            format!(
                "there is no new node {name:?} that could take its place: stop the old one, start a node with --name {name}, \
                 --join and an empty data folder, and say this again when it has joined"
            ),
        )),
    }
}

/// The one that is meant: by its id, or by a name that only one has, or only one of the `likely`.
fn find<'a>(members: &'a [Member], text: &str, likely: impl Fn(&Member) -> bool) -> Result<&'a Member, Failure> {
    let id: Option<NodeId> = text.parse().ok();
    if let Some(member) = members.iter().find(|member| Some(member.node) == id) {
        return Ok(member);
    }
    let named: Vec<&Member> = members.iter().filter(|member| member.peer.name == text).collect();
    let probable: Vec<&Member> = named.iter().copied().filter(|member| likely(member)).collect();
    match (named.as_slice(), probable.as_slice()) {
        ([], _) => Err(Failure::not_found(format!(
            "there is no node {text:?} in this cluster; a new one joins by itself when it is started with --join"
        ))),
        ([one], _) | (_, [one]) => Ok(one),
        _ => {
            let all: Vec<String> = named.iter().map(|member| format!("{} ({})", member.node, role(member))).collect();
            let why = format!("more than one node has the name {text:?}; say the id: {}", all.join(", "));
            Err(Failure::new(StatusCode::CONFLICT, "ambiguous", why))
        }
    }
}

#[cfg(test)]
mod tests {
    use moim_raft::raft::Peer;

    use super::*;

    fn member(node: NodeId, name: &str, voter: bool) -> Member {
        let peer = Peer { name: name.to_owned(), addr: String::new() };
        Member { node, peer, voter, lag: None, silent_ms: 0, note: None }
    }

    #[test]
    fn a_name_that_two_have_is_the_likely_one_or_none() {
        let members = [member(1, "a", true), member(2, "b", true), member(3, "b", false)];
        let found =
            |text: &str, voter: bool| find(&members, text, |member| member.voter == voter).map(|found| found.node);
        assert_eq!(found("a", false).unwrap(), 1, "it is the only one of its name");
        assert_eq!((found("b", true).unwrap(), found("b", false).unwrap()), (2, 3));
        assert_eq!(found("3", true).unwrap(), 3);
        assert_eq!(found("c", true).unwrap_err().status, StatusCode::NOT_FOUND);
        assert_eq!(newcomer(&members, "b").unwrap().node, 3);
        let none = newcomer(&members, "a").unwrap_err();
        assert!(none.status == StatusCode::CONFLICT && none.message.contains("empty data folder"), "{none:?}");
        let both = find(&members, "b", |_| true).unwrap_err();
        assert!(both.status == StatusCode::CONFLICT && both.message.contains("2 (voter), 3 (learner)"), "{both:?}");
    }
}
