//! Links between nodes that can be held, cut and reset, each direction by itself.
//!
//! One listener stands in front of each node; its address is the one that the node gives as its own. Who dialed is read
//! from the first bytes of a connection, its hello, so each byte is known to go from one node to another, over whichever
//! connection: requests and heartbeats of A to B, and A's answers to B, are one link. A connection of somebody who is not
//! known yet passes.
//!
//! A link may be narrow: its connections share so many bytes a second, and take turns, as they would on a wire.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep_until},
};

/// What happens to the bytes of a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    Pass,
    /// Nothing is lost, but nothing moves until the link passes again.
    Hold,
    /// Swallowed. Once the link passes again, connections with a hole in them are closed.
    Drop,
    /// Connections end at once, new ones too.
    Reset,
}

#[derive(Clone, Default)]
struct Table {
    modes: Vec<Vec<Mode>>,
    widths: Vec<Vec<Option<Arc<Width>>>>,
    /// Node ids as a hello carries them.
    ids: Vec<Option<[u8; 8]>>,
    /// Where nodes really listen.
    targets: Vec<String>,
}

/// Bytes a second, and until when they are taken.
struct Width(u64, Mutex<Option<Instant>>);

impl Width {
    /// Waits for the turn of so many bytes.
    async fn pass(&self, bytes: usize) {
        let at = {
            let (mut taken, now) = (self.1.lock().unwrap(), Instant::now());
            let at = taken.map_or(now, |taken| taken.max(now));
            *taken = Some(at + Duration::from_secs_f64(bytes as f64 / self.0 as f64));
            at
        };
        sleep_until(at).await;
    }
}

pub struct Links {
    table: watch::Sender<Table>,
    /// Where each node is reached.
    pub addrs: Vec<String>,
    _fronts: JoinSet<()>,
}

impl Links {
    pub async fn new(nodes: usize) -> Self {
        let table = Table {
            modes: vec![vec![Mode::Pass; nodes]; nodes],
            widths: vec![vec![None; nodes]; nodes],
            ids: vec![None; nodes],
            targets: vec![String::new(); nodes],
        };
        let (table, _) = watch::channel(table);
        let (mut addrs, mut fronts) = (Vec::new(), JoinSet::new());
        for to in 0..nodes {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            addrs.push(listener.local_addr().unwrap().to_string());
            fronts.spawn(front(listener, to, table.subscribe()));
        }
        Self { table, addrs, _fronts: fronts }
    }

    /// Node `i` listens there now.
    pub fn listens(&self, i: usize, addr: &str) {
        self.table.send_modify(|table| table.targets[i] = addr.to_owned());
    }

    /// Node `i` has this id.
    pub fn is_called(&self, i: usize, id: u64) {
        self.table.send_modify(|table| table.ids[i] = Some(id.to_be_bytes()));
    }

    /// What becomes of everything that `from` says to `to`.
    pub fn set(&self, from: usize, to: usize, mode: Mode) {
        self.table.send_modify(|table| table.modes[from][to] = mode);
    }

    pub fn set_both(&self, a: usize, b: usize, mode: Mode) {
        self.set(a, b, mode);
        self.set(b, a, mode);
    }

    /// All links of one node.
    pub fn set_all_of(&self, i: usize, mode: Mode) {
        (0..self.addrs.len()).filter(|other| *other != i).for_each(|other| self.set_both(i, other, mode));
    }

    /// From now on `from` says so many bytes a second to `to`, over all connections; or as many as it can.
    pub fn narrow(&self, from: usize, to: usize, bytes_per_second: Option<u64>) {
        let width = bytes_per_second.map(|bytes| Arc::new(Width(bytes, Mutex::default())));
        self.table.send_modify(|table| table.widths[from][to] = width);
    }

    pub fn heal(&self) {
        self.table.send_modify(|table| table.modes.iter_mut().flatten().for_each(|mode| *mode = Mode::Pass));
    }
}

async fn front(listener: TcpListener, to: usize, table: watch::Receiver<Table>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((dialer, _)) = accepted {
                connections.spawn(carry(dialer, to, table.clone()));
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection, of an unknown dialer to the node `to`.
struct Connection {
    to: usize,
    hello: Mutex<Hello>,
    table: watch::Receiver<Table>,
    /// Whether bytes of it were swallowed: upward, downward.
    holes: watch::Sender<[bool; 2]>,
}

#[derive(Default)]
struct Hello {
    first: Vec<u8>,
    from: Option<usize>,
}

const UP: usize = 0;
const DOWN: usize = 1;

async fn carry(dialer: TcpStream, to: usize, table: watch::Receiver<Table>) {
    let target = table.borrow().targets[to].clone();
    let Ok(node) = TcpStream::connect(target).await else { return };
    _ = (dialer.set_nodelay(true), node.set_nodelay(true));
    let connection = Arc::new(Connection { to, hello: Mutex::default(), table, holes: watch::channel([false; 2]).0 });
    let ((from_dialer, to_dialer), (from_node, to_node)) = (dialer.into_split(), node.into_split());
    let both =
        async { tokio::join!(connection.pump(UP, from_dialer, to_node), connection.pump(DOWN, from_node, to_dialer)) };
    tokio::select! {
        _ = both => {}
        () = connection.has_to_end() => {}
    }
}

impl Connection {
    /// Who speaks to whom in it, once that is known.
    fn ends(&self, way: usize) -> Option<(usize, usize)> {
        let from = self.hello.lock().unwrap().from?;
        Some(if way == UP { (from, self.to) } else { (self.to, from) })
    }

    fn mode(&self, table: &Table, way: usize) -> Mode {
        self.ends(way).map_or(Mode::Pass, |(from, to)| table.modes[from][to])
    }

    /// Waits until the link has carried so many bytes more.
    async fn carried(&self, way: usize, bytes: usize) {
        let width = self.ends(way).and_then(|(from, to)| self.table.borrow().widths[from][to].clone());
        if let Some(width) = width {
            width.pass(bytes).await;
        }
    }

    /// A link of it is reset, or passes again after it swallowed something.
    async fn has_to_end(&self) {
        let (mut table, mut holes) = (self.table.clone(), self.holes.subscribe());
        let ends = |way: usize, hole: bool| match self.mode(&self.table.borrow(), way) {
            Mode::Reset => true,
            Mode::Drop => false,
            Mode::Pass | Mode::Hold => hole,
        };
        loop {
            let hole = *holes.borrow_and_update();
            if ends(UP, hole[UP]) || ends(DOWN, hole[DOWN]) {
                return;
            }
            tokio::select! {
                changed = table.changed() => if changed.is_err() { return },
                _ = holes.changed() => {}
            }
        }
    }

    async fn pump(&self, way: usize, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let mut table = self.table.clone();
        let mut bytes = vec![0; 64 << 10];
        loop {
            // An end is passed on, or held up, like any byte.
            let read = from.read(&mut bytes).await.unwrap_or(0);
            if way == UP && self.is_news(&bytes[..read]) {
                // Whoever waits for what becomes of it looks again.
                self.holes.send_modify(|_| {});
            }
            let moves = |table: &Table| self.mode(table, way) != Mode::Hold;
            let dropped = match table.wait_for(moves).await {
                Ok(table) => self.mode(&table, way) == Mode::Drop,
                Err(_) => return,
            };
            self.carried(way, read).await;
            if dropped {
                self.holes.send_modify(|holes| holes[way] = true);
            } else if self.holes.borrow()[way] || to.write_all(&bytes[..read]).await.is_err() {
                // Nothing may follow a hole.
                return;
            }
            match read {
                0 if dropped => std::future::pending().await,
                0 => {
                    _ = to.shutdown().await;
                    return;
                }
                _ => {}
            }
        }
    }

    /// Notes the first bytes of the dialer; true when they have just said who it is.
    fn is_news(&self, bytes: &[u8]) -> bool {
        // The table before the hello, here as elsewhere: nobody then waits in a circle.
        let table = self.table.borrow();
        let mut hello = self.hello.lock().unwrap();
        if hello.from.is_some() {
            return false;
        }
        let room = 256_usize.saturating_sub(hello.first.len()).min(bytes.len());
        hello.first.extend(&bytes[..room]);
        let named = |id: &Option<[u8; 8]>| id.is_some_and(|id| holds(&hello.first, &id));
        // A hello names its sender, and often whom it wants.
        let from = (0..table.ids.len()).find(|i| *i != self.to && named(&table.ids[*i]));
        hello.from = from;
        from.is_some()
    }
}

/// Twelve bytes of prelude, then a frame with its length from its third byte on. What follows may name any node.
fn holds(first: &[u8], id: &[u8; 8]) -> bool {
    let length = first.get(14..18).map_or(0, |length| u32::from_be_bytes(length.try_into().unwrap()) as usize);
    first[..first.len().min(12 + 10 + length)].windows(8).any(|eight| eight == id)
}
