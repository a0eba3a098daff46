//! The store's face: open it, propose, read, follow the feed, close it.

mod open;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    future,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::{
    net::TcpStream,
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    base::Health,
    clock::Clock,
    command::{Command, Incarnation, Limits, Namespace, NodeId, NodeInfo},
    consensus::Consensus,
    divergence::{Comparison, Divergence},
    error::{Error, Result},
    identity::ClusterId,
    level::{self, Level},
    log::Log,
    machine::{Play, Replica},
    marker,
    members::{Change, Member, Members, REMOVED},
    net::{CallRequest, CallResponse, Leadership, Local, Peers, Secret, Signs},
    observe::Observer,
    propose::{Proposals, Ticket},
    raft::Peer,
    state::{Applied, State, list::Relation},
};

/// How long a linearizable read may take.
const READ_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a close waits for the last checkpoint.
const CHECKPOINT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a change of the cluster's nodes may take, a hand-over before it included; and the pause before it is asked for
/// again, because the leader changed.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(8);
const CHANGE_RETRY: Duration = Duration::from_millis(50);
/// How long the leader may take to say how the nodes stand.
const MEMBERS_TIMEOUT: Duration = Duration::from_millis(500);

/// Everything that a node's store needs to know.
pub struct Config {
    pub data: PathBuf,
    pub info: NodeInfo,
    /// Peer addresses of nodes to find; this node's own may be among them.
    pub join: Vec<String>,
    /// With how many voters to form a cluster.
    pub expect: usize,
    pub secret: Secret,
    pub limits: Limits,
    /// After so long without a word a node is declared down.
    pub node_timeout: Duration,
    /// After so long without a word an empty node may take a dead one's place by itself.
    pub replace_after: Duration,
    /// How long a session without a transport lives.
    pub session_ttl: Duration,
    /// How long a user without a transport counts as online.
    pub presence_grace: Duration,
    pub heartbeat: Duration,
    /// Least time without a leader before a node stands for election; at most twice as long.
    pub election: Duration,
    /// Entries after which a snapshot is due although they have few bytes. It bounds what a log of tiny entries, which reaches
    /// back to the snapshot before the newest, costs in memory; else bytes decide: see `retention`.
    pub snapshot_every: u64,
}

/// What a node knows of the cluster at this moment.
#[derive(Clone, Debug)]
pub struct Status {
    pub node: NodeId,
    pub cluster: Option<ClusterId>,
    pub leader: Option<NodeId>,
    pub term: u64,
    /// Index known as committed by a quorum.
    pub committed: u64,
    pub applied: u64,
    pub voters: BTreeSet<NodeId>,
    pub peers: Vec<(NodeId, Peer)>,
    /// Why the node is not in a cluster yet; empty when it is.
    pub waiting: String,
    /// Why the node, which is in a cluster, does not start in it; empty when it has, or nothing is known yet.
    pub entering: String,
    /// Why the node is a learner still; empty for a voter, and as long as no leader was asked.
    pub learner: String,
    /// This incarnation has started: what this node proposes counts.
    pub started: bool,
    /// Since when no leader with a quorum was heard; `None` when never.
    pub silent_for: Option<Duration>,
    /// Why another node shut this one out a moment ago, or was not the one it should be.
    pub refused: Option<String>,
    /// How far the wall clock is ahead of the median of the voters, or behind it; beyond [`OFF_MAX_MS`] this node does not
    /// lead. `None` before a majority could be asked.
    ///
    /// [`OFF_MAX_MS`]: crate::clock::OFF_MAX_MS
    pub clock_off_ms: Option<i64>,
    pub log_bytes: u64,
    /// Why proposals are refused, if it is for want of room on the disk.
    pub disk_full: Option<String>,
    /// What every node of the cluster understands, as far as that was applied here.
    pub level: Option<Level>,
    /// The alarm that nodes do not have the same state.
    pub diverged: Option<Divergence>,
}

/// Answers what another node asks of the layers above. Opaque bytes both ways.
pub type Ask = Box<dyn Fn(Bytes) -> BoxFuture<'static, Bytes> + Send + Sync>;

/// What the store hands to the layers above, each to be worked off by one task.
pub struct Feeds {
    pub plays: mpsc::Receiver<Play>,
    /// Ephemeral frames of other nodes.
    pub bus: mpsc::Receiver<Bytes>,
    /// Connections that other nodes opened with [`Store::tunnel`].
    pub tunnels: mpsc::Receiver<TcpStream>,
}

/// A node's replicated store. Cheap to clone.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    local: Arc<Local>,
    consensus: Consensus,
    clock: Arc<Clock>,
    comparison: Arc<Comparison>,
    members: Arc<Members>,
    peers: Arc<Peers>,
    replica: Arc<Replica>,
    proposals: Arc<Proposals>,
    log: Log,
    machine_gone: Mutex<Option<oneshot::Receiver<()>>>,
    checkpoints: Health,
    fatal: watch::Sender<Option<Error>>,
    waiting: watch::Receiver<String>,
    entering: watch::Sender<String>,
    started: watch::Receiver<bool>,
    contact: watch::Receiver<Option<Instant>>,
    ask: Arc<OnceLock<Ask>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Store {
    /// Hands a command to the log. The ticket hears what this node's apply made of it, or `unavailable`; it is called by
    /// the task that works the feed off, so it must not block.
    pub fn propose(&self, command: Command, ticket: Ticket) {
        self.0.proposals.push(command, ticket);
    }

    /// [`Store::propose`], and waits until it was played on this node.
    pub async fn call(&self, command: Command) -> Result<Applied> {
        let (tell, told) = oneshot::channel();
        self.propose(command, Ticket::new(move |outcome| _ = tell.send(outcome.cloned())));
        told.await.unwrap_or_else(|_| Err(Error::unavailable("the store is closing")))
    }

    /// What ends the drain token of this node, if it took it in that incarnation or an earlier one. Below level 2 the command
    /// cannot say which one is meant, and one that comes late also ends a newer token.
    pub fn undrain(&self, incarnation: Incarnation) -> Command {
        let node = self.node();
        match self.0.proposals.level() >= level::SECOND {
            true => Command::Undrain { node, incarnation },
            false => Command::EndDrain { node },
        }
    }

    /// Reads this node's state, which may be behind. The closure must be short: apply waits for it.
    pub fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        self.0.replica.read(read)
    }

    /// As [`Store::read`], with the index up to which the state is current.
    pub fn read_at<T>(&self, read: impl FnOnce(&State, u64) -> T) -> T {
        self.0.replica.read_at(read)
    }

    /// Who has which sessions and is in which rooms of a namespace, at one index. However many they are, apply does not wait.
    ///
    /// # Errors
    /// `Unavailable` when apply is held up, or the node is stopping.
    pub async fn relation(&self, ns: &Namespace) -> Result<(u64, Relation)> {
        let tables = Relation::tables(ns);
        let asked = self.0.consensus.raft.with_state_machine(|machine| {
            // What it takes is not waited for in there.
            Box::pin(future::ready(machine.copy(tables)))
        });
        let asked = timeout(READ_TIMEOUT, asked).await.map_err(|_| Error::unavailable("apply is held up"))?;
        let copied = asked.map_err(Error::unavailable)?.await?;
        Ok((copied.index, Relation::of(copied.tables)))
    }

    /// After this, a read sees at least everything that was acknowledged anywhere before the call.
    pub async fn linearizable(&self) -> Result<()> {
        let deadline = Instant::now() + READ_TIMEOUT;
        let index = timeout_at(deadline, self.read_index()).await;
        let index = index.map_err(|_| Error::unavailable("no quorum answered in time"))??;
        let mut applied = self.0.replica.applied();
        match timeout_at(deadline, applied.wait_for(|applied| *applied >= index)).await {
            Ok(reached) => reached.map(|_| ()).map_err(|_| Error::unavailable("closing")),
            Err(_) => {
                let applied = *self.0.replica.applied().borrow();
                Err(Error::unavailable(format!("{index} is committed, and this node has applied {applied} yet")))
            }
        }
    }

    async fn read_index(&self) -> Result<u64> {
        loop {
            let asked = match self.0.consensus.leader() {
                Some((id, _)) if id == self.node() => self.0.consensus.read_index().await,
                Some((id, peer)) => {
                    let answer = self.0.peers.call(id, &peer.addr, &CallRequest::ReadIndex, READ_TIMEOUT).await;
                    match answer {
                        Ok(CallResponse::ReadIndex(Leadership::Leader(index))) => Ok(index),
                        Ok(_) => Err(Error::unavailable("it is not the leader any more")),
                        Err(e) => Err(e),
                    }
                }
                None => Err(Error::unavailable("no leader is known")),
            };
            match asked {
                Ok(index) => return Ok(index),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// The state hash at an applied index (`None`: the newest), or the oldest and newest index of which it is known.
    pub fn hash_at(&self, index: Option<u64>) -> std::result::Result<(u64, u128), (u64, u64)> {
        self.0.replica.hash_at(index)
    }

    /// Sends to all other nodes what may be lost. Never waits.
    ///
    /// # Errors
    /// `Refused` when it is larger than the bus takes.
    pub fn bus_send(&self, bytes: &Bytes) -> Result<()> {
        self.0.peers.bus_send(None, bytes)
    }

    /// As [`Store::bus_send`], to one node.
    pub fn bus_send_to(&self, node: NodeId, bytes: &Bytes) -> Result<()> {
        self.0.peers.bus_send(Some(node), bytes)
    }

    /// Asks the layers above on another node.
    pub async fn ask(&self, node: NodeId, question: Bytes, within: Duration) -> Result<Bytes> {
        let peer = self.0.consensus.peer(node).ok_or_else(|| Error::refused("no such node"))?;
        match self.0.peers.call(node, &peer.addr, &CallRequest::Ask(question), within).await? {
            CallResponse::Ask(answer) => Ok(answer),
            _ => Err(Error::unavailable("an answer to another question")),
        }
    }

    /// A connection of its own to another node, which gets it from [`Feeds::tunnels`]; a plain stream of bytes.
    pub async fn tunnel(&self, node: NodeId) -> Result<TcpStream> {
        let peer = self.0.consensus.peer(node).ok_or_else(|| Error::refused("no such node"))?;
        self.0.peers.tunnel(node, &peer.addr).await
    }

    /// Who answers when another node asks. Once.
    pub fn on_ask(&self, ask: Ask) {
        if self.0.ask.set(ask).is_err() {
            tracing::error!("a second answerer was ignored");
        }
    }

    /// Who hears of what is worth counting. Once.
    pub fn on_observation(&self, observer: Observer) {
        self.0.proposals.observed.by(observer);
    }

    /// When another node last gave signs of life to this one.
    pub fn signs(&self, of: NodeId) -> Signs {
        self.0.local.signs(of)
    }

    /// Frames of the bus that were dropped since the start, counted once for each node.
    pub fn bus_dropped(&self) -> u64 {
        self.0.peers.bus_dropped()
    }

    pub fn node(&self) -> NodeId {
        self.0.local.node()
    }

    pub fn incarnation(&self) -> Incarnation {
        self.0.proposals.incarnation()
    }

    /// True while this incarnation counts. Changes when the node is declared down and starts again.
    pub fn started(&self) -> watch::Receiver<bool> {
        self.0.started.clone()
    }

    /// The cluster that this node is in, once it is in one.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.0.local.cluster()
    }

    pub fn status(&self) -> Status {
        let metrics = self.0.consensus.metrics();
        let membership = metrics.membership_config.membership();
        let index = |id: Option<crate::raft::LogId>| id.map_or(0, |id| id.index);
        Status {
            node: self.node(),
            cluster: self.cluster(),
            leader: metrics.current_leader,
            term: metrics.current_term,
            committed: index(metrics.cluster_committed).max(index(metrics.local_committed)),
            applied: *self.0.replica.applied().borrow(),
            voters: membership.voter_ids().collect(),
            peers: membership.nodes().map(|(id, peer)| (*id, peer.clone())).collect(),
            waiting: self.0.waiting.borrow().clone(),
            entering: self.0.entering.borrow().clone(),
            learner: self.0.members.state.note.borrow().clone(),
            started: *self.0.started.borrow(),
            refused: self.0.local.refused(),
            silent_for: self.0.contact.borrow().map(|at| at.elapsed()),
            clock_off_ms: self.0.clock.off_ms(),
            log_bytes: self.0.log.size_bytes(),
            disk_full: self.0.consensus.space.full(),
            diverged: self.0.comparison.found(),
            level: self.0.replica.read(|state| state.level()),
        }
    }

    pub(crate) fn leads(&self) -> bool {
        self.0.consensus.leading_term().is_some()
    }

    /// Whether the majority of nodes contradicts this node's state.
    pub(crate) fn is_wrong(&self) -> bool {
        self.0.comparison.is_wrong(self.node())
    }

    /// Gives leadership to the most caught-up voter that is heard of and whose clock and state are right, if this node has
    /// it. Without such a voter nothing is given away: nobody could take it.
    pub async fn hand_over(&self) {
        let removed = self.read(|state| state.removed_nodes());
        let unfit = |id| self.0.clock.is_wrong(id) || self.0.comparison.is_wrong(id) || removed.contains(&id);
        self.0.consensus.hand_over(|id| !unfit(id)).await;
    }

    /// Gives leadership to that voter, if this node has it, and waits until it is elsewhere, for at most three seconds.
    pub async fn hand_over_to(&self, to: NodeId) {
        self.0.consensus.hand_over_to(to).await;
    }

    /// Changes the cluster's nodes, through its leader. What is so already is fine.
    ///
    /// # Errors
    /// `Refused` with the reason when it would not be safe, or needs something else first; `Unavailable` when it did not
    /// come to an end in time: it may still, and asking again does no harm.
    pub async fn change(&self, change: &Change) -> Result<()> {
        let deadline = Instant::now() + CHANGE_TIMEOUT;
        loop {
            let asked = match self.0.consensus.leader() {
                Some((id, _)) if id == self.node() => self.0.members.change(change).await,
                Some((id, peer)) => {
                    let request = CallRequest::Change(change.clone());
                    let left = deadline.saturating_duration_since(Instant::now());
                    match self.0.peers.call(id, &peer.addr, &request, left).await {
                        Ok(CallResponse::Changed(changed)) => Ok(changed),
                        Ok(_) => Err(Error::unavailable("an answer to another question")),
                        Err(e) => Err(e),
                    }
                }
                None => Err(Error::unavailable("no leader is known")),
            };
            let why = match asked {
                Ok(Leadership::Leader(done)) => return done.map_err(Error::refused),
                Ok(Leadership::NotLeader { .. }) => Error::unavailable("the leader changes"),
                Err(Error::Unavailable(why)) => Error::Unavailable(why),
                // Shut out before it was answered: by what it asked for.
                Err(Error::Refused(_)) if change.takes_out(self.node()) && self.is_removed() => return Ok(()),
                Err(e) => return Err(e),
            };
            if Instant::now() >= deadline {
                return Err(why);
            }
            tokio::time::sleep(CHANGE_RETRY).await;
        }
    }

    /// The cluster's nodes as its leader sees them now.
    ///
    /// # Errors
    /// `Unavailable` when there is no leader, or it does not answer.
    pub async fn members(&self) -> Result<Vec<Member>> {
        let asked = match self.0.consensus.leader() {
            Some((id, _)) if id == self.node() => self.0.members.list(),
            Some((id, peer)) => {
                match self.0.peers.call(id, &peer.addr, &CallRequest::Members, MEMBERS_TIMEOUT).await? {
                    CallResponse::Members(members) => members,
                    _ => return Err(Error::unavailable("an answer to another question")),
                }
            }
            None => return Err(Error::unavailable("no leader is known")),
        };
        match asked {
            Leadership::Leader(members) => Ok(members),
            Leadership::NotLeader { .. } => Err(Error::unavailable("the leader changes")),
        }
    }

    /// For tests that leave a change half done.
    #[cfg(test)]
    pub(crate) fn changes(&self) -> &Members {
        &self.0.members
    }

    /// Whether this node was removed from its cluster for good.
    pub fn is_removed(&self) -> bool {
        *self.0.local.expelled().borrow() || self.0.replica.read(|state| state.is_removed(self.node()))
    }

    /// Comes true when the node can no longer keep its promises, or will never be able to, with the reason: it has to exit.
    pub async fn fatal(&self) -> Error {
        let (mut own, mut apply) = (self.0.fatal.subscribe(), self.0.replica.failed());
        let mut told = self.0.local.expelled();
        tokio::select! {
            biased;
            // Before openraft tells the same in its own words.
            Ok(why) = apply.wait_for(Option::is_some) => why.clone().unwrap_or_else(|| Error::fatal("stopped")),
            e = self.0.log.fatal() => e,
            why = self.0.checkpoints.failure() => Error::fatal(why),
            // What Raft said when it ended: of a failure above it knows no more than that somebody is gone. `Refused` stays
            // what it is: an operator can do something about it.
            Ok(why) = own.wait_for(Option::is_some) => why.clone().unwrap_or_else(|| Error::fatal("stopped")),
            Ok(_) = told.wait_for(|told| *told) => Error::refused(REMOVED),
            why = self.0.consensus.stopped() => Error::fatal(why),
        }
    }

    /// Stops: nothing is proposed any more, what is in the log is synced, the state is checkpointed, the folder is free.
    pub async fn close(&self) -> Result<()> {
        self.0.proposals.refuse("this node is stopping");
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
        // Again: until a moment ago the node's tasks could have taken proposals in.
        self.0.proposals.close("this node is stopping");
        if let Err(e) = self.0.consensus.raft.shutdown().await {
            tracing::error!("Raft did not stop cleanly: {e}");
        }
        // openraft ends its state machine in the background; the last checkpoint is written when it goes.
        let gone = self.0.machine_gone.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(gone) = gone
            && timeout(CHECKPOINT_TIMEOUT, gone).await.is_err()
        {
            tracing::warn!("the last checkpoint takes too long: the next start applies more of the log");
        }
        self.0.log.close().await?;
        let identity = self.0.local.identity();
        if let Err(e) = identity.marker().applied(self.node(), *self.0.replica.applied().borrow()) {
            marker::lags(&e);
        }
        identity.unlock();
        Ok(())
    }
}
