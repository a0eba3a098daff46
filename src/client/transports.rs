//! The table of transports: every Engine.IO session of this node, and those that later requests name by their id.
//!
//! What always holds: a transport leaves the table when it ends, so there are never more than there are sessions.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, Weak},
};

use socketioxide::socket::Sid;
use tokio_util::task::TaskTracker;

use super::transport::{Hangup, Transport};

/// The Engine.IO sessions of this node. Cheap to clone.
#[derive(Clone, Default)]
pub struct Transports {
    tables: Arc<Mutex<Tables>>,
    /// Upgrades that are under way.
    upgrades: TaskTracker,
}

#[derive(Default)]
pub(super) struct Tables {
    last: u64,
    all: HashMap<u64, Transport>,
    /// Those that began with long-polling: the ones that later requests name.
    by_sid: HashMap<Sid, Transport>,
}

impl Transports {
    /// A new transport, of a client at `peer`.
    pub(super) fn open(&self, peer: SocketAddr, hangup: Hangup) -> Transport {
        let mut tables = self.lock();
        tables.last += 1;
        let transport = Transport::new(tables.last, peer, hangup, Arc::downgrade(&self.tables));
        tables.all.insert(transport.id(), transport.clone());
        transport
    }

    /// The transport of an Engine.IO session that began with long-polling.
    pub(super) fn get(&self, sid: Sid) -> Option<Transport> {
        self.lock().by_sid.get(&sid).cloned()
    }

    /// All that are open, for a drain.
    pub fn all(&self) -> Vec<Transport> {
        self.lock().all.values().cloned().collect()
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.lock().all.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// WebSockets that come to this node through another one.
    pub fn relayed(&self) -> usize {
        self.lock().all.values().filter(|transport| transport.is_relayed()).count()
    }

    /// Works on an upgrade, which ends with its connection.
    pub(super) fn spawn(&self, upgrade: impl Future<Output = ()> + Send + 'static) {
        self.upgrades.spawn(upgrade);
    }

    /// Waits, once the port is closed, until no upgrade is under way any more.
    pub async fn ended(&self) {
        self.upgrades.close();
        self.upgrades.wait().await;
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        lock(&self.tables)
    }
}

/// What a transport knows of the table that it is in.
pub(super) type Registry = Weak<Mutex<Tables>>;

impl Tables {
    pub fn name(&mut self, sid: Sid, transport: Transport) {
        self.by_sid.insert(sid, transport);
    }

    pub fn remove(&mut self, id: u64, sid: Option<Sid>) {
        self.all.remove(&id);
        sid.and_then(|sid| self.by_sid.remove(&sid));
    }
}

pub(super) fn lock(tables: &Mutex<Tables>) -> MutexGuard<'_, Tables> {
    tables.lock().expect("nothing panics under this lock")
}
