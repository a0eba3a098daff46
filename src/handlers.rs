//! A team's own handlers, on the same connections, sessions and nodes as the chat.
//!
//! ```no_run
//! use moim::{adapter::SocketRef, handlers::Handlers};
//!
//! let handlers = Handlers::default().on_connect("/game", async |socket: SocketRef| {
//!     socket.join("lobby");
//!     socket.on("wave", async |socket: SocketRef| {
//!         // To the lobby's sockets on all nodes.
//!         socket.to("lobby").emit("waved", &7).await.ok();
//!     });
//! });
//! ```
//!
//! What always holds: a socket of a namespace with a handler has a session like any other (the same sid after a
//! reconnect, on whichever node), the handler runs for each connection, recovered or not, and the client is told `ready`
//! when it has returned, however long that takes; after a panic it is cut, and comes again. Events that it registers are its
//! own; all others are the chat's.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::future::{BoxFuture, FutureExt};

use crate::adapter::SocketRef;

type OnConnect = Arc<dyn Fn(SocketRef) -> BoxFuture<'static, ()> + Send + Sync>;

/// Connect handlers by namespace. Cheap to clone.
#[derive(Clone, Default)]
pub struct Handlers(BTreeMap<String, OnConnect>);

impl Handlers {
    /// Runs `handler` for each connection to a namespace, which is served from then on also where the configuration does
    /// not name it. It registers what the socket listens to; while it runs, the client waits for its `ready`.
    pub fn on_connect<F, Fut>(mut self, ns: &str, handler: F) -> Self
    where
        F: Fn(SocketRef) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.0.insert(ns.to_owned(), Arc::new(move |socket| handler(socket).boxed()));
        self
    }

    pub(crate) fn of(&self, ns: &str) -> Option<&OnConnect> {
        self.0.get(ns)
    }

    pub(crate) fn namespaces(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}
