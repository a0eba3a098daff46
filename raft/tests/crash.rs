//! A node that dies at a named point, as leader and as follower: nothing acknowledged is lost, and it is back in time.

mod process;

use std::{
    os::unix::process::ExitStatusExt,
    time::{Duration, Instant},
};

use process::{Fleet, Load, Options, parsed, random::Random};
use tokio::time::sleep;

/// What a process that aborts is ended by.
const SIGABRT: i32 = 6;
/// Entries after which a snapshot is written; few, so that there is one every other second.
const SNAPSHOT_EVERY: u64 = 100;

#[test]
fn process_node() {
    process::enter();
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Role {
    Leader,
    Follower,
}

/// A fleet of which one node after another dies.
struct Crashes {
    fleet: Fleet,
    random: Random,
}

impl Crashes {
    async fn new() -> Self {
        let load = Load { proposers: 3, pause: 5, ..Load::default() };
        let fleet = Fleet::new(Options { load, snapshot_every: SNAPSHOT_EVERY, ..Options::default() }).await;
        Self { fleet, random: Random::new(0) }
    }

    async fn victim(&mut self, role: Role) -> usize {
        let leader = self.fleet.leader().await;
        match role {
            Role::Leader => leader,
            Role::Follower => (leader + 1 + self.random.below(2) as usize) % 3,
        }
    }

    async fn arm(&self, i: usize, point: &str, nth: u64) {
        self.fleet.node(i).ask(&format!("arm {point} {nth} kill")).await.expect("it takes the order");
    }

    /// Dies under load.
    async fn at(&mut self, point: &str, role: Role, within: u64) {
        self.fleet.load_all().await;
        self.fleet.acked_more(20).await;
        let (victim, nth) = (self.victim(role).await, 1 + self.random.below(within));
        self.arm(victim, point, nth).await;
        self.dies(victim, point, &format!("{role:?}, time {nth}")).await;
    }

    /// Two die there, and with them goes the third: what was acknowledged is on disks alone.
    async fn at_all(&mut self, point: &str) {
        self.fleet.load_all().await;
        self.fleet.acked_more(20).await;
        let spared = self.random.below(3) as usize;
        let victims: Vec<usize> = (0..3).filter(|i| *i != spared).collect();
        for victim in &victims {
            let nth = 1 + self.random.below(40);
            self.arm(*victim, point, nth).await;
        }
        for victim in &victims {
            self.was_hit(*victim, point, "All").await;
        }
        self.fleet.kill(spared).await;
        for i in 0..3 {
            self.fleet.start(i).await.unwrap_or_else(|why| panic!("{point} All: does not start: {why}"));
        }
        self.is_whole(point, "All").await;
    }

    /// Dies while it votes for itself (as the leader to be), or for another one.
    async fn at_vote(&mut self, point: &str, role: Role) {
        self.fleet.load_all().await;
        self.fleet.acked_more(20).await;
        let leader = self.fleet.leader().await;
        let (victim, other) = ((leader + 1) % 3, (leader + 2) % 3);
        self.arm(victim, point, 1).await;
        let to = self.fleet.ids[if role == Role::Leader { victim } else { other }];
        // What comes of it depends on who dies when.
        _ = self.fleet.node(leader).ask(&format!("transfer {to}")).await;
        self.dies(victim, point, &format!("{role:?}")).await;
    }

    /// Dies while it installs a snapshot.
    async fn at_install(&mut self, point: &str) {
        let leader = self.fleet.leader().await;
        let (victim, other) = ((leader + 1) % 3, (leader + 2) % 3);
        self.fleet.kill(victim).await;
        self.fleet.load_all().await;
        let committed = |status: String| parsed::<u64>(&status, "committed");
        let goal = committed(self.fleet.node(leader).ask("status").await.unwrap()) + 4 * SNAPSHOT_EVERY;
        let began = Instant::now();
        while committed(self.fleet.node(leader).ask("status").await.unwrap()) < goal {
            assert!(began.elapsed() < process::PATIENCE, "too slow");
            sleep(Duration::from_millis(50)).await;
        }
        // A leader keeps what it is about to send to a node that is away; a follower purged it long ago.
        self.fleet.node(leader).ask(&format!("transfer {}", self.fleet.ids[other])).await.unwrap();
        self.fleet.spawn(victim).await;
        self.arm(victim, point, 1).await;
        self.fleet.open(victim).await.expect("it opens");
        self.dies(victim, point, "Follower").await;
    }

    /// Waits for the end of the victim, goes on without it, and takes it back.
    async fn dies(&mut self, victim: usize, point: &str, how: &str) {
        self.was_hit(victim, point, how).await;
        self.fleet.acked_more(50).await;
        self.fleet.start(victim).await.unwrap_or_else(|why| panic!("{point} {how}: does not start: {why}"));
        self.is_whole(point, how).await;
    }

    /// A run in which the node did not die there says nothing.
    async fn was_hit(&mut self, victim: usize, point: &str, how: &str) {
        let status = self.fleet.ended(victim).await;
        let hits = std::mem::take(&mut self.fleet.ledger.lock().unwrap().hits);
        let hit = hits.contains(&(victim, point.to_owned()));
        assert!(hit && status.signal() == Some(SIGABRT), "{point} {how}: {status}, hit: {hits:?}");
        self.fleet.ledger.lock().unwrap().hits.extend(hits.into_iter().filter(|(i, _)| *i != victim));
    }

    async fn is_whole(&mut self, point: &str, how: &str) {
        let healed = self.fleet.all_started().await;
        self.fleet.unload_all().await;
        self.fleet.agree().await;
        eprintln!("{point} {how}: {} acknowledged, whole again after {healed:?}", self.fleet.acked());
    }
}

/// The points, of which each is hit in both roles where both come to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_at_a_named_point_loses_nothing() {
    let (mut crashes, mut runs, mut seen) = (Crashes::new().await, 0, Vec::new());
    for point in moim_raft::fail::POINTS {
        seen.push(point);
        for role in [Role::Leader, Role::Follower] {
            match point {
                "vote-before-save" | "vote-after-save" => crashes.at_vote(point, role).await,
                // Only one that is behind installs.
                "install-before-current" | "install-after-current" if role == Role::Leader => continue,
                "install-before-current" | "install-after-current" => crashes.at_install(point).await,
                "checkpoint-before-batch"
                | "checkpoint-after-flush"
                | "snapshot-before-rename"
                | "snapshot-after-rename"
                | "purge" => crashes.at(point, role, 1).await,
                _ => crashes.at(point, role, 40).await,
            }
            runs += 1;
        }
        if point.starts_with("log-") {
            crashes.at_all(point).await;
            runs += 1;
        }
    }
    assert!(runs >= 20, "{runs} runs: {seen:?}");
    crashes.fleet.close().await;
}
