//! The chat: Socket.IO events on one side, replicated commands on the other.
//!
//! | client sends | becomes |
//! | --- | --- |
//! | CONNECT | `Open` or `Resume`, then a seat ([`connect`]) |
//! | `join`, `leave`, `message` | a command; the ack is written when it is played ([`request`]) |
//! | `history`, `rooms`, `users` | a read of this node's state, after the client's own commands were played |
//! | `typing`, relayed events | volatile: straight to the sockets of all nodes, never in the log ([`volatile`]) |
//! | DISCONNECT | `Close`, behind whatever the client sent before |
//! | a lost transport | `Lost` ([`loss`]) |
//!
//! socketioxide runs each event of a socket in a task of its own, which reorders bursts. So the one handler of a socket
//! is synchronous and only queues; one task per socket works the queue off.

pub mod connect;
pub mod event;
mod gap;
pub mod loss;
mod pattern;
pub mod request;
pub mod volatile;

use std::sync::Arc;

use moim_raft::Store;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{adapter::Hub, client::Transports, config::Auth, handlers::Handlers, metrics::Metrics, player::Seats};

/// What every handler of the chat needs. Cheap to clone.
#[derive(Clone)]
pub struct Chat(pub Arc<Shared>);

pub struct Shared {
    pub store: Store,
    pub seats: Arc<Seats>,
    pub transports: Transports,
    pub losses: loss::Losses,
    pub encoder: event::Encoder,
    pub hub: Hub,
    pub handlers: Handlers,
    pub metrics: Arc<Metrics>,
    pub settings: Settings,
    /// Transports and requests that are being worked on; the node waits for them when it stops.
    pub tasks: TaskTracker,
    pub stopping: CancellationToken,
}

/// The part of the configuration that the chat needs.
pub struct Settings {
    pub node_name: String,
    pub auth: Auth,
    pub text_bytes_max: usize,
    pub queue_bytes_max: usize,
    pub replay: moim_raft::state::replay::ReplayLimit,
    pub relay: Vec<String>,
}

impl std::ops::Deref for Chat {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}
