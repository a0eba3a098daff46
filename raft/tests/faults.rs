//! A disk that fails, and one that is full, under a node of a cluster: the node says so and ends, whoever waited is
//! answered, the others go on, and nothing that was acknowledged is lost. And one that is slow, which nobody notices.

mod process;

use std::time::{Duration, Instant};

use process::{
    Fleet, Load, Options,
    mount::{self, Mount},
    random::Random,
};

#[test]
fn process_node() {
    process::enter();
}

fn options() -> Options {
    let load = Load { proposers: 3, pause: 3, ..Load::default() };
    Options { load, snapshot_every: 100, ..Options::default() }
}

/// The node ended, with one line that says why, and all of its callers had an answer before.
async fn has_failed(fleet: &mut Fleet, victim: usize, why: &str) {
    let status = fleet.ended(victim).await;
    let said = std::mem::take(&mut fleet.ledger.lock().unwrap().fatal);
    assert_eq!(status.code(), Some(1), "{said:?}");
    let [(who, line)] = &said[..] else { panic!("one line, not {said:?}") };
    assert!(*who == victim && line.contains(why), "{said:?}, not {why}");
    let answered = std::mem::take(&mut fleet.ledger.lock().unwrap().answered);
    assert_eq!(answered, [victim], "all of its callers were answered");
}

/// Waits until the node has taken a write, which one whose log has failed never does, or has ended: then it is `false`.
async fn writes_again(fleet: &mut Fleet, i: usize) -> bool {
    let began = Instant::now();
    loop {
        let Err(why) = fleet.node(i).ask("write").await else { return true };
        if fleet.nodes[i].as_mut().is_some_and(process::Process::has_ended) {
            return false;
        }
        assert!(began.elapsed() < process::fleet::HEALS_WITHIN, "it neither writes nor ends: {why}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// At a random write or sync, the only one that fails. What is tried again after it would succeed, and be found out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_write_or_sync_ends_the_node_and_loses_nothing() {
    let mut fleet = Fleet::new(options()).await;
    let mut random = Random::new(0);
    for (point, what, within) in [
        // Before the write, and between it and the sync, as if the sync had failed.
        ("log-before-write", "enospc", 60),
        ("log-before-write", "eio", 60),
        ("log-after-write", "eio", 60),
        ("vote-before-save", "eio", 1),
        ("checkpoint-before-batch", "enospc", 1),
        ("checkpoint-after-flush", "eio", 1),
        ("snapshot-before-rename", "eio", 1),
    ] {
        fleet.load_all().await;
        fleet.acked_more(20).await;
        let leader = fleet.leader().await;
        // Leader and follower in turn; a vote is saved by one that stands for election.
        let is_vote = point.starts_with("vote");
        let victim = if random.below(2) == 0 && !is_vote { leader } else { (leader + 1) % 3 };
        let nth = 1 + random.below(within);
        fleet.node(victim).ask(&format!("arm {point} {nth} {what}")).await.unwrap();
        if is_vote {
            let to = fleet.ids[victim];
            _ = fleet.node(leader).ask(&format!("transfer {to}")).await;
        }
        has_failed(&mut fleet, victim, if what == "eio" { "os error 5" } else { "os error 28" }).await;
        let hits = std::mem::take(&mut fleet.ledger.lock().unwrap().hits);
        assert_eq!(hits, [(victim, point.to_owned())]);
        fleet.acked_more(50).await;
        fleet.start(victim).await.unwrap_or_else(|why| panic!("{point} {what}: does not start: {why}"));
        let healed = fleet.all_started().await;
        fleet.unload_all().await;
        fleet.agree().await;
        let role = if victim == leader { "leader" } else { "follower" };
        eprintln!("{point} {what}, {role}, time {nth}: whole again after {healed:?}");
    }
    fleet.close().await;
}

/// It would have shortened the log, and no more than that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_finds_no_room_ends_nobody_and_leaves_nothing_behind() {
    let mut fleet = Fleet::new(options()).await;
    let victim = fleet.leader().await;
    fleet.node(victim).ask("arm snapshot-before-rename 1 enospc").await.unwrap();
    fleet.load_all().await;
    let began = Instant::now();
    while fleet.ledger.lock().unwrap().hits.is_empty() {
        assert!(began.elapsed() < process::PATIENCE, "no snapshot is written");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    fleet.acked_more(50).await;
    assert!(writes_again(&mut fleet, victim).await, "it has ended");
    let left: Vec<_> = std::fs::read_dir(fleet.data[victim].join("snapshots")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    fleet.unload_all().await;
    fleet.agree().await;
    let said = std::mem::take(&mut fleet.ledger.lock().unwrap().fatal);
    assert!(said.is_empty(), "{said:?}");
    fleet.ledger.lock().unwrap().hits.clear();
    fleet.close().await;
}

/// All three write a checkpoint at the same moment, to disks that take seconds for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_checkpoints_at_once_hold_up_no_commit() {
    const MEANWHILE: Duration = Duration::from_secs(2);
    let mut fleet = Fleet::new(Options { snapshot_every: 1 << 30, ..options() }).await;
    fleet.load_all().await;
    fleet.acked_more(50).await;
    let (began, acked) = (Instant::now(), fleet.acked());
    tokio::time::sleep(MEANWHILE).await;
    let before = fleet.acked() - acked;
    eprintln!("{before} commits in {:?}", began.elapsed());
    for i in 0..3 {
        fleet.node(i).ask("arm checkpoint-before-batch 1 pause").await.unwrap();
    }
    let mut first = None;
    let hits = || fleet.ledger.lock().unwrap().hits.len();
    while hits() < 3 {
        if hits() > 0 {
            first.get_or_insert_with(Instant::now);
        }
        assert!(began.elapsed() < process::PATIENCE, "{} write a checkpoint", hits());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let acked = fleet.acked();
    tokio::time::sleep(MEANWHILE).await;
    let during = fleet.acked() - acked;
    eprintln!("{during} while three checkpoints are written");
    assert!(first.is_some_and(|first| first.elapsed() < process::node::PAUSE), "not conclusive: not at once");
    assert!(during * 2 > before, "{during} commits, {before} before");
    fleet.ledger.lock().unwrap().hits.clear();
    fleet.unload_all().await;
    fleet.agree().await;
    fleet.close().await;
}

/// A disk that fills up while there is time: nothing is lost, nobody ends, and nobody has to do anything but make room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_disk_fills_up_hands_over_says_why_and_is_back_when_there_is_room() {
    if let Some(why) = mount::unavailable() {
        return eprintln!("{why}");
    }
    for nodes in [3, 1] {
        let dir = tempfile::tempdir().unwrap();
        let disk = Mount::tmpfs(dir.path().join("full"), "256m").unwrap();
        let data = (0..nodes).map(|i| if i == 0 { disk.path.join("data") } else { dir.path().join(format!("n{i}")) });
        let mut fleet = Fleet::new(Options { nodes, data: Some(data.collect()), ..options() }).await;
        fleet.lead(0).await;
        fleet.load_all().await;
        fleet.acked_more(50).await;

        let ballast = disk.path.join("ballast");
        std::fs::write(&ballast, vec![1; 242 << 20]).unwrap();
        let began = Instant::now();
        let full = loop {
            match fleet.node(0).ask("write").await {
                Err(why) if why.contains("full") => break why,
                said => assert!(began.elapsed() < process::fleet::HEALS_WITHIN, "{said:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert!(
            full.contains("unavailable") && full.contains("more than 90 % full") && full.contains("make room"),
            "{full}"
        );
        if nodes > 1 {
            while fleet.leads(0).await {
                assert!(began.elapsed() < process::fleet::HEALS_WITHIN, "it leads on");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            fleet.acked_more(50).await;
        }
        std::fs::remove_file(&ballast).unwrap();
        fleet.until(0, "write", |_| true, Instant::now()).await;
        fleet.lead(0).await;
        fleet.acked_more(50).await;
        fleet.unload_all().await;
        fleet.agree().await;
        assert!(fleet.ledger.lock().unwrap().fatal.is_empty());
        fleet.close().await;
        drop(disk);
    }
}

/// 64 MiB in memory, which something else takes from one moment to the next: the log finds no room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_a_full_disk_ends_and_catches_up_when_there_is_room() {
    if let Some(why) = mount::unavailable() {
        return eprintln!("{why}");
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = Mount::tmpfs(dir.path().join("full"), "64m").unwrap();
    let data = vec![disk.path.join("data"), dir.path().join("n1"), dir.path().join("n2")];
    let mut fleet = Fleet::new(Options { data: Some(data), ..options() }).await;
    for leads in [true, false] {
        disk.resize("64m");
        fleet.load_all().await;
        fleet.acked_more(50).await;
        fleet.lead(if leads { 0 } else { 1 }).await;

        let ballast = disk.path.join("ballast");
        let filled = std::process::Command::new("dd")
            .args(["if=/dev/zero", &format!("of={}", ballast.display()), "bs=4k"])
            .stderr(std::process::Stdio::null())
            .status();
        assert!(!filled.unwrap().success(), "dd goes on until the disk is full");
        has_failed(&mut fleet, 0, "os error 28").await;
        fleet.acked_more(50).await;

        // It starts on its reserve, or says why not; with room again it goes on by itself, unless the reserve was used up
        // before: then it has ended as above.
        let started = fleet.start(0).await;
        std::fs::remove_file(&ballast).unwrap();
        disk.resize("128m");
        if let Err(why) = started {
            assert!(why.contains("os error 28"), "{why}");
            fleet.start(0).await.expect("there is room");
        } else if !writes_again(&mut fleet, 0).await {
            has_failed(&mut fleet, 0, "os error 28").await;
            fleet.start(0).await.expect("there is room");
        }
        fleet.all_started().await;
        fleet.unload_all().await;
        fleet.agree().await;
        eprintln!("full, {}: caught up", if leads { "leader" } else { "follower" });
    }
    fleet.close().await;
    drop(disk);
}
