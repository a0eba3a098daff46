//! Node after node is restarted, and clients come back: the gap that each of them saw, and what it missed.
//!
//! With `--restart` this does what `moim rolling-restart` does, beside the clients; without, somebody else does it while the
//! clients run for `--seconds`. Each client comes back as a stock one with `reconnectionDelay: 50` would, and where there are
//! several URLs at the next of them. A member lost a message if the server acknowledged it and it never came.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Args;
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;

use super::client::{Packet, Recovery, offset};
use super::figures::{Latency, Report};
use super::{Client, Common, Target, progress};
use crate::cli::{AdminArgs, Failure, restart_all};

/// Members of a room.
const ROOM: usize = 20;
/// The first wait of a client that lost its connection, and the longest; each is half to one and a half times as long.
const RETRY: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_millis(500);
/// Traffic before the restart and after it; and what is on its way at the end gets so long to arrive.
const AROUND: Duration = Duration::from_secs(2);
/// Stands around a message's number in its text.
const MARK: char = '~';

#[derive(Args)]
pub struct RollingRestart {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    admin: AdminArgs,
    /// Shell command that restarts one node; {name} stands for its name. Without it, restart them yourself meanwhile
    #[arg(long, value_name = "CMD")]
    restart: Option<String>,
    /// How long to run where no command restarts the nodes
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    #[arg(long, default_value_t = 300)]
    sockets: usize,
    /// Messages a second, in all rooms together
    #[arg(long, default_value_t = 100)]
    rate: u64,
}

/// What all clients of a run share.
#[derive(Default)]
struct Run {
    last: AtomicU32,
    refused: AtomicU64,
    fresh: AtomicU64,
    /// Message to room, once it is acknowledged.
    acked: Mutex<HashMap<u32, usize>>,
    /// Nothing more is said.
    quiet: CancellationToken,
    over: CancellationToken,
}

/// One client through all its connections.
struct Life {
    run: Arc<Run>,
    number: usize,
    targets: Vec<Target>,
    gaps: Latency,
    every: Duration,
    recovery: Option<Recovery>,
    /// Since when it is without a connection.
    away: Option<Instant>,
    /// Messages that it heard.
    heard: Vec<u32>,
}

impl RollingRestart {
    pub async fn run(&self) -> Result<Report, Failure> {
        let (run, gaps) = (Arc::new(Run::default()), Latency::new());
        let mut lives = JoinSet::new();
        // All are members before the first word: it is due to each of them.
        let mut ready = Vec::new();
        for (number, mut client) in self.common.connect(self.sockets).await?.into_iter().enumerate() {
            let life = self.life(run.clone(), number, gaps.clone());
            client.request("join", &life.room_json()).await?;
            ready.push((life, client));
        }
        for (life, client) in ready {
            lives.spawn(life.go(client));
        }
        sleep(AROUND).await;
        let restarted = match &self.restart {
            Some(command) => restart_all(self.admin.clone(), command.clone(), progress).await,
            None => self.wait(&gaps).await,
        };
        sleep(AROUND).await;
        run.quiet.cancel();
        sleep(AROUND).await;
        run.over.cancel();
        let lives: Vec<Life> = lives.join_all().await;
        restarted?;
        Ok(self.report(&run, &gaps, &lives))
    }

    fn life(&self, run: Arc<Run>, number: usize, gaps: Latency) -> Life {
        let targets = (0..self.common.url.len()).map(|turn| {
            let url = self.common.url[(number + turn) % self.common.url.len()].clone();
            Target { url, ..self.common.target(number) }
        });
        let every = Duration::from_secs_f64(self.sockets as f64 / self.rate.max(1) as f64);
        let (targets, heard) = (targets.collect(), Vec::new());
        Life { run, number, targets, gaps, every, recovery: None, away: None, heard }
    }

    /// Says how it goes while others restart the nodes.
    async fn wait(&self, gaps: &Latency) -> Result<(), Failure> {
        for second in 1..=self.seconds {
            sleep(Duration::from_secs(1)).await;
            if second % 5 == 0 {
                progress(&format!("{} came back in {second} s", gaps.count()));
            }
        }
        Ok(())
    }

    fn report(&self, run: &Run, gaps: &Latency, lives: &[Life]) -> Report {
        let acked = run.acked.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut due, mut lost, mut doubled) = (0_u64, 0_u64, 0_u64);
        for life in lives {
            let mut times: HashMap<u32, u64> = HashMap::new();
            life.heard.iter().for_each(|message| *times.entry(*message).or_default() += 1);
            for message in acked.iter().filter(|(_, room)| **room == life.room()).map(|(message, _)| message) {
                due += 1;
                lost += u64::from(!times.contains_key(message));
            }
            doubled += times.values().map(|times| times - 1).sum::<u64>();
        }
        let (back, fresh) = (gaps.count() as f64, run.fresh.load(Ordering::Relaxed) as f64);
        let mut report = Report::new("rolling-restart");
        report.add("sockets", self.sockets as f64);
        report.add("gaps", back);
        report.add_latency("gap_", gaps);
        report.add("recovered", if back > 0.0 { 1.0 - fresh / back } else { 1.0 });
        report.add("refused_connects", run.refused.load(Ordering::Relaxed) as f64);
        report.add("still_away", lives.iter().filter(|life| life.away.is_some()).count() as f64);
        report.add("acked", acked.len() as f64);
        report.add("deliveries_due", due as f64);
        report.add("lost", lost as f64);
        report.add("doubled", doubled as f64);
        report
    }
}

impl Life {
    fn room(&self) -> usize {
        self.number / ROOM
    }

    fn room_json(&self) -> String {
        format!("\"bench-{}-{}\"", std::process::id(), self.room())
    }

    async fn go(mut self, mut client: Client) -> Self {
        let over = self.run.over.clone();
        // A client that a server does not recover is in no room any more.
        let mut joined = true;
        loop {
            let connected = async {
                if !joined && client.request("join", &self.room_json()).await.is_err() {
                    return;
                }
                self.talk(&mut client).await;
            };
            if over.run_until_cancelled(connected).await.is_none() {
                return self;
            }
            self.away = Some(Instant::now());
            self.recovery = client.recovery(self.recovery.take().and_then(|last| last.offset));
            // Its end of the connection too: the server waits for it.
            drop(client);
            match over.run_until_cancelled(self.come_back()).await {
                Some((back, recovered)) => (client, joined) = (back, recovered),
                None => return self,
            }
        }
    }

    /// Until the connection ends.
    async fn talk(&mut self, client: &mut Client) {
        let quiet = self.run.quiet.clone();
        let mut timer = interval(self.every);
        timer.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut asked: HashMap<u64, u32> = HashMap::new();
        loop {
            tokio::select! {
                packet = client.next() => match packet {
                    Ok(Packet::Event(body)) => self.hear(&body),
                    Ok(Packet::Ack { id, body }) => {
                        if let Some(message) = asked.remove(&id).filter(|_| body.contains("\"ok\":true")) {
                            let mut acked = self.run.acked.lock().unwrap_or_else(PoisonError::into_inner);
                            acked.insert(message, self.room());
                        }
                    }
                    Err(_) => return,
                },
                _ = timer.tick(), if !quiet.is_cancelled() => {
                    let message = self.run.last.fetch_add(1, Ordering::Relaxed);
                    let payload = format!("{{\"room\":{},\"text\":\"{MARK}{message}{MARK}\"}}", self.room_json());
                    match client.emit("message", &payload).await {
                        Ok(id) => _ = asked.insert(id, message),
                        Err(_) => return,
                    }
                }
            }
        }
    }

    fn hear(&mut self, body: &str) {
        if let Some(offset) = offset(body) {
            let pid = self.recovery.take().map(|last| last.pid).unwrap_or_default();
            self.recovery = Some(Recovery { pid, offset: Some(offset) });
        }
        self.heard.extend(number(body));
    }

    /// The next connection, and whether it is the same session.
    async fn come_back(&mut self) -> (Client, bool) {
        let mut wait = RETRY;
        for turn in 1.. {
            sleep(wait.mul_f64(0.5 + f64::from(getrandom::u32().unwrap_or(0)) / f64::from(u32::MAX))).await;
            let target = self.targets[turn % self.targets.len()].clone();
            match Client::connect(target, self.recovery.clone()).await {
                Ok((client, timing)) => {
                    if let Some(away) = self.away.take() {
                        self.gaps.record(away.elapsed());
                    }
                    self.run.fresh.fetch_add(u64::from(!timing.recovered), Ordering::Relaxed);
                    return (client, timing.recovered);
                }
                Err(_) => {
                    self.run.refused.fetch_add(1, Ordering::Relaxed);
                    wait = (wait * 2).min(RETRY_MAX);
                }
            }
        }
        unreachable!("it tries for ever")
    }
}

/// The number in one of this bench's messages.
fn number(body: &str) -> Option<u32> {
    let (_, rest) = body.split_once(MARK)?;
    rest.split_once(MARK)?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        bench: RollingRestart,
    }

    #[test]
    fn what_a_member_missed_and_what_came_twice_is_counted() {
        let bench = <Cli as clap::Parser>::parse_from(["bench"]).bench;
        let (run, gaps) = (Arc::new(Run::default()), Latency::new());
        run.acked.lock().unwrap().extend([(1, 0), (2, 0), (3, 1)]);
        run.fresh.store(1, Ordering::Relaxed);
        (0..4).for_each(|_| gaps.record(RETRY));
        let lives = [(0, vec![1, 2, 2]), (1, vec![1]), (ROOM, vec![3, 4])].map(|(number, heard)| {
            let life = bench.life(run.clone(), number, gaps.clone());
            Life { heard, away: (number == 1).then(Instant::now), ..life }
        });
        let report: serde_json::Value = serde_json::from_str(&bench.report(&run, &gaps, &lives).json()).unwrap();
        let figures = ["acked", "deliveries_due", "lost", "doubled", "gaps", "recovered", "still_away"];
        // Of the first room 2 did not come to its second member. What nobody was promised is due to nobody.
        assert_eq!(figures.map(|name| report[name].as_f64().unwrap()), [3.0, 5.0, 1.0, 1.0, 4.0, 0.75, 1.0]);
    }

    #[test]
    fn a_message_is_known_by_its_number() {
        assert_eq!(
            number("[\"message\",{\"room\":\"bench-1-2\",\"text\":\"~812~\"},\"m1.abcd.00000000007\"]"),
            Some(812)
        );
        assert_eq!(number("[\"joined\",{\"user\":\"a\"}]"), None);
    }
}
