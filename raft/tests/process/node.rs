//! The child's side: one store, told what to do over stdin.
//!
//! ```text
//! parent   7 hash 812                    number, order, words
//! child    @7 ok index=812 hash=9f…      the same number, `ok` or `no`, words
//! child    @ack p0.1.3.0 17 812          or something that it says unasked
//! ```
//!
//! | order | words | answer |
//! | --- | --- | --- |
//! | `open` | `data= name= at= join=A,B expect= heartbeat= election= replace= snapshot=` (milliseconds, entries) | `node=` |
//! | `status` | | `node= leader= term= committed= applied= incarnation= started= voters= silent=` (milliseconds since a leader with a quorum was heard) |
//! | `hash` | an index | `index= hash=`, once that much is applied |
//! | `load` | see [`Load`] | |
//! | `acked` | | `acked=` of that load, so far |
//! | `unload` | | see [`super::load::Stats`] |
//! | `fill` | bytes, bytes of each | so much is said in a namespace that is not dumped |
//! | `members` | | `silent=` a node's id and how long (milliseconds) the leader has not heard of it, joined by `:`, and so on by `,` |
//! | `fresh` | | `applied=`, after a linearizable read |
//! | `write` | | one session opened: what was proposed here counts |
//! | `transfer` | a node's id, or nothing | leadership was given away, or was not here |
//! | `arm` | `POINT NTH kill\|eio\|enospc\|pause` | a fail point is armed (also before `open`) |
//! | `dump` | a path | all messages of all rooms are in that file: `room position text` a line |
//! | `close` | | and ends with 0 |
//!
//! Unasked: `listening ADDR`, `term T LEADER` (whenever either changes), `ack`, `unknown` and `refused` of its load,
//! `hit POINT`; `fatal WHY` and `answered` (or `hanging`, if somebody was not) before it ends with 1.

use std::{
    fmt::Display,
    io::{BufRead, Write},
    path::PathBuf,
    process::exit,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use moim_raft::{
    Config, Feeds, Play, Secret, Store,
    command::{Command, Limits, Namespace, NodeInfo, Sid, User, What},
    state::Applied,
};
use tokio::{
    net::TcpListener,
    sync::mpsc,
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{Load, fill, load::Running, parsed, value};

/// How long a disk takes that was told to pause.
#[cfg(feature = "failpoints")]
pub const PAUSE: Duration = Duration::from_secs(6);

/// What every line of a node starts with.
pub const MARK: char = '@';

/// How often a node looks whether it knows of another term or leader.
const LOOK: Duration = Duration::from_millis(5);
/// How long a store that has failed may take to close, and whoever waits for it to be answered.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the answer to an order may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Says one line. It is one write to a pipe, shorter than a page, so it arrives whole or not at all.
pub fn say(line: impl Display) {
    let line = format!("{MARK}{line}\n");
    let mut out = std::io::stdout().lock();
    if out.write_all(line.as_bytes()).and_then(|()| out.flush()).is_err() {
        exit(3);
    }
}

/// Is a node until the parent says `close`, or goes away.
pub fn run(listen: &str) -> ! {
    // libtest may have left half a line.
    println!();
    let (give, orders) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            _ = give.send(line);
        }
        exit(3);
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(serve(listen, orders));
    exit(0);
}

async fn serve(listen: &str, mut orders: mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind(listen).await.expect("the address is free");
    say(format_args!("listening {}", listener.local_addr().unwrap()));
    let mut listener = Some(listener);
    let mut node: Option<Arc<Node>> = None;
    while let Some(line) = orders.recv().await {
        let (number, order) = line.split_once(' ').expect("number and order");
        let (verb, words) = order.split_once(' ').unwrap_or((order, ""));
        match (verb, &node) {
            ("open", None) => match open(words, listener.take().expect("opened once")).await {
                Ok(opened) => {
                    say(format_args!("{number} ok node={}", opened.store.node()));
                    node = Some(Arc::new(opened));
                }
                Err(e) => {
                    say(format_args!("{number} no {e}"));
                    exit(1);
                }
            },
            #[cfg(feature = "failpoints")]
            ("arm", _) => {
                arm(words);
                say(format_args!("{number} ok"));
            }
            (_, Some(node)) => {
                let (node, number, order) = (node.clone(), number.to_owned(), order.to_owned());
                // Orders may take long; another must not wait for it.
                tokio::spawn(async move {
                    let answered = timeout(PATIENCE, node.obey(&order)).await;
                    match answered.unwrap_or_else(|_| Err("it took too long".to_owned())) {
                        Ok(words) => say(format_args!("{number} ok {words}")),
                        Err(why) => say(format_args!("{number} no {}", why.replace('\n', " "))),
                    }
                    if order == "close" {
                        exit(0);
                    }
                });
            }
            _ => say(format_args!("{number} no it is not open")),
        }
    }
}

/// `POINT NTH kill|eio|enospc|pause`
#[cfg(feature = "failpoints")]
fn arm(words: &str) {
    let [point, nth, what] = words.split(' ').collect::<Vec<_>>()[..] else { panic!("{words}") };
    let errno = match what {
        "pause" | "kill" => None,
        "eio" => Some(5),
        "enospc" => Some(28),
        _ => panic!("{words}"),
    };
    let (said, pauses) = (format!("hit {point}"), what == "pause");
    moim_raft::fail::arm(point, nth.parse().unwrap(), move || {
        say(said);
        match errno {
            Some(errno) => Err(std::io::Error::from_raw_os_error(errno)),
            None if pauses => {
                std::thread::sleep(PAUSE);
                Ok(())
            }
            // As `kill -9` does: nothing is unwound, nothing is flushed.
            None => std::process::abort(),
        }
    });
}

struct Node {
    store: Store,
    name: String,
    load: Arc<Mutex<Option<Running>>>,
    writes: AtomicU64,
    /// Looks for what is fatal.
    guard: JoinHandle<()>,
}

async fn open(words: &str, listener: TcpListener) -> moim_raft::Result<Node> {
    let ms = |key| Duration::from_millis(parsed(words, key));
    let (name, at): (String, String) = (parsed(words, "name"), parsed(words, "at"));
    let config = Config {
        data: parsed::<PathBuf>(words, "data"),
        info: NodeInfo { name: name.clone(), peer: at, ..NodeInfo::default() },
        join: value(words, "join").unwrap_or_default().split(',').map(str::to_owned).collect(),
        expect: parsed(words, "expect"),
        secret: Secret::default(),
        // What was acknowledged must be there to be counted at the end.
        limits: Limits::UNBOUNDED,
        node_timeout: Duration::from_secs(2),
        session_ttl: Duration::from_secs(3600),
        presence_grace: Duration::from_secs(60),
        replace_after: ms("replace"),
        heartbeat: ms("heartbeat"),
        election: ms("election"),
        snapshot_every: parsed(words, "snapshot"),
    };
    let (store, feeds) = Store::open(config, listener).await?;
    tokio::spawn(play(feeds));
    tokio::spawn(watch(store.clone()));
    let load = Arc::<Mutex<Option<Running>>>::default();
    let (failing, ended) = (store.clone(), load.clone());
    let guard = tokio::spawn(async move {
        let why = failing.fatal().await.to_string();
        say(format_args!("fatal {}", why.replace('\n', " ")));
        // As the server does: those who wait hear of it, and then it ends.
        _ = timeout(CLOSE_TIMEOUT, failing.close()).await;
        let running = ended.lock().unwrap().take();
        let answered = match running {
            Some(running) => timeout(CLOSE_TIMEOUT, running.stop()).await.is_ok(),
            None => true,
        };
        say(if answered { "answered" } else { "hanging" });
        exit(1);
    });
    // A node of that name on another disk counts its incarnations from 1 again.
    let name = format!("{name}.{:x}", store.node());
    Ok(Node { store, name, load, writes: AtomicU64::new(0), guard })
}

/// Answers who waits for a command, and does nothing else.
async fn play(mut feeds: Feeds) {
    while let Some(play) = feeds.plays.recv().await {
        if let Play::Commands(commands) = play {
            commands.into_iter().for_each(|(applied, ticket)| ticket.answer(Ok(&applied)));
        }
    }
}

async fn watch(store: Store) {
    let mut said = (0, None);
    loop {
        let status = store.status();
        let now = (status.term, status.leader);
        if now != said {
            if let Some(leader) = status.leader {
                say(format_args!("term {} {leader}", status.term));
            }
            said = now;
        }
        sleep(LOOK).await;
    }
}

impl Node {
    async fn obey(&self, order: &str) -> Result<String, String> {
        let (verb, words) = order.split_once(' ').unwrap_or((order, ""));
        match verb {
            "status" => Ok(self.status()),
            "hash" => self.hash(words.parse().map_err(|_| "no index")?).await,
            "load" => {
                let running = Running::start(self.store.clone(), self.name.clone(), Load::parse(words));
                let before = self.load.lock().unwrap().replace(running);
                if before.is_some() { Err("there was a load".to_owned()) } else { Ok(String::new()) }
            }
            "acked" => {
                let running = self.load.lock().unwrap();
                Ok(format!("acked={}", running.as_ref().map_or(0, Running::acked)))
            }
            "unload" => {
                let running = self.load.lock().unwrap().take().ok_or("there is no load")?;
                Ok(running.stop().await.to_string())
            }
            "fill" => {
                let (bytes, each) = words.split_once(' ').ok_or("fill BYTES EACH")?;
                let (bytes, each) = (bytes.parse().map_err(|_| "no bytes")?, each.parse().map_err(|_| "no bytes")?);
                fill::fill(&self.store, self.name(), bytes, each)
                    .await
                    .map(|()| String::new())
                    .map_err(|e| e.to_string())
            }
            "members" => {
                let members = self.store.members().await.map_err(|e| e.to_string())?;
                let silent = members.iter().map(|member| format!("{}:{}", member.node, member.silent_ms));
                Ok(format!("silent={}", silent.collect::<Vec<_>>().join(",")))
            }
            "fresh" => {
                self.store.linearizable().await.map_err(|e| e.to_string())?;
                Ok(format!("applied={}", self.store.read_at(|_, index| index)))
            }
            "write" => self.write().await,
            "transfer" => {
                match words.parse() {
                    Ok(id) => self.store.hand_over_to(id).await,
                    Err(_) => self.store.hand_over().await,
                }
                Ok(String::new())
            }
            "dump" => {
                std::fs::write(words, self.dump()).map_err(|e| e.to_string())?;
                Ok(String::new())
            }
            "close" => {
                // A Raft that was shut down is not one that has failed.
                self.guard.abort();
                self.store.close().await.map(|()| String::new()).map_err(|e| e.to_string())
            }
            _ => Err(format!("unknown: {order}")),
        }
    }

    fn status(&self) -> String {
        let s = self.store.status();
        format!(
            "node={} leader={} term={} committed={} applied={} incarnation={} started={} voters={} silent={}",
            s.node,
            s.leader.unwrap_or(0),
            s.term,
            s.committed,
            s.applied,
            self.store.incarnation(),
            s.started,
            s.voters.iter().map(u64::to_string).collect::<Vec<_>>().join(","),
            s.silent_for.map_or(u64::MAX, |silent| silent.as_millis() as u64),
        )
    }

    async fn hash(&self, index: u64) -> Result<String, String> {
        while self.store.status().applied < index {
            sleep(LOOK).await;
        }
        let (index, hash) = self.store.hash_at(Some(index)).map_err(|known| format!("known are {known:?}"))?;
        Ok(format!("index={index} hash={hash:032x}"))
    }

    /// One that was not used yet.
    fn name(&self) -> String {
        let n = self.writes.fetch_add(1, Ordering::Relaxed);
        format!("w.{}.{}.{n}", self.name, self.store.incarnation())
    }

    async fn write(&self) -> Result<String, String> {
        open_session(&self.store, &self.name()).await.map(|_| String::new()).map_err(|e| e.to_string())
    }

    fn dump(&self) -> String {
        self.store.read(|state| {
            let (ns, mut out) = (ns(), String::new());
            for (room, _) in state.rooms_after(&ns, None) {
                let (entries, _) = state.history(&ns, &room, None, None, usize::MAX, |_| true);
                for entry in entries {
                    if let What::Message { text, .. } = entry.what {
                        out += &format!("{room} {} {text}\n", entry.position.0);
                    }
                }
            }
            out
        })
    }
}

pub fn ns() -> Namespace {
    Namespace::new("/").unwrap()
}

/// A new session of a user of that name, which must not have been used.
pub async fn open_session(store: &Store, name: &str) -> moim_raft::Result<(Sid, Applied)> {
    open_session_in(store, ns(), name).await
}

pub async fn open_session_in(store: &Store, ns: Namespace, name: &str) -> moim_raft::Result<(Sid, Applied)> {
    let user = User::new(name).expect("a short name");
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut pid = [0; 32];
    for (i, byte) in pid.iter_mut().enumerate() {
        for b in name.bytes().chain([i as u8]) {
            hash = (hash ^ u64::from(b)).wrapping_mul(0x100_0000_01b3);
        }
        *byte = (hash >> 32) as u8;
    }
    let sid = Sid::from_random(*pid.first_chunk().expect("it is longer"));
    let applied = store.call(Command::Open { sid: sid.clone(), ns, user, guest: false, pid }).await?;
    Ok((sid, applied))
}
