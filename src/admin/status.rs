//! The cluster as this node sees it, and what each node says of itself.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use moim_raft::{NodeId, Status, raft::Peer, state};
use serde::Serialize;

use super::{
    answer::{Answer, Failure, Params, Read},
    peer::{self, About},
};
use crate::{health, node::Node, report::Attachment};

#[derive(Serialize)]
pub struct Cluster {
    /// The cluster's id; `null` before there is one.
    cluster: Option<String>,
    /// The leader's name; `null` when none has been heard for a moment.
    leader: Option<String>,
    term: u64,
    /// The highest index that any node that answers knows as committed.
    committed: u64,
    /// The state's place in the one order of commands.
    position: u64,
    drain: Option<DrainHolder>,
    /// What every node understands: it rises when the last node runs a version that knows more. `null` before it was set.
    level: Option<u16>,
    /// The alarm that nodes do not have the same state; `null` when all is well.
    diverged: Option<Diverged>,
    nodes: Vec<Row>,
}

#[derive(Serialize)]
struct Diverged {
    /// The index at which they were compared.
    index: u64,
    /// Nodes that the majority contradicts, by name; empty when there is no majority.
    wrong: Vec<String>,
    /// The state hash of each, by name.
    hashes: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct DrainHolder {
    node: String,
    incarnation: u64,
}

/// One node. What only it knows is `null` when it does not answer.
#[derive(Serialize)]
struct Row {
    /// A number of 64 bits, as text: JavaScript has no such numbers.
    id: String,
    name: String,
    client: Option<String>,
    admin: Option<String>,
    peer: String,
    /// `voter`, `learner`, or `joining` while the asked node is not a member.
    role: &'static str,
    leader: bool,
    version: Option<String>,
    incarnation: Option<u64>,
    applied: Option<u64>,
    lag: Option<u64>,
    sockets: Option<usize>,
    relayed: Option<usize>,
    uptime: Option<u64>,
    draining: Option<bool>,
    ready: Option<bool>,
    why: Option<Vec<String>>,
    /// Why it is a learner still.
    note: Option<String>,
}

/// `GET /v1/cluster`
pub async fn cluster(read: Read) -> Answer<Cluster> {
    let status = read.node.store.status();
    let own = Peer { name: read.node.config.name.clone(), addr: read.node.config.peer_address() };
    let members = members(&status, own);
    let said = peer::about(&read.node, members.keys().copied()).await;
    // The state last: what a node says of itself is never newer than the rows around it.
    let seen = read.state(|state| (state.nodes(), state.drain(), state.position()));
    seen.map(|(nodes, drain, position)| view(&status, members, &said, &nodes, drain, position.0))
}

/// Members by id with name and peer address; this node, `own`, among them even before it is one.
fn members(status: &Status, own: Peer) -> BTreeMap<NodeId, Peer> {
    let mut members: BTreeMap<_, _> = status.peers.iter().cloned().collect();
    members.entry(status.node).or_insert(own);
    members
}

fn view(
    status: &Status,
    members: BTreeMap<NodeId, Peer>,
    said: &BTreeMap<NodeId, About>,
    nodes: &[state::Node],
    drain: Option<state::Drain>,
    position: u64,
) -> Cluster {
    let leader = health::leader(status);
    let committed = said.values().map(|about| about.committed).fold(status.committed, u64::max);
    let row = |(id, peer): (NodeId, Peer)| {
        let (about, known) = (said.get(&id), nodes.iter().find(|node| node.id == id));
        let info = known.map(|node| &node.info);
        Row {
            id: id.to_string(),
            name: info.map_or(peer.name, |info| info.name.clone()),
            client: info.map(|info| info.client.clone()),
            admin: info.map(|info| info.admin.clone()),
            peer: peer.addr,
            role: role(status, id),
            leader: leader == Some(id),
            version: about.map(|about| about.version.clone()).or_else(|| info.map(|info| info.version.clone())),
            incarnation: about.map(|about| about.incarnation).or_else(|| known.map(|node| node.incarnation)),
            applied: about.map(|about| about.applied),
            lag: about.map(|about| committed.saturating_sub(about.applied)),
            sockets: about.map(|about| about.sockets),
            relayed: about.map(|about| about.relayed),
            uptime: about.map(|about| about.uptime),
            draining: about.map(|about| about.draining),
            ready: about.map(|about| about.ready),
            why: about.map(|about| about.why.clone()),
            note: about.map(|about| about.note.clone()).filter(|note| !note.is_empty()),
        }
    };
    let mut rows: Vec<Row> = members.into_iter().map(row).collect();
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    let drain = drain.map(|held| DrainHolder {
        node: name_of(nodes, held.node).unwrap_or_else(|| held.node.to_string()),
        incarnation: held.incarnation,
    });
    let name = |id: &NodeId| name_of(nodes, *id).unwrap_or_else(|| id.to_string());
    let diverged = status.diverged.as_ref().map(|found| Diverged {
        index: found.index,
        wrong: found.wrong.iter().map(name).collect(),
        hashes: found.hashes.iter().map(|(id, hash)| (name(id), format!("{hash:032x}"))).collect(),
    });
    Cluster {
        cluster: status.cluster.as_ref().map(ToString::to_string),
        leader: rows.iter().find(|row| row.leader).map(|row| row.name.clone()),
        term: status.term,
        committed,
        position,
        drain,
        level: status.level,
        diverged,
        nodes: rows,
    }
}

fn role(status: &Status, id: NodeId) -> &'static str {
    match status.peers.iter().any(|(member, _)| *member == id) {
        true if status.voters.contains(&id) => "voter",
        true => "learner",
        false => "joining",
    }
}

fn name_of(nodes: &[state::Node], id: NodeId) -> Option<String> {
    nodes.iter().find(|node| node.id == id).map(|node| node.info.name.clone())
}

#[derive(Serialize)]
pub struct Gaps {
    position: u64,
    /// Sessions that went on.
    resumed: usize,
    /// Sessions that were opened.
    fresh: usize,
    gaps: Vec<Gap>,
}

#[derive(Serialize)]
struct Gap {
    sid: moim_raft::command::Sid,
    ms: u64,
}

/// `GET /v1/gaps?after=`: sessions that were opened or resumed after a position, as this node has played it.
pub async fn gaps(read: Read) -> Result<Answer<Gaps>, Failure> {
    let after = read.params.parsed("after", |text| text.parse().ok())?.unwrap_or(0);
    let answer = read.state(|state| state.position().0);
    let seen = read.node.report.after(moim_raft::command::Position(after));
    Ok(answer.map(|position| {
        let resumed = seen.iter().filter(|attachment| attachment.resumed).count();
        let fresh = seen.len() - resumed;
        let gap = |attachment: Attachment| Some(Gap { sid: attachment.sid, ms: attachment.gap_ms? });
        Gaps { position, resumed, fresh, gaps: seen.into_iter().filter_map(gap).collect() }
    }))
}

/// `GET /metrics`
pub async fn metrics(State(node): State<Arc<Node>>) -> Response {
    let text = node.chat.metrics.text(&node.store.status(), node.chat.seats.len(), node.store.bus_dropped());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

/// `GET /livez`
pub async fn livez() -> &'static str {
    "live"
}

/// `GET /readyz`: one word; with `?verbose` every reason, line by line, and why a node that may get clients has no vote.
pub async fn readyz(State(node): State<Arc<Node>>, params: Params) -> Result<Response, Failure> {
    let reasons = node.health.reasons();
    let verbose = params.flag("verbose")?;
    let learner = Some(node.store.status().learner).filter(|why| verbose && !why.is_empty());
    let learner = learner.map(|why| format!("learner: {why}\n")).unwrap_or_default();
    let Some(first) = reasons.first() else {
        return Ok(if learner.is_empty() {
            "ready".into_response()
        } else {
            format!("ready\n{learner}").into_response()
        });
    };
    let body = match verbose {
        true => reasons.iter().map(|reason| format!("{}: {}\n", reason.word, reason.why)).chain([learner]).collect(),
        false => first.word.to_owned(),
    };
    Ok((StatusCode::SERVICE_UNAVAILABLE, body).into_response())
}
