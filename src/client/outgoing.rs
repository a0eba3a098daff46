//! What is on its way to one client, whichever connections carry it: CONNECT replies that are to be replaced, and bytes.
//!
//! Why: a client that begins with long-polling and upgrades has first many HTTP connections and then one WebSocket, and
//! what was queued or armed during the first must be found by the second.

use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use tokio::sync::Notify;

use super::{asked::Asked, rewrite};

/// Packets that may wait for their replacement at once (one per CONNECT that is under way). Past it the transport is cut:
/// no honest client has as many namespaces.
pub const ARMED_MAX: usize = 1024;

/// A packet that is to be replaced by another, both whole, as Engine.IO has them.
enum Armed {
    Reply {
        from: Vec<u8>,
        to: Vec<u8>,
    },
    /// The OPEN packet, whose bytes are not known before; it gets this `maxPayload`.
    Open(usize),
}

impl Armed {
    fn replacement(&self, packet: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Reply { from, to } => (from == packet).then(|| to.clone()),
            Self::Open(max_payload) => Some(rewrite::open(packet, *max_payload, |sid| sid.to_string())?.1),
        }
    }
}

/// See the module.
#[derive(Default)]
pub struct Outgoing {
    armed: Mutex<Vec<Armed>>,
    queued: AtomicUsize,
    written: AtomicU64,
    pub(super) progress: Notify,
    /// The namespaces whose answers are on their way, or have gone it.
    pub(super) asked: Asked,
}

impl Outgoing {
    /// From now on the packet `from`, when it is written, goes out as `to`; once. To be called before it can be written.
    /// False when too many are armed.
    pub fn arm(&self, from: Vec<u8>, to: Vec<u8>) -> bool {
        let mut armed = self.armed();
        if armed.len() < ARMED_MAX {
            armed.push(Armed::Reply { from, to });
        }
        armed.len() < ARMED_MAX
    }

    /// The OPEN packet, when it is written, says this `maxPayload`.
    pub fn arm_open(&self, max_payload: usize) {
        self.armed().push(Armed::Open(max_payload));
    }

    /// What goes out in the place of `packet`, if anything; it is no longer armed then.
    pub fn replacement(&self, packet: &[u8]) -> Option<Vec<u8>> {
        self.asked.tell(packet);
        let mut armed = self.armed();
        let (found, to) = armed.iter().enumerate().find_map(|(n, each)| Some((n, each.replacement(packet)?)))?;
        armed.swap_remove(found);
        Some(to)
    }

    /// Whether any packet is to be replaced, or waited for.
    pub fn is_armed(&self) -> bool {
        !self.armed().is_empty() || self.asked.awaits()
    }

    pub fn disarm(&self) {
        self.armed().clear();
    }

    /// Counts a packet of `bytes` (see [`super::frame::frame_bytes`]) that was just given to socketioxide. Count only what
    /// will be written and never too much: bytes that never come would be counted for ever.
    pub fn queued(&self, bytes: usize) {
        self.queued.fetch_add(bytes, Relaxed);
    }

    /// Counts a packet no more that was not taken.
    pub fn unqueued(&self, bytes: usize) {
        self.queued.fetch_update(Relaxed, Relaxed, |queued| Some(queued.saturating_sub(bytes))).ok();
        self.progress.notify_waiters();
    }

    /// Bytes between the callers of `queued` and the kernel. Packets that nobody counted (a ping, a CONNECT reply) make
    /// it a few bytes too small until the queue is next empty.
    pub fn queued_bytes(&self) -> usize {
        self.queued.load(Relaxed)
    }

    /// Bytes that have left so far.
    pub fn written(&self) -> u64 {
        self.written.load(Relaxed)
    }

    pub(super) fn wrote(&self, bytes: usize) {
        self.written.fetch_add(bytes as u64, Relaxed);
        self.unqueued(bytes);
    }

    fn armed(&self) -> MutexGuard<'_, Vec<Armed>> {
        self.armed.lock().expect("nothing panics under this lock")
    }
}
