//! One node: starts its parts in order, and stops them in the opposite one.
//!
//! ```text
//! listeners ─▶ store ─▶ (in a cluster, caught up, started) ─▶ namespaces, player ─▶ ready
//! drain ─▶ client port ─▶ tasks ─▶ store
//! ```
//!
//! What always holds: no handshake is accepted before the namespaces are registered and the node has caught up, nor after
//! a drain began; every task is owned and waited for; a node that cannot keep its promises any more exits with an error.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt;
use moim_raft::{Error, Feeds, Play, Result, Secret, Store, command::NodeInfo, state::replay::ReplayLimit};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::mpsc,
};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

use crate::{
    adapter::{
        Bound, Hub, SocketIo,
        wire::{self, News},
    },
    admin,
    agreement::{self, Agreement},
    chat::{self, Chat, event::Encoder, loss::Losses},
    client::{self, Gate, Relay, Transports, relay},
    config::{Auth, Config},
    drain::{self, Drain},
    handlers::Handlers,
    health::Health,
    metrics::Metrics,
    player::{self, Seats},
    report::Report,
    web,
};

/// Connections that may wait to be accepted. When a node goes, its clients come to the others all at once, and one for which
/// there is no room tries again after a second. The system may allow fewer (`net.core.somaxconn`, 4096).
const BACKLOG: u32 = 4096;
/// Between two looks at seats, clocks and the drain token.
const TICK: Duration = Duration::from_millis(250);
/// Raft's pace: a leader is missed after 300 to 600 ms.
const HEARTBEAT: Duration = Duration::from_millis(100);
const ELECTION: Duration = Duration::from_millis(300);
/// Many tiny entries make a snapshot due as well; each takes 16 bytes of memory as long as the log holds it.
const SNAPSHOT_EVERY: u64 = 1_000_000;

/// What a client may send at once however small its texts are: its CONNECT, with who it is, its token and its place, or it
/// could never come back; and a post of several requests.
const PAYLOAD_BYTES_MIN: usize = 64 << 10;

/// Why a node ended without an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// It was told to.
    Shutdown,
    /// It was removed from its cluster, for good.
    Removed,
    /// To go on with its data folder would not be safe: it is damaged, an old copy, in use. What an operator has to do.
    Unsafe(String),
}

/// What the parts of a running node share.
pub struct Node {
    pub config: Config,
    pub store: Store,
    pub chat: Chat,
    pub health: Health,
    pub relay: Relay,
    pub drain: Arc<Drain>,
    pub report: Arc<Report>,
    pub started_at: std::time::Instant,
}

/// Runs a node with the chat and these handlers until `shutdown`, then drains and stops it within `drain.deadline`.
///
/// # Errors
/// `Refused` for settings that cannot be used; `Fatal` when the node cannot keep its promises any more.
pub async fn run(
    config: Config,
    handlers: Handlers,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<ExitReason> {
    let client_port = bind("client", config.client)?;
    let admin_port = bind("admin", config.admin)?;
    let peer_port = bind("peer", config.peer)?;
    let (store, Feeds { plays, bus, tunnels }) = match Store::open(store_config(&config)?, peer_port).await {
        Ok(opened) => opened,
        Err(Error::Refused(why)) => return Ok(ExitReason::Unsafe(why)),
        Err(e) => return Err(e),
    };
    let node = Arc::new(Node::new(config, handlers, store));
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    let admin_stop = stop.child_token();
    let ports_stop = stop.child_token();
    tasks.spawn(admin::serve(admin_port, node.clone(), admin_stop));
    let answering = node.clone();
    node.store.on_ask(Box::new(move |question| answering.clone().answer(question).boxed()));

    let socketio = client::socketio::Settings {
        ping_interval: node.config.ping.interval,
        ping_timeout: node.config.ping.timeout,
        max_payload: payload_bytes_max(node.config.limits.text),
        ..Default::default()
    };
    let (service, io) = {
        let (transports, hub) = (node.chat.transports.clone(), node.chat.hub.clone());
        client::socketio::service(&socketio, transports, node.relay.clone(), web::routes(), hub)
    };
    let gate = node.gate();
    tasks.spawn(client::serve(client_port, tunnels, service, gate, client::Limits::default(), ports_stop.clone()));

    // A task, not part of this future: whoever runs the node may block on it, and what the player wakes from a thread that is
    // no worker goes the long way to one, a wake-up of a thread for each socket.
    let running = tokio::spawn(node.clone().serve(plays, bus, io, stop.clone()));
    let mut running = AbortOnDropHandle::new(running);
    let shutdown = std::pin::pin!(shutdown);
    let outcome = tokio::select! {
        error = node.store.fatal() => ended(error),
        error = &mut running => Err(error.unwrap_or_else(Error::fatal)),
        () = shutdown => {
            let stopping = async {
                node.drain.for_stop().await;
            };
            tokio::select! {
                stopped = tokio::time::timeout(node.config.drain.deadline, stopping) => {
                    if stopped.is_err() {
                        tracing::warn!("the drain took longer than drain.deadline; what is left is cut");
                    }
                    Ok(ExitReason::Shutdown)
                }
                error = node.store.fatal() => ended(error),
                error = &mut running => Err(error.unwrap_or_else(Error::fatal)),
            }
        }
    };
    node.health.set_stopping();
    node.chat.stopping.cancel();
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    node.chat.transports.ended().await;
    node.relay.close().await;
    node.drain.ended().await;
    let closed = node.store.close().await;
    if !running.is_finished() {
        running.abort();
        _ = running.await;
    }
    if node.store.is_removed() {
        // Whatever ended it, it is not to be started again.
        return closed.map(|()| ExitReason::Removed);
    }
    outcome.and_then(|reason| closed.map(|()| reason))
}

/// Room for the event around a text of the largest size, and for a text that is too large to be told so.
fn payload_bytes_max(text_bytes_max: usize) -> usize {
    (text_bytes_max * 2).max(PAYLOAD_BYTES_MIN)
}

/// What the store refuses, an operator has to decide on.
fn ended(error: Error) -> Result<ExitReason> {
    match error {
        Error::Refused(why) => Ok(ExitReason::Unsafe(why)),
        error => Err(error),
    }
}

impl Node {
    fn new(config: Config, handlers: Handlers, store: Store) -> Self {
        let encoder = Encoder::default();
        let metrics = Arc::new(Metrics::default());
        let (queue_bytes_max, slow) = (config.limits.queue_bytes, metrics.slow_consumers());
        let seats = Arc::new(Seats::new(store.node(), queue_bytes_max, encoder.clone(), slow.clone()));
        let hub = Hub::new(store.clone(), Bound { queue_bytes_max, slow });
        let observing = metrics.clone();
        store.on_observation(Box::new(move |observation| observing.observe(observation)));
        let settings = chat::Settings {
            node_name: config.name.clone(),
            auth: config.auth.unwrap_or(Auth::Jwt),
            text_bytes_max: config.limits.text,
            queue_bytes_max: config.limits.queue_bytes,
            replay: ReplayLimit { entries: config.replay.limit, bytes: config.replay.bytes },
            relay: config.relay.clone(),
        };
        let chat = Chat(Arc::new(chat::Shared {
            store: store.clone(),
            seats,
            transports: Transports::default(),
            losses: Losses::default(),
            encoder,
            hub,
            handlers,
            metrics,
            settings,
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        }));
        let health = Health::new(store.clone());
        let relay = Relay::new(others(&chat));
        let drain = Drain {
            chat: chat.clone(),
            relay: relay.clone(),
            health: health.clone(),
            settings: config.drain.clone(),
            tasks: TaskTracker::new(),
            stopping: false.into(),
        };
        let report = Arc::new(Report::default());
        let started_at = std::time::Instant::now();
        Self { config, store, chat, health, relay, drain: Arc::new(drain), report, started_at }
    }

    fn gate(&self) -> Gate {
        let (admit, ready) = (self.health.clone(), self.health.clone());
        Gate {
            admit: Arc::new(move || admit.check()),
            ready: Arc::new(move || ready.check()),
            live: Arc::new(|| Ok(())),
        }
    }

    /// Waits until the node has started in its cluster, then plays, until `stop` or an error.
    async fn serve(
        self: Arc<Self>,
        plays: mpsc::Receiver<Play>,
        mut bus: mpsc::Receiver<Bytes>,
        io: SocketIo,
        stop: CancellationToken,
    ) -> Error {
        let mut started = self.store.started();
        let never = async {
            stop.cancelled().await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            _ = started.wait_for(|started| *started) => {}
            () = never => {}
        }
        if let Some(cluster) = self.store.cluster() {
            self.chat.encoder.name(&cluster);
        }
        let own = self.chat.handlers.namespaces().filter(|ns| !self.config.namespaces.iter().any(|known| known == ns));
        for ns in self.config.namespaces.iter().map(String::as_str).chain(own) {
            if let Err(e) = chat::connect::register(&self.chat, &io, ns) {
                return Error::refused(format!("the namespace {ns} cannot be served: {e}"));
            }
        }
        self.health.set_serving();
        let play = player::play(plays, self.chat.seats.clone(), self.report.clone());
        let volatile = async {
            while let Some(bytes) = bus.recv().await {
                self.hear(&bytes);
            }
        };
        let forever = CancellationToken::new();
        tokio::join!(play, volatile, self.chat.losses.run(&self.store, &forever), self.health.watch(), self.tend());
        Error::fatal("the store has closed its feed")
    }

    /// What another node tells on the bus.
    fn hear(&self, bytes: &[u8]) {
        match wire::decode(bytes) {
            Some(News::Broadcast { ns, to, volatile, event }) => self.chat.hub.broadcast(&ns, to, volatile, event),
            Some(News::Volatile(event)) => self.chat.receive_volatile(event),
            None => tracing::debug!("another node told something that this version does not know"),
        }
    }

    /// What another node asks.
    async fn answer(self: Arc<Self>, question: Bytes) -> Bytes {
        match wire::is_adapters(&question) {
            true => self.chat.hub.answer(&question).await,
            false => admin::answer_peer(self, question).await,
        }
    }

    /// What has to be looked at again and again.
    async fn tend(&self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut let_go, mut agreement) = (false, Agreement::default());
        loop {
            tick.tick().await;
            agreement.look(&self.config, &self.store);
            for seat in self.chat.seats.abandoned() {
                self.chat.give_up(&seat);
            }
            // Who has heard nobody yet is alone since its start.
            let silent = self.health.silent_for().unwrap_or_else(|| self.started_at.elapsed());
            let isolated = silent >= self.config.node.isolation;
            if isolated && !let_go {
                tracing::warn!("without a leader for node.isolation: letting all clients go, they recover elsewhere");
                self.let_clients_go();
            }
            let_go = isolated;
            self.end_own_drain();
        }
    }

    fn let_clients_go(&self) {
        self.chat.seats.let_all_go();
        for transport in self.chat.transports.all() {
            transport.cut();
        }
    }

    /// The token of a drain ends when its node is ready again in a later incarnation.
    fn end_own_drain(&self) {
        let me = self.store.node();
        let held = self.store.read(|state| state.drain()).filter(|held| held.node == me);
        let Some(held) = held.filter(|held| held.incarnation < self.store.incarnation()) else { return };
        if self.health.check().is_ok() {
            // It names the token that was seen: meanwhile an operator may have asked for the next drain.
            self.store.propose(self.store.undrain(held.incarnation), moim_raft::Ticket::nobody());
        }
    }
}

/// What the relay has to know of the cluster.
fn others(chat: &Chat) -> relay::Others {
    let (dialing, asking, leaving) = (chat.store.clone(), chat.store.clone(), chat.clone());
    relay::Others {
        me: chat.store.node(),
        dial: Arc::new(move |node| {
            let store = dialing.clone();
            async move { store.tunnel(node).await.map_err(std::io::Error::other) }.boxed()
        }),
        is_up: Arc::new(move |node| asking.read(|state| state.node(node)).is_some_and(|node| node.live)),
        let_go: Arc::new(move |transport| {
            let seats = leaving.seats.on(&transport);
            drain::close(transport, seats).boxed()
        }),
    }
}

fn bind(flag: &str, addr: std::net::SocketAddr) -> Result<TcpListener> {
    listen(addr).map_err(|e| Error::refused(format!("--{flag} {addr}: {e}; stop what listens there or choose another")))
}

/// `TcpListener::bind`, but for the length of the queue: its own is 128.
fn listen(addr: std::net::SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

fn store_config(config: &Config) -> Result<moim_raft::Config> {
    Ok(moim_raft::Config {
        data: config.data.clone(),
        info: NodeInfo {
            levels: moim_raft::level::KNOWN,
            name: config.name.clone(),
            client: config.client.to_string(),
            admin: config.admin.to_string(),
            peer: config.peer_address(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        },
        join: config.join.clone(),
        expect: config.expect.unwrap_or(usize::MAX),
        secret: secret(config.cluster_secret_file.as_deref())?,
        limits: agreement::limits(config),
        node_timeout: config.node.timeout,
        replace_after: config.node.replace_after,
        session_ttl: config.session.ttl,
        presence_grace: config.presence.grace,
        heartbeat: HEARTBEAT,
        election: ELECTION,
        snapshot_every: SNAPSHOT_EVERY,
    })
}

fn secret(file: Option<&Path>) -> Result<Secret> {
    let Some(file) = file else { return Ok(Secret::default()) };
    let text =
        std::fs::read(file).map_err(|e| Error::refused(format!("--cluster-secret-file {}: {e}", file.display())))?;
    let secret = text.trim_ascii();
    if secret.is_empty() {
        return Err(Error::refused(format!("--cluster-secret-file {} is empty", file.display())));
    }
    Ok(Secret::new(secret))
}
