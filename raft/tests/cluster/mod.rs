//! A cluster in one process: stores on loopback listeners, data in temporary folders, and a player for each that notes
//! what it plays.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use moim_raft::{
    Config, Feeds, Play, Result, Secret, Store,
    command::{Command, Holder, Limits, Namespace, NodeInfo, Reply, Room, Sid, User},
    level::{KNOWN, Levels},
    state::Applied,
};
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};

/// Longer than anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Entries after which these clusters write a snapshot, and which their logs keep.
pub const SNAPSHOT_EVERY: u64 = 300;
/// `presence.grace` of these clusters: longer than a restart, shorter than `session.ttl`.
pub const GRACE: Duration = Duration::from_secs(2);

/// `node.replace-after` of these clusters: longer than a restart.
pub const REPLACE_AFTER: Duration = Duration::from_secs(6);

pub struct Cluster {
    dir: TempDir,
    /// Where each node listens.
    pub listens: Vec<String>,
    /// Where each node says that it is.
    pub addrs: Vec<String>,
    pub expect: usize,
    pub nodes: Vec<Option<Node>>,
    /// How each node is called, from its next start on.
    pub names: Vec<String>,
    /// What the program of each node knows, from its next start on.
    pub levels: Vec<Levels>,
    pub limits: Limits,
}

pub struct Node {
    pub store: Store,
    pub played: Arc<Mutex<Vec<Applied>>>,
    /// Whether the player works its feed off.
    pub playing: watch::Sender<bool>,
    /// Snapshots that were installed.
    pub installed: Arc<AtomicUsize>,
    player: JoinHandle<()>,
}

impl Cluster {
    pub async fn new(size: usize) -> Self {
        Self::of(size, size).await
    }

    /// `size` nodes, of which `expect` are voters when they form a cluster.
    pub async fn of(size: usize, expect: usize) -> Self {
        Self::knowing(KNOWN, size, expect).await
    }

    /// As [`Cluster::of`], of nodes whose programs know these levels.
    pub async fn knowing(levels: Levels, size: usize, expect: usize) -> Self {
        let mut listeners = Vec::new();
        for _ in 0..size {
            listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
        }
        let addrs: Vec<String> = listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect();
        Self::begin(listeners, addrs, expect, levels).await
    }

    /// Nodes that are reached at other addresses than those at which they listen.
    pub async fn with(listeners: Vec<TcpListener>, addrs: Vec<String>, expect: usize) -> Self {
        Self::begin(listeners, addrs, expect, KNOWN).await
    }

    async fn begin(listeners: Vec<TcpListener>, addrs: Vec<String>, expect: usize, levels: Levels) -> Self {
        let listens = listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect();
        let dir = tempfile::tempdir().unwrap();
        let names = (0..addrs.len()).map(|i| format!("n{i}")).collect();
        let levels = vec![levels; addrs.len()];
        let limits = Limits::default();
        let mut cluster = Self { dir, listens, addrs, expect, nodes: Vec::new(), names, levels, limits };
        for (i, listener) in listeners.into_iter().enumerate() {
            let node = cluster.open(i, listener).await;
            cluster.nodes.push(Some(node));
        }
        cluster.all_started().await;
        cluster
    }

    pub fn data(&self, i: usize) -> PathBuf {
        self.dir.path().join(format!("node-{i}"))
    }

    async fn open(&self, i: usize, listener: TcpListener) -> Node {
        self.try_open(i, listener).await.expect("the store opens")
    }

    pub async fn try_open(&self, i: usize, listener: TcpListener) -> Result<Node> {
        let (name, peer, levels) = (self.names[i].clone(), self.addrs[i].clone(), self.levels[i]);
        let info = NodeInfo { name, peer, levels, ..NodeInfo::default() };
        let config = Config {
            data: self.data(i),
            info,
            join: self.addrs.clone(),
            expect: self.expect,
            secret: Secret::default(),
            limits: self.limits.clone(),
            node_timeout: Duration::from_secs(1),
            replace_after: REPLACE_AFTER,
            session_ttl: Duration::from_secs(3),
            presence_grace: GRACE,
            heartbeat: Duration::from_millis(50),
            election: Duration::from_millis(250),
            snapshot_every: SNAPSHOT_EVERY,
        };
        // Boxed: without optimisation each caller's frame would hold it again, and a test's stack is 2 MiB.
        let (store, feeds) = Box::pin(Store::open(config, listener)).await?;
        Ok(Node::new(store, feeds))
    }

    pub fn node(&self, i: usize) -> &Node {
        self.nodes[i].as_ref().expect("it runs")
    }

    pub fn store(&self, i: usize) -> Store {
        self.node(i).store.clone()
    }

    pub fn running(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().flatten()
    }

    pub async fn all_started(&self) {
        for node in self.running() {
            let mut started = node.store.started();
            let done = timeout(PATIENCE, started.wait_for(|started| *started)).await;
            assert!(done.is_ok(), "{:?}", node.store.status());
        }
    }

    pub async fn stop(&mut self, i: usize) {
        let node = self.nodes[i].take().expect("it runs");
        timeout(PATIENCE, node.store.close()).await.expect("closes in time").expect("closes well");
        drop(node.store);
        timeout(PATIENCE, node.player).await.expect("the feed ends").unwrap();
    }

    pub async fn reopen(&mut self, i: usize) {
        let listener = TcpListener::bind(&self.listens[i]).await.unwrap();
        self.nodes[i] = Some(self.open(i, listener).await);
    }

    /// Starts stopped nodes at other addresses, at which they also are from now on; all of these are told to each.
    pub async fn reopen_elsewhere(&mut self, which: &[usize]) {
        let mut listeners = Vec::new();
        for i in which {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            self.listens[*i] = listener.local_addr().unwrap().to_string();
            self.addrs[*i].clone_from(&self.listens[*i]);
            listeners.push((*i, listener));
        }
        for (i, listener) in listeners {
            self.nodes[i] = Some(self.open(i, listener).await);
        }
    }

    /// One node more, of that name.
    pub async fn add(&mut self, name: &str) -> usize {
        self.names.push(name.to_owned());
        self.levels.push(KNOWN);
        self.listens.push(String::new());
        self.addrs.push(String::new());
        self.nodes.push(None);
        let i = self.nodes.len() - 1;
        self.reopen_elsewhere(&[i]).await;
        i
    }

    /// Stops it, loses its disk, and starts it again: a new node of the old name.
    pub async fn wipe(&mut self, i: usize) {
        self.stop(i).await;
        std::fs::remove_dir_all(self.data(i)).unwrap();
        self.reopen(i).await;
    }

    /// The ids of the voters, as each running node has to see them soon.
    pub async fn voters_are(&self, wanted: impl IntoIterator<Item = u64>) {
        let wanted = wanted.into_iter().collect();
        for node in self.running() {
            let seen = async {
                while node.store.status().voters != wanted {
                    sleep(Duration::from_millis(10)).await;
                }
            };
            assert!(timeout(PATIENCE, seen).await.is_ok(), "{wanted:?} should vote: {:?}", node.store.status());
        }
    }

    pub async fn leader(&self) -> usize {
        let found = async {
            loop {
                let leads = |node: &Option<Node>| {
                    node.as_ref().is_some_and(|node| node.store.status().leader == Some(node.store.node()))
                };
                if let Some(i) = self.nodes.iter().position(leads) {
                    return i;
                }
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, found).await.expect("somebody leads")
    }

    /// Waits until all have applied as much as the one that has most, and compares the hashes at that index.
    pub async fn agree(&self) {
        let index = self.running().map(|node| node.store.status().applied).max().unwrap();
        let mut hashes = Vec::new();
        for node in self.running() {
            until(|| node.store.status().applied >= index).await;
            hashes.push(node.store.hash_at(Some(index)).expect("it is a recent one"));
        }
        assert!(hashes.windows(2).all(|pair| pair[0] == pair[1]), "{hashes:?}");
    }
}

impl Node {
    pub fn new(store: Store, mut feeds: Feeds) -> Self {
        let played = Arc::new(Mutex::new(Vec::new()));
        let (playing, mut may) = watch::channel(true);
        let installed = Arc::new(AtomicUsize::new(0));
        let jumps = installed.clone();
        let notes = played.clone();
        let player = tokio::spawn(async move {
            loop {
                if may.wait_for(|may| *may).await.is_err() {
                    return;
                }
                let play = tokio::select! {
                    play = feeds.plays.recv() => play,
                    // Looks again whether it may.
                    _ = may.changed() => continue,
                };
                match play {
                    Some(Play::Commands(commands)) => {
                        for (applied, ticket) in commands {
                            notes.lock().unwrap().push(applied.clone());
                            ticket.answer(Ok(&applied));
                        }
                    }
                    Some(Play::Installed) => _ = jumps.fetch_add(1, Ordering::SeqCst),
                    None => return,
                }
            }
        });
        Self { store, played, playing, installed, player }
    }

    pub async fn open(&self, name: &str, user: &str) -> Holder {
        let user = User::new(user).unwrap();
        let command = Command::Open { sid: sid(name), ns: ns(), user, guest: false, pid: pid(name) };
        let done = self.call(command).await;
        assert!(matches!(done.reply, Reply::Seated { .. }), "{done:?}");
        Holder { sid: sid(name), generation: 1 }
    }

    /// The return of a session that was opened here under that name, for a user of the same name.
    pub fn resume(&self, read: &Holder, name: &str) -> Command {
        Command::Resume { read: read.clone(), ns: ns(), user: User::new(name).unwrap(), pid: pid(name) }
    }

    pub async fn open_in_lobby(&self, name: &str) -> Holder {
        let by = self.open(name, name).await;
        self.call(Command::Join { by: by.clone(), room: lobby() }).await;
        by
    }

    /// Proposes until it is taken.
    pub async fn call(&self, command: Command) -> Applied {
        let called = async {
            loop {
                match self.store.call(command.clone()).await {
                    Ok(applied) => return applied,
                    Err(_) => sleep(Duration::from_millis(50)).await,
                }
            }
        };
        timeout(PATIENCE, called).await.expect("taken in time")
    }

    pub fn texts(&self) -> Vec<String> {
        self.store.read(texts)
    }
}

pub fn texts(state: &moim_raft::state::State) -> Vec<String> {
    let (entries, _) = state.history(&ns(), &lobby(), None, None, usize::MAX, |_| true);
    let text = |entry: moim_raft::command::RoomEntry| match entry.what {
        moim_raft::command::What::Message { text, .. } => Some(text),
        _ => None,
    };
    entries.into_iter().filter_map(text).collect()
}

#[track_caller]
pub fn until(what: impl Fn() -> bool) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    let seen = async move {
        while !what() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    async move { assert!(timeout(PATIENCE, seen).await.is_ok(), "what {caller} waits for does not come") }
}

pub fn say(by: &Holder, text: impl Into<String>) -> Command {
    Command::Publish { by: by.clone(), room: lobby(), text: text.into(), mid: None }
}

pub fn ns() -> Namespace {
    Namespace::new("/").unwrap()
}

pub fn lobby() -> Room {
    Room::new("lobby").unwrap()
}

fn pid(name: &str) -> [u8; 32] {
    let mut pid = [0; 32];
    pid[..name.len()].copy_from_slice(name.as_bytes());
    pid
}

pub fn sid(name: &str) -> Sid {
    Sid::parse(&format!("{name:_>20}")).unwrap()
}
