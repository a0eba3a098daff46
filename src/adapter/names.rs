//! Public sids of this node's sockets, as other nodes and handlers name them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use socketioxide::socket::Sid;

use super::SocketRef;
use crate::client::Transport;

/// Both directions, of one namespace.
#[derive(Default)]
pub struct Names(Mutex<Maps>);

#[derive(Default)]
struct Maps {
    public: HashMap<Sid, (Sid, Transport)>,
    sockets: HashMap<Sid, Sid>,
}

/// In the extensions of a socket: its name lives as long as the socket.
#[derive(Clone)]
struct Named(Arc<Entry>);

struct Entry {
    socket: Sid,
    public: Sid,
    names: Arc<Names>,
}

/// The public sid of a socket: what its client knows as its id, and what `fetch_sockets` shows. `socket.id` is a secret
/// between that client and this node.
pub fn public_sid(socket: &SocketRef) -> Option<Sid> {
    socket.extensions.get::<Named>().map(|named| named.0.public)
}

impl Names {
    /// Names a socket, and puts it into the room of its name. When two sockets have one name, because a client was back
    /// before its old connection was found dead, the younger one has it.
    pub fn name(self: &Arc<Self>, socket: &SocketRef, public: Sid, transport: Transport) {
        {
            let mut maps = self.lock();
            maps.public.insert(socket.id, (public, transport));
            maps.sockets.insert(public, socket.id);
        }
        let entry = Entry { socket: socket.id, public, names: self.clone() };
        socket.extensions.insert(Named(Arc::new(entry)));
        socket.join(public);
    }

    pub fn socket(&self, public: Sid) -> Option<Sid> {
        self.lock().sockets.get(&public).copied()
    }

    pub fn public(&self, sockets: impl IntoIterator<Item = Sid>) -> Vec<Sid> {
        let maps = self.lock();
        sockets.into_iter().filter_map(|socket| maps.public.get(&socket).map(|named| named.0)).collect()
    }

    /// The transports of these sockets.
    pub fn transports(&self, sockets: Vec<Sid>) -> Vec<Transport> {
        let maps = self.lock();
        sockets.iter().filter_map(|socket| maps.public.get(socket).map(|named| named.1.clone())).collect()
    }

    /// Cuts the transports of all that are named.
    pub fn cut(&self) {
        let transports: Vec<Transport> = self.lock().public.values().map(|named| named.1.clone()).collect();
        transports.iter().for_each(Transport::cut);
    }

    fn lock(&self) -> MutexGuard<'_, Maps> {
        // What is guarded is whole between any two statements.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut maps = self.names.lock();
        maps.public.remove(&self.socket);
        if maps.sockets.get(&self.public) == Some(&self.socket) {
            maps.sockets.remove(&self.public);
        }
    }
}
