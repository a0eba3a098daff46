//! What a node does to itself: proposers that write one thing after another, and say what became of each.
//!
//! A proposer has a session, a user and a room of its own name. Its writes are numbered, so the room's history shows what
//! was lost, doubled or out of order. Once its session is over (its node was declared down), another one takes its place
//! under another name.

use std::{
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use moim_raft::{
    Error, Store,
    command::{Command, Holder, Refusal, Reply, Room},
    state::Applied,
};
use tokio::{task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    node::{open_session, say},
    value,
};

/// How long a proposer waits before it tries again what was not taken.
const PAUSE: Duration = Duration::from_millis(50);
/// Rooms that a proposer of joins goes through.
const ROOMS: u64 = 100;

/// Words of the order: `proposers=8 pause=0 write=publish|join acks=yes|no`.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub proposers: usize,
    /// Milliseconds between an answer and the next write.
    pub pause: u64,
    /// Joins and leaves of rooms instead of messages. They cannot be counted afterwards, so they are for benches.
    pub joins: bool,
    /// Whether each outcome is said to the parent.
    pub acks: bool,
}

impl Default for Load {
    fn default() -> Self {
        Self { proposers: 4, pause: 0, joins: false, acks: true }
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (write, acks) = (if self.joins { "join" } else { "publish" }, if self.acks { "yes" } else { "no" });
        write!(f, "proposers={} pause={} write={write} acks={acks}", self.proposers, self.pause)
    }
}

impl Load {
    pub fn parse(words: &str) -> Self {
        Self {
            proposers: super::parsed(words, "proposers"),
            pause: super::parsed(words, "pause"),
            joins: value(words, "write") == Some("join"),
            acks: value(words, "acks") != Some("no"),
        }
    }
}

/// What a load came to. Shown as `acked= unknown= refused= seconds= p50= p99= max= gap=` (microseconds; `gap` is the
/// longest time without an acknowledgement).
#[derive(Default)]
pub struct Stats {
    micros: Vec<u32>,
    unknown: u64,
    refused: u64,
    seconds: f64,
    gap: Duration,
    last: Option<Instant>,
}

impl Stats {
    fn note(&mut self, outcome: &moim_raft::Result<Applied>, began: Instant) {
        match outcome {
            Ok(applied) if matches!(applied.reply, Reply::Refused(_)) => self.refused += 1,
            Ok(_) => {
                let now = Instant::now();
                self.micros.push(u32::try_from((now - began).as_micros()).unwrap_or(u32::MAX));
                self.gap = self.gap.max(self.last.map_or(Duration::ZERO, |last| now - last));
                self.last = Some(now);
            }
            Err(_) => self.unknown += 1,
        }
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut micros = self.micros.clone();
        micros.sort_unstable();
        let at = |share: f64| micros.get((micros.len() as f64 * share) as usize).or(micros.last()).unwrap_or(&0);
        write!(
            f,
            "acked={} unknown={} refused={} seconds={:.3} p50={} p99={} max={} gap={}",
            micros.len(),
            self.unknown,
            self.refused,
            self.seconds,
            at(0.5),
            at(0.99),
            micros.last().unwrap_or(&0),
            self.gap.as_micros()
        )
    }
}

/// A load that is running.
pub struct Running {
    stop: CancellationToken,
    proposers: JoinSet<()>,
    stats: Arc<Mutex<Stats>>,
    began: Instant,
}

impl Running {
    pub fn start(store: Store, node: String, load: Load) -> Self {
        // Names are used once: within a process by this, beyond it by the incarnation.
        static LOADS: AtomicU64 = AtomicU64::new(0);
        let number = LOADS.fetch_add(1, Ordering::Relaxed);
        let (stop, stats, mut proposers) = (CancellationToken::new(), Arc::<Mutex<Stats>>::default(), JoinSet::new());
        for i in 0..load.proposers {
            let (store, stats, stop, node) = (store.clone(), stats.clone(), stop.clone(), node.clone());
            proposers.spawn(async move {
                for life in 0.. {
                    if stop.is_cancelled() {
                        return;
                    }
                    let name = format!("p.{node}.{}.{number}.{i}.{life}", store.incarnation());
                    if propose(&store, &name, load, &stats, &stop).await.is_err() {
                        sleep(PAUSE).await;
                    }
                }
            });
        }
        Self { stop, proposers, stats, began: Instant::now() }
    }

    /// Writes that were acknowledged so far.
    pub fn acked(&self) -> usize {
        self.stats.lock().unwrap().micros.len()
    }

    /// Waits until each has heard of its last write.
    pub async fn stop(self) -> Stats {
        self.stop.cancel();
        self.proposers.join_all().await;
        let mut stats = std::mem::take(&mut *self.stats.lock().unwrap());
        stats.seconds = self.began.elapsed().as_secs_f64();
        stats
    }
}

/// One life of a proposer: until it is stopped, or its session is over.
async fn propose(
    store: &Store,
    name: &str,
    load: Load,
    stats: &Mutex<Stats>,
    stop: &CancellationToken,
) -> moim_raft::Result<()> {
    let (sid, _) = open_session(store, name).await?;
    let (by, room) = (Holder { sid, generation: 1 }, Room::new(name).expect("a short name"));
    if !load.joins {
        store.call(Command::Join { by: by.clone(), room: room.clone() }).await?;
    }
    for n in 0_u64.. {
        if stop.is_cancelled() {
            return Ok(());
        }
        let command = if load.joins {
            let (by, room) = (by.clone(), Room::new(format!("r{}", n % ROOMS)).expect("a short name"));
            if (n / ROOMS).is_multiple_of(2) { Command::Join { by, room } } else { Command::Leave { by, room } }
        } else {
            Command::Publish { by: by.clone(), room: room.clone(), text: n.to_string(), mid: None }
        };
        let began = Instant::now();
        let outcome = store.call(command).await;
        let said = match &outcome {
            Ok(applied) => match applied.reply {
                Reply::Refused(_) => format!("refused {name} {n}"),
                _ => format!("ack {name} {n} {}", applied.position.0),
            },
            Err(Error::Unavailable(_)) => format!("unknown {name} {n}"),
            Err(why) => format!("trouble {name} {n} {why}"),
        };
        stats.lock().unwrap().note(&outcome, began);
        if load.acks || said.starts_with("trouble") {
            say(said);
        }
        match outcome {
            Ok(applied) if matches!(applied.reply, Reply::Refused(Refusal::Moved)) => return Ok(()),
            Ok(_) => {}
            Err(Error::Unavailable(_)) => sleep(PAUSE).await,
            Err(why) => return Err(why),
        }
        if load.pause > 0 {
            sleep(Duration::from_millis(load.pause)).await;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_reads_back() {
        let load = Load { proposers: 3, pause: 7, joins: true, acks: false };
        assert_eq!(Load::parse(&load.to_string()).to_string(), load.to_string());
    }
}
