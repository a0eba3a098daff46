//! The cluster's nodes: who votes, who learns, who is gone.
//!
//! [`decide`] says what to do; here the leader looks, carries out one step, and looks again. What always holds:
//!
//! - One change at a time: a lock on the leader, and the configuration that the decision was made on as Raft's condition.
//! - A removal is a command first ([`Command::Removed`]) and a change of Raft's configuration after it. So its id is spent
//!   before it is gone, and a leader that stops in between leaves behind what the next one finishes. The same holds for a
//!   joint configuration: the next leader leaves it.
//! - A removed voter votes on until Raft does without it; only then do the others shut it out (see [`crate::net::Local`]).
//!
//! [`Command::Removed`]: crate::command::Command::Removed

mod decide;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use openraft::{ChangeMembers, Precondition};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use self::decide::{Seen, Step, View, is_free, judge, next, note, went_back};
use crate::{
    clock::Clock,
    command::{Command, NodeId},
    consensus::{Consensus, unwritten},
    error::{Error, Result},
    machine::Replica,
    net::{Acked, CallRequest, CallResponse, Leadership, Peers},
    propose::{Proposals, Ticket},
    raft::{LogId, Peer},
};

/// A learner that is fewer entries behind is near the end of the log: a heartbeat or two of a busy cluster. Further behind,
/// its vote would be one that commits have to wait for.
const LAG_MAX: u64 = 1000;
/// A learner has to be near for so long; a moment's luck between two bursts does not make a voter.
const NEAR_FOR: Duration = Duration::from_secs(3);
/// A node that was heard of within this counts as up. Far more than a heartbeat.
const UP_WITHIN: Duration = Duration::from_secs(1);
/// Between two looks of a leader.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Between two questions of a learner why it is one.
const ASK_EVERY: Duration = Duration::from_secs(2);
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// How long one step may take: two entries, each committed by a quorum.
const STEP_MAX: Duration = Duration::from_secs(5);
/// How long an operator's word waits for the change that is under way.
const LOCK_MAX: Duration = Duration::from_secs(2);
/// After a step that failed the next is tried so much later.
const RETRY: Duration = Duration::from_secs(1);

/// What an operator can want of the cluster's nodes. Each is done already when asked a second time. Sent: only ever add
/// variants at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A learner becomes a voter, also beyond the number that was expected.
    Promote { node: NodeId },
    /// A learner becomes a voter in the place of another, which is removed.
    Replace { old: NodeId, new: NodeId },
    /// A node leaves for good.
    Remove { node: NodeId },
}

impl Change {
    /// Whether that node is a member no more when it is done.
    pub fn takes_out(&self, node: NodeId) -> bool {
        matches!(self, Self::Remove { node: goes } | Self::Replace { old: goes, .. } if *goes == node)
    }
}

/// How a node of the cluster stands, as the leader sees it. Sent: its fields do not change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub node: NodeId,
    pub peer: Peer,
    pub voter: bool,
    /// Entries that it does not have yet, where the leader can tell.
    pub lag: Option<u64>,
    /// No word of it for so long.
    pub silent_ms: u64,
    /// Why it is a learner still, that it is being removed, or that its log went back.
    pub note: Option<String>,
}

/// One node's part: it leads the changes, or asks the leader about itself.
pub(crate) struct Members {
    pub node: NodeId,
    pub consensus: Consensus,
    pub clock: Arc<Clock>,
    pub replica: Arc<Replica>,
    pub proposals: Arc<Proposals>,
    pub peers: Arc<Peers>,
    pub acked: Arc<Acked>,
    pub replace_after: Duration,
    pub state: Progress,
}

/// What the changes on this node share.
#[derive(Default)]
pub(crate) struct Progress {
    /// Held by the one change that is under way.
    pub lock: tokio::sync::Mutex<()>,
    leading: Mutex<Option<Leading>>,
    /// Why this node is a learner still; empty for a voter.
    pub note: watch::Sender<String>,
}

/// What a leader remembers while it leads.
struct Leading {
    term: u64,
    since: Instant,
    /// Since when a node has been near the end of the log.
    near: HashMap<NodeId, Instant>,
}

impl Members {
    pub async fn run(self: Arc<Self>) {
        let mut tick = interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut asked, mut failed) = (None::<Instant>, None::<(Instant, String)>);
        loop {
            let now = tick.tick().await;
            self.look(now);
            if self.consensus.leading_term().is_none() {
                if asked.is_none_or(|at| now.duration_since(at) >= ASK_EVERY) {
                    self.ask_about_self().await;
                    asked = Some(Instant::now());
                }
                continue;
            }
            self.note("");
            if failed.as_ref().is_some_and(|(at, _)| now.duration_since(*at) < RETRY) {
                continue;
            }
            if let Err(e) = self.step().await {
                let text = e.to_string();
                if failed.as_ref().is_none_or(|(_, before)| *before != text) {
                    tracing::warn!("a change of the cluster's nodes is tried again: {text}");
                }
                failed = Some((Instant::now(), text));
            } else {
                failed = None;
            }
        }
    }

    /// Carries out one step that nobody has to ask for, if there is one and no other is under way.
    async fn step(&self) -> Result<()> {
        let Ok(_one) = self.state.lock.try_lock() else { return Ok(()) };
        let Some((view, base)) = self.view() else { return Ok(()) };
        match next(&view) {
            Some(step) => self.carry_out(&view, base, step).await,
            None => Ok(()),
        }
    }

    /// Carries out what an operator wants, if this node leads.
    ///
    /// # Errors
    /// `Unavailable` when it did not come to an end in time; it may still.
    pub async fn change(&self, change: &Change) -> Result<Leadership<std::result::Result<(), String>>> {
        let Ok(_one) = timeout(LOCK_MAX, self.state.lock.lock()).await else {
            return Ok(Leadership::Leader(Err("another change is under way; try again when it is done".to_owned())));
        };
        self.look(Instant::now());
        let Some(since) = self.leading_since() else { return Ok(self.not_leader()) };
        // One that has just begun to lead has heard of nobody yet.
        tokio::time::sleep_until(since + UP_WITHIN).await;
        self.look(Instant::now());
        let Some((view, base)) = self.view() else { return Ok(self.not_leader()) };
        if view.expected.is_none() {
            // The very first change must not become what is expected.
            self.carry_out(&view, base, Step::SetExpected(view.voters().len() as u64)).await?;
        }
        let step = match judge(&view, change) {
            Ok(Some(step)) => step,
            Ok(None) => return Ok(Leadership::Leader(Ok(()))),
            Err(why) => return Ok(Leadership::Leader(Err(why))),
        };
        tracing::info!(?step, "an operator changes the cluster's nodes");
        self.carry_out(&view, base, step.clone()).await?;
        match step {
            Step::HandOver if self.consensus.leading_term().is_some() => {
                Ok(Leadership::Leader(Err("it leads, and no other voter could take over".to_owned())))
            }
            Step::HandOver => Ok(self.not_leader()),
            _ => Ok(Leadership::Leader(Ok(()))),
        }
    }

    fn not_leader<T>(&self) -> Leadership<T> {
        Leadership::NotLeader { leader: self.consensus.leader().map(|(id, _)| id) }
    }

    /// Takes an empty node in as a learner, if this node leads. One that is a member stays what it is, under the name and at
    /// the address that it says.
    pub async fn take_in(&self, id: NodeId, peer: Peer) -> Leadership<std::result::Result<(), String>> {
        if self.consensus.leading_term().is_none() {
            return self.not_leader();
        }
        if self.replica.read(|state| state.is_removed(id)) {
            return Leadership::Leader(Err(REMOVED.to_owned()));
        }
        let Ok(_one) = timeout(LOCK_MAX, self.state.lock.lock()).await else {
            return Leadership::Leader(Err("another change is under way".to_owned()));
        };
        self.look(Instant::now());
        let Some((view, base)) = self.view() else {
            return self.not_leader();
        };
        let known = self.consensus.peer(id);
        if known.as_ref() == Some(&peer) {
            return Leadership::Leader(Ok(()));
        }
        if known.as_ref().is_none_or(|known| known.name != peer.name)
            && let Err(why) = is_free(&view, id, &peer.name)
        {
            return Leadership::Leader(Err(why));
        }
        let taken = match known {
            Some(_) => self.carry_out(&view, base, Step::Move(id, peer.clone())).await,
            None => self.consensus.raft.add_learner(id, peer.clone(), false).await.map(|_| ()).map_err(unwritten),
        };
        if taken.is_ok() {
            tracing::info!(node = %peer, id, "is a node of this cluster");
        }
        Leadership::Leader(taken.map_err(|e| e.why().to_owned()))
    }

    /// All members, as only the leader can see them.
    pub fn list(&self) -> Leadership<Vec<Member>> {
        self.look(Instant::now());
        let Some((view, _)) = self.view() else {
            return self.not_leader();
        };
        let member = |(node, peer): (NodeId, Peer)| {
            let seen = view.members.get(&node)?;
            Some(Member {
                node,
                peer,
                voter: view.is_voter(node),
                lag: seen.lag,
                silent_ms: seen.silent.as_millis().try_into().unwrap_or(u64::MAX),
                note: self.acked.denies(node).map(went_back).or_else(|| note(&view, node)),
            })
        };
        Leadership::Leader(self.consensus.members().into_iter().filter_map(member).collect())
    }

    /// Notes who is near the end of the log, as long as this node leads.
    fn look(&self, now: Instant) {
        let mut leading = self.state.leading.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(term) = self.consensus.leading_term() else {
            *leading = None;
            return;
        };
        let before = leading.take().filter(|leading| leading.term == term);
        let Leading { since, near, .. } = before.unwrap_or(Leading { term, since: now, near: HashMap::new() });
        let near_now = self.consensus.lags().into_iter().filter(|(_, lag)| *lag < LAG_MAX);
        let near = near_now.map(|(id, _)| (id, near.get(&id).copied().unwrap_or(now))).collect();
        *leading = Some(Leading { term, since, near });
    }

    fn leading_since(&self) -> Option<Instant> {
        self.state.leading.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|leading| leading.since)
    }

    /// What there is to decide on, and the configuration that it is based on; `None` when this node does not lead.
    fn view(&self) -> Option<(View, Option<LogId>)> {
        let leading = self.state.leading.lock().unwrap_or_else(PoisonError::into_inner);
        let (leading, now) = (leading.as_ref()?, Instant::now());
        let (configs, base) = self.consensus.configs();
        let (live, removed, expected) = self.replica.read(|state| {
            let live: BTreeSet<NodeId> = state.nodes().iter().filter(|node| node.live).map(|node| node.id).collect();
            (live, state.removed_nodes(), state.expected_voters())
        });
        let lags = self.consensus.lags();
        let seen = |(id, peer): (NodeId, Peer)| {
            let me = id == self.node;
            let heard = self.consensus.heard_of(id);
            let since = heard.map_or(leading.since, |at| at.max(leading.since));
            let seen = Seen {
                name: peer.name,
                lag: if me { Some(0) } else { lags.get(&id).copied() },
                caught_up: me || leading.near.get(&id).is_some_and(|since| now.duration_since(*since) >= NEAR_FOR),
                // Whom this leader has not heard of yet may be dead since long.
                up: me || heard.is_some_and(|at| now.saturating_duration_since(at) < UP_WITHIN),
                silent: if me { Duration::ZERO } else { now.saturating_duration_since(since) },
                started: live.contains(&id),
            };
            (id, seen)
        };
        let members = self.consensus.members().into_iter().map(seen).collect();
        let replace_after = self.replace_after;
        Some((View { me: self.node, configs, members, removed, expected, replace_after }, base))
    }

    async fn carry_out(&self, view: &View, base: Option<LogId>, step: Step) -> Result<()> {
        let one = |id| BTreeSet::from([id]);
        let change = match step {
            Step::SetExpected(voters) => return self.command(Command::SetExpected { voters }).await,
            Step::HandOver => {
                self.consensus.hand_over(|id| !self.clock.is_wrong(id) && !view.removed.contains(&id)).await;
                return Ok(());
            }
            // Adds nobody: openraft then only takes the second step of what is half done.
            Step::LeaveJoint => ChangeMembers::AddVoterIds(BTreeSet::new()),
            // Every connection proves whom it has reached, so a wrong address is no other node.
            Step::Move(id, ref peer) => ChangeMembers::SetNodes([(id, peer.clone())].into()),
            Step::Promote(id) => ChangeMembers::AddVoterIds(one(id)),
            Step::Remove(id) if view.is_voter(id) => ChangeMembers::RemoveVoters(one(id)),
            Step::Remove(id) => ChangeMembers::RemoveNodes(one(id)),
            Step::Replace { old, new } => {
                ChangeMembers::Batch(vec![ChangeMembers::RemoveVoters(one(old)), ChangeMembers::AddVoterIds(one(new))])
            }
        };
        if let Step::Remove(id) | Step::Replace { old: id, .. } = step
            && !view.removed.contains(&id)
        {
            self.command(Command::Removed { node: id }).await?;
        }
        tracing::info!(?step, "changing the cluster's nodes");
        let unchanged = Precondition::LastMembershipLogId { last_membership_log_id: base };
        // Who leaves the voters leaves the cluster; whoever was a learner stays one.
        let changed = self.consensus.raft.change_membership_if(change, false, [unchanged]);
        match timeout(STEP_MAX, changed).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(e)) => Err(unwritten(e)),
            Err(_) => Err(Error::unavailable("no quorum took the change in time; it may still")),
        }
    }

    async fn command(&self, command: Command) -> Result<()> {
        let (tell, told) = oneshot::channel();
        self.proposals.push(command, Ticket::new(move |outcome| _ = tell.send(outcome.map(|_| ()))));
        told.await.unwrap_or_else(|_| Err(Error::unavailable("the store is closing")))
    }

    /// A learner asks why it is one.
    async fn ask_about_self(&self) {
        if self.consensus.voters().iter().any(|(id, _)| *id == self.node) {
            return self.note("");
        }
        let Some((leader, peer)) = self.consensus.leader().filter(|(id, _)| *id != self.node) else { return };
        let answer = self.peers.call(leader, &peer.addr, &CallRequest::Members, ANSWER_MAX).await;
        if let Ok(CallResponse::Members(Leadership::Leader(members))) = answer {
            let me = members.into_iter().find(|member| member.node == self.node);
            self.note(&me.and_then(|me| me.note).unwrap_or_default());
        }
    }

    fn note(&self, text: &str) {
        self.state.note.send_if_modified(|now| {
            let new = now != text;
            if new {
                *now = text.to_owned();
                if !text.is_empty() {
                    tracing::info!("this node is a learner: {text}");
                }
            }
            new
        });
    }
}

/// What a removed node is told, and says.
pub(crate) const REMOVED: &str = "this node was removed from its cluster, and its id is never used again: to bring the machine back as a new \
     node, move its data folder away and start it again";
