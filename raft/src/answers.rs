//! What other nodes ask of this one.

use std::sync::{Arc, OnceLock};

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
    store::Ask,
};

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
            CallRequest::Join { id, .. } if id != from.node => {
                return Err(Error::refused("a node asks for itself alone"));
            }
            CallRequest::Join { id, peer } => CallResponse::Join(self.members.take_in(id, peer).await),
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
