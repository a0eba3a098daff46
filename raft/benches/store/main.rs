//! What the store reaches: three nodes as processes on one machine, with real syncs.
//!
//! ```text
//! cargo bench -p moim-raft --bench store [-- [--quick] [--json] [ROW..]]
//! ```
//!
//! Each figure stands beside its bound and beside what the machine gives without us, measured in the same run: other
//! machines, and a machine on which others work, change both. Exits with 1 when a bound is missed. Rows: `alone`, `one`,
//! `join`, `session`, `transfer`, `kill`, `etcd`; all when none is named. `--quick` measures for a shorter time.

mod alone;
mod baseline;
mod cluster;
mod load;
mod node;
mod report;

use std::{path::Path, time::Duration};

use baseline::Raw;
use cluster::Cluster;
use report::{
    Bound::{AtLeast, Below},
    Row,
};

fn main() {
    if let Some(data) = std::env::var_os(node::DATA) {
        return node::main(data.into());
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| arguments.iter().any(|a| a == name);
    let rows: Vec<&String> = arguments.iter().filter(|a| !a.starts_with("--")).collect();
    let mut bench = Bench::new(has("--quick"), has("--json"));
    let wants = |row: &str| rows.is_empty() || rows.iter().any(|r| *r == row);
    if wants("alone") {
        bench.alone();
    }
    if wants("one") {
        bench.one();
    }
    if wants("join") {
        bench.joins();
    }
    if wants("session") {
        bench.sessions();
    }
    if wants("transfer") {
        bench.transfers();
    }
    if wants("kill") {
        bench.kills();
    }
    std::process::exit(i32::from(bench.finish()));
}

struct Bench {
    quick: bool,
    json: bool,
    sync: Raw,
    trip: Raw,
    cluster: Cluster,
    /// Sessions that were opened so far: the next ones have other numbers.
    sessions: u64,
    missed: bool,
}

impl Bench {
    fn new(quick: bool, json: bool) -> Self {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let time = if quick { Duration::from_millis(500) } else { Duration::from_secs(2) };
        let (sync, trip) = (baseline::sync(dir, time), baseline::round_trip(time));
        let mut bench = Self { quick, json, sync, trip, cluster: Cluster::start(3), sessions: 0, missed: false };
        let range = |raw: Raw| format!("p99 {:.0} us, {:.0} a second", raw.p99, raw.rate);
        bench.say(Row::new("raw: append 200 B + fdatasync, p50", sync.p50, "us").note(range(sync)));
        bench.say(Row::new("raw: loopback round trip, p50", trip.p50, "us").note(range(trip)));
        bench
    }

    fn say(&mut self, row: Row) {
        self.missed |= row.missed();
        println!("{}", if self.json { row.json() } else { row.text() });
    }

    fn rounds(&self, all: usize) -> usize {
        if self.quick { all.div_ceil(3) } else { all }
    }

    fn millis(&self) -> u64 {
        if self.quick { 2000 } else { 6000 }
    }

    /// New sessions on a node; the number of the first.
    fn open(&mut self, node: usize, count: u64) -> u64 {
        let from = self.sessions;
        self.sessions += count;
        let opened = self.cluster.ask(node, &format!("open {from} {count}"));
        assert_eq!(opened["failed"], 0.0, "sessions were not opened");
        from
    }

    /// What a join costs one node that neither waits nor talks.
    fn alone(&mut self) {
        let cost = alone::join(if self.quick { 1000 } else { 4000 });
        let note = format!("encoding {:.2} us, decoding {:.2} us", cost.encode, cost.decode);
        self.say(Row::new("one join applied, without a cluster", cost.apply, "us").note(note));
    }

    /// One proposer on the leader.
    fn one(&mut self) {
        let leader = self.cluster.leader();
        let from = self.open(leader, 512);
        let seen = self.cluster.ask(leader, &format!("join {from} 512 1 {}", self.millis()));
        let raw = self.sync.p50 + self.trip.p50;
        let note = format!("{:.0} a second, p99 {:.2} ms", seen["rate"], seen["p99"] / 1e3);
        let row = Row::new("one proposer: latency, p50", seen["p50"], "us").bound(Below(1.5 * raw));
        self.say(row.ratio(raw, "fdatasync + round trip").note(note));
    }

    fn joins(&mut self) {
        let leader = self.cluster.leader();
        self.join("256 proposers on the leader", leader, 60_000.0);
        let follower = self.cluster.follower();
        self.join("256 proposers on a follower", follower, 40_000.0);
    }

    fn join(&mut self, what: &str, node: usize, bound: f64) {
        let from = self.open(node, 8192);
        let cpu = self.cluster.cpu();
        let seen = self.cluster.ask(node, &format!("join {from} 8192 256 {}", self.millis()));
        let cpu = (self.cluster.cpu() - cpu) * 1e6 / seen["done"];
        let note = format!(
            "cpu of all nodes {cpu:.1} us a join; p50 {:.2} ms, max {:.0} ms, failed {}",
            seen["p50"] / 1e3,
            seen["max"] / 1e3,
            seen["failed"]
        );
        let row = Row::new(format!("{what}: joins"), seen["rate"], "/s").bound(AtLeast(bound));
        self.say(row.ratio(self.sync.rate, "raw fdatasyncs a second").note(note));
        let row = Row::new(format!("{what}: p99"), seen["p99"] / 1e3, "ms").bound(Below(50.0));
        self.say(row.ratio(self.sync.p99 / 1e3, "raw fdatasync, p99"));
    }

    /// Opened and lost on one node, resumed on another.
    fn sessions(&mut self) {
        let count = if self.quick { 20_000 } else { 100_000 };
        let (there, here) = (self.cluster.leader(), self.cluster.follower());
        let (from, cpu) = (self.sessions, self.cluster.cpu());
        self.sessions += count;
        let mut step = |node: usize, verb: &str| {
            let answer = self.cluster.ask(node, &format!("{verb} {from} {count}"));
            assert_eq!(answer.get("failed").copied().unwrap_or(0.0), 0.0, "{verb}");
            answer["ms"] / 1e3
        };
        let (opened, lost, resumed) = (step(there, "open"), step(there, "lose"), step(here, "resume"));
        let cpu = (self.cluster.cpu() - cpu) * 1e6 / count as f64;
        let note = format!("{opened:.2} + {lost:.2} + {resumed:.2} s; cpu of all nodes {cpu:.1} us a session");
        let row = Row::new(format!("{count} sessions opened, lost, resumed"), opened + lost + resumed, "s");
        self.say(row.bound(Below(count as f64 / 10_000.0)).note(note));
    }

    /// The longest wait of a client on a third node while leadership moves.
    fn transfers(&mut self) {
        let gaps = self.gaps(9, |cluster, leader| {
            cluster.ask(leader, "transfer");
        });
        let row = Row::new("leader transfer: write gap, p50", gaps[gaps.len() / 2], "ms").bound(Below(50.0));
        self.say(row.note(format!("{} transfers, longest {:.0} ms", gaps.len(), gaps[gaps.len() - 1])));
    }

    fn kills(&mut self) {
        let gaps = self.gaps(5, |cluster, leader| cluster.kill(leader));
        let row = Row::new("kill -9 of the leader: write gap, longest", gaps[gaps.len() - 1], "ms");
        let note = format!("{} kills, p50 {:.0} ms", gaps.len(), gaps[gaps.len() / 2]);
        self.say(row.bound(Below(1500.0)).note(note));
    }

    /// Sorted milliseconds.
    fn gaps(&mut self, rounds: usize, hurt: impl Fn(&mut Cluster, usize)) -> Vec<f64> {
        let mut gaps = Vec::new();
        for _ in 0..self.rounds(rounds) {
            let (leader, client) = (self.cluster.leader(), self.cluster.follower());
            let session = self.open(client, 1);
            self.cluster.ask(client, &format!("write {session}"));
            std::thread::sleep(Duration::from_millis(500));
            hurt(&mut self.cluster, leader);
            std::thread::sleep(Duration::from_millis(2500));
            gaps.push(self.cluster.ask(client, "written")["gap"] / 1e3);
            if !self.cluster.runs(leader) {
                self.cluster.start_again(leader);
            }
        }
        gaps.sort_unstable_by(f64::total_cmp);
        gaps
    }

    /// Whether a bound was missed.
    fn finish(mut self) -> bool {
        assert!(self.cluster.agree(), "the nodes' states differ");
        self.missed
    }
}
