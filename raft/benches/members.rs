//! A million members in ten rooms each, through the real state machine: what a snapshot, an installation and a restart
//! take, and how much memory and disk. Each figure is printed beside its bound, and one that misses it fails the run.
//!
//! ```text
//! cargo bench -p moim-raft --bench members              all of it
//! cargo bench -p moim-raft --bench members -- 100000    as many members
//! ```

use std::{
    fs,
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::stream;
use moim_raft::{
    base::Base,
    codec::{self, Kind},
    command::{Batch, Command, Holder, Limits, Namespace, NodeInfo, Room, Sid, User},
    level,
    machine::Machine,
    net::SnapshotFile,
    propose::Proposals,
    raft::{Entry, LogId, Payload, TypeConfig},
    snapshot::Snapshots,
    wire::WireLogId,
};
use openraft::{
    EntryPayload, RaftSnapshotBuilder, entry::RaftEntry, storage::RaftStateMachine, type_config::alias::SnapshotOf,
};
use tokio::sync::{mpsc, oneshot};

const ROOMS_EACH: u64 = 10;
/// Members of a room, about.
const ROOM_MEMBERS: u64 = 10_000;
/// Users whose commands make one batch.
const USERS_A_BATCH: u64 = 40;
/// Whose batches these are; the machine is another node's, which only applies them.
const PROPOSER: u64 = 1;

/// See the reason in `Cargo.toml`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let members = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(1_000_000);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(run(members))
}

async fn run(members: u64) -> ExitCode {
    let dir = tempfile::tempdir().expect("a folder");
    let mut report = Report { missed: false };
    let mut node = Node::open(&dir.path().join("a"));
    let mut script = Script::new(members);
    let began = Instant::now();
    let spent = cpu();
    script.fill(&mut node).await;
    let joins = members * ROOMS_EACH;
    println!("{joins} joins, {members} sessions opened and closed: {:.1} s", began.elapsed().as_secs_f64());
    // On a machine that others use too the clock says little.
    println!("a join, with its part of the checkpoints: {:.1} us of CPU", (cpu() - spent) * 1e6 / joins as f64);
    report.least("joins a second through apply", rate(joins, script.applying), 60_000.0);
    report.memory("filled");

    let (began, spent) = (Instant::now(), cpu());
    let snapshot = node.snapshot().await;
    report.most("snapshot built, s", began.elapsed().as_secs_f64(), 5.0);
    println!("  of CPU: {:.2} s", cpu() - spent);
    let (pairs, raw) = node.machine().replica().read(|state| {
        let raw = state.pairs().fold(0, |sum, (key, value)| sum + key.len() + value.len());
        (state.kv().sum().pairs, raw)
    });
    let file = fs::metadata(&snapshot.snapshot.path).expect("the snapshot").len();
    println!("{pairs} pairs, {} MB of keys and values, snapshot of {} MB", mb(raw as u64), mb(file));
    report.most("disk to raw bytes", size(&dir.path().join("a/state")) as f64 / raw as f64, 4.0);
    report.memory("snapshot built");

    let (hash, position) = node.machine().replica().read(|state| (state.hash(), state.position()));
    node.close().await;
    let began = Instant::now();
    let mut node = Node::open(&dir.path().join("a"));
    let same = node.machine().replica().read(|state| (state.hash(), state.position()) == (hash, position));
    report.most("node reopened, s", began.elapsed().as_secs_f64(), 1.0);
    assert!(same, "it is the state of before");
    let began = Instant::now();
    while !node.machine().health().is_verified() {
        assert_eq!(node.machine().health().failed(), None);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!("verified in the background: {:.1} s", began.elapsed().as_secs_f64());

    let spent = cpu();
    let (scattered, applying) = script.scatter(&mut node, members / 10).await;
    let each = (cpu() - spent) * 1e6 / scattered as f64;
    println!(
        "joins a second in random rooms by random users: {:.0}, {each:.1} us of CPU each",
        rate(scattered, applying)
    );
    report.memory("after them");
    node.close().await;

    let mut other = Node::open(&dir.path().join("b"));
    let received = dir.path().join("received");
    fs::copy(&snapshot.snapshot.path, &received).expect("a copy");
    let (began, spent) = (Instant::now(), cpu());
    let installed = other.machine().install_snapshot(&snapshot.meta, SnapshotFile { path: received }).await;
    installed.expect("it is whole");
    report.most("snapshot installed, s", began.elapsed().as_secs_f64(), 10.0);
    println!("  of CPU: {:.2} s", cpu() - spent);
    assert!(other.machine().replica().read(|state| state.hash()) == hash, "it is the same state");
    report.memory("installed");
    report.most("disk to raw bytes, installed", size(&dir.path().join("b/state")) as f64 / raw as f64, 4.0);
    other.close().await;
    ExitCode::from(u8::from(report.missed))
}

/// The state machine of one node, without what is around it.
struct Node {
    machine: Option<Machine>,
    gone: oneshot::Receiver<()>,
    index: u64,
}

impl Node {
    fn open(dir: &Path) -> Self {
        let snapshots = Snapshots::open(&dir.join("snapshots")).expect("a folder");
        let (base, found) = Base::open(&dir.join("state"), &snapshots).expect("a usable folder");
        let index = found.point.as_ref().and_then(|point| point.index()).unwrap_or(0);
        let (feed, _nobody) = mpsc::channel(1);
        let proposals = Arc::new(Proposals::default());
        let opened =
            Machine::open(PROPOSER + 1, level::KNOWN, base, found, snapshots, proposals, feed, Default::default());
        let (machine, gone) = opened.expect("what was found is usable");
        Self { machine: Some(machine), gone, index }
    }

    fn machine(&mut self) -> &mut Machine {
        self.machine.as_mut().expect("it is open")
    }

    async fn apply(&mut self, batch: &Batch) {
        self.index += 1;
        let id = LogId::from(WireLogId { term: 1, node: PROPOSER, index: self.index });
        let body = codec::encode(Kind::Batch, batch).expect("plain data");
        let entry = Entry::new(id, EntryPayload::Normal(Payload(body.into())));
        self.machine().apply(stream::iter([Ok((entry, None))])).await.expect("applied");
    }

    async fn snapshot(&mut self) -> SnapshotOf<TypeConfig, SnapshotFile> {
        let mut builder = self.machine().get_snapshot_builder().await;
        builder.build_snapshot().await.expect("built")
    }

    async fn close(mut self) {
        self.machine = None;
        _ = self.gone.await;
    }
}

/// The commands of one node.
struct Script {
    members: u64,
    rooms: u64,
    sequence: u64,
    /// How long apply took for all of it, with what it had to wait for.
    applying: Duration,
}

impl Script {
    fn new(members: u64) -> Self {
        let rooms = (members * ROOMS_EACH / ROOM_MEMBERS).max(ROOMS_EACH);
        Self { members, rooms, sequence: 0, applying: Duration::ZERO }
    }

    async fn batch(&mut self, node: &mut Node, commands: Vec<Command>) {
        self.sequence += 1;
        let batch = Batch { node: PROPOSER, incarnation: 1, sequence: self.sequence, stamp: self.sequence, commands };
        let began = Instant::now();
        node.apply(&batch).await;
        self.applying += began.elapsed();
    }

    /// Every user joins its rooms and goes again; in the order of their names.
    async fn fill(&mut self, node: &mut Node) {
        self.batch(node, vec![Command::Started(NodeInfo::default())]).await;
        self.batch(node, vec![Command::SetLimits(Limits::default())]).await;
        for first in (0..self.members).step_by(USERS_A_BATCH as usize) {
            let users = first..(first + USERS_A_BATCH).min(self.members);
            let commands =
                users.flat_map(|user| self.visit(user, (0..ROOMS_EACH).map(move |nth| user * 7 + nth * 101)));
            let commands = commands.collect();
            self.batch(node, commands).await;
        }
    }

    /// As many joins of users in no order, to rooms that they are not in; how many, and how long they took.
    async fn scatter(&mut self, node: &mut Node, joins: u64) -> (u64, Duration) {
        let before = self.applying;
        let users = joins / ROOMS_EACH;
        for first in (0..users).step_by(USERS_A_BATCH as usize) {
            let users = (first..first + USERS_A_BATCH).map(|nth| nth * 7_919_777 % self.members);
            let other = |user: u64| (0..ROOMS_EACH).map(move |nth| user * 7 + nth * 101 + 50);
            let commands = users.flat_map(|user| self.visit(user, other(user))).collect();
            self.batch(node, commands).await;
        }
        (users * ROOMS_EACH, self.applying - before)
    }

    fn visit(&self, user: u64, rooms: impl Iterator<Item = u64>) -> Vec<Command> {
        let ns = Namespace::new("/").expect("a name");
        let mut random = [0; 16];
        random[..8].copy_from_slice(&user.to_be_bytes());
        let mut pid = [0; 32];
        pid[..8].copy_from_slice(&user.to_be_bytes());
        let by = Holder { sid: Sid::from_random(random), generation: 1 };
        let name = User::new(format!("member-{user:07}")).expect("a name");
        let mut commands = vec![Command::Open { sid: by.sid.clone(), ns, user: name, guest: false, pid }];
        let room = |n: u64| Room::new(format!("room-{:04}", n % self.rooms)).expect("a name");
        commands.extend(rooms.map(|n| Command::Join { by: by.clone(), room: room(n) }));
        commands.push(Command::Close(by));
        commands
    }
}

struct Report {
    missed: bool,
}

impl Report {
    fn most(&mut self, what: &str, is: f64, bound: f64) {
        self.line(what, is, bound, is <= bound, "at most");
    }

    fn least(&mut self, what: &str, is: f64, bound: f64) {
        self.line(what, is, bound, is >= bound, "at least");
    }

    fn line(&mut self, what: &str, is: f64, bound: f64, holds: bool, word: &str) {
        let verdict = if holds { "" } else { "   MISSED" };
        println!("{what}: {is:.2} ({word} {bound}){verdict}");
        self.missed |= !holds;
    }

    /// What was the most of it until now.
    fn memory(&mut self, when: &str) {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field =
            |name: &str| status.lines().find(|line| line.starts_with(name))?.split_whitespace().nth(1)?.parse().ok();
        let gib = |kib: Option<u64>| kib.unwrap_or(0) as f64 / (1 << 20) as f64;
        println!("resident, {when}: {:.2} GiB", gib(field("VmRSS")));
        self.most("  at its peak until then, GiB", gib(field("VmHWM")), 1.5);
    }
}

/// Seconds that all threads of this process have worked.
fn cpu() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    // In hundredths of a second.
    fields.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

fn rate(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}

fn mb(bytes: u64) -> u64 {
    bytes / 1_000_000
}

fn size(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else { return fs::metadata(path).map_or(0, |file| file.len()) };
    entries.flatten().map(|entry| size(&entry.path())).sum()
}
