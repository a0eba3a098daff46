//! What the store reaches: three nodes as processes on one machine, with real syncs.
//!
//! ```text
//! cargo bench -p moim-raft --bench store [-- [--quick] [--json] [ROW..]]
//! ```
//!
//! Each figure stands beside its bound and beside what the machine gives without us at about the same moment: other
//! machines, and a machine on which others work, change both. CPU time is of all three nodes together, proposers included,
//! and the figure that is least disturbed by others. Exits with 1 when a bound is missed.
//!
//! Rows: `alone`, `one`, `join`, `session`, `transfer`, `kill`, `etcd` (if it is installed); all when none is named.
//! `--quick` measures for a shorter time and less often. Each row has a cluster of its own, whose nodes must agree on the
//! state's hash when the row is done.

mod alone;
mod baseline;
mod cluster;
mod etcd;
mod load;
mod node;
mod report;

use std::{path::Path, thread::sleep, time::Duration};

use baseline::Raw;
use cluster::Cluster;
use etcd::Etcd;
use report::{
    Bound::{AtLeast, Below},
    Row,
};

/// Proposers of the rows with many.
const PROPOSERS: usize = 256;
/// Sessions whose users they let join.
const SESSIONS: u64 = 8192;

/// See the reason in `Cargo.toml`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    if let Some(data) = std::env::var_os(node::DATA) {
        return node::main(data.into());
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| arguments.iter().any(|a| a == name);
    let mut bench = Bench { quick: has("--quick"), json: has("--json"), missed: false };
    type Measure = fn(&mut Bench);
    let rows: [(&str, Measure); 7] = [
        ("alone", Bench::alone),
        ("one", Bench::one),
        ("join", Bench::joins),
        ("session", Bench::sessions),
        ("transfer", Bench::transfers),
        ("kill", Bench::kills),
        ("etcd", Bench::etcd),
    ];
    let none = !rows.iter().any(|(name, _)| has(name));
    for (name, measure) in rows {
        if none || has(name) {
            measure(&mut bench);
        }
    }
    std::process::exit(i32::from(bench.missed));
}

struct Bench {
    quick: bool,
    json: bool,
    missed: bool,
}

impl Bench {
    fn say(&mut self, row: Row) {
        self.missed |= row.missed();
        println!("{}", if self.json { row.json() } else { row.text() });
    }

    fn rounds(&self, all: usize) -> usize {
        if self.quick { all.div_ceil(3) } else { all }
    }

    fn time(&self) -> Duration {
        Duration::from_secs(if self.quick { 2 } else { 6 })
    }

    /// The disk as it is now.
    fn sync(&mut self) -> Raw {
        let raw = baseline::sync(Path::new(env!("CARGO_TARGET_TMPDIR")), self.time() / 6);
        let note = format!("p99 {:.0} us, {:.0} a second", raw.p99, raw.rate);
        self.say(Row::new("raw: append 200 B + fdatasync, p50", raw.p50, "us").note(note));
        raw
    }

    /// What a join costs one node that neither waits nor talks.
    fn alone(&mut self) {
        let cost = alone::join(if self.quick { 1000 } else { 4000 });
        let note = format!("encoding {:.2} us, decoding {:.2} us", cost.encode, cost.decode);
        self.say(Row::new("one join applied, all state in memory", cost.apply, "us").note(note));
    }

    /// One proposer on the leader, in turns with a sync and a round trip.
    fn one(&mut self) {
        let mut cluster = Cluster::start(3);
        let leader = cluster.leader();
        let from = cluster.open(leader, 512);
        let (turn, mut turns) = (self.time() / 20, Vec::new());
        for _ in 0..self.rounds(15) {
            let sync = baseline::sync(Path::new(env!("CARGO_TARGET_TMPDIR")), turn).p50;
            let trip = baseline::round_trip(turn / 3).p50;
            let ours = cluster.ask(leader, &format!("join {from} 512 1 {}", turn.as_millis()))["p50"];
            let shared = baseline::sync_of_three(Path::new(env!("CARGO_TARGET_TMPDIR")), turn / 3).p50;
            turns.push([ours / (sync + trip), ours, sync, trip, shared]);
        }
        let median = |nth: usize| {
            let mut all: Vec<f64> = turns.iter().map(|turn| turn[nth]).collect();
            all.sort_unstable_by(f64::total_cmp);
            all[all.len() / 2]
        };
        let note = format!(
            "median of {} turns; ours {:.0} us, fdatasync {:.0} us ({:.0} when three do it at once), round trip {:.0} us",
            turns.len(),
            median(1),
            median(2),
            median(4),
            median(3)
        );
        let row = Row::new("one proposer: latency / (fdatasync + round trip)", median(0), "x").bound(Below(1.5));
        self.say(row.note(note));
        cluster.end();
    }

    fn joins(&mut self) {
        self.join("256 proposers on the leader", Cluster::leader, 60_000.0);
        self.join("256 proposers on a follower", Cluster::follower, 40_000.0);
    }

    fn join(&mut self, what: &str, place: fn(&mut Cluster) -> usize, bound: f64) {
        let raw = self.sync();
        let mut cluster = Cluster::start(3);
        let node = place(&mut cluster);
        let from = cluster.open(node, SESSIONS);
        let before = cluster.cpu();
        let seen = cluster.ask(node, &format!("join {from} {SESSIONS} {PROPOSERS} {}", self.time().as_millis()));
        // The first tenth is not counted as done.
        let cpu = cluster.cpu().since(&before).over(seen["done"] * 10.0 / 9.0);
        let row = Row::new(format!("{what}: joins"), seen["rate"], "/s").bound(AtLeast(bound));
        self.say(row.ratio(raw.rate, "raw fdatasyncs a second").note(format!("cpu of all nodes a join: {cpu}")));
        let note = format!("p50 {:.1} ms, max {:.0} ms", seen["p50"] / 1e3, seen["max"] / 1e3);
        let row = Row::new(format!("{what}: p99"), seen["p99"] / 1e3, "ms").bound(Below(50.0));
        self.say(row.ratio(raw.p99 / 1e3, "raw fdatasync, p99").note(note));
        let failed = Row::new(format!("{what}: not taken"), seen["failed"], "joins");
        self.say(failed.bound(Below(1.0)));
        cluster.end();
    }

    /// Opened and lost on the leader, resumed on another node.
    fn sessions(&mut self) {
        let count = if self.quick { 20_000 } else { 100_000 };
        let mut cluster = Cluster::start(3);
        let (there, here) = (cluster.leader(), cluster.follower());
        let before = cluster.cpu();
        let mut step = |node: usize, verb: &str| {
            let answer = cluster.ask(node, &format!("{verb} 0 {count}"));
            assert_eq!(answer["failed"], 0.0, "{verb}");
            answer["ms"] / 1e3
        };
        let (opened, lost, resumed) = (step(there, "open"), step(there, "lose"), step(here, "resume"));
        let cpu = cluster.cpu().since(&before).over(count as f64);
        let note = format!("{opened:.2} + {lost:.2} + {resumed:.2} s; cpu of all nodes a session: {cpu}");
        let row = Row::new(format!("{count} sessions opened, lost, resumed"), opened + lost + resumed, "s");
        self.say(row.bound(Below(count as f64 / 10_000.0)).note(note));
        cluster.end();
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
        let gaps = self.gaps(5, Cluster::kill);
        let row = Row::new("kill -9 of the leader: write gap, longest", gaps[gaps.len() - 1], "ms");
        let note = format!("{} kills, p50 {:.0} ms", gaps.len(), gaps[gaps.len() / 2]);
        self.say(row.bound(Below(1500.0)).note(note));
    }

    /// Milliseconds, sorted.
    fn gaps(&mut self, rounds: usize, hurt: impl Fn(&mut Cluster, usize)) -> Vec<f64> {
        let (mut cluster, mut gaps) = (Cluster::start(3), Vec::new());
        for _ in 0..self.rounds(rounds) {
            let (leader, client) = (cluster.leader(), cluster.follower());
            let session = cluster.open(client, 1);
            cluster.ask(client, &format!("write {session}"));
            sleep(Duration::from_millis(500));
            hurt(&mut cluster, leader);
            sleep(Duration::from_millis(2500));
            gaps.push(cluster.ask(client, "written")["gap"] / 1e3);
            if !cluster.runs(leader) {
                cluster.start_again(leader);
            }
        }
        cluster.end();
        gaps.sort_unstable_by(f64::total_cmp);
        gaps
    }

    fn etcd(&mut self) {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder for the data");
        let Some(etcd) = Etcd::start(3, dir.path()) else {
            return eprintln!("etcd is not installed: its figures are left out");
        };
        for clients in [1, PROPOSERS] {
            let raw = self.sync();
            let before = etcd.cpu();
            let seen = etcd.put(clients, self.time());
            let cpu = (etcd.cpu() - before) * 1e6 / (seen.rate * self.time().as_secs_f64());
            let note =
                format!("p50 {:.2} ms, p99 {:.1} ms; cpu of all nodes a put: {cpu:.0} us", seen.p50_ms, seen.p99_ms);
            let row = Row::new(format!("etcd's leader, {clients} clients over JSON: puts"), seen.rate, "/s");
            self.say(row.ratio(raw.rate, "raw fdatasyncs a second").note(note));
        }
    }
}
