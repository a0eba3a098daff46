//! What of the log is in memory: its newest entries, within a bound. The rest is read back, verified, from the files.

mod common;

use std::{fs, ops::Range, path::Path, sync::mpsc};

use common::{Rig, Written, entry, open, options, queue, segments};
use futures_util::TryStreamExt;
use moim_raft::{
    error::Error,
    log::{Log, Options},
    raft::Entry,
};
use openraft::storage::{RaftLogReader, RaftLogStorage};

const CACHE_BYTES: usize = 4 << 10;

fn small_cache() -> Options {
    Options { cache_bytes: CACHE_BYTES, ..options(2000) }
}

fn expected(term: u64, indexes: Range<u64>) -> Vec<Entry> {
    indexes.map(|index| entry(term, index)).collect()
}

#[tokio::test]
async fn memory_is_bounded_and_what_left_it_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path(), small_cache()).unwrap();
    for index in 0..1000 {
        queue(&mut log, 1, index..index + 1).await.unwrap().await.unwrap().unwrap();
    }
    let (cached, all) = log.counts();
    assert_eq!(all, 1000);
    assert!((1..CACHE_BYTES / 40).contains(&cached), "{cached} entries in memory");
    assert_eq!(log.try_get_log_entries(..).await.unwrap(), expected(1, 0..1000));
    for start in (0..1000).step_by(77) {
        assert_eq!(
            log.try_get_log_entries(start..start + 90).await.unwrap(),
            expected(1, start..(start + 90).min(1000))
        );
        assert_eq!(log.limited_get_log_entries(start, start + 1).await.unwrap(), expected(1, start..start + 1));
    }
}

#[tokio::test]
async fn a_start_holds_no_entries_but_knows_them_all() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path(), small_cache()).unwrap();
    for index in 0..300 {
        queue(&mut log, 1, index..index + 1).await.unwrap().await.unwrap().unwrap();
    }
    drop(log);
    let mut log = open(dir.path(), small_cache()).unwrap();
    assert_eq!(log.counts(), (0, 300));
    assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(common::id(1, 299)));
    assert_eq!(log.try_get_log_entries(..).await.unwrap(), expected(1, 0..300));
}

/// Its last entry was truncated away in the end, so that of the one before it only the file knows the term.
#[tokio::test]
async fn a_log_that_ends_in_a_truncation_knows_its_last_id_after_a_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(open(dir.path(), small_cache()).unwrap());
    rig.append(2, 0..5).await;
    rig.append(7, 5..90).await;
    rig.truncate(5).await;
    rig.vote(8).await;
    assert_eq!(rig.log.get_log_state().await.unwrap().last_log_id, Some(common::id(2, 4)));
    let Rig { log, written } = rig;
    drop(log);
    let mut log = open(dir.path(), small_cache()).unwrap();
    assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(common::id(2, 4)));
    assert_eq!(Written::of(&log).await, written);
}

/// Apply after a start reads all of the log: in parts, each from where the last one ended.
#[tokio::test]
async fn apply_reads_a_long_log_in_parts() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path(), Options { segment_bytes: 3 << 20, ..small_cache() }).unwrap();
    let big = |index| {
        let payload = moim_raft::wire::WirePayload::Normal(vec![index as u8; 1 << 20].into());
        let id = moim_raft::wire::WireLogId { term: 1, node: 1, index };
        moim_raft::wire::WireEntry { id, payload }.try_into().unwrap()
    };
    for index in 0..14 {
        log.append([big(index)], openraft::storage::IOFlushed::noop()).await.unwrap();
    }
    assert!(log.limited_get_log_entries(3, 14).await.unwrap().len() < 5);
    let all: Vec<Entry> = log.entries_stream(3..14).await.try_collect().await.unwrap();
    assert!(all == (3..14).map(big).collect::<Vec<Entry>>());
    let none: Vec<Entry> = log.entries_stream(14..).await.try_collect().await.unwrap();
    assert!(none.is_empty());
}

/// A conflict is found while both sides of it still wait for the disk.
#[tokio::test]
async fn what_replaced_a_conflict_in_the_queue_is_what_is_read_from_the_file() {
    let dir = tempfile::tempdir().unwrap();
    // Dropped after the gate: it waits for the sync that waits there.
    let mut log;
    let (open_gate, gate) = mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    let sync = move |file: &fs::File| {
        let _ = gate.lock().unwrap().recv();
        file.sync_data()
    };
    let options = Options { cache_bytes: 0, sync: std::sync::Arc::new(sync), ..options(300) };
    log = open(dir.path(), options).unwrap();
    drop(queue(&mut log, 1, 0..4).await.unwrap());
    drop(queue(&mut log, 3, 4..20).await.unwrap());
    log.truncate_after(Some(common::id(3, 8))).await.unwrap();
    drop(queue(&mut log, 2, 9..12).await.unwrap());
    log.truncate_after(Some(common::id(3, 5))).await.unwrap();
    let last = queue(&mut log, 4, 6..15).await.unwrap();
    let whole = [expected(1, 0..4), expected(3, 4..6), expected(4, 6..15)].concat();
    assert_eq!(log.try_get_log_entries(..).await.unwrap(), whole, "from memory");
    drop(open_gate);
    last.await.unwrap().unwrap();
    assert_eq!(log.counts(), (0, 15));
    assert_eq!(log.try_get_log_entries(..).await.unwrap(), whole, "from the file");
}

/// Every bit of an entry in the middle, flipped under a log that is open.
#[tokio::test]
async fn a_stored_entry_that_is_not_what_was_written_is_fatal() {
    let dir = tempfile::tempdir().unwrap();
    let closed = dir.path().join("log");
    let mut log = open(&closed, options(1 << 20)).unwrap();
    queue(&mut log, 1, 0..10).await.unwrap().await.unwrap().unwrap();
    log.close().await.unwrap();
    drop(log);
    let file = segments(&closed).remove(0);
    let whole = fs::read(&file).unwrap();
    let at = whole.windows(4).position(|four| four == b"1/5 ").unwrap();
    for bit in (at - 26) * 8..(at + 4) * 8 {
        let mut log = open(&closed, options(1 << 20)).unwrap();
        assert_eq!(log.try_get_log_entries(5..6).await.unwrap(), expected(1, 5..6));
        flip(&file, &whole, bit);
        let error = log.try_get_log_entries(3..8).await.unwrap_err();
        assert!(error.to_string().contains("cannot be read back"), "bit {bit}: {error}");
        assert!(matches!(log.fatal().await, Error::Fatal(why) if why.contains("damaged")));
        assert!(queue(&mut log, 1, 10..11).await.is_err(), "nothing is written after it");
        drop::<Log>(log);
        fs::write(&file, &whole).unwrap();
    }
}

fn flip(file: &Path, whole: &[u8], bit: usize) {
    let mut damaged = whole.to_vec();
    damaged[bit / 8] ^= 1 << (bit % 8);
    fs::write(file, damaged).unwrap();
}
