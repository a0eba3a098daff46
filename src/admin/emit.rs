//! `POST /v1/emit`: an event that is not kept, from outside to sockets on all nodes.
//!
//! What always holds: it is never in the log, so a client that is away misses it; a socket gets it once, however often it
//! is named; and it does not end in a string, which a stock client would take for its offset.

use std::sync::Arc;

use axum::{
    Json,
    extract::{State, rejection::BytesRejection},
};
use bytes::Bytes;
use futures_util::future::join_all;
use http::StatusCode;
use moim_raft::command::{Namespace, Room, Sid, User};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};

use super::{
    answer::{Failure, main_namespace, must_be_served},
    peer::{self, Question, Reply},
};
use crate::{chat::event, client::Encoded, node::Node};

/// A longer request is refused; a socket's queue would not take more anyhow.
pub const BODY_BYTES_MAX: usize = 1 << 20;
/// Rooms, users and sids in one request.
const TARGETS_MAX: usize = 1000;

/// The body of the request, and what nodes send on to each other.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Emit {
    #[serde(default = "main_namespace")]
    ns: Namespace,
    /// Rooms of the chat: all who receive in them.
    #[serde(default)]
    rooms: Vec<Room>,
    #[serde(default)]
    users: Vec<User>,
    #[serde(default)]
    sids: Vec<Sid>,
    event: String,
    /// Each any JSON, sent on as it came.
    #[serde(default)]
    args: Vec<Box<RawValue>>,
    /// Whether a socket that is busy may miss it; otherwise it waits in the socket's queue.
    #[serde(default)]
    volatile: bool,
}

impl Emit {
    fn check(mut self) -> Result<Self, Failure> {
        match self.rooms.len() + self.users.len() + self.sids.len() {
            0 => return Err(Failure::bad_request("name rooms, users or sids to send it to")),
            1..=TARGETS_MAX => {}
            _ => {
                return Err(Failure::bad_request(format!(
                    "at most {TARGETS_MAX} rooms, users and sids in one request"
                )));
            }
        }
        if event::is_sent(&self.event) {
            return Err(Failure::bad_request(format!("the event {:?} is not free to be used", self.event)));
        }
        // A client that is sent no argument would take the name for the last one.
        if self.args.last().is_none_or(|last| last.get().starts_with('"')) {
            self.args.push(RawValue::from_string("null".to_owned()).expect("it is JSON"));
        }
        Ok(self)
    }

    /// To the sockets of this node; their number.
    pub(super) fn here(self, node: &Node) -> usize {
        let seats = node.chat.seats.named(&self.ns, &self.rooms, &self.users, &self.sids);
        let args: Vec<&RawValue> = self.args.iter().map(|arg| &**arg).collect();
        let event = Encoded::new(&self.event, &args);
        for seat in &seats {
            match self.volatile {
                true => seat.volatile(&event),
                // A seat that cannot take it has let itself go; its client recovers, without this.
                false => _ = seat.live(&event),
            }
        }
        seats.len()
    }
}

/// `POST /v1/emit`: how many sockets were sent it, and the nodes that could not be told.
pub async fn emit(State(node): State<Arc<Node>>, body: Result<Bytes, BytesRejection>) -> Result<Json<Value>, Failure> {
    let body = body.map_err(|e| Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", e.body_text()))?;
    let emit: Emit = serde_json::from_slice(&body).map_err(|e| Failure::bad_request(e.to_string()))?;
    let emit = emit.check()?;
    must_be_served(&node, &emit.ns)?;
    let live = node.store.read(|state| state.nodes()).into_iter().filter(|other| other.live);
    let told = live.map(|other| {
        let (node, question) = (&node, Question::Emit(emit.clone()));
        async move { (other.info.name, peer::ask(node, other.id, question, peer::SOON).await) }
    });
    let (mut sockets, mut unreachable) = (0, Vec::new());
    for (name, reply) in join_all(told).await {
        match reply {
            Some(Reply::Emitted { sockets: there }) => sockets += there,
            _ => unreachable.push(name),
        }
    }
    Ok(Json(json!({ "ok": true, "sockets": sockets, "unreachable": unreachable })))
}
