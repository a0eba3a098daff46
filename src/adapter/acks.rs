//! Acks of a broadcast from the sockets of other nodes.
//!
//! ```text
//! A ── Gather ──▶ B            emits to its sockets, says by which of them acks are due
//! A ── Acks ────▶ B ── those that have come ──▶ A      again, until none is due
//! ```
//!
//! Acks are pulled, and a pull is answered within `HELD` also when none has come: so a node that dies is noticed within
//! one deadline, however long clients may take, and its sockets' acks become errors in the stream.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures_util::{
    FutureExt, StreamExt,
    stream::{self, BoxStream},
};
use moim_raft::NodeId;
use socketioxide::{AckError, socket::Sid};
use socketioxide_core::{Value, adapter::BroadcastOptions, packet::Packet};
use tokio::time::{Instant, timeout};

use super::{
    Hub, PeerAdapter, Reach,
    wire::{Acked, Answer, Question},
};

/// How long a pull waits for the first ack.
const HELD: Duration = Duration::from_millis(200);
/// Acks in one answer.
const ACKS_MAX: usize = 256;
/// Broadcasts whose acks a node gathers for others at once; one more is not sent to its sockets.
const GATHERS_MAX: usize = 4096;
/// How long acks wait for a node that does not ask for them any more.
const FORGOTTEN: Duration = Duration::from_secs(10);

type Acks = BoxStream<'static, (Sid, Result<Value, AckError>)>;

/// What this node gathers for others.
#[derive(Default)]
pub struct Gathers(Mutex<Table>);

#[derive(Default)]
struct Table {
    last: u64,
    open: HashMap<u64, Gather>,
}

struct Gather {
    acks: Acks,
    /// When nobody asks any more.
    until: Instant,
}

impl Gathers {
    fn has_room(&self) -> bool {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if table.open.len() >= GATHERS_MAX {
            let now = Instant::now();
            table.open.retain(|_, gather| gather.until > now);
        }
        table.open.len() < GATHERS_MAX
    }

    fn open(&self, acks: Acks) -> u64 {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.last += 1;
        let id = table.last;
        table.open.insert(id, Gather { acks, until: Instant::now() + FORGOTTEN });
        id
    }

    /// What has come since the last time.
    pub async fn answer(&self, id: u64) -> Answer {
        // Taken out meanwhile: when the asker goes away, so does the stream.
        let gather = self.0.lock().unwrap_or_else(PoisonError::into_inner).open.remove(&id);
        let Some(Gather { mut acks, .. }) = gather else { return Answer::Unknown };
        let mut come = Vec::new();
        let mut next = timeout(HELD, acks.next()).await;
        let more = loop {
            match next {
                Err(_) => break true,
                Ok(None) => break false,
                Ok(Some((sid, result))) => come.push((sid.to_string(), Acked::from(result))),
            }
            if come.len() == ACKS_MAX {
                break true;
            }
            match acks.next().now_or_never() {
                Some(item) => next = Ok(item),
                None => break true,
            }
        };
        if more {
            let gather = Gather { acks, until: Instant::now() + FORGOTTEN };
            self.0.lock().unwrap_or_else(PoisonError::into_inner).open.insert(id, gather);
        }
        Answer::Acks { acks: come, more }
    }
}

impl PeerAdapter {
    /// Emits to this node's sockets; their acks bear public sids.
    pub(super) fn gather_here(&self, packet: Packet, opts: BroadcastOptions, timeout: Duration) -> Acks {
        let opts = self.here(opts);
        self.count(&packet, &opts);
        let (acks, _) = self.local.broadcast_with_ack(packet, opts, Some(timeout));
        let names = self.names.clone();
        // A socket that is gone by then has lost its name; who it was does not matter to the sum.
        acks.map(move |(socket, result)| (names.public([socket]).first().copied().unwrap_or(Sid::ZERO), result)).boxed()
    }

    pub(super) fn gather(&self, packet: Packet, opts: BroadcastOptions, timeout: Duration) -> Answer {
        if !self.hub.gathers().has_room() {
            return Answer::Unknown;
        }
        let sids = self.sockets_here(opts.clone()).iter().map(Sid::to_string).collect();
        let id = self.hub.gathers().open(self.gather_here(packet, opts, timeout));
        Answer::Gathering { id, sids }
    }
}

struct Pull {
    hub: Hub,
    node: NodeId,
    id: u64,
    due: HashSet<Sid>,
    come: VecDeque<(Sid, Result<Value, AckError>)>,
    more: bool,
}

/// The acks that another node gathers.
pub fn pull(hub: Hub, node: NodeId, id: u64, sids: Vec<String>) -> Acks {
    let due = sids.iter().filter_map(|sid| sid.parse().ok()).collect();
    let pull = Pull { hub, node, id, due, come: VecDeque::new(), more: true };
    stream::unfold(pull, |mut pull| async {
        while pull.more && pull.come.is_empty() {
            pull.ask().await;
        }
        Some((pull.come.pop_front()?, pull))
    })
    .boxed()
}

impl Pull {
    async fn ask(&mut self) {
        let answers = self.hub.ask(Reach::On(self.node), Question::Acks { id: self.id }).await;
        if let Some((_, Answer::Acks { acks, more })) = answers.into_iter().next() {
            for (sid, acked) in acks {
                let sid = sid.parse().unwrap_or(Sid::ZERO);
                self.due.remove(&sid);
                self.come.push_back((sid, acked.into()));
            }
            self.more = more;
        } else {
            // It is gone, and its sockets with it.
            self.come.extend(self.due.drain().map(|sid| (sid, Acked::Gone.into())));
            self.more = false;
        }
    }
}
