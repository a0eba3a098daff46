//! What a node tells its peers about itself, and the secret that it proves to them.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

use tokio::sync::watch;

use super::{
    moved::Moved,
    originals::Originals,
    refusals::Refusals,
    signs::{AllSigns, Signs},
};
use crate::{
    error::{Error, Result},
    identity::{ClusterId, Identity},
    level::{self, Level, Levels},
    raft::{NodeId, Peer},
};

/// The shared secret of a cluster; empty when none is configured. Never printed.
#[derive(Clone, Default)]
pub struct Secret(Vec<u8>);

impl Secret {
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// A peer port that others than this machine can reach must not be open to whoever finds it.
    pub fn required_for(addr: SocketAddr) -> bool {
        !match addr.ip() {
            IpAddr::V4(ip) => ip.is_loopback(),
            IpAddr::V6(ip) => ip.is_loopback() || ip.to_ipv4_mapped().is_some_and(|ip| ip.is_loopback()),
        }
    }

    /// Refuses a peer address that needs a secret when there is none.
    pub fn check(&self, addr: SocketAddr) -> Result<()> {
        if self.0.is_empty() && Self::required_for(addr) {
            return Err(Error::refused(format!(
                "the peer address {addr} can be reached from other machines: give all nodes the same --cluster-secret-file"
            )));
        }
        Ok(())
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// This node, as every connection of it presents it.
///
/// Whom it shuts out: a node that was removed is told so in the handshake, and believes it, because whoever says so proves
/// the cluster's secret. Ids are never used again, so the word of any one member is enough.
pub struct Local {
    node: NodeId,
    dir: PathBuf,
    /// The operator's name for it, and the peer address that others are told.
    pub peer: Peer,
    pub secret: Secret,
    /// What this program knows.
    pub levels: Levels,
    /// The cluster's level as far as it was applied here; unset until there is a state to tell from.
    level: OnceLock<Box<dyn Fn() -> Option<Level> + Send + Sync>>,
    identity: Mutex<Identity>,
    /// Where the cluster knows a node to be; unset until there is a cluster to ask.
    addr: OnceLock<Box<dyn Fn(NodeId) -> Option<String> + Send + Sync>>,
    /// Whether a node is to be shut out; unset until there is a state to tell from.
    removed: OnceLock<Box<dyn Fn(NodeId) -> bool + Send + Sync>>,
    /// Comes true when this node is told that it was removed.
    expelled: watch::Sender<bool>,
    signs: AllSigns,
    pub(super) refusals: Refusals,
    pub(super) moved: Moved,
    pub(super) originals: Originals,
}

impl Local {
    pub fn new(identity: Identity, peer: Peer, secret: Secret) -> Self {
        Self {
            node: identity.node(),
            dir: identity.dir().to_owned(),
            peer,
            secret,
            levels: level::KNOWN,
            level: OnceLock::new(),
            addr: OnceLock::new(),
            identity: Mutex::new(identity),
            removed: OnceLock::new(),
            expelled: watch::Sender::new(false),
            signs: AllSigns::default(),
            refusals: Refusals::default(),
            moved: Moved::default(),
            originals: Originals::default(),
        }
    }

    pub fn node(&self) -> NodeId {
        self.node
    }

    /// When another node last gave signs of life to this one.
    pub fn signs(&self, of: NodeId) -> Signs {
        self.signs.of(of)
    }

    /// Why another node shut this one out, if one did a moment ago.
    pub fn refused(&self) -> Option<String> {
        self.refusals.newest()
    }

    pub(super) fn heard(&self, from: NodeId) {
        self.signs.heard(from);
    }

    pub(super) fn gone(&self, node: NodeId) {
        self.signs.gone(node);
    }

    pub fn dir(&self) -> &std::path::Path {
        &self.dir
    }

    /// The cluster that this node is in or has agreed to be in.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.identity().cluster().cloned()
    }

    /// The cluster's level, as far as this node has applied it.
    pub fn level(&self) -> Option<Level> {
        self.level.get().and_then(|level| level())
    }

    /// Says who tells the level. Once. It is asked at each handshake: a copy would let a node in that the level has just shut out.
    pub fn ask_level(&self, level: impl Fn() -> Option<Level> + Send + Sync + 'static) {
        if self.level.set(Box::new(level)).is_err() {
            tracing::error!("it is said already who tells the level");
        }
    }

    /// Where the cluster knows a node to be.
    pub(super) fn addr_of(&self, node: NodeId) -> Option<String> {
        self.addr.get().and_then(|addr| addr(node))
    }

    /// Says who tells where a node is. Once.
    pub fn ask_addr(&self, addr: impl Fn(NodeId) -> Option<String> + Send + Sync + 'static) {
        if self.addr.set(Box::new(addr)).is_err() {
            tracing::error!("it is said already who tells where a node is");
        }
    }

    /// Says who tells whom to shut out. Once.
    pub fn shut_out(&self, removed: impl Fn(NodeId) -> bool + Send + Sync + 'static) {
        if self.removed.set(Box::new(removed)).is_err() {
            tracing::error!("it is said already who is to be shut out");
        }
    }

    /// Whether a node was removed from the cluster, and Raft does without it.
    pub(crate) fn is_removed(&self, node: NodeId) -> bool {
        self.removed.get().is_some_and(|removed| removed(node))
    }

    /// Comes true when a member of its cluster has told this node that it was removed.
    pub fn expelled(&self) -> watch::Receiver<bool> {
        self.expelled.subscribe()
    }

    pub(crate) fn expel(&self) {
        self.expelled.send_replace(true);
    }

    /// The stored identity. Never held across an `.await`; a change of it syncs a small file, a handful of times in a
    /// node's life.
    pub fn identity(&self) -> MutexGuard<'_, Identity> {
        // Identity stores first and changes its memory last, so a panic in between leaves nothing half done.
        self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn off_loopback_a_secret_is_needed() {
        for addr in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            Secret::default().check(addr.parse().unwrap()).unwrap();
        }
        for addr in ["0.0.0.0:1", "10.0.0.1:1", "[::]:1", "[2001:db8::1]:1", "[::ffff:10.0.0.1]:1"] {
            assert!(Secret::default().check(addr.parse().unwrap()).is_err(), "{addr}");
            Secret::new("x").check(addr.parse().unwrap()).unwrap();
        }
    }

    #[test]
    fn a_secret_is_never_printed() {
        assert!(!format!("{:?}", Secret::new("hunter2")).contains("hunter"));
    }
}
