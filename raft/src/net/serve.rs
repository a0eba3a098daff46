//! The listener: who connects, proves itself, and is answered by lane.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::{
    io::{AsyncRead, BufReader},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    CallRequest, CallResponse, Consensus, Lane, Local, Remote,
    frame::{self, FRAME_BYTES_MAX, Frame, What},
    handshake,
    link::{Outbox, write_all},
    message::{RaftReply, RaftRequest, append_request, transfer_request},
    originals::admit,
    snapshot,
};
use crate::{
    codec,
    error::{Error, Result},
    raft::NodeId,
};

/// Connections that have not proved themselves yet; the next waits to be accepted. Each ends within the handshake's time.
const STRANGERS_MAX: usize = 256;
/// Requests of one connection that are worked on at once; reading waits above it.
const WORKING_MAX: usize = 256;

/// A connection on which nothing arrives for so long is closed: its other end may have vanished without a word. Whoever is
/// still there dials again when there is something to say.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// The layers above Raft, as a peer sees them.
pub trait App: Send + Sync + 'static {
    /// An error is sent back; `Unavailable` tells the peer that trying again can help.
    fn call(&self, from: Remote, request: CallRequest) -> BoxFuture<'_, Result<CallResponse>>;
    /// Must not block: what it cannot take it drops.
    fn bus(&self, from: NodeId, bytes: Bytes);
    /// A connection of its own, for whatever it likes. Must not block; dropping it closes it.
    fn tunnel(&self, _stream: TcpStream) {}
}

/// Answers peers until `stop`; then all connections are closed, and it returns.
pub async fn serve(
    listener: TcpListener,
    local: Arc<Local>,
    consensus: Arc<dyn Consensus>,
    app: Arc<dyn App>,
    stop: CancellationToken,
) {
    let strangers = Arc::new(Semaphore::new(STRANGERS_MAX));
    let server = Server { local, consensus, app, snapshots: Arc::default() };
    let mut connections = JoinSet::new();
    loop {
        let stranger = Arc::clone(&strangers).acquire_owned();
        let accepted = async {
            let permit = stranger.await.expect("this semaphore is never closed");
            (listener.accept().await, permit)
        };
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            (accepted, permit) = accepted => match accepted {
                Ok((stream, _)) => {
                    let server = server.clone();
                    connections.spawn(async move { server.connection(stream, permit).await });
                }
                Err(e) => out_of_sockets(&e).await,
            },
        }
    }
    connections.shutdown().await;
}

/// Accepting fails for a connection that is gone already, or when the process has no file handle left: both pass.
async fn out_of_sockets(error: &io::Error) {
    tracing::warn!("cannot accept a peer connection: {error}");
    tokio::time::sleep(Duration::from_millis(50)).await;
}

#[derive(Clone)]
struct Server {
    local: Arc<Local>,
    consensus: Arc<dyn Consensus>,
    app: Arc<dyn App>,
    snapshots: Arc<snapshot::Receiver>,
}

impl Server {
    async fn connection<P>(self, mut stream: TcpStream, stranger: P) {
        let shaken = handshake::accept(&self.local, &mut stream).await;
        drop(stranger);
        let ended = match shaken {
            Ok(remote) => self.clone().lane(stream, remote).await,
            Err(Error::Refused(why)) if self.local.refusals.is_news(&why) => {
                return tracing::info!("a peer connection was refused: {why}");
            }
            Err(e) => return tracing::debug!("a peer connection came to nothing: {e}"),
        };
        match ended {
            Err(Error::Refused(why)) if self.local.refusals.is_news(&why) => {
                tracing::warn!("a peer connection is ended: {why}");
            }
            Err(e) => tracing::debug!("a peer connection ends: {e}"),
            Ok(()) => {}
        }
    }

    async fn lane(self, mut stream: TcpStream, remote: Remote) -> Result<()> {
        match remote.lane {
            Lane::Raft | Lane::Beat | Lane::Call => self.requests(stream, remote).await,
            Lane::Bulk => self.snapshots.receive(&mut stream, self.local.dir(), &*self.consensus).await,
            Lane::Bus => self.bus(stream, remote.node).await,
            Lane::Tunnel => {
                self.app.tunnel(stream);
                Ok(())
            }
        }
    }

    async fn bus(self, stream: TcpStream, from: NodeId) -> Result<()> {
        let mut stream = BufReader::new(stream);
        while let Some(frame) = self.next(&mut stream, from).await? {
            let What::OneWay(bytes) = frame.what else { return Err(unexpected()) };
            self.app.bus(from, bytes);
        }
        Ok(())
    }

    /// Works on many requests at a time; answers go out as they are ready.
    async fn requests(self, stream: TcpStream, remote: Remote) -> Result<()> {
        let (read, write) = stream.into_split();
        let mut read = BufReader::with_capacity(64 << 10, read);
        let (out, packets) = Outbox::new();
        let mut work = JoinSet::new();
        work.spawn(write_all(packets, write));
        while let Some(frame) = self.next(&mut read, remote.node).await? {
            let What::Request(body) = frame.what else { return Err(unexpected()) };
            if self.local.is_removed(remote.node) {
                // It is told when it dials again.
                return Err(Error::refused(format!("{} was removed from this cluster", remote.name)));
            }
            while work.try_join_next().is_some() {}
            if work.len() > WORKING_MAX {
                work.join_next().await;
            }
            let (server, remote, out) = (self.clone(), remote.clone(), out.clone());
            work.spawn(async move {
                let what = match server.answer(remote, body).await {
                    Ok(body) => What::Reply(body),
                    Err(e) => What::Failed(matches!(e, Error::Unavailable(_)), e.to_string()),
                };
                let _ = out.send(&Frame { id: frame.id, what }).await; // Fails when the peer is gone: nobody waits.
            });
        }
        Ok(())
    }

    /// The next frame; its coming, and the connection's end, are signs of life.
    async fn next(&self, from: &mut (impl AsyncRead + Unpin), node: NodeId) -> Result<Option<Frame>> {
        let Ok(frame) = timeout(IDLE_MAX, frame::read(from, FRAME_BYTES_MAX)).await else {
            return Err(Error::unavailable("idle"));
        };
        match &frame {
            Ok(Some(_)) => self.local.heard(node),
            Ok(None) | Err(_) => self.local.gone(node),
        }
        frame
    }

    async fn answer(&self, remote: Remote, body: Bytes) -> Result<Bytes> {
        // With each: since it connected, the node may have come to be known as another process.
        admit(&self.local, &remote).await?;
        let answer = if remote.lane == Lane::Call {
            codec::body(&self.app.call(remote, codec::from_body(&body)?).await?)?
        } else {
            self.still_together(&remote)?;
            codec::body(&self.raft(codec::from_body(&body)?).await?)?
        };
        Ok(answer.into())
    }

    /// A cluster that was only proposed may have been given up since the handshake.
    fn still_together(&self, remote: &Remote) -> Result<()> {
        if self.local.cluster() == remote.cluster {
            return Ok(());
        }
        Err(Error::refused("this node is not in that cluster any more"))
    }

    async fn raft(&self, request: RaftRequest) -> Result<RaftReply> {
        Ok(match request {
            RaftRequest::Append { vote, prev, entries, commit } => {
                self.consensus.append(append_request(vote, prev, entries, commit)?).await?.into()
            }
            RaftRequest::Vote(rpc) => self.consensus.vote(rpc.into()).await?.into(),
            RaftRequest::PreVote(rpc) => self.consensus.pre_vote(rpc.into()).await?.into(),
            RaftRequest::Transfer { from, to, last } => {
                self.consensus.transfer(transfer_request(from, to, last)).await?.into()
            }
        })
    }
}

fn unexpected() -> Error {
    Error::refused("not what this lane carries")
}
