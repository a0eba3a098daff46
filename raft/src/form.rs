//! How empty nodes find each other and become one cluster, once.
//!
//! Each node that is in no cluster probes the addresses that it was given, again and again. Where it meets a formed cluster,
//! it adopts that cluster's id and asks to be taken in. Where enough empty nodes see each other, the one with the lowest id
//! is the *founder*.
//!
//! # Why there are never two clusters
//!
//! Forming is a two-phase commit whose coordinator is the founder:
//!
//! 1. The founder stores its *proposal* (a new cluster id and the members) and sends it to the members.
//! 2. A member that is in nothing stores it and accepts. From then on it is bound: it accepts from this founder alone.
//! 3. When all have accepted in one round, the founder stores that the cluster is *settled*, if its own identity still holds
//!    that proposal (checked under one lock). This is the moment at which the cluster exists.
//!
//! Take two founders whose proposals share a node. That node, bound to the first, is released only after the first founder
//! itself, asked since, has said that it no longer holds its proposal, and a founder that gave a proposal up never settles it (its next one
//! has a new id). If the shared node is one of the founders, it settles only what it holds, and it holds one thing. So of
//! two proposals that share a node at most one settles. Two that share none: of N known nodes that needs N ≥ 2 × `expect`, and
//! then a founder goes on only when it sees all N, so both would have picked the same lowest ids.
//! What is outside of this: nodes that were given different lists, each without the others.
//!
//! Crashes: every step is on disk before it is told. A founder that stopped before step 3 sends the same cluster id again,
//! after step 3 it returns [`Outcome::Found`] again until Raft has been initialised. A member that stopped is still bound. A
//! founder whose disk is lost between 1 and 3 leaves its members bound; they say so, and an operator empties their folders, in
//! which there is nothing. A folder that was in a cluster and is found empty takes no part ([`Identity::may_form`]).
//!
//! [`Identity::may_form`]: crate::identity::Identity::may_form

mod decide;
mod elsewhere;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::{sync::watch, time::sleep};

use self::decide::{Seen, Step, bound_text, decide};
use crate::{
    clock::wall_clock,
    error::{Error, Result},
    identity::{Belongs, ClusterId, Members, new_cluster_id},
    net::{CallRequest, CallResponse, Consensus, Leadership, Local, Peers, Probed, Remote},
    raft::NodeId,
};

/// Each request of a round; a node that takes longer counts as absent in this round.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// Between two rounds.
const PAUSE: Duration = Duration::from_millis(200);

/// How forming ended for this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is the founder: Raft has to be initialised with these members now.
    Found { cluster: ClusterId, members: Members },
    /// It is in the cluster: as a voter from the beginning, as a learner just taken in, or since an earlier start.
    Member { cluster: ClusterId },
}

/// One node's part in forming a cluster: asks (`run`) and answers (`answer`).
pub struct Former {
    local: Arc<Local>,
    peers: Arc<Peers>,
    consensus: Arc<dyn Consensus>,
    expect: usize,
    waiting: watch::Sender<String>,
}

impl Former {
    /// `expect`: with how many voters to form a cluster.
    pub fn new(local: Arc<Local>, peers: Arc<Peers>, consensus: Arc<dyn Consensus>, expect: usize) -> Self {
        Self { local, peers, consensus, expect: expect.max(1), waiting: watch::Sender::new(String::new()) }
    }

    /// What the node waits for, for its readiness; empty once it is in a cluster.
    pub fn waiting(&self) -> watch::Receiver<String> {
        self.waiting.subscribe()
    }

    /// Goes on until this node is in a cluster. May be dropped at any point and run again.
    ///
    /// # Errors
    /// `Refused` when waiting cannot help: an empty folder beside a marker and nowhere to join; `Fatal` when the disk fails.
    pub async fn run(&self, join: &[String]) -> Result<Outcome> {
        if join.is_empty() && !self.local.identity().is_settled() {
            self.local.identity().may_form()?;
        }
        loop {
            match self.round(join).await {
                Ok(Some(outcome)) => {
                    self.waiting.send_replace(String::new());
                    return Ok(outcome);
                }
                Ok(None) => {}
                Err(Error::Unavailable(why)) => self.wait(why),
                Err(e) => return Err(e),
            }
            sleep(PAUSE).await;
        }
    }

    async fn round(&self, join: &[String]) -> Result<Option<Outcome>> {
        if let Some(outcome) = self.already_in().await? {
            return Ok(Some(outcome));
        }
        let before = self.belongs();
        let seen = self.probe(join, &before).await;
        if let Belongs::Proposed { cluster, founder, .. } = &before
            && *founder != self.local.node()
            && !seen.nodes.values().any(|node| node.formed && node.cluster.as_ref() == Some(cluster))
        {
            if seen.nodes.get(founder).is_some_and(|founder| founder.cluster.as_ref() != Some(cluster)) {
                // Given up: it held the proposal before this node did, and this node before it asked.
                self.swap(&before, Belongs::Nowhere)?;
            } else {
                self.wait(bound_text(cluster, *founder, &seen));
            }
            return Ok(None);
        }
        match decide(&self.probed(), &seen) {
            Step::Join { cluster } => self.join(&before, cluster, &seen).await,
            Step::Propose { members } => self.found(members).await,
            Step::Wait(why) => {
                self.wait(why);
                Ok(None)
            }
        }
    }

    /// Raft knows it, or this node settled it and stopped before Raft was initialised.
    async fn already_in(&self) -> Result<Option<Outcome>> {
        let initialized = self.consensus.initialized().await?;
        let belongs = self.belongs();
        match belongs.clone() {
            Belongs::Nowhere if initialized => Err(Error::refused(format!(
                "the data folder {} has a Raft log but belongs to no cluster: its identity file was replaced. Restore it",
                self.local.dir().display()
            ))),
            Belongs::Proposed { cluster, .. } if initialized => {
                let settled = self.swap(&belongs, settled(cluster.clone()))?;
                Ok(settled.then_some(Outcome::Member { cluster }))
            }
            Belongs::Settled { cluster, .. } if initialized => Ok(Some(Outcome::Member { cluster })),
            Belongs::Settled { cluster, founding: members } if !members.is_empty() => {
                Ok(Some(Outcome::Found { cluster, members }))
            }
            _ => Ok(None),
        }
    }

    /// Asks all given addresses, and the members of a proposal that this node is bound to.
    async fn probe(&self, join: &[String], belongs: &Belongs) -> Seen {
        let mut addrs: BTreeSet<String> = join.iter().cloned().collect();
        if let Belongs::Proposed { members, .. } = belongs {
            let others = members.iter().filter(|(id, _)| *id != self.local.node());
            addrs.extend(others.map(|(_, peer)| peer.addr.clone()));
        }
        let answers = join_all(addrs.iter().map(|addr| async move {
            match self.peers.call_addr(addr, &CallRequest::Probe, ANSWER_MAX).await {
                Ok(CallResponse::Probe(probed)) => Ok(probed),
                Ok(_) => Err(format!("{addr} answers another question")),
                Err(Error::Unavailable(why) | Error::Refused(why) | Error::Fatal(why)) => Err(why),
            }
        }));
        let mut seen = Seen::default();
        for answer in answers.await {
            match answer {
                Ok(probed) if probed.node == self.local.node() => {} // This is ourselves.
                Ok(probed) => drop(seen.nodes.insert(probed.node, probed)),
                Err(why) => seen.missing.push(why),
            }
        }
        seen
    }

    /// Adopts the cluster, then asks its nodes until the leader has taken this one in.
    async fn join(&self, before: &Belongs, cluster: ClusterId, seen: &Seen) -> Result<Option<Outcome>> {
        if !matches!(before, Belongs::Settled { .. }) && !self.swap(before, settled(cluster.clone()))? {
            return Ok(None);
        }
        let request = CallRequest::Join { id: self.local.node(), peer: self.local.peer.clone() };
        let mut why = format!("cluster {cluster} has no leader now");
        for node in seen.nodes.values().filter(|node| node.formed) {
            match self.peers.call(node.node, &node.peer.addr, &request, ANSWER_MAX).await {
                Ok(CallResponse::Join(Leadership::Leader(Ok(())))) => return Ok(Some(Outcome::Member { cluster })),
                Ok(CallResponse::Join(Leadership::Leader(Err(refused)))) => {
                    why = format!("cluster {cluster} does not take this node: {refused}");
                }
                Ok(_) => {}
                Err(e) => why = format!("cluster {cluster}: {e}"),
            }
        }
        self.wait(format!("waiting to join: {why}"));
        Ok(None)
    }

    async fn found(&self, members: Members) -> Result<Option<Outcome>> {
        let Some(cluster) = self.propose(&members)? else { return Ok(None) };
        let request = &CallRequest::Form { cluster: cluster.clone(), members: members.clone() };
        let others = members.iter().filter(|(id, _)| *id != self.local.node());
        let answers = join_all(others.map(|(id, peer)| async move {
            match self.peers.call(*id, &peer.addr, request, ANSWER_MAX).await {
                Ok(CallResponse::Form(answer)) => answer.map_err(|why| format!("{peer}: {why}")),
                Ok(_) => Err(format!("{peer} answers another question")),
                Err(e) => Err(format!("{peer}: {e}")),
            }
        }));
        let refusals: Vec<String> = answers.await.into_iter().filter_map(Result::err).collect();
        if !refusals.is_empty() {
            self.wait(format!("waiting for all members to accept cluster {cluster}: {}", refusals.join("; ")));
            return Ok(None);
        }
        // From here on the cluster exists, unless another founder's proposal was accepted while the answers were under way.
        let founder = self.local.node();
        let held = Belongs::Proposed { cluster: cluster.clone(), founder, members: members.clone() };
        let exists = self.swap(&held, Belongs::Settled { cluster: cluster.clone(), founding: members.clone() })?;
        Ok(exists.then_some(Outcome::Found { cluster, members }))
    }

    /// Stores the proposal; an earlier one of this node keeps its cluster id. `None` when it is bound to another's.
    fn propose(&self, members: &Members) -> Result<Option<ClusterId>> {
        let mut identity = self.local.identity();
        identity.may_form()?;
        let founder = self.local.node();
        let cluster = match identity.belongs() {
            Belongs::Nowhere => new_cluster_id()?,
            Belongs::Proposed { cluster, founder: by, .. } if *by == founder => cluster.clone(),
            _ => return Ok(None),
        };
        let proposal = Belongs::Proposed { cluster: cluster.clone(), founder, members: members.clone() };
        if *identity.belongs() != proposal {
            identity.set_belongs(proposal)?;
        }
        Ok(Some(cluster))
    }

    /// Answers what concerns forming; `None` for every other request (and for `Join`, which only Raft's leader can answer).
    pub async fn answer(&self, from: &Remote, request: &CallRequest) -> Option<CallResponse> {
        match request {
            CallRequest::Probe => Some(CallResponse::Probe(self.probed())),
            CallRequest::Form { cluster, members } => {
                Some(CallResponse::Form(self.accept(from.node, cluster, members).await.map_err(|e| e.to_string())))
            }
            _ => None,
        }
    }

    async fn accept(&self, from: NodeId, cluster: &ClusterId, members: &Members) -> Result<()> {
        let me = self.local.node();
        if self.consensus.initialized().await? {
            return Err(Error::refused("this node is in a cluster"));
        }
        if members.len() != self.expect {
            return Err(Error::refused(format!("{} members; this node expects {}", members.len(), self.expect)));
        }
        let ids: Vec<NodeId> = members.iter().map(|(id, _)| *id).collect();
        if !ids.is_sorted_by(|a, b| a < b) || ids.first() != Some(&from) || !ids.contains(&me) {
            return Err(Error::refused("these members are not the founder, this node and others, by their ids"));
        }
        let mut identity = self.local.identity();
        identity.may_form()?;
        match identity.belongs() {
            Belongs::Nowhere => {}
            // A founder may give its own proposal up, since it alone could settle it. It is no longer the lowest.
            Belongs::Proposed { founder, .. } if *founder == from || *founder == me => {}
            Belongs::Proposed { cluster, founder, .. } => {
                return Err(Error::refused(format!("has agreed to cluster {cluster} of node {founder:016x}")));
            }
            Belongs::Settled { cluster, .. } => return Err(Error::refused(format!("is in cluster {cluster}"))),
        }
        identity.set_belongs(Belongs::Proposed { cluster: cluster.clone(), founder: from, members: members.clone() })
    }

    fn probed(&self) -> Probed {
        let identity = self.local.identity();
        Probed {
            node: identity.node(),
            peer: self.local.peer.clone(),
            cluster: identity.cluster().cloned(),
            formed: identity.is_settled(),
            expect: self.expect as u64,
            barred: identity.may_form().err().map(|e| e.to_string()),
            clock_ms: wall_clock(),
        }
    }

    fn belongs(&self) -> Belongs {
        self.local.identity().belongs().clone()
    }

    /// Moves on from `before`; false when something else (an accepted proposal) came in between. Each decision made on what
    /// was seen some time ago goes through here.
    fn swap(&self, before: &Belongs, after: Belongs) -> Result<bool> {
        let mut identity = self.local.identity();
        if identity.belongs() != before {
            return Ok(false);
        }
        identity.set_belongs(after)?;
        Ok(true)
    }

    fn wait(&self, why: String) {
        self.waiting.send_if_modified(|now| {
            let new = *now != why;
            if new {
                tracing::info!("{why}");
                *now = why;
            }
            new
        });
    }
}

fn settled(cluster: ClusterId) -> Belongs {
    Belongs::Settled { cluster, founding: Vec::new() }
}
