//! Where `--join` leads a node that is in its cluster already.

use futures_util::future::join_all;

use super::{ANSWER_MAX, Former};
use crate::{
    error::Error,
    identity::Belongs,
    net::{CallRequest, Peers},
};

impl Former {
    /// Says in the log which of these addresses shut this node out, if it is in a cluster already. It has no use for them, and
    /// unit files keep what a node was first started with; but whoever meant to move it to another cluster learns it here.
    pub async fn look_elsewhere(&self, join: &[String]) {
        let Belongs::Settled { cluster, .. } = self.belongs() else { return };
        let refusals = join_all(join.iter().map(|addr| refusal(&self.peers, addr))).await;
        for why in refusals.into_iter().flatten() {
            tracing::warn!(
                "--join leads to a node that refuses this one: {why}. This node stays in its cluster {cluster}; to have it in \
                 another one, start it with an empty data folder, else mend --join"
            );
        }
    }
}

/// Why the node there wants nothing of this one. One that does not answer may be anybody.
async fn refusal(peers: &Peers, addr: &str) -> Option<String> {
    match peers.call_addr(addr, &CallRequest::Probe, ANSWER_MAX).await {
        Err(Error::Refused(why)) => Some(why),
        _ => None,
    }
}
