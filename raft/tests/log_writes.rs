//! How the log writes: groups, errors that stay, conflicts, files that go; and a random history against a model.

mod common;

use std::{
    env,
    fs::File,
    io::{self, BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
};

use common::{Rig, Written, entry, open, options, queue, segments};
use moim_raft::{
    error::Error,
    log::{Log, Options},
    wire::WireVote,
};
use openraft::storage::{RaftLogReader, RaftLogStorage};

/// Options whose every sync first asks `gate`.
fn gated(segment_bytes: u64, gate: impl Fn(&File) -> io::Result<()> + Send + Sync + 'static) -> Options {
    Options { sync: Arc::new(move |file| gate(file).and_then(|()| file.sync_data())), ..options(segment_bytes) }
}

#[tokio::test]
async fn what_gathers_during_a_sync_is_synced_at_once_and_answered_in_order() {
    const APPENDS: u64 = 100;
    let dir = tempfile::tempdir().unwrap();
    let (open_gate, gate) = mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    let syncs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&syncs);
    // The first sync waits until everything is queued; later ones find the gate gone.
    let options = gated(1 << 20, move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        let _ = gate.lock().unwrap().recv();
        Ok(())
    });
    let mut log = open(dir.path(), options).unwrap();
    let mut outcomes = Vec::new();
    for index in 0..APPENDS {
        let mut outcome = queue(&mut log, 1, index..index + 1).await.unwrap();
        assert!(outcome.try_recv().is_err(), "answered before its sync");
        assert_eq!(log.try_get_log_entries(index..=index).await.unwrap(), [entry(1, index)], "readable at once");
        outcomes.push(outcome);
    }
    drop(open_gate);
    outcomes.pop().unwrap().await.unwrap().unwrap();
    for outcome in &mut outcomes {
        outcome.try_recv().expect("answered before the last one").unwrap();
    }
    let syncs = syncs.load(Ordering::SeqCst);
    assert!(syncs <= 3, "{syncs} syncs for {APPENDS} appends");
}

#[tokio::test]
async fn the_first_failed_sync_is_final_for_all_that_wait_and_all_that_come() {
    let dir = tempfile::tempdir().unwrap();
    let syncs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&syncs);
    // Only the second sync fails; a log that tried again would succeed.
    let options = gated(1 << 20, move |_| match counted.fetch_add(1, Ordering::SeqCst) {
        1 => Err(io::Error::other("no more disk")),
        _ => Ok(()),
    });
    let mut rig = Rig::new(open(dir.path(), options).unwrap());
    rig.append(1, 0..5).await;
    let mut waiting = Vec::new();
    for index in 5..50 {
        match queue(&mut rig.log, 1, index..index + 1).await {
            Ok(outcome) => waiting.push(outcome),
            Err(e) => assert!(e.to_string().contains("no more disk"), "{e}"),
        }
    }
    for outcome in waiting {
        let error = outcome.await.expect("everybody is answered").unwrap_err();
        assert!(error.to_string().contains("no more disk"), "{error}");
    }
    assert!(matches!(rig.log.fatal().await, Error::Fatal(why) if why.contains("no more disk")));
    let vote = WireVote { term: 2, node: 1, committed: false }.into();
    assert!(rig.log.save_vote(&vote).await.is_err());
    assert!(queue(&mut rig.log, 1, 50..51).await.is_err());
    assert!(rig.log.truncate_after(None).await.is_err());
    assert!(matches!(rig.log.close().await, Err(Error::Fatal(_))));
    assert_eq!(syncs.load(Ordering::SeqCst), 2, "nothing is tried again");

    let Rig { log, written } = rig;
    drop(log);
    let found = Written::of(&open(dir.path(), common::options(1 << 20)).unwrap()).await;
    assert!(written.same_but_shorter(&found), "{found:?}");
}

#[tokio::test]
async fn when_the_flusher_dies_everybody_who_waits_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let mut log;
    let (open_gate, gate) = mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    let options = gated(1 << 20, move |_| {
        let _ = gate.lock().unwrap().recv();
        panic!("the flusher dies")
    });
    log = open(dir.path(), options).unwrap();
    let mut waiting = Vec::new();
    for index in 0..20 {
        waiting.push(queue(&mut log, 1, index..index + 1).await.unwrap());
    }
    drop(open_gate);
    for outcome in waiting {
        outcome.await.expect("answered").unwrap_err();
    }
    assert!(matches!(log.fatal().await, Error::Fatal(why) if why.contains("panicked")));
    assert!(queue(&mut log, 1, 20..21).await.is_err());
}

#[tokio::test]
async fn a_closed_log_answers_late_writers() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path(), options(1 << 20)).unwrap();
    log.close().await.unwrap();
    log.close().await.unwrap();
    let outcome = queue(&mut log, 1, 0..1).await.unwrap().await.unwrap();
    assert!(outcome.unwrap_err().to_string().contains("closed"));
}

/// Run by the tests below in a process of its own: writes until it cannot.
#[tokio::test]
#[ignore = "a child of other tests"]
async fn child_that_writes() {
    let Some(dir) = env::var_os("MOIM_TEST_DIR") else { return };
    let mut log = open(Path::new(&dir), options(1 << 20)).unwrap();
    for index in 0.. {
        let outcome = match queue(&mut log, 1, index..index + 1).await {
            Ok(outcome) => outcome.await.unwrap(),
            Err(e) => Err(e),
        };
        match outcome {
            Ok(()) => println!("acknowledged {index}"),
            Err(_) => break,
        }
    }
    log.fatal().await;
    assert!(queue(&mut log, 1, 0..1).await.is_err());
}

/// The kernel writes as much as it may and then refuses, as with a full disk: a real torn write.
#[tokio::test]
async fn a_full_disk_stops_the_log_and_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let child = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 16; exec \"$0\" child_that_writes --exact --ignored --nocapture"])
        .arg(env::current_exe().unwrap())
        .env("MOIM_TEST_DIR", dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout).into_owned();
    assert!(child.status.success(), "{said}{}", String::from_utf8_lossy(&child.stderr));
    let acknowledged = said.lines().filter(|line| line.contains("acknowledged ")).count() as u64;
    assert!(acknowledged > 20, "{said}");

    let mut rig = Rig::new(open(dir.path(), options(1 << 20)).unwrap());
    let found = Written::of(&rig.log).await.entries.len() as u64;
    assert!(found >= acknowledged, "{found} of {acknowledged}");
    rig.append(2, found..found + 3).await;
}

#[tokio::test]
async fn a_killed_process_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["child_that_writes", "--exact", "--ignored", "--nocapture"])
        .env("MOIM_TEST_DIR", dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let said = BufReader::new(child.stdout.take().unwrap()).lines().map(|line| line.unwrap());
    let acknowledged = said.filter(|line| line.contains("acknowledged ")).take(300).count();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(acknowledged, 300);
    let found = Written::of(&open(dir.path(), options(1 << 20)).unwrap()).await;
    assert!(found.entries.len() >= acknowledged, "{}", found.entries.len());
}

/// Entries of an older term replace newer ones across the border of a segment, and stay readable, reopened as well.
#[tokio::test]
async fn entries_that_replace_a_longer_conflicting_tail_are_readable() {
    for (segment_bytes, cache_bytes) in [1, 300, 1 << 20].into_iter().flat_map(|s| [0, 700, 1 << 20].map(|c| (s, c))) {
        let options = |segment_bytes| Options { cache_bytes, ..options(segment_bytes) };
        let dir = tempfile::tempdir().unwrap();
        let mut rig = Rig::new(open(dir.path(), options(segment_bytes)).unwrap());
        rig.append(2, 0..10).await;
        for index in 10..22 {
            rig.append(3, index..index + 1).await;
        }
        rig.truncate(10).await;
        rig.append(2, 10..13).await;
        rig.append(4, 13..16).await;
        let written = rig.written.clone();
        assert_eq!(Written::of(&rig.log).await, written);
        assert_eq!(rig.log.try_get_log_entries(8..15).await.unwrap().len(), 7);
        rig.log.close().await.unwrap();
        drop(rig);
        let mut log = open(dir.path(), options(segment_bytes)).unwrap();
        assert_eq!(Written::of(&log).await, written);
        assert_eq!(log.try_get_log_entries(8..15).await.unwrap().len(), 7);
    }
}

#[tokio::test]
async fn purged_files_go_and_the_vote_stays() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(open(dir.path(), options(300)).unwrap());
    rig.vote(7).await;
    for index in 0..100 {
        rig.append(7, index..index + 1).await;
    }
    rig.purge(98).await;
    rig.append(7, 100..101).await;
    let written = rig.written.clone();
    rig.log.close().await.unwrap();
    assert!(segments(dir.path()).len() <= 2, "{:?}", segments(dir.path()));
    let on_disk: u64 = segments(dir.path()).iter().map(|path| path.metadata().unwrap().len()).sum();
    assert_eq!(rig.log.size_bytes(), on_disk);
    drop(rig);
    assert_eq!(Written::of(&open(dir.path(), options(300)).unwrap()).await, written);
}

#[tokio::test]
async fn a_purge_beyond_the_end_moves_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(open(dir.path(), options(100)).unwrap());
    rig.append(1, 0..5).await;
    rig.purge(40).await;
    assert!(queue(&mut rig.log, 9, 5..6).await.is_err(), "a hole");
    rig.append(9, 41..43).await;
    let written = rig.written.clone();
    drop(rig);
    assert_eq!(Written::of(&open(dir.path(), options(100)).unwrap()).await, written);
}

#[tokio::test]
async fn the_commit_point_comes_back_and_costs_no_sync() {
    let dir = tempfile::tempdir().unwrap();
    let syncs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&syncs);
    let options = gated(1 << 20, move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        Ok(())
    });
    let mut log = open(dir.path(), options).unwrap();
    queue(&mut log, 1, 0..9).await.unwrap().await.unwrap().unwrap();
    for index in 0..9 {
        log.save_committed(Some(common::id(1, index))).await.unwrap();
    }
    queue(&mut log, 1, 9..10).await.unwrap().await.unwrap().unwrap();
    assert_eq!(syncs.load(Ordering::SeqCst), 2);
    drop(log);
    let mut log = open(dir.path(), common::options(1 << 20)).unwrap();
    assert_eq!(log.read_committed().await.unwrap(), Some(common::id(1, 8)));
}

#[tokio::test]
async fn one_read_is_bounded_in_bytes_but_never_empty() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path(), options(64 << 20)).unwrap();
    let big = |index| {
        let payload = moim_raft::wire::WirePayload::Normal(vec![7; 3 << 19].into());
        let id = moim_raft::wire::WireLogId { term: 1, node: 1, index };
        moim_raft::wire::WireEntry { id, payload }.try_into().unwrap()
    };
    log.append([0, 1, 2, 3].map(big), openraft::storage::IOFlushed::noop()).await.unwrap();
    assert_eq!(log.limited_get_log_entries(0, 4).await.unwrap().len(), 2);
    assert_eq!(log.limited_get_log_entries(3, 4).await.unwrap().len(), 1);
    assert_eq!(log.try_get_log_entries(0..4).await.unwrap().len(), 4);
}

/// A small generator of numbers, the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

#[tokio::test]
async fn a_random_history_reads_back_as_its_model() {
    for seed in 0..20 {
        let dir = tempfile::tempdir().unwrap();
        let mut dice = Dice(seed);
        let cache_bytes = [0, 400, 1 << 20, 1500][seed as usize % 4];
        let options = || Options { cache_bytes, ..options([1, 200, 2000][seed as usize % 3]) };
        let mut rig = Rig::new(open(dir.path(), options()).unwrap());
        let (mut term, mut first, mut next) = (1, 0, 0);
        for step in 0..120 {
            match dice.roll(10) {
                0 => {
                    term += 1;
                    rig.vote(term).await;
                }
                1 if next > first => {
                    next = first + dice.roll(next - first) + u64::from(first == 0);
                    rig.truncate(next).await;
                }
                2 if next > first => {
                    first += 1 + dice.roll(next - first);
                    rig.purge(first - 1).await;
                }
                3 => {
                    if dice.roll(2) == 0 {
                        rig.log.close().await.unwrap();
                    }
                    let Rig { log, written } = rig;
                    drop::<Log>(log);
                    rig = Rig { log: open(dir.path(), options()).unwrap(), written };
                }
                _ => {
                    let count = 1 + dice.roll(4);
                    rig.append(term, next..next + count).await;
                    next += count;
                }
            }
            assert_eq!(Written::of(&rig.log).await, rig.written, "seed {seed} step {step}");
        }
    }
}
