//! This node's adapters, one for each namespace, and the way from each to its like on the other nodes.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use moim_raft::{NodeId, Store, command};
use socketioxide::socket::Sid;
use socketioxide_core::{
    Str,
    adapter::{BroadcastFlags, Room},
};

use super::{
    ANSWER, Bound, PeerAdapter, Reach, SocketRef, Unsendable,
    acks::Gathers,
    wire::{self, Answer, Event, News, Question, Selection},
};
use crate::client::Transport;

/// What all adapters of a node share. Cheap to clone. The default one is of a server without other nodes.
#[derive(Clone, Default)]
pub struct Hub(Arc<Inner>);

#[derive(Default)]
struct Inner {
    store: Option<Store>,
    bound: Option<Bound>,
    /// Weak, because adapters hold the hub.
    namespaces: Mutex<HashMap<Str, Weak<PeerAdapter>>>,
    /// Held while a namespace becomes known, here and to socketioxide.
    adding: Mutex<()>,
    gathers: Gathers,
}

impl Hub {
    pub fn new(store: Store, bound: Bound) -> Self {
        Self(Arc::new(Inner { store: Some(store), bound: Some(bound), ..Inner::default() }))
    }

    /// Names a socket by the public sid of its session. To be called in the connect middleware. False when its namespace is
    /// not the one that this node knows by that name, so that nobody would hear it (see `Hub::add`): it has to be cut.
    pub fn name(&self, socket: &SocketRef, sid: &command::Sid, transport: &Transport) -> bool {
        // Sids of sessions from before sids were as long as socketioxide's have no such name: other nodes do not see them.
        let Ok(public) = sid.as_str().parse::<Sid>() else { return true };
        // Held until it is named: who takes the namespace's place finds the socket, or the socket finds that one.
        let namespaces = self.namespaces();
        let Some(adapter) = namespaces.get(socket.ns()).and_then(Weak::upgrade) else { return false };
        adapter.names.name(socket, public, transport.clone());
        // The room of its name is in its own namespace.
        adapter.local.socket_rooms(socket.id).contains(public.as_str())
    }

    /// What another node's adapter has told, but for what is the chat's.
    pub fn broadcast(&self, ns: &str, to: Selection, volatile: bool, event: Event) {
        let Some(adapter) = self.adapter(ns) else { return };
        let mut opts = to.options();
        if volatile {
            opts.add_flag(BroadcastFlags::Volatile);
        }
        if let Err(error) = adapter.broadcast_here(event.packet(ns.to_owned()), opts) {
            tracing::debug!(ns, %error, "a broadcast did not reach all sockets");
        }
    }

    /// Answers another node's adapter.
    pub async fn answer(&self, question: &[u8]) -> Bytes {
        let answer = match wire::decode(question) {
            Some(Question::Acks { id }) => self.0.gathers.answer(id).await,
            Some(question) => self.act(question),
            None => Answer::Unknown,
        };
        // Were it too large for a frame, the asker would take the empty answer for none.
        wire::encode(&answer).unwrap_or_default()
    }

    fn act(&self, question: Question) -> Answer {
        let texts = |sids: Vec<Sid>| sids.iter().map(Sid::to_string).collect();
        let rooms = |names: Vec<String>| names.into_iter().map(Room::Owned).collect::<Vec<Room>>();
        match question {
            Question::Join { ns, to, rooms: names } => self.on(&ns, Answer::Done, |adapter| {
                adapter.local.add_sockets(adapter.here(to.options()), rooms(names));
                Answer::Done
            }),
            Question::Leave { ns, to, rooms: names } => self.on(&ns, Answer::Done, |adapter| {
                adapter.local.del_sockets(adapter.here(to.options()), rooms(names));
                Answer::Done
            }),
            Question::Disconnect { ns, to } => self.on(&ns, Answer::Done, |adapter| {
                if let Err(errors) = adapter.local.disconnect_socket(adapter.here(to.options())) {
                    tracing::debug!(ns, ?errors, "sockets that were to be disconnected had gone");
                }
                Answer::Done
            }),
            Question::Rooms { ns, to } => self.on(&ns, Answer::Rooms(Vec::new()), |adapter| {
                let rooms = adapter.local.rooms(adapter.here(to.options()));
                Answer::Rooms(rooms.into_iter().map(Room::into_owned).collect())
            }),
            Question::Sockets { ns, to } => self.on(&ns, Answer::Sockets(Vec::new()), |adapter| {
                Answer::Sockets(texts(adapter.sockets_here(to.options())))
            }),
            Question::Gather { ns, to, event, timeout_ms } => self.on(&ns, Answer::Done, |adapter| {
                adapter.gather(event.packet(ns.clone()), to.options(), Duration::from_millis(timeout_ms))
            }),
            Question::Acks { .. } => Answer::Unknown,
        }
    }

    /// A node on which nobody has connected to a dynamic namespace does not have it.
    fn on(&self, ns: &str, without: Answer, act: impl FnOnce(&PeerAdapter) -> Answer) -> Answer {
        self.adapter(ns).map_or(without, |adapter| act(&adapter))
    }

    /// Tells others what may be lost. Never waits.
    ///
    /// # Errors
    /// When it is too large for the bus.
    pub fn tell(&self, reach: Reach, news: &News) -> Result<(), Unsendable> {
        let Some(store) = &self.0.store else { return Ok(()) };
        let bytes = wire::encode(news)?;
        let sent = match reach {
            Reach::Here => Ok(()),
            Reach::On(node) => store.bus_send_to(node, &bytes),
            Reach::Everywhere => store.bus_send(&bytes),
        };
        sent.map_err(|e| Unsendable(e.to_string()))
    }

    /// Asks those who can have what is asked for, all at once. Who does not answer in [`ANSWER`] is left out.
    pub(super) async fn ask(&self, reach: Reach, question: Question) -> Vec<(NodeId, Answer)> {
        let nodes = match reach {
            Reach::Here => Vec::new(),
            Reach::On(node) => vec![node],
            Reach::Everywhere => self.others(),
        };
        let (Some(store), false) = (&self.0.store, nodes.is_empty()) else { return Vec::new() };
        let Ok(question) = wire::encode(&question) else { return Vec::new() };
        let asked = nodes.into_iter().map(|node| {
            let question = question.clone();
            async move {
                match store.ask(node, question, ANSWER).await {
                    Ok(answer) => Some((node, wire::decode(&answer)?)),
                    Err(error) => {
                        tracing::debug!(node, %error, "a node is left out");
                        None
                    }
                }
            }
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// The other nodes that the log counts as live.
    pub(super) fn others(&self) -> Vec<NodeId> {
        let Some(store) = &self.0.store else { return Vec::new() };
        let me = store.node();
        let live = store.read(|state| state.nodes());
        live.into_iter().filter(|node| node.live && node.id != me).map(|node| node.id).collect()
    }

    /// Where the log says that a session is.
    pub(super) fn holder(&self, sid: Sid) -> Option<NodeId> {
        let sid = command::Sid::parse(sid.as_str())?;
        self.0.store.as_ref()?.read(|state| state.session(&sid)).map(|session| session.node)
    }

    pub(super) fn me(&self) -> NodeId {
        self.0.store.as_ref().map_or(0, Store::node)
    }

    pub(super) fn bound(&self) -> Option<&Bound> {
        self.0.bound.as_ref()
    }

    pub(super) fn gathers(&self) -> &Gathers {
        &self.0.gathers
    }

    /// Two CONNECTs at once that are the first to a namespace of a pattern make one each, and `known` has socketioxide put
    /// the younger one in the older one's place. So that it is the younger one here too, one is added after another; and
    /// who is in the older one, where it is not heard any more, is cut and comes back.
    pub(super) fn add(&self, ns: &Str, adapter: &Arc<PeerAdapter>, known: impl FnOnce()) {
        let _adding = self.0.adding.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.namespaces().insert(ns.clone(), Arc::downgrade(adapter));
        known();
        if let Some(before) = before.and_then(|before| before.upgrade()) {
            before.names.cut();
        }
    }

    /// Another one may have its place by now.
    pub(super) fn remove(&self, adapter: &PeerAdapter) {
        let mut namespaces = self.namespaces();
        if namespaces.get(adapter.local.path()).is_some_and(|known| std::ptr::eq(known.as_ptr(), adapter)) {
            namespaces.remove(adapter.local.path());
        }
    }

    pub(crate) fn adapter(&self, ns: &str) -> Option<Arc<PeerAdapter>> {
        self.namespaces().get(ns)?.upgrade()
    }

    fn namespaces(&self) -> MutexGuard<'_, HashMap<Str, Weak<PeerAdapter>>> {
        self.0.namespaces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
