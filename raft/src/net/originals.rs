//! Which process is a node, should two say that they are it.
//!
//! A data folder that is copied and started beside its original (a cloned machine, a folder copied "to add a node") makes two
//! processes of one node id. Both know the secret, and what one of them votes or acknowledges the other has not: a quorum that
//! counts both is none. So before anything is served to a process that was not met yet, the node is looked for where the
//! cluster knows it to be. What always holds:
//!
//! - Served is the process that answers there. Another one of that id is refused, and told where its original runs.
//! - Where nobody answers, the newcomer is the node, come back or moved, until somebody does. So a move needs the old process
//!   to be gone, not more; and while the original can not be reached from here, a copy is not told from it.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::timeout;

use super::{Lane, Local, Remote, handshake};
use crate::{
    error::{Error, Result},
    identity::Process,
    raft::NodeId,
};

/// How long the process at the known address may take to answer. Less than the patience of whoever waits for it here.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// By node, the process that it is known to be; bounded by the ids of the cluster.
#[derive(Default)]
pub(super) struct Originals {
    known: Mutex<HashMap<NodeId, Process>>,
    /// Held by the one that asks: whoever comes meanwhile takes the same answer.
    asking: tokio::sync::Mutex<()>,
}

impl Originals {
    fn is(&self, node: NodeId, process: Process) -> bool {
        self.known().get(&node) == Some(&process)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<NodeId, Process>> {
        // Each change is one call of the map's.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets a process go on that is the node that it says.
///
/// # Errors
/// `Refused` when another process is.
pub(super) async fn admit(local: &Local, remote: &Remote) -> Result<()> {
    // A version that does not say which process it is cannot be told from another.
    let Some(process) = remote.process else { return Ok(()) };
    if local.originals.is(remote.node, process) {
        return Ok(());
    }
    let _one = local.originals.asking.lock().await;
    if local.originals.is(remote.node, process) {
        return Ok(());
    }
    // Who is no member yet has nothing that could be taken from it.
    let Some(addr) = local.addr_of(remote.node) else { return Ok(()) };
    // Closed after the handshake; so nobody has to be asked in turn who this node is.
    let dialed = timeout(ANSWER_MAX, handshake::dial_at(local, &addr, Lane::Call, Some(remote.node))).await;
    if let Ok(Ok((_, there))) = dialed
        && there.process != remote.process
    {
        return Err(Error::refused(format!(
            "node {:016x} ({}) runs at {addr}, and this is another process: it runs on a copy of its data folder. To move the \
             node, stop the process there first; to add a node, start with an empty folder",
            remote.node, there.name
        )));
    }
    local.originals.known().insert(remote.node, process);
    Ok(())
}
