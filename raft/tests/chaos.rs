//! Random faults under load: nodes are killed and paused, lose their disks, leadership is moved, links are cut one way or
//! both. Then all is healed, and every node has to hold what was acknowledged, once.
//!
//! An episode is one cluster for about a minute, in rounds of some ten seconds of faults with a verdict after each. CI runs
//! one. For longer, each episode with the next seed:
//!
//! ```text
//! MOIM_CHAOS_SECONDS=7200 cargo test -p moim-raft --test chaos -- --nocapture
//! MOIM_CHAOS_SEED=812 cargo test -p moim-raft --test chaos -- --nocapture     # the faults of that seed again
//! ```
//!
//! A verdict has three preconditions, without which it says nothing and the run fails: every kind of fault took hold, terms
//! changed, and enough was acknowledged.

mod process;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime},
};

use process::{Fleet, Load, Options, proxy::Mode, random::Random};
use tokio::time::sleep;

/// Of one episode.
const EPISODE: Duration = Duration::from_secs(55);
/// Faults of one round, without healing and the verdict.
const ROUND: Duration = Duration::from_secs(9);
/// Longer than some pauses and shorter than others.
const REPLACE_AFTER: Duration = Duration::from_secs(2);
/// Fewer acknowledgements in a round say nothing.
const ACKED_MIN: usize = 100;

#[test]
fn process_node() {
    process::enter();
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is not a number")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_random_faults() {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let seed = number("MOIM_CHAOS_SEED").unwrap_or(now.as_millis() as u64 % 1_000_000);
    let end = Instant::now() + Duration::from_secs(number("MOIM_CHAOS_SECONDS").unwrap_or(EPISODE.as_secs()));
    for seed in seed.. {
        eprintln!("MOIM_CHAOS_SEED={seed}");
        Chaos::new(seed).await.episode().await;
        if Instant::now() >= end {
            break;
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Kill,
    KillAll,
    /// Killed, and its disk is gone: an empty one takes its place. Not a second one before the first is made good: two of
    /// three disks are what the cluster's word rests on.
    Lose,
    Pause,
    Transfer,
    CutOneWay,
    CutBothWays,
    Isolate,
}

use Fault::{CutBothWays, CutOneWay, Isolate, Kill, KillAll, Lose, Pause, Transfer};

/// As often as they stand here.
const FAULTS: [Fault; 14] = [
    Kill,
    Kill,
    Kill,
    KillAll,
    Lose,
    Pause,
    Pause,
    Transfer,
    Transfer,
    Transfer,
    CutOneWay,
    CutOneWay,
    CutBothWays,
    Isolate,
];

/// What ends a fault.
#[derive(Clone, Copy, Debug)]
enum Repair {
    Start(usize),
    Wake(usize),
    Pass(usize, usize),
}

struct Chaos {
    fleet: Fleet,
    random: Random,
    /// What is broken at the moment, and until when.
    repairs: Vec<(Instant, Repair)>,
    paused: [bool; 3],
    /// A disk was lost in this round.
    lost: bool,
    /// Those whose turn is still to come.
    faults: Vec<Fault>,
    counts: BTreeMap<Fault, usize>,
    began: Instant,
}

impl Chaos {
    async fn new(seed: u64) -> Self {
        let load = Load { proposers: 4, pause: 3, ..Load::default() };
        let fleet =
            Fleet::new(Options { load, replace_after: REPLACE_AFTER, snapshot_every: 300, ..Options::default() }).await;
        Self {
            fleet,
            random: Random::new(seed),
            repairs: Vec::new(),
            paused: [false; 3],
            lost: false,
            faults: Vec::new(),
            counts: BTreeMap::new(),
            began: Instant::now(),
        }
    }

    async fn episode(mut self) {
        while self.began.elapsed() < EPISODE {
            self.round().await;
        }
        let terms = self.fleet.ledger.lock().unwrap().terms();
        assert!(terms >= 5, "not conclusive: {terms} terms");
        for fault in FAULTS {
            assert!(
                self.counts.contains_key(&fault),
                "not conclusive: {fault:?} never took hold, of {:?}",
                self.counts
            );
        }
        let (acked, unknown) = (self.fleet.acked(), self.fleet.ledger.lock().unwrap().unknown);
        self.log(&format!("{acked} acknowledged, {unknown} unknown, {terms} terms, {:?}", self.counts));
        self.fleet.close().await;
    }

    async fn round(&mut self) {
        let acked = self.fleet.acked();
        self.fleet.load_all().await;
        let (began, end) = (Instant::now(), Instant::now() + ROUND);
        // On a machine that has much else to do, a round goes on until it says something.
        let has_said = |fleet: &Fleet| fleet.acked() - acked >= ACKED_MIN;
        while Instant::now() < end || (!has_said(&self.fleet) && began.elapsed() < ROUND * 10) {
            let pause = self.random.between(100, 1500);
            sleep(Duration::from_millis(pause)).await;
            self.repair(Instant::now()).await;
            let fault = self.next_fault();
            if self.strike(fault).await {
                *self.counts.entry(fault).or_default() += 1;
            }
        }
        self.repair(Instant::now() + Duration::from_secs(3600)).await;
        self.log("all healed");
        let healed = self.fleet.all_started().await;
        self.fleet.unload_all().await;
        self.fleet.agree().await;
        self.fleet.all_vote().await;
        self.lost = false;
        let acked = self.fleet.acked() - acked;
        self.log(&format!("whole after {healed:?}, {acked} acknowledged"));
        assert!(acked >= ACKED_MIN, "not conclusive: {acked} acknowledged");
    }

    /// Drawn without putting back, so that each has its turn.
    fn next_fault(&mut self) -> Fault {
        if self.faults.is_empty() {
            self.faults = FAULTS.to_vec();
        }
        let at = self.random.below(self.faults.len() as u64) as usize;
        self.faults.swap_remove(at)
    }

    fn log(&self, what: &str) {
        eprintln!("{:8.3} {what}", self.began.elapsed().as_secs_f64());
    }

    /// Ends the faults that are due.
    async fn repair(&mut self, now: Instant) {
        let (due, later) = std::mem::take(&mut self.repairs).into_iter().partition(|(at, _)| *at <= now);
        self.repairs = later;
        let mut due: Vec<(Instant, Repair)> = due;
        due.sort_by_key(|(at, _)| *at);
        for (_, repair) in due {
            self.log(&format!("{repair:?}"));
            match repair {
                Repair::Start(i) => {
                    self.fleet.start(i).await.unwrap_or_else(|why| panic!("node {i} does not start: {why}"));
                    self.fleet.load(i).await;
                }
                Repair::Wake(i) => {
                    self.fleet.node(i).signal("CONT");
                    self.paused[i] = false;
                }
                Repair::Pass(from, to) => self.fleet.links().set(from, to, Mode::Pass),
            }
        }
    }

    fn later(&mut self, from_ms: u64, to_ms: u64, repair: Repair) {
        let at = Instant::now() + Duration::from_millis(self.random.between(from_ms, to_ms));
        self.repairs.push((at, repair));
    }

    /// False when there is nothing to strike.
    async fn strike(&mut self, fault: Fault) -> bool {
        let awake: Vec<usize> = self.fleet.running().into_iter().filter(|i| !self.paused[*i]).collect();
        if awake.is_empty() {
            return false;
        }
        let (i, mode) = (self.random.of(&awake), self.random.of(&[Mode::Hold, Mode::Drop, Mode::Reset]));
        let other = (i + 1 + self.random.below(2) as usize) % 3;
        match fault {
            Kill => self.kill(i).await,
            KillAll => {
                for i in awake {
                    self.kill(i).await;
                }
            }
            Lose if self.lost => return false,
            Lose => {
                self.kill(i).await;
                self.log("its disk is gone");
                self.fleet.lose(i);
                self.lost = true;
            }
            Pause => {
                self.log(&format!("pause {i}"));
                self.fleet.node(i).signal("STOP");
                self.paused[i] = true;
                self.later(1000, 5000, Repair::Wake(i));
            }
            Transfer => {
                let Some(leader) = self.leader(&awake).await else { return false };
                self.log(&format!("transfer from {leader}"));
                self.fleet.node(leader).tell("transfer").await;
            }
            CutOneWay => self.cut(&[(i, other)], mode),
            CutBothWays => self.cut(&[(i, other), (other, i)], mode),
            Isolate => {
                let others = (0..3).filter(|other| *other != i);
                self.cut(&others.flat_map(|other| [(i, other), (other, i)]).collect::<Vec<_>>(), mode);
            }
        }
        true
    }

    async fn kill(&mut self, i: usize) {
        self.log(&format!("kill {i}"));
        self.fleet.kill(i).await;
        self.later(100, 3000, Repair::Start(i));
    }

    fn cut(&mut self, ways: &[(usize, usize)], mode: Mode) {
        self.log(&format!("{mode:?} {ways:?}"));
        let end = Instant::now() + Duration::from_millis(self.random.between(500, 4000));
        for (from, to) in ways {
            self.fleet.links().set(*from, *to, mode);
            self.repairs.push((end, Repair::Pass(*from, *to)));
        }
    }

    /// Who says that it leads, of those that can answer.
    async fn leader(&self, awake: &[usize]) -> Option<usize> {
        for i in awake {
            if self.fleet.leads(*i).await {
                return Some(*i);
            }
        }
        None
    }
}
