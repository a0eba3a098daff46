//! What the log asks of the kernel, seen and disturbed from outside by `strace`: the order of writes and syncs, and errors at
//! each of them. Without `strace` these tests say so and check nothing.

mod common;

use std::{
    collections::{HashMap, HashSet},
    env,
    path::Path,
    process::{Command, Output},
};

use common::{Rig, Written, open, options, queue};
use openraft::storage::RaftLogStorage;

/// Small, so that files are made and removed all the time.
const SEGMENT_BYTES: u64 = 300;
const ENTRIES: u64 = 40;

/// Run by the tests below under `strace`: writes, votes and purges until it is done or cannot.
#[tokio::test]
#[ignore = "a child of other tests"]
async fn child_that_writes() {
    let Some(dir) = env::var_os("MOIM_TEST_DIR") else { return };
    let mut log = match open(Path::new(&dir), options(SEGMENT_BYTES)) {
        Ok(log) => log,
        Err(e) => return println!("did not open: {e}"),
    };
    let next = log.get_log_state().await.unwrap().last_log_id.map_or(0, |id| id.index + 1);
    for index in next..ENTRIES {
        let outcome = match queue(&mut log, 1, index..index + 1).await {
            Ok(outcome) => outcome.await.expect("everybody is answered"),
            Err(e) => Err(e),
        };
        if let Err(e) = outcome {
            println!("final: {e}");
            log.fatal().await;
            assert!(queue(&mut log, 1, index..index + 1).await.is_err());
            return;
        }
        println!("acknowledged {index}");
        if index % 16 == 15 {
            log.purge(common::id(1, index - 8)).await.unwrap();
        }
    }
    let _ = log.close().await;
}

fn strace(args: &[&str], dir: &Path) -> Option<Output> {
    let traced = Command::new("strace")
        .args(["-f", "-y"])
        .args(args)
        .arg(env::current_exe().unwrap())
        .args(["child_that_writes", "--exact", "--ignored", "--nocapture"])
        .env("MOIM_TEST_DIR", dir)
        .output();
    match traced {
        Ok(output) => Some(output),
        Err(e) => {
            eprintln!("skipped: strace cannot be run: {e}");
            None
        }
    }
}

#[tokio::test]
async fn an_error_at_the_nth_write_or_sync_is_final_and_loses_nothing_acknowledged() {
    let mut disturbed = HashMap::new();
    for fault in ["pwrite64:error=EIO", "pwrite64:error=ENOSPC", "fdatasync:error=EIO", "fsync:error=EIO"] {
        for n in (1..6).chain([9, 14, 23]) {
            let dir = tempfile::tempdir().unwrap();
            let log = dir.path().join("log");
            let inject = format!("inject={fault}:when={n}");
            let Some(child) = strace(&["-e", "trace=pwrite64,fdatasync,fsync", "-e", &inject], &log) else { return };
            let said = String::from_utf8_lossy(&child.stdout).into_owned();
            assert!(child.status.success(), "{inject}: {said}{}", String::from_utf8_lossy(&child.stderr));
            let is_one = |line: &&str| line.contains("acknowledged ") && !line.contains("final: ");
            let acknowledged = said.lines().filter(is_one).count() as u64;
            *disturbed.entry(fault).or_insert(0) += u64::from(acknowledged < ENTRIES);

            let mut rig = Rig::new(open(&log, options(SEGMENT_BYTES)).expect(&inject));
            let found = Written::of(&rig.log).await;
            let state = rig.log.get_log_state().await.unwrap();
            let next = state.last_log_id.map_or(0, |id| id.index + 1);
            assert!(next >= acknowledged, "{inject}: {next} of {acknowledged}");
            let first = state.last_purged_log_id.map_or(0, |id| id.index + 1);
            assert_eq!(found.entries.len() as u64, next - first, "{inject}");
            rig.append(2, next..next + 3).await;
        }
    }
    assert!(disturbed.values().all(|times| *times >= 4), "the faults must hit: {disturbed:?}");
}

/// One call of the log, in the order in which it was seen: a write when it starts, a sync when it is done.
#[derive(Debug)]
enum Seen {
    Made(String),
    Wrote(String),
    Synced(String),
    FolderSynced,
    Removed,
    Acknowledged,
}

/// How a write of nothing but zeros begins; a group has a one in its fifth byte.
const ZEROS: &str = r#", "\0\0\0\0\0"#;

/// The lines of `strace -f -y`. A call that another thread interrupts comes in two.
fn seen(trace: &str) -> Vec<Seen> {
    let mut started: HashMap<&str, &str> = HashMap::new();
    let mut out = Vec::new();
    for line in trace.lines() {
        let Some((pid, call)) = line.strip_prefix("[pid ").and_then(|line| line.split_once("] ")) else { continue };
        let done = !call.ends_with("<unfinished ...>");
        let resumed = call.starts_with("<... ");
        let call = if resumed { started.remove(pid).unwrap_or_default() } else { call };
        if !done {
            started.insert(pid, call);
        }
        let file = call.split('/').find_map(|part| part.split_once(".wal").map(|(number, _)| number.to_owned()));
        let (write, sync) = (call.starts_with("pwrite64"), call.starts_with("fdatasync") || call.starts_with("fsync"));
        match file {
            Some(file) if call.starts_with("openat") && call.contains("O_CREAT") && !resumed => {
                out.push(Seen::Made(file))
            }
            // Room for later groups: nothing that anybody waits for.
            Some(_) if write && call.contains(ZEROS) => {}
            Some(file) if write && !resumed => out.push(Seen::Wrote(file)),
            Some(file) if sync && done => out.push(Seen::Synced(file)),
            Some(_) if call.starts_with("unlink") && done => out.push(Seen::Removed),
            None if sync && done && call.contains("/log>") => out.push(Seen::FolderSynced),
            None if call.starts_with("write(1") && call.contains("acknowledged") && !resumed => {
                out.push(Seen::Acknowledged)
            }
            _ => {}
        }
    }
    out
}

#[tokio::test]
async fn files_and_folder_are_synced_in_order_and_nothing_is_acknowledged_before_its_sync() {
    let dir = tempfile::tempdir().unwrap();
    let calls = "trace=openat,pwrite64,fdatasync,fsync,unlink,write";
    let Some(child) = strace(&["-e", calls], &dir.path().join("log")) else { return };
    assert!(child.status.success());
    let trace = String::from_utf8_lossy(&child.stderr).into_owned();
    let (mut unsynced, mut in_folder, mut fresh) = (HashSet::new(), true, None);
    let mut counts = [0; 3];
    for (at, seen) in seen(&trace).into_iter().enumerate() {
        match seen {
            Seen::Made(file) => {
                assert!(unsynced.is_empty(), "{at}: {file} is made while {unsynced:?} is not synced");
                (in_folder, fresh) = (false, Some(file));
                counts[0] += 1;
            }
            Seen::Wrote(file) => {
                // The header is written before the folder is synced, a group is not.
                assert!(
                    in_folder || fresh.take() == Some(file.clone()),
                    "{at}: a group in {file}, its name not synced"
                );
                assert!(unsynced.iter().all(|other| *other == file), "{at}: {file} before {unsynced:?} is synced");
                unsynced.insert(file);
            }
            Seen::Synced(file) => _ = unsynced.remove(&file),
            Seen::FolderSynced => in_folder = true,
            Seen::Removed => {
                in_folder = false;
                counts[1] += 1;
            }
            Seen::Acknowledged => {
                assert!(unsynced.is_empty(), "{at}: acknowledged before {unsynced:?} is synced");
                counts[2] += 1;
            }
        }
    }
    assert!(in_folder, "the last removal is not synced");
    assert!(counts[0] > 5 && counts[1] > 2 && counts[2] == ENTRIES, "{counts:?}\n{trace}");
}

/// The kernel may keep what a failed sync was about as if it were on the disk, and the next sync succeeds without it.
#[tokio::test]
async fn what_a_failed_sync_was_about_is_written_again_before_it_counts() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let Some(child) = strace(&["-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=4"], &log) else {
        return;
    };
    assert!(String::from_utf8_lossy(&child.stdout).contains("final: "), "the fault must hit");
    let again = strace(&["-e", "trace=pwrite64,fdatasync,fsync"], &log).expect("it ran a moment ago");
    let trace = String::from_utf8_lossy(&again.stderr).into_owned();
    let first = seen(&trace).into_iter().next();
    assert!(matches!(first, Some(Seen::Wrote(_))), "{first:?}\n{trace}");
}
