//! What time asks of a node: to notice that it is cut off, and of the leader: who is down, whose session has expired.
//!
//! All durations here are measured on the monotonic clock of the node that decides. A leader counts from when it applied
//! a loss or from when it became leader, whichever is later: a change of leader lengthens a session's life, never
//! shortens it. Its verdicts are commands that name the incarnation or generation that they were decided for, so one that
//! comes late changes nothing.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};

use crate::{
    command::{Command, Generation, Holder, Limits, NodeId, Sid},
    machine::Replica,
    net::Peers,
    propose::{Proposals, Ticket},
    store::Consensus,
};

const TICK: Duration = Duration::from_millis(100);
/// Between two looks of a leader at nodes and at the sessions that count down.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Without a word from a leader (or, on the leader, from a quorum) for so long, proposals are refused at once.
pub const SILENCE_MAX: Duration = Duration::from_secs(3);
/// Sessions in one `Expire`.
const EXPIRE_SLICE: usize = 1000;

pub(crate) struct Duties {
    pub node: NodeId,
    pub consensus: Consensus,
    pub replica: Arc<Replica>,
    pub proposals: Arc<Proposals>,
    pub peers: Arc<Peers>,
    pub started: watch::Receiver<bool>,
    /// When a leader was last known to have a quorum, as far as this node can tell.
    pub contact: watch::Sender<Option<Instant>>,
    pub node_timeout: Duration,
    pub session_ttl: Duration,
    pub limits: Limits,
}

/// What a leader remembers while it leads.
struct Leading {
    term: u64,
    since: Instant,
    lost: HashMap<Sid, (Generation, Instant)>,
    looked: Instant,
}

impl Duties {
    pub async fn run(mut self) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut leading: Option<Leading> = None;
        let mut refusing = true;
        loop {
            let now = tick.tick().await;
            self.proposals.time_out(now);
            self.peers.set_peers(self.consensus.members());
            // A node that has just begun to lead, or to follow, has heard nobody in that part: what it heard before counts.
            let contact = self.consensus.last_contact().max(*self.contact.borrow());
            self.contact.send_replace(contact);
            let silent = contact.is_none_or(|at| now.duration_since(at) >= SILENCE_MAX);
            let refuse = silent || !*self.started.borrow_and_update();
            if refuse && !refusing {
                self.proposals.refuse("there is no quorum");
            } else if refusing && !refuse {
                self.proposals.accept();
            }
            refusing = refuse;
            match self.consensus.leading_term().filter(|_| !refuse) {
                None => leading = None,
                Some(term) => {
                    if leading.as_ref().is_none_or(|leading| leading.term != term) {
                        leading = Some(Leading::new(term, now));
                    }
                    if let Some(leading) = &mut leading {
                        self.lead(leading, now);
                    }
                }
            }
        }
    }

    /// What is proposed here and gets lost is proposed again at the next look.
    fn lead(&self, leading: &mut Leading, now: Instant) {
        if now.duration_since(leading.looked) >= LOOK_EVERY {
            leading.looked = now;
            self.set_limits();
            self.declare_down(leading, now);
            self.expire(leading, now);
        }
    }

    /// Nodes with different settings must still agree: the leader's are the cluster's. The first leader always stores its
    /// own, because a state without any bounds nothing.
    fn set_limits(&self) {
        if self.replica.read(|state| *state.limits() != self.limits) {
            self.proposals.push(Command::SetLimits(self.limits.clone()), Ticket::nobody());
        }
    }

    fn declare_down(&self, leading: &Leading, now: Instant) {
        for node in self.replica.read(|state| state.nodes()) {
            if node.id == self.node || !node.live {
                continue;
            }
            let heard = self.consensus.heard_of(node.id).map_or(leading.since, |at| at.max(leading.since));
            if now.saturating_duration_since(heard) >= self.node_timeout {
                tracing::warn!(node = %node.info.name, incarnation = node.incarnation, "declared down");
                let down = Command::Down { node: node.id, incarnation: node.incarnation };
                self.proposals.push(down, Ticket::nobody());
            }
        }
    }

    fn expire(&self, leading: &mut Leading, now: Instant) {
        let lost = self.replica.read(|state| state.lost_sessions());
        let before = std::mem::take(&mut leading.lost);
        for Holder { sid, generation } in lost {
            let since = before.get(&sid).filter(|(known, _)| *known == generation).map_or(now, |(_, since)| *since);
            leading.lost.insert(sid, (generation, since));
        }
        let over = |since: &Instant| now.saturating_duration_since(*since) >= self.session_ttl;
        let expired = leading.lost.iter().filter(|(_, (_, since))| over(since));
        let expired: Vec<Holder> =
            expired.map(|(sid, (generation, _))| Holder { sid: sid.clone(), generation: *generation }).collect();
        for slice in expired.chunks(EXPIRE_SLICE) {
            self.proposals.push(Command::Expire(slice.to_vec()), Ticket::nobody());
        }
    }
}

impl Leading {
    fn new(term: u64, now: Instant) -> Self {
        // The first look is at once: the cluster's limits must not wait for the second.
        Self { term, since: now, lost: HashMap::new(), looked: now.checked_sub(LOOK_EVERY).unwrap_or(now) }
    }
}
