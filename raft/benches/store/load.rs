//! What a node is asked to carry, proposed inside its own process as chat handlers would.

use std::{
    fmt,
    ops::Range,
    time::{Duration, Instant},
};

use moim_raft::{
    Store,
    command::{Command, Holder, Namespace, Refusal, Reply, Room, Sid, User},
};
use tokio::{sync::oneshot, task::JoinSet, time::sleep};

/// Calls under way at once while sessions are opened and resumed.
const TOGETHER: u64 = 512;
/// Losses in one command, as a node commits them when many transports go.
const LOST_SLICE: usize = 1000;
/// Rooms of the benchmark. Each user joins them in another order.
const ROOMS: u64 = 5000;
/// Between two tries of a write that was not taken.
const RETRY: Duration = Duration::from_millis(2);

/// What many proposers saw.
pub struct Seen {
    done: u64,
    failed: u64,
    time: Duration,
    /// Of each call, in microseconds, sorted.
    took: Vec<u32>,
}

impl Seen {
    fn quantile(&self, q: f64) -> u32 {
        let at = ((self.took.len() as f64 * q) as usize).min(self.took.len().saturating_sub(1));
        self.took.get(at).copied().unwrap_or(0)
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = self.done as f64 / self.time.as_secs_f64();
        let (p50, p99, max) = (self.quantile(0.5), self.quantile(0.99), self.quantile(1.0));
        write!(f, "done={} failed={} rate={rate:.0} p50={p50} p99={p99} max={max}", self.done, self.failed)
    }
}

/// Opens the sessions, each of a user of its own.
pub async fn open(store: &Store, sessions: Range<u64>) -> String {
    each(store, sessions, open_one).await
}

/// Resumes the sessions for the first time.
pub async fn resume(store: &Store, sessions: Range<u64>) -> String {
    let command = |i| Command::Resume { read: holder(i), ns: ns(), user: user(i), pid: pid(i) };
    each(store, sessions, command).await
}

/// Records that the sessions have lost their transports.
pub async fn lose(store: &Store, sessions: Range<u64>) -> String {
    let begun = Instant::now();
    let all: Vec<Holder> = sessions.map(holder).collect();
    for slice in all.chunks(LOST_SLICE) {
        insist(store, Command::Lost(slice.to_vec())).await;
    }
    format!("ms={} failed=0", begun.elapsed().as_millis())
}

async fn each(store: &Store, sessions: Range<u64>, command: impl Fn(u64) -> Command + Copy + Send + 'static) -> String {
    let begun = Instant::now();
    let mut callers = JoinSet::new();
    for nth in 0..TOGETHER {
        let (store, mine) = (store.clone(), sessions.clone().skip(nth as usize).step_by(TOGETHER as usize));
        callers.spawn(async move {
            let mut failed = 0_u64;
            for i in mine {
                match insist(&store, command(i)).await {
                    // The second: an earlier try had taken effect after all.
                    (Reply::Seated { .. }, _) | (Reply::Refused(Refusal::Moved), true) => {}
                    (reply, _) => {
                        eprintln!("session {i}: {reply:?}");
                        failed += 1;
                    }
                }
            }
            failed
        });
    }
    let failed: u64 = callers.join_all().await.iter().sum();
    format!("ms={} failed={failed}", begun.elapsed().as_millis())
}

/// Proposes until it is taken; also whether that took more than one try.
async fn insist(store: &Store, command: Command) -> (Reply, bool) {
    let mut again = false;
    loop {
        match store.call(command.clone()).await {
            Ok(applied) => return (applied.reply, again),
            Err(_) => sleep(RETRY).await,
        }
        again = true;
    }
}

/// Proposers that each let their share of the sessions' users join one room after another. The first tenth of the time
/// is not counted.
pub async fn join(store: &Store, sessions: Range<u64>, proposers: u64, time: Duration) -> Seen {
    let (from, until) = (Instant::now() + time / 10, Instant::now() + time);
    let mut callers = JoinSet::new();
    for nth in 0..proposers {
        let (store, mine) = (store.clone(), sessions.clone().skip(nth as usize).step_by(proposers as usize));
        callers.spawn(join_rooms(store, mine.collect(), from, until));
    }
    let mut seen = Seen { done: 0, failed: 0, time: until - from, took: Vec::new() };
    for (took, failed) in callers.join_all().await {
        seen.done += took.len() as u64;
        seen.failed += failed;
        seen.took.extend(took);
    }
    seen.took.sort_unstable();
    seen
}

async fn join_rooms(store: Store, users: Vec<u64>, from: Instant, until: Instant) -> (Vec<u32>, u64) {
    let (mut took, mut failed) = (Vec::new(), 0);
    for round in 0.. {
        for &user in &users {
            let begun = Instant::now();
            if begun >= until {
                return (took, failed);
            }
            let done = store.call(join_one(user, round)).await;
            if begun < from || Instant::now() > until {
                continue;
            }
            match done {
                Ok(applied) if matches!(applied.reply, Reply::Joined { .. }) => {
                    took.push(begun.elapsed().as_micros() as u32)
                }
                _ => failed += 1,
            }
        }
    }
    (took, failed)
}

/// One client that writes without a pause, tries again what was not taken, and remembers its longest wait.
pub struct Writer {
    stop: oneshot::Sender<()>,
    done: oneshot::Receiver<String>,
}

impl Writer {
    pub fn start(store: Store, session: u64) -> Self {
        let ((stop, mut stopped), (tell, done)) = (oneshot::channel(), oneshot::channel());
        tokio::spawn(async move {
            let (mut written, mut gap, mut last) = (0_u64, Duration::ZERO, Instant::now());
            while stopped.try_recv().is_err() {
                // Joining again is a write like any other, and can be repeated.
                let command = Command::Join { by: holder(session), room: room(session) };
                match store.call(command).await {
                    Ok(_) => {
                        gap = gap.max(last.elapsed());
                        last = Instant::now();
                        written += 1;
                    }
                    Err(_) => sleep(RETRY).await,
                }
            }
            _ = tell.send(format!("written={written} gap={}", gap.as_micros()));
        });
        Self { stop, done }
    }

    pub async fn stop(self) -> String {
        _ = self.stop.send(());
        self.done.await.unwrap_or_default()
    }
}

pub fn open_one(i: u64) -> Command {
    Command::Open { sid: sid(i), ns: ns(), user: user(i), guest: false, pid: pid(i) }
}

/// A user's `round`-th join: another room each time.
pub fn join_one(user: u64, round: u64) -> Command {
    Command::Join { by: holder(user), room: room(user + round * 613) }
}

fn ns() -> Namespace {
    Namespace::new("/").expect("a name")
}

fn user(i: u64) -> User {
    User::new(format!("user-{i:07}")).expect("a name")
}

fn room(i: u64) -> Room {
    Room::new(format!("room-{}", i % ROOMS)).expect("a name")
}

fn holder(i: u64) -> Holder {
    Holder { sid: sid(i), generation: 1 }
}

fn sid(i: u64) -> Sid {
    Sid::parse(&format!("{i:020}")).expect("20 digits")
}

fn pid(i: u64) -> [u8; 32] {
    let mut pid = [0; 32];
    pid[..8].copy_from_slice(&i.to_le_bytes());
    pid
}
