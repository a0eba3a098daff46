//! What nodes ask of each other for their operators: JSON over the store's links, within a bound.
//!
//! What always holds: a question to this very node is answered without the network; and no answer, an answer that comes too
//! late and one that cannot be read are the same.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use moim_raft::{
    NodeId,
    command::{Holder, Incarnation},
};
use serde::{Deserialize, Serialize};

use super::{act, answer::from_json, emit::Emit};
use crate::node::Node;

/// How long a node may take to say what only it knows.
pub const SOON: Duration = Duration::from_millis(500);
/// How long a node may take to begin or end its drain; it asks the others meanwhile, and writes to the log.
pub const ACT: Duration = Duration::from_millis(2500);

/// Grows at its end; a node that does not know a question answers [`Reply::Unknown`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    About,
    Transport(Holder),
    Drain { force: bool },
    Undrain,
    HandOver { to: Option<NodeId> },
    Emit(Emit),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    About(About),
    Transport(Option<String>),
    Done,
    /// It would not be safe; the text says why.
    Refused(String),
    /// It could not be done now.
    Unavailable(String),
    Unknown,
    Emitted {
        sockets: usize,
    },
}

/// What only a node itself knows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct About {
    pub committed: u64,
    pub applied: u64,
    pub incarnation: Incarnation,
    pub sockets: usize,
    /// WebSockets of other nodes' clients that pass through this node.
    #[serde(default)]
    pub relayed: usize,
    pub version: String,
    /// Seconds.
    pub uptime: u64,
    pub draining: bool,
    pub ready: bool,
    /// Why it is not ready.
    pub why: Vec<String>,
    /// Why it is a learner still; empty for a voter.
    #[serde(default)]
    pub note: String,
}

impl About {
    fn of(node: &Node) -> Self {
        let status = node.store.status();
        let why: Vec<String> = node.health.reasons().into_iter().map(|reason| reason.why).collect();
        Self {
            committed: status.committed,
            applied: status.applied,
            incarnation: node.store.incarnation(),
            sockets: node.chat.seats.len(),
            relayed: node.relay.websockets(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime: node.started_at.elapsed().as_secs(),
            draining: node.health.is_draining(),
            ready: why.is_empty(),
            why,
            note: status.learner,
        }
    }
}

/// Answers what the admin of another node asks of this one.
pub async fn answer_peer(node: Arc<Node>, question: Bytes) -> Bytes {
    let reply = match from_json(&question) {
        Some(question) => answer(&node, question).await,
        None => Reply::Unknown,
    };
    // A reply is plain data; were it not, the asker would take the empty answer for none.
    serde_json::to_vec(&reply).unwrap_or_default().into()
}

async fn answer(node: &Arc<Node>, question: Question) -> Reply {
    match question {
        Question::About => Reply::About(About::of(node)),
        Question::Transport(holder) => {
            let transport = node.chat.seats.get(&holder).and_then(|seat| seat.transport());
            let word = transport.map(|it| if it.is_websocket() { "websocket" } else { "polling" });
            Reply::Transport(word.map(str::to_owned))
        }
        Question::Drain { force } => act::drain_self(node, force).await,
        Question::Undrain => act::undrain_self(node).await,
        Question::HandOver { to } => act::hand_over_self(node, to).await,
        Question::Emit(emit) => Reply::Emitted { sockets: emit.here(node) },
    }
}

/// Asks a node, maybe this one. `None`: no answer in time.
pub async fn ask(node: &Arc<Node>, id: NodeId, question: Question, within: Duration) -> Option<Reply> {
    if id == node.store.node() {
        // Boxed, because the answer to one question may be to ask others.
        return Some(Box::pin(answer(node, question)).await);
    }
    let bytes = serde_json::to_vec(&question).ok()?;
    from_json(&node.store.ask(id, bytes.into(), within).await.ok()?)
}

/// Asks all of them about themselves at once. Those that do not answer are left out.
pub async fn about(node: &Arc<Node>, ids: impl IntoIterator<Item = NodeId>) -> BTreeMap<NodeId, About> {
    let asked = ids.into_iter().map(|id| async move {
        match ask(node, id, Question::About, SOON).await {
            Some(Reply::About(about)) => Some((id, about)),
            _ => None,
        }
    });
    join_all(asked).await.into_iter().flatten().collect()
}
