//! What other nodes ask of this one.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use tokio::{net::TcpStream, sync::mpsc};

use crate::{
    clock::Clock,
    codec::{self, Kind},
    command::{Batch, NodeId},
    consensus::Consensus,
    drive::append,
    error::{Error, Result},
    form::Former,
    machine::Replica,
    members::Members,
    net::{App, CallRequest, CallResponse, Forwarded, Leadership, Remote},
    raft::Peer,
    store::Ask,
};

/// Within the time that the one who joins waits for its answer.
const ASK_LEADER_MAX: Duration = Duration::from_millis(500);

/// Answers them.
pub(crate) struct Answers {
    pub consensus: Consensus,
    pub clock: Arc<Clock>,
    pub former: Arc<Former>,
    pub replica: Arc<Replica>,
    pub members: Arc<Members>,
    pub bus: mpsc::Sender<Bytes>,
    pub tunnels: mpsc::Sender<TcpStream>,
    /// Who answers for the layers above, once there is somebody.
    pub ask: Arc<OnceLock<Ask>>,
}

impl Answers {
    async fn answer(&self, from: Remote, request: CallRequest) -> Result<CallResponse> {
        let leader = || self.consensus.leader().map(|(id, _)| id);
        Ok(match request {
            CallRequest::Forward { batch } => {
                let batch: Batch = codec::decode(Kind::Batch, &batch)?;
                if batch.node != from.node {
                    return Err(Error::refused("a batch of another node"));
                }
                self.must_be_member(&from)?;
                let appended = append(&self.consensus, &self.clock, batch).await;
                CallResponse::Forwarded(match appended {
                    Ok(index) => Forwarded::Accepted { index },
                    Err(Error::Unavailable(_)) => Forwarded::NotLeader { leader: leader() },
                    Err(e) => return Err(e),
                })
            }
            CallRequest::ReadIndex => CallResponse::ReadIndex(match self.consensus.read_index().await {
                Ok(index) => Leadership::Leader(index),
                Err(_) => Leadership::NotLeader { leader: leader() },
            }),
            CallRequest::Ask(question) => match self.ask.get() {
                Some(ask) => CallResponse::Ask(ask(question).await),
                None => return Err(Error::unavailable("this node is still starting")),
            },
            CallRequest::Hashes => CallResponse::Hashes(self.replica.hashes()),
            CallRequest::Join { id, peer } if id == from.node => CallResponse::Join(self.join(id, peer).await),
            CallRequest::Join { id, peer } => {
                self.must_be_member(&from)?;
                CallResponse::Join(self.members.take_in(id, peer).await)
            }
            CallRequest::Change(change) => {
                self.must_be_member(&from)?;
                CallResponse::Changed(self.members.change(&change).await?)
            }
            CallRequest::Members => CallResponse::Members(self.members.list()),
            CallRequest::Probe | CallRequest::Form { .. } => {
                let answer = self.former.answer(&from, &request).await;
                answer.ok_or_else(|| Error::refused("a request that this version does not know"))?
            }
        })
    }
}

impl Answers {
    /// Takes a node in, or asks the leader to: who comes may not know where that is. It is asked on its behalf once, not again
    /// by whoever is asked.
    async fn join(&self, id: NodeId, peer: Peer) -> Leadership<std::result::Result<(), String>> {
        // A list of all nodes has each of them ask itself, too.
        if id != self.members.node && self.consensus.peer(id).is_some_and(|known| known.addr != peer.addr) {
            self.members.peers.has_moved(id, &peer.addr);
        }
        let taken = self.members.take_in(id, peer.clone()).await;
        let leader = self.consensus.leader().filter(|(leader, _)| ![id, self.members.node].contains(leader));
        match (&taken, leader) {
            (Leadership::NotLeader { .. }, Some((leader, at))) => {
                let request = CallRequest::Join { id, peer };
                match self.members.peers.call(leader, &at.addr, &request, ASK_LEADER_MAX).await {
                    Ok(CallResponse::Join(answer)) => answer,
                    _ => taken,
                }
            }
            _ => taken,
        }
    }

    fn must_be_member(&self, from: &Remote) -> Result<()> {
        let known = self.consensus.peer(from.node).map(|_| ());
        known.ok_or_else(|| Error::refused("only a node of this cluster may ask that"))
    }
}

impl App for Answers {
    fn call(&self, from: Remote, request: CallRequest) -> BoxFuture<'_, Result<CallResponse>> {
        self.answer(from, request).boxed()
    }

    fn bus(&self, _from: NodeId, bytes: Bytes) {
        // A full queue loses it, as it may be.
        _ = self.bus.try_send(bytes);
    }

    fn tunnel(&self, stream: TcpStream) {
        // One too many is closed, and its other end told so by that.
        _ = self.tunnels.try_send(stream);
    }
}
