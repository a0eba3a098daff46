//! The place of one connection: there, being made, or not.
//!
//! What always holds: dialing goes on when the one who asked for it stops waiting. Raft's requests live for a fraction of
//! an election; a handshake over a slow path takes longer, and one that began anew with each request would never end.

use std::{sync::Arc, time::Duration};

use tokio::{net::TcpStream, task::JoinSet, time::timeout};

use super::{Lane, Local, handshake, link::Link};
use crate::{
    error::{Error, Result},
    raft::NodeId,
};

/// One connection to one node on one lane. Dropping it ends the connection and the dialing.
#[derive(Default)]
pub(crate) struct Slot {
    link: Option<Arc<Link>>,
    dialing: JoinSet<Result<TcpStream>>,
}

impl Slot {
    /// The live link, or the one that is made within the time.
    ///
    /// # Errors
    /// `Unavailable` when it is not there in time (the dialing goes on) or the other side cannot be reached; `Refused`
    /// when it is not the one it should be.
    pub async fn link(
        &mut self,
        local: &Arc<Local>,
        addr: &str,
        lane: Lane,
        target: NodeId,
        within: Duration,
    ) -> Result<Arc<Link>> {
        match self.link.take() {
            Some(link) if !link.is_closed() => {
                self.link = Some(link.clone());
                return Ok(link);
            }
            Some(link) if link.was_ended() => local.gone(target),
            _ => {}
        }
        if self.dialing.is_empty() {
            let (local, addr) = (Arc::clone(local), addr.to_owned());
            self.dialing.spawn(async move { Ok(handshake::dial(&local, &addr, lane, Some(target)).await?.0) });
        }
        let late = |_| Error::unavailable(format!("{addr} does not answer within {within:?}"));
        let stream = match timeout(within, self.dialing.join_next()).await.map_err(late)? {
            Some(Ok(dialed)) => dialed?,
            _ => return Err(Error::unavailable(format!("dialing {addr} was given up"))),
        };
        let link = Arc::new(Link::new(stream));
        self.link = Some(link.clone());
        Ok(link)
    }
}
