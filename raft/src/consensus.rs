//! openraft, as the rest of this crate asks it: who leads, who was heard, up to where a read may go.
//!
//! Metrics are always copied: one that is borrowed holds Raft up.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use openraft::{
    Raft, ReadPolicy, ServerState, SnapshotPolicy,
    async_runtime::{instant::Instant as _, watch::WatchReceiver as _},
    errors::{ChangeMembershipError, ClientWriteError, RaftError},
    metrics::RaftServerMetrics,
    type_config::alias::{InstantOf, WatchReceiverOf},
};
use tokio::time::Instant;

use crate::{
    command::NodeId,
    error::{Error, Result},
    machine::Machine,
    net::Heard,
    raft::{LogId, Peer, TypeConfig},
    space::Space,
};

/// How long a leader that was just elected waits to hear of somebody who could take over.
const SUCCESSOR_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a leader waits for another node to take over.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(3);

/// A handle on Raft. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Consensus {
    pub raft: Raft<TypeConfig, Machine>,
    /// Without room nothing is appended.
    pub space: Space,
    heard: Heard,
    node: NodeId,
}

type Metrics = openraft::RaftMetrics<TypeConfig>;

impl Consensus {
    pub fn new(raft: Raft<TypeConfig, Machine>, heard: Heard, node: NodeId, space: Space) -> Self {
        Self { raft, space, heard, node }
    }

    pub fn metrics(&self) -> Metrics {
        self.raft.metrics().borrow_watched().clone()
    }

    pub fn leader(&self) -> Option<(NodeId, Peer)> {
        let metrics = self.raft.server_metrics().borrow_watched().clone();
        let id = metrics.current_leader?;
        let peer = metrics.membership_config.membership().get_node(&id)?.clone();
        Some((id, peer))
    }

    /// The leader as this node knows it, as it changes.
    pub fn leaders(&self) -> Leaders {
        Leaders(self.raft.server_metrics())
    }

    pub fn peer(&self, id: NodeId) -> Option<Peer> {
        self.metrics().membership_config.membership().get_node(&id).cloned()
    }

    /// Whether the configuration is known, and this node is not in it. The committed one: until then its vote may be needed.
    pub fn does_without(&self, id: NodeId) -> bool {
        let metrics = self.metrics();
        let mut members = metrics.committed_membership_config.membership().nodes().peekable();
        members.peek().is_some() && members.all(|(member, _)| *member != id)
    }

    pub fn members(&self) -> Vec<(NodeId, Peer)> {
        let metrics = self.metrics();
        metrics.membership_config.membership().nodes().map(|(id, peer)| (*id, peer.clone())).collect()
    }

    pub fn voters(&self) -> Vec<(NodeId, Peer)> {
        let metrics = self.metrics();
        let membership = metrics.membership_config.membership();
        membership.voter_ids().filter_map(|id| Some((id, membership.get_node(&id)?.clone()))).collect()
    }

    /// The term that this node leads in, if it does.
    pub fn leading_term(&self) -> Option<u64> {
        let metrics = self.metrics();
        (metrics.state == ServerState::Leader).then_some(metrics.current_term)
    }

    /// When a quorum last answered this leader, or a leader was last heard by this node.
    pub fn last_contact(&self) -> Option<Instant> {
        let metrics = self.metrics();
        match metrics.state {
            // A quorum of one has nobody to ask.
            ServerState::Leader if metrics.membership_config.membership().voter_ids().eq([self.node]) => {
                Some(Instant::now())
            }
            ServerState::Leader => metrics.last_quorum_acked.map(|at| to_tokio(*at)),
            _ => self.heard.last(),
        }
    }

    /// When a node last answered this leader.
    pub fn heard_of(&self, node: NodeId) -> Option<Instant> {
        self.metrics().heartbeat?.get(&node).copied().flatten().map(|at| to_tokio(*at))
    }

    /// The fit voter that can best take over.
    pub fn successor(&self, fit: impl Fn(NodeId) -> bool) -> Option<NodeId> {
        const HEARD_WITHIN: Duration = Duration::from_secs(1);
        let metrics = self.metrics();
        let replication = metrics.replication?;
        let heard = |id: &NodeId| self.heard_of(*id).is_some_and(|at| at.elapsed() < HEARD_WITHIN);
        let voters =
            metrics.membership_config.membership().voter_ids().filter(|id| *id != self.node && heard(id) && fit(*id));
        voters.max_by_key(|id| replication.get(id).copied().flatten().map(|matched| matched.index))
    }

    /// How many entries each other member is behind this leader; those of which it does not know yet are left out.
    pub fn lags(&self) -> BTreeMap<NodeId, u64> {
        let metrics = self.metrics();
        let last = metrics.last_log_index.unwrap_or(0);
        let known = metrics.replication.unwrap_or_default().into_iter();
        known.filter_map(|(id, matched)| Some((id, last.saturating_sub(matched?.index)))).collect()
    }

    /// The sets of voters in force (two while a change is half done), and the entry that put them there.
    pub fn configs(&self) -> (Vec<BTreeSet<NodeId>>, Option<LogId>) {
        let membership = self.metrics().membership_config;
        (membership.membership().get_joint_config().clone(), *membership.log_id())
    }

    /// Gives leadership to the most caught-up fit voter that is heard of, if this node has it. Without such a voter nothing
    /// is given away: nobody could take it.
    pub async fn hand_over(&self, fit: impl Fn(NodeId) -> bool) {
        let patience = Instant::now() + SUCCESSOR_TIMEOUT;
        let to = loop {
            match self.successor(&fit) {
                Some(to) => break to,
                None if self.leading_term().is_none() || Instant::now() >= patience => return,
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        self.hand_over_to(to).await;
    }

    /// Gives leadership to that voter, if this node has it, and waits until it is elsewhere, for at most three seconds.
    pub async fn hand_over_to(&self, to: NodeId) {
        if let Err(e) = self.raft.trigger().transfer_leader(to).await {
            return tracing::warn!("leadership was not handed over: {e}");
        }
        let mut leaders = self.leaders();
        let moved = leaders.wait_for(|leader| leader.is_some_and(|leader| leader != self.node));
        if tokio::time::timeout(HAND_OVER_TIMEOUT, moved).await.is_err() {
            tracing::warn!("leadership was not taken over in time");
        }
    }

    /// Up to where a leader has committed, after a quorum confirmed that it leads.
    pub async fn read_index(&self) -> Result<u64> {
        let linearizer = self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await;
        let linearizer = linearizer.map_err(|_| Error::unavailable("no quorum confirms that this node leads"))?;
        Ok(linearizer.read_log_id().index())
    }

    /// Comes true when Raft has stopped by itself.
    pub async fn stopped(&self) -> String {
        // It keeps the senders of its metrics until it ends. The ones with the reason change with every entry: a wake-up each.
        let mut seldom = self.raft.server_metrics();
        while seldom.changed().await.is_ok() {}
        self.metrics().running_state.err().map_or_else(|| "Raft has ended".to_owned(), |e| e.to_string())
    }
}

/// Why nothing was written, in words that may reach an operator: openraft's own speak of requests that have to be forwarded.
pub(crate) fn unwritten(error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> Error {
    match error {
        RaftError::Fatal(e) => Error::fatal(e),
        RaftError::APIError(ClientWriteError::ForwardToLeader(_)) => Error::unavailable("not the leader"),
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => {
            Error::unavailable("the leader changed meanwhile; it may be done all the same")
        }
        RaftError::APIError(
            ClientWriteError::PreconditionFailed(_)
            | ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(_)),
        ) => Error::unavailable("another change of the nodes is under way"),
        RaftError::APIError(e) => Error::unavailable(e),
    }
}

fn to_tokio(at: InstantOf<TypeConfig>) -> Instant {
    Instant::now() - at.elapsed()
}

/// Who leads: that part of Raft's metrics which does not change with every entry.
pub(crate) struct Leaders(WatchReceiverOf<TypeConfig, RaftServerMetrics<TypeConfig>>);

impl Leaders {
    pub fn now(&self) -> Option<NodeId> {
        self.0.borrow_watched().current_leader
    }

    /// Waits until the leader is such. Never comes back once Raft has ended.
    pub async fn wait_for(&mut self, wanted: impl Fn(&Option<NodeId>) -> bool) {
        loop {
            if wanted(&self.now()) {
                return;
            }
            if self.0.changed().await.is_err() {
                std::future::pending().await
            }
        }
    }
}

/// openraft's settings for a pace: how often a leader speaks, and how long it may be silent at least. Snapshots and purges
/// are left to [`crate::retention`]: openraft can count entries only.
pub fn settings(heartbeat: Duration, election: Duration) -> Result<openraft::Config> {
    let raft = openraft::Config {
        cluster_name: "moim".to_owned(),
        heartbeat_interval: heartbeat.as_millis() as u64,
        election_timeout_min: election.as_millis() as u64,
        election_timeout_max: election.as_millis() as u64 * 2,
        // An isolated node must not push everybody's term up, and a restarted leader must be elected again.
        enable_pre_vote: Some(true),
        enable_leader_restore: Some(false),
        allow_log_reversion: None,
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        max_payload_entries: 512,
        // A lone proposal goes to the others as soon as the log has taken it.
        broadcast_submitted_on_append: Some(true),
        install_snapshot_timeout: 20_000,
        ..openraft::Config::default()
    };
    raft.validate().map_err(|e| Error::refused(format!("Raft's settings: {e}")))
}

#[cfg(test)]
mod tests {
    use openraft::errors::ForwardToLeader;

    use super::*;

    #[test]
    fn nobody_is_told_to_forward_anything() {
        for write in [ClientWriteError::ForwardToLeader, ClientWriteError::LogEntryDiscarded] {
            let error = unwritten(RaftError::APIError(write(ForwardToLeader::empty())));
            assert!(matches!(&error, Error::Unavailable(why) if !why.contains("forward")), "{error}");
        }
    }
}
