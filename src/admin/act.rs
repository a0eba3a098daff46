//! What an operator does to nodes: into service, out of it, and leadership elsewhere.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Json, extract::State};
use bytes::Bytes;
use http::StatusCode;
use moim_raft::NodeId;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::{
    answer::{Failure, Named, Params, from_json},
    peer::{self, About, Question, Reply},
};
use crate::{health, node::Node};

/// How long the log may take with the drain token. What was asked goes on after it, and shows in `/v1/cluster`.
const LOG: Duration = Duration::from_millis(1400);
/// How long the token of a node that is back already is waited for: that node gives it back at its next look.
const GIVEN_BACK: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_millis(20);

type Done = Result<Json<Value>, Failure>;

/// `POST /v1/drain?force=`
pub async fn drain(State(node): State<Arc<Node>>, params: Params) -> Done {
    let me = node.store.node();
    tell(&node, me, Question::Drain { force: params.flag("force")? }).await
}

/// `POST /v1/undrain`
pub async fn undrain(State(node): State<Arc<Node>>) -> Done {
    let me = node.store.node();
    tell(&node, me, Question::Undrain).await
}

/// `POST /v1/nodes/{name}/drain?force=`
pub async fn drain_node(State(node): State<Arc<Node>>, Named(name): Named, params: Params) -> Done {
    let id = named(&node, &name)?;
    tell(&node, id, Question::Drain { force: params.flag("force")? }).await
}

/// `POST /v1/nodes/{name}/undrain`
pub async fn undrain_node(State(node): State<Arc<Node>>, Named(name): Named) -> Done {
    let id = named(&node, &name)?;
    tell(&node, id, Question::Undrain).await
}

/// Who is to lead; nobody in particular unless it is said.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Leader {
    node: Option<String>,
}

/// `POST /v1/cluster/leader`, with `{ node? }`: the leader gives leadership to that node, or to the most caught-up voter.
pub async fn hand_over(State(node): State<Arc<Node>>, body: Bytes) -> Done {
    let wanted: Leader = match body.is_empty() {
        true => Leader::default(),
        false => from_json(&body).ok_or_else(|| Failure::bad_request("the body is { node }, or nothing"))?,
    };
    let to = wanted.node.map(|name| named(&node, &name)).transpose()?;
    let leader = health::leader(&node.store.status()).ok_or_else(Failure::no_leader)?;
    tell(&node, leader, Question::HandOver { to }).await
}

fn named(node: &Node, name: &str) -> Result<NodeId, Failure> {
    let members = node.store.status().peers;
    let known = members.iter().find(|(_, peer)| peer.name == name).map(|(id, _)| *id);
    known.ok_or_else(|| Failure::not_found(format!("there is no node {name:?} in this cluster")))
}

async fn tell(node: &Arc<Node>, id: NodeId, what: Question) -> Done {
    match peer::ask(node, id, what, peer::ACT).await {
        Some(Reply::Done) => Ok(Json(json!({ "ok": true }))),
        Some(Reply::Refused(why)) => Err(Failure::new(StatusCode::CONFLICT, "refused", why)),
        Some(Reply::Unavailable(why)) => Err(Failure::unavailable(why)),
        Some(_) => Err(Failure::unavailable("that node does not know how to; it may run another version")),
        None => Err(Failure::unavailable("that node does not answer; whether it did it, /v1/cluster shows")),
    }
}

/// Begins this node's drain, if that is safe.
pub async fn drain_self(node: &Arc<Node>, force: bool) -> Reply {
    let me = node.store.node();
    let others = node.store.status().voters.into_iter().filter(|id| *id != me);
    let others = peer::about(node, others).await;
    await_token(node, &others).await;
    let ready = others.values().filter(|about| about.ready).count();
    let drain = node.drain.clone();
    outcome(node, async move { drain.ask(ready, force).await }).await
}

/// A node that is ready in a later incarnation has no use for its token, but gives it back a moment after it says so.
async fn await_token(node: &Node, others: &BTreeMap<NodeId, About>) {
    let held_in_vain = || {
        let held = node.store.read(|state| state.drain());
        held.is_some_and(|held| {
            others.get(&held.node).is_some_and(|about| about.ready && about.incarnation > held.incarnation)
        })
    };
    let until = Instant::now() + GIVEN_BACK;
    while held_in_vain() && Instant::now() < until {
        sleep(LOOK).await;
    }
}

/// Takes this node back into service.
pub async fn undrain_self(node: &Arc<Node>) -> Reply {
    let drain = node.drain.clone();
    outcome(node, async move { drain.undo().await }).await
}

/// Waits for the log, but not for ever. In a task of the drain's, because half of it must not be done: a token that was
/// taken for a drain that never began would be in everybody's way.
async fn outcome(node: &Node, work: impl Future<Output = Result<(), crate::drain::Refused>> + Send + 'static) -> Reply {
    match timeout(LOG, node.drain.spawn(work)).await {
        Ok(Ok(Some(Ok(())))) => Reply::Done,
        Ok(Ok(Some(Err(refused)))) => Reply::Refused(refused.0),
        Ok(Ok(None)) => Reply::Unavailable("this node is stopping".to_owned()),
        Ok(Err(_)) => Reply::Unavailable("it broke off; see the node's log".to_owned()),
        Err(_) => {
            Reply::Unavailable("the log does not take it now; it is done as soon as there is a quorum".to_owned())
        }
    }
}

/// Gives leadership away.
pub async fn hand_over_self(node: &Node, to: Option<NodeId>) -> Reply {
    let me = node.store.node();
    if node.store.status().leader != Some(me) {
        return Reply::Unavailable("the leader is another one by now; try again".to_owned());
    }
    match to {
        Some(to) if to == me => return Reply::Refused("that node is the leader".to_owned()),
        Some(to) if !node.store.status().voters.contains(&to) => {
            return Reply::Refused("that node has no vote, so it cannot lead".to_owned());
        }
        Some(to) => node.store.hand_over_to(to).await,
        None => node.store.hand_over().await,
    }
    match node.store.status().leader {
        Some(leader) if leader == me => Reply::Refused("no other voter could take over".to_owned()),
        _ => Reply::Done,
    }
}
