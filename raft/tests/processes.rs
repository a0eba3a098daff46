//! The harness of nodes as processes: it can do what it says, and a cluster of processes keeps its word when nothing
//! happens.

mod process;

use process::{Fleet, Load, Options, Process, proxy::Mode};
use std::time::{Duration, Instant};

#[test]
fn process_node() {
    process::enter();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_processes_keep_what_they_acknowledged() {
    let mut fleet = Fleet::new(Options::default()).await;
    fleet.load_all().await;
    fleet.acked_more(200).await;
    fleet.unload_all().await;
    fleet.agree().await;
    fleet.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_node_comes_back_as_the_same_with_a_higher_incarnation() {
    let mut fleet = Fleet::new(Options::default()).await;
    fleet.load_all().await;
    fleet.acked_more(100).await;
    let leader = fleet.leader().await;
    fleet.kill(leader).await;
    fleet.acked_more(100).await;
    fleet.start(leader).await.unwrap();
    fleet.unload_all().await;
    fleet.agree().await;
    fleet.close().await;
}

/// A bench has no links.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_without_links_come_back_at_their_address() {
    let load = Load { proposers: 8, joins: true, acks: false, ..Load::default() };
    let mut fleet = Fleet::new(Options { links: false, load, ..Options::default() }).await;
    fleet.load(0).await;
    fleet.kill(1).await;
    fleet.start(1).await.unwrap();
    fleet.until(0, "acked", |words| process::parsed::<u64>(words, "acked") > 100, Instant::now()).await;
    let stats = fleet.node(0).ask("unload").await.unwrap();
    assert!(process::parsed::<u64>(&stats, "acked") > 100, "{stats}");
    fleet.agree().await;
    fleet.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_way_of_a_link_is_cut_by_itself() {
    let mut fleet = Fleet::new(Options::default()).await;
    for mode in [Mode::Hold, Mode::Drop, Mode::Reset] {
        let leader = fleet.leader().await;
        // Nobody hears the leader, but it hears all: another one is elected.
        for other in (0..3).filter(|i| *i != leader) {
            fleet.links().set(leader, other, mode);
        }
        let began = Instant::now();
        let other = (leader + 1) % 3;
        let id = fleet.ids[leader];
        loop {
            let status = fleet.node(other).ask("status").await.unwrap();
            if ![0, id].contains(&process::parsed::<u64>(&status, "leader")) {
                break;
            }
            assert!(began.elapsed() < process::PATIENCE, "{mode:?}: {status}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        fleet.links().heal();
        fleet.agree().await;
    }
    fleet.close().await;
}

/// A read by lease would be stale here: the leader was paused, does not know it, and is asked before it can hear of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_was_paused_answers_no_stale_read() {
    let fleet = Fleet::new(Options::default()).await;
    for _ in 0..3 {
        let old = fleet.leader().await;
        let other = (old + 1) % 3;
        fleet.node(old).signal("STOP");
        fleet.until(other, "write", |_| true, Instant::now()).await;
        let written: u64 = process::parsed(&fleet.node(other).ask("status").await.unwrap(), "applied");
        // They wait for it when it wakes up.
        let asked = (0..5).map(|_| fleet.node(old).ask("fresh"));
        let waking = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            fleet.node(old).signal("CONT");
        };
        let (answers, ()) = tokio::join!(futures_util::future::join_all(asked), waking);
        for answer in answers.into_iter().flatten() {
            let read: u64 = process::parsed(&answer, "applied");
            assert!(read >= written, "{read} is read, {written} was acknowledged before");
        }
        fleet.until(old, "fresh", |_| true, Instant::now()).await;
    }
    fleet.close().await;
}

const PARENT: &str = "MOIM_PROCESS_PARENT";

/// Run by the test below as a process of its own: starts a node, stops it if so told, and is gone without a word to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn process_parent() {
    let Ok(what) = std::env::var(PARENT) else { return };
    let node = Process::spawn("127.0.0.1:0", |_| {}).await;
    if what == "stop" {
        node.signal("STOP");
        // Only a group that has stopped by then hears of its parent's end.
        let stat = || std::fs::read_to_string(format!("/proc/{}/stat", node.pid)).unwrap_or_default();
        while !stat().contains(") T ") {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    println!("\npid {}", node.pid);
    std::process::exit(0);
}

#[test]
fn a_node_dies_with_its_parent_also_while_it_is_stopped() {
    for what in ["leave", "stop"] {
        let parent = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "process_parent", "--nocapture"])
            .env(PARENT, what)
            // The node has it too, so its end would not come while the node is there.
            .stderr(std::process::Stdio::inherit())
            .output()
            .unwrap();
        let said = String::from_utf8(parent.stdout).unwrap();
        let pid = said.lines().find_map(|line| line.strip_prefix("pid ")).expect("it started a node");
        let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let is_there = || !stat().is_empty() && !stat().contains(") Z ");
        let began = Instant::now();
        while is_there() && began.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(!is_there(), "{what}: {}", stat());
    }
}
