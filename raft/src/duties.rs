//! What time asks of a node: to notice that it is cut off, and of the leader: who is down, who is offline, whose session
//! has expired, what has grown old where nothing happens any more.
//!
//! All durations here are measured on the monotonic clock of the node that decides. A leader counts from when it applied
//! a loss or from when it became leader, whichever is later: a change of leader lengthens a session's life, never
//! shortens it. Its verdicts are commands that name the incarnation, generation or attachment that they were decided for,
//! so one that comes late changes nothing.

mod expiry;
mod round;

use std::{collections::HashMap, future, hash::Hash, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};

use self::{expiry::Expiry, round::Round};
use crate::{
    command::{Away, Command, Holder, Limits, NodeId, User},
    consensus::Consensus,
    level,
    machine::Replica,
    net::{Local, Network, Peers},
    propose::{Proposals, Ticket},
    state::RoomName,
};

const TICK: Duration = Duration::from_millis(100);
/// Between two looks of a leader at nodes and at the sessions that count down.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A node whose connections ended is down after this part of its time: nobody is there who could still be slow. So what it
/// leaves behind counts down early enough for its session's time plus 5 s, an election included.
const GONE_SHARE: u32 = 3;
/// Without a word from a leader (or, on the leader, from a quorum) for so long, proposals are refused at once.
pub const SILENCE_MAX: Duration = Duration::from_secs(3);
/// Lost sessions of whose users one look asks whether they are away, and so many of them under the state's lock at a time.
const AWAY_LOOK: usize = 4 * AWAY_SLICE;
const AWAY_SLICE: usize = 1000;
/// Users that one look finds offline; the rest wait for the next, so that rooms are not told of all of them at once.
const OFFLINE_MAX: usize = 1000;

pub(crate) struct Duties {
    pub local: Arc<Local>,
    pub consensus: Consensus,
    pub replica: Arc<Replica>,
    pub proposals: Arc<Proposals>,
    pub peers: Arc<Peers>,
    pub network: Network,
    pub started: watch::Receiver<bool>,
    /// When a leader was last known to have a quorum, as far as this node can tell.
    pub contact: watch::Sender<Option<Instant>>,
    pub node_timeout: Duration,
    pub session_ttl: Duration,
    pub presence_grace: Duration,
    pub limits: Limits,
}

/// What a leader remembers while it leads.
struct Leading {
    term: u64,
    since: Instant,
    lost: Watch<Holder>,
    away: Watch<Away>,
    looked: Instant,
    /// Behind which lost session the next look for users that are away begins.
    asked: Option<Holder>,
    expiry: Expiry,
    /// For rooms with old entries, and for users with old `mid`s.
    rooms: Round<RoomName>,
    mids: Round<User>,
}

/// What one look after another finds to be so, and since when.
struct Watch<T>(HashMap<T, Instant>);

impl Duties {
    pub async fn run(mut self) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut leading: Option<Leading> = None;
        let mut refusing = true;
        loop {
            let now = tokio::select! {
                now = tick.tick() => now,
                () = expired(leading.as_ref()) => {
                    if let Some(leading) = &mut leading {
                        self.expire(leading);
                    }
                    continue;
                }
            };
            self.proposals.time_out(now);
            let members = self.consensus.members();
            self.network.set_addrs(members.iter().cloned());
            self.peers.set_peers(members);
            let level = self.replica.read(|state| state.level());
            self.proposals.set_level(level.unwrap_or(level::FIRST));
            // A node that has just begun to lead, or to follow, has heard nobody in that part: what it heard before counts.
            let contact = self.consensus.last_contact().max(*self.contact.borrow());
            self.contact.send_replace(contact);
            let silent = contact.is_none_or(|at| now.duration_since(at) >= SILENCE_MAX);
            let full = self.consensus.space.full();
            let refuse = silent || !*self.started.borrow_and_update() || full.is_some();
            if let Some(why) = &full {
                // Each time: a start that goes well meanwhile opens the door again.
                self.proposals.refuse(why);
            } else if refuse && !refusing {
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
            self.raise_level();
            self.declare_down(leading, now);
            let lost = self.replica.read(|state| state.lost_sessions());
            self.find_offline(leading, &lost, now);
            leading.lost.note(lost, now);
            if leading.expiry.is_over() {
                leading.expiry.begin(leading.lost.so_for(self.session_ttl, now));
            }
        }
        self.expire(leading);
        self.sweep(leading);
    }

    /// Nodes with different settings must still agree: the leader's are the cluster's. The first leader always stores its
    /// own, because a state without any bounds nothing.
    fn set_limits(&self) {
        if self.replica.read(|state| *state.limits() != self.limits) {
            self.proposals.push(Command::SetLimits(self.limits.clone()), Ticket::nobody());
        }
    }

    /// As soon as the last member has announced that it knows more.
    fn raise_level(&self) {
        let members = self.consensus.members();
        let (level, common) = self.replica.read(|state| {
            let announced = |id| state.node(id).filter(|node| !node.removed).map(|node| node.info.levels);
            (state.level(), level::common(members.iter().map(|(id, _)| announced(*id))))
        });
        if let Some(common) = common.filter(|common| level.is_none_or(|level| level < *common)) {
            tracing::info!(level = common, "all nodes know this level; the cluster goes there for good");
            self.proposals.push(Command::SetLevel(common), Ticket::nobody());
        }
    }

    fn declare_down(&self, leading: &Leading, now: Instant) {
        for node in self.replica.read(|state| state.nodes()) {
            if node.id == self.local.node() || !node.live {
                continue;
            }
            let heard = self.consensus.heard_of(node.id);
            let patience = self.node_timeout / if self.is_gone(node.id, heard, now) { GONE_SHARE } else { 1 };
            let silent_since = heard.map_or(leading.since, |at| at.max(leading.since));
            if now.saturating_duration_since(silent_since) >= patience {
                tracing::warn!(node = %node.info.name, incarnation = node.incarnation, "declared down");
                let down = Command::Down { node: node.id, incarnation: node.incarnation };
                self.proposals.push(down, Ticket::nobody());
            }
        }
    }

    /// Whether its connections ended after it was last heard of: it was killed, or is starting again, but not merely slow.
    fn is_gone(&self, node: NodeId, heard: Option<Instant>, now: Instant) -> bool {
        let signs = self.local.signs(node);
        signs.is_gone() && heard.is_none_or(|at| signs.gone <= Some(now.saturating_duration_since(at)))
    }

    /// To tell whether a user is away costs some reads, so of very many lost sessions each look takes some and the next goes on
    /// behind them. Who was found away counts as away from then on, and is looked at once more when the time is up.
    fn find_offline(&self, leading: &mut Leading, lost: &[Holder], now: Instant) {
        let begin = lost.partition_point(|holder| leading.asked.as_ref().is_some_and(|asked| holder <= asked));
        let asked = &lost[begin..lost.len().min(begin + AWAY_LOOK)];
        leading.asked = asked.last().filter(|last| lost.last() != Some(last)).cloned();
        for slice in asked.chunks(AWAY_SLICE) {
            let away = self.replica.read(|state| state.away(slice));
            away.into_iter().for_each(|away| _ = leading.away.0.entry(away).or_insert(now));
        }
        let mut offline = leading.away.so_for(self.presence_grace, now);
        offline.truncate(OFFLINE_MAX);
        for away in &offline {
            // If what is proposed now gets lost, the next round finds the user anew.
            leading.away.0.remove(away);
        }
        self.replica.read(|state| offline.retain(|away| state.is_still(away)));
        if !offline.is_empty() {
            self.proposals.push(Command::Offline(offline), Ticket::nobody());
        }
    }

    fn expire(&self, leading: &mut Leading) {
        if let Some((expire, ticket)) = leading.expiry.next() {
            self.proposals.push(expire, ticket);
        }
    }

    /// Rooms are trimmed when something is said in them, and a user's `mid`s when its next one comes; where nothing is and none
    /// does, what is old is found by going round.
    fn sweep(&self, leading: &mut Leading) {
        leading.rooms.step(
            |after| self.replica.read(|state| state.stale_rooms(after, round::SLICE)),
            |rooms, ticket| self.proposals.push(Command::Sweep(rooms), ticket),
        );
        if self.proposals.level() >= level::SECOND {
            leading.mids.step(
                |after| self.replica.read(|state| state.users_with_old_mids(after, round::SLICE)),
                |users, ticket| self.proposals.push(Command::ForgetMids(users), ticket),
            );
        }
    }
}

/// Comes true when the leader may propose that more sessions expire.
async fn expired(leading: Option<&Leading>) {
    match leading {
        Some(leading) => leading.expiry.landed().await,
        None => future::pending().await,
    }
}

impl Leading {
    fn new(term: u64, now: Instant) -> Self {
        // The first look is at once: the cluster's limits must not wait for the second.
        let looked = now.checked_sub(LOOK_EVERY).unwrap_or(now);
        Self {
            term,
            since: now,
            lost: Watch(HashMap::new()),
            away: Watch(HashMap::new()),
            looked,
            asked: None,
            expiry: Expiry::default(),
            rooms: Round::default(),
            mids: Round::default(),
        }
    }
}

impl<T: Clone + Eq + Hash> Watch<T> {
    /// Notes what is so at this look; what is not so any more is forgotten.
    fn note(&mut self, found: impl IntoIterator<Item = T>, now: Instant) {
        let before = std::mem::take(&mut self.0);
        let since = |thing: T| (before.get(&thing).copied().unwrap_or(now), thing);
        self.0 = found.into_iter().map(since).map(|(since, thing)| (thing, since)).collect();
    }

    /// What has been so for at least as long.
    fn so_for(&self, time: Duration, now: Instant) -> Vec<T> {
        let long = self.0.iter().filter(|(_, since)| now.saturating_duration_since(**since) >= time);
        long.map(|(thing, _)| thing.clone()).collect()
    }
}
