//! The task that carries this node's batches to the leader, one after another, until each has landed.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::sync::watch;

use crate::{
    clock::Clock,
    codec::{self, Kind},
    command::{Batch, Command, NodeId},
    consensus::{Consensus, unwritten},
    error::{Error, Result},
    machine::Replica,
    members::REMOVED,
    net::{CallRequest, CallResponse, Forwarded, Local, Peers},
    propose::{Landed, Proposals, Ticket},
    raft::{Payload, Peer},
};

/// How long the leader may take to append, commit and answer; then the batch is sent again.
const SEND_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause before a batch is sent again that could not be sent.
const RETRY: Duration = Duration::from_millis(20);
/// Pause before a node that was told that its incarnation is over starts the next one.
const RESTART: Duration = Duration::from_millis(200);

/// How long a removed node waits for an answer, and its pause between two rounds of questions.
const KNOCK: Duration = Duration::from_millis(200);

pub(crate) struct Driver {
    pub local: Arc<Local>,
    pub consensus: Consensus,
    pub clock: Arc<Clock>,
    pub peers: Arc<Peers>,
    pub proposals: Arc<Proposals>,
    pub replica: Arc<Replica>,
    pub info: crate::command::NodeInfo,
    /// Told when an incarnation of this node has started, and when it is over.
    pub started: watch::Sender<bool>,
}

impl Driver {
    /// Lives one incarnation after another, until it is dropped, the disk fails, or the node is removed.
    pub async fn run(&self) -> Error {
        loop {
            if let Err(e) = self.live().await {
                return e;
            }
            let me = self.local.node();
            if self.replica.read(|state| state.is_removed(me)) {
                self.started.send_replace(false);
                self.proposals.refuse("this node was removed from its cluster");
                return self.leave().await;
            }
            self.started.send_replace(false);
            self.proposals.refuse("this node was declared down, or has fallen behind the log, and is starting again");
            tokio::time::sleep(RESTART).await;
        }
    }

    /// A removed voter votes on until Raft does without it: the step that takes it out may need its vote. Then the others
    /// shut it out, and say so when it knocks.
    pub async fn leave(&self) -> Error {
        tracing::info!("this node was removed from its cluster; it ends when the others do without it");
        let mut told = self.local.expelled();
        let knocking = async {
            loop {
                for (id, peer) in self.consensus.members().into_iter().filter(|(id, _)| *id != self.local.node()) {
                    _ = self.peers.call(id, &peer.addr, &CallRequest::Probe, KNOCK).await;
                }
                tokio::time::sleep(KNOCK).await;
            }
        };
        tokio::select! {
            _ = told.wait_for(|told| *told) => {}
            () = knocking => {}
        }
        Error::refused(REMOVED)
    }

    /// One incarnation, from its `started` to the word that it is over.
    async fn live(&self) -> Result<()> {
        let incarnation = self.local.identity().next_incarnation()?;
        self.proposals.begin(incarnation);
        tracing::info!(incarnation, "starting");
        let started = vec![Command::Started(self.info.clone())];
        let mut batch = self.proposals.fly(self.local.node(), incarnation, 1, started, vec![Ticket::nobody()]);
        let mut landed = self.proposals.landed();
        loop {
            let last = self.deliver(&batch).await?;
            if last.over {
                return Ok(());
            }
            if batch.sequence == 1 {
                self.proposals.accept();
                self.started.send_replace(true);
            }
            let over = landed.wait_for(|l| l.incarnation == incarnation && l.over);
            batch = tokio::select! {
                batch = self.proposals.next_batch(self.local.node(), last) => batch,
                _ = over => return Ok(()),
            };
        }
    }

    /// Sends a batch until this node has applied it, or its incarnation is over.
    async fn deliver(&self, batch: &Batch) -> Result<Landed> {
        let landed = || self.landed(batch);
        loop {
            let mut leaders = self.consensus.leaders();
            // Also one that is no member any more: nobody knows its address, but it is still the one whose end is waited for.
            let leads = leaders.now();
            let leader = self.consensus.leader();
            tokio::select! {
                biased;
                last = landed() => return last,
                sent = self.send(batch, leader.as_ref()) => match sent {
                    // Committed: it is not sent again before this node has seen what became of it.
                    Ok(index) => match self.comes_by(index, landed()).await {
                        Some(last) => return last,
                        None => tokio::time::sleep(RETRY).await,
                    },
                    Err(Error::Fatal(why)) => return Err(Error::Fatal(why)),
                    Err(why) => {
                        tracing::debug!("a batch was not taken, it is sent again: {why}");
                        tokio::time::sleep(RETRY).await;
                    }
                },
                // A call that waits for a leader that is gone must not outwait the election.
                () = leaders.wait_for(|now| *now != leads) => {}
            }
        }
    }

    /// What has landed when this node has applied that index; `None` when the batch was not carried out there. Not bounded
    /// in time: while the player holds apply up, sending the same batch again would only make the log longer.
    async fn comes_by(&self, index: u64, landed: impl Future<Output = Result<Landed>>) -> Option<Result<Landed>> {
        let mut applied = self.replica.applied();
        tokio::select! {
            biased;
            last = landed => Some(last),
            // It ends only with the state machine, and then `landed` says so.
            Ok(_) = applied.wait_for(|applied| *applied >= index) => None,
        }
    }

    async fn landed(&self, batch: &Batch) -> Result<Landed> {
        let mut landed = self.proposals.landed();
        let here = |l: &Landed| l.incarnation == batch.incarnation && (l.over || l.sequence >= batch.sequence);
        landed.wait_for(here).await.map(|last| *last).map_err(|_| Error::fatal("the state machine has stopped"))
    }

    /// The index at which it was committed.
    async fn send(&self, batch: &Batch, leader: Option<&(NodeId, Peer)>) -> Result<u64> {
        match leader {
            None => {
                tokio::time::sleep(RETRY).await;
                Err(Error::unavailable("no leader is known"))
            }
            Some((id, _)) if *id == self.local.node() => append(&self.consensus, &self.clock, batch.clone()).await,
            Some((id, peer)) => {
                let batch = Bytes::from(codec::encode(Kind::Batch, batch)?);
                let request = CallRequest::Forward { batch };
                match self.peers.call(*id, &peer.addr, &request, SEND_TIMEOUT).await? {
                    CallResponse::Forwarded(Forwarded::Accepted { index }) => Ok(index),
                    _ => Err(Error::unavailable("it is not the leader any more")),
                }
            }
        }
    }
}

/// Stamps a batch with this node's clock and appends it; the index at which it was committed.
///
/// # Errors
/// `Unavailable` when this node does not lead, or stops leading meanwhile, or has no room on its disk; `Fatal` when Raft has stopped.
pub(crate) async fn append(consensus: &Consensus, clock: &Clock, mut batch: Batch) -> Result<u64> {
    consensus.space.check()?;
    batch.stamp = clock.stamp();
    let payload = Payload(Bytes::from(codec::encode(Kind::Batch, &batch)?));
    match consensus.raft.client_write(payload).await {
        Ok(written) => Ok(written.log_id.index),
        Err(e) => Err(unwritten(e)),
    }
}
