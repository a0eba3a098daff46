//! Damage to the files of the log: either everything that was acknowledged is there, or it refuses to open.

mod common;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use common::{Rig, Written, open, options, segments};
use openraft::storage::RaftLogStorage;
use tempfile::TempDir;

/// Small, so that every bit can be tried.
const SEGMENT_BYTES: u64 = 600;

/// Three segments or more, with votes, a truncation, a purge and commit points, all acknowledged.
async fn history(dir: &Path) -> (Rig, Written) {
    let mut rig = Rig::new(open(dir, options(SEGMENT_BYTES)).expect("an empty folder opens"));
    rig.vote(1).await;
    for index in 0..30 {
        rig.append(1, index..index + 1).await;
    }
    rig.truncate(25).await;
    rig.vote(2).await;
    rig.append(2, 25..28).await;
    rig.purge(20).await;
    for index in 28..45 {
        rig.append(2, index..index + 1).await;
    }
    let written = rig.written.clone();
    (rig, written)
}

/// A closed log to be damaged, and what it must hold.
struct Image {
    dir: TempDir,
    backup: TempDir,
    segments: Vec<PathBuf>,
    written: Written,
}

impl Image {
    /// After [`moim_raft::log::Log::close`]: the mark is at the very end.
    async fn closed() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (rig, written) = history(&dir.path().join("log")).await;
        rig.log.close().await.unwrap();
        drop(rig);
        Self::of(dir, written)
    }

    /// As a killed process leaves it: copied while the log is open, the mark somewhere behind.
    async fn killed() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (rig, written) = history(&dir.path().join("log")).await;
        let image = tempfile::tempdir().unwrap();
        copy(&dir.path().join("log"), &image.path().join("log")).unwrap();
        drop(rig);
        Self::of(image, written)
    }

    fn of(dir: TempDir, written: Written) -> Self {
        let segments = segments(&dir.path().join("log"));
        assert!(segments.len() >= 3, "the history must fill some segments, not {}", segments.len());
        let backup = tempfile::tempdir().unwrap();
        copy(&dir.path().join("log"), &backup.path().join("log")).unwrap();
        Self { dir, backup, segments, written }
    }

    fn last(&self) -> &Path {
        self.segments.last().unwrap()
    }

    fn last_bytes(&self) -> Vec<u8> {
        fs::read(self.last()).unwrap()
    }

    /// Opens it with `bytes` in place of what is in `path` (or without that file), then puts everything back.
    async fn with(&self, path: &Path, bytes: Option<&[u8]>) -> Result<Written, String> {
        let dir = self.dir.path().join("log");
        match bytes {
            Some(bytes) => fs::write(path, bytes).unwrap(),
            None => fs::remove_file(path).unwrap(),
        }
        let found = match open(&dir, options(SEGMENT_BYTES)) {
            Ok(log) => Ok(Written::of(&log).await),
            Err(e) => Err(e.to_string()),
        };
        if found.is_ok() {
            fs::remove_dir_all(&dir).unwrap();
            copy(&self.backup.path().join("log"), &dir).unwrap();
        } else {
            fs::copy(self.backup.path().join("log").join(path.file_name().unwrap()), path).unwrap();
            assert_eq!(segments(&dir), self.segments, "what is refused is left alone");
        }
        found
    }

    async fn refuses(&self, path: &Path, bytes: Option<&[u8]>, case: &str) {
        let found = self.with(path, bytes).await;
        assert!(found.as_ref().is_err_and(|why| why.starts_with("refused")), "{case}: {found:?}");
    }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for file in fs::read_dir(from)? {
        let file = file?;
        fs::copy(file.path(), to.join(file.file_name()))?;
    }
    Ok(())
}

#[tokio::test]
async fn everything_is_there_after_closing_and_after_a_kill() {
    for image in [Image::closed().await, Image::killed().await] {
        let whole = image.last_bytes();
        assert_eq!(image.with(image.last(), Some(&whole)).await.unwrap(), image.written);
    }
}

#[tokio::test]
async fn a_closed_log_cut_anywhere_refuses() {
    let image = Image::closed().await;
    let whole = image.last_bytes();
    for cut in 0..whole.len() {
        image.refuses(image.last(), Some(&whole[..cut]), &format!("cut at {cut}")).await;
    }
}

#[tokio::test]
async fn a_closed_log_with_any_bit_flipped_refuses() {
    let image = Image::closed().await;
    for path in &image.segments {
        let mut bytes = fs::read(path).unwrap();
        let from = bytes.len().saturating_sub(4096);
        for bit in from * 8..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            image.refuses(path, Some(&bytes), &format!("{} bit {bit}", path.display())).await;
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

/// A kill leaves the mark behind. The last group may look torn then, but no earlier one.
#[tokio::test]
async fn a_killed_log_with_any_bit_flipped_loses_no_more_than_its_last_group() {
    let image = Image::killed().await;
    let mut bytes = image.last_bytes();
    let mut without_last = image.written.clone();
    without_last.entries.pop();
    let mut torn = None;
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Ok(found) = image.with(image.last(), Some(&bytes)).await {
            torn.get_or_insert(bit);
            assert!(found == without_last || found == image.written, "bit {bit}: {found:?}");
        }
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    // How large the groups are is a matter of time, but before the first such bit all of the others end.
    let torn = torn.expect("the last group may look torn") / 8;
    let found = image.with(image.last(), Some(&bytes[..torn])).await;
    assert_eq!(found.as_ref(), Ok(&without_last), "cut at {torn} of {}", bytes.len());
}

/// A file that was cut looks like one that was never longer: only the mark can tell, here at the segment's start.
#[tokio::test]
async fn a_killed_log_cut_anywhere_holds_all_before_the_cut_and_refuses_below_the_mark() {
    let image = Image::killed().await;
    let whole = image.last_bytes();
    let mut entries = 0;
    for cut in 0..whole.len() {
        match image.with(image.last(), Some(&whole[..cut])).await {
            Ok(found) => {
                assert!(found.same_but_shorter(&image.written), "cut at {cut}: {found:?}");
                assert!(found.entries.len() >= entries, "cut at {cut}");
                entries = found.entries.len();
            }
            Err(why) => assert!(entries == 0 && why.starts_with("refused"), "cut at {cut}: {why}"),
        }
    }
    let whole = image.written.entries.len();
    assert!(entries == whole || entries == whole - 1, "a torn last group is an ordinary crash");
}

#[tokio::test]
async fn a_missing_segment_refuses() {
    for image in [Image::closed().await, Image::killed().await] {
        for path in &image.segments {
            image.refuses(path, None, &format!("without {}", path.display())).await;
        }
        let mark = image.dir.path().join("log/mark");
        image.refuses(&mark, None, "without the mark").await;
        image.refuses(&mark, Some(&[0; 8192]), "with a zeroed mark").await;
    }
}

#[tokio::test]
async fn zeros_garbage_and_old_records_in_the_unsynced_tail_open() {
    for image in [Image::closed().await, Image::killed().await] {
        let whole = image.last_bytes();
        let older = fs::read(&image.segments[0]).unwrap();
        let noise: Vec<u8> = (0..6000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let mut half = whole[56..98].to_vec();
        half.extend([0; 512]);
        for (case, tail) in [
            ("zeros", &vec![0; 5000]),
            ("garbage", &noise),
            ("old records", &older),
            ("itself", &whole),
            ("half", &half),
        ] {
            let bytes = [&whole[..], tail].concat();
            assert_eq!(image.with(image.last(), Some(&bytes)).await.unwrap(), image.written, "{case}");
        }
    }
}

/// What a killed log had kept ready behind its end is room and no damage. A closed one ends with its last record.
#[tokio::test]
async fn zeros_that_were_kept_ready_are_written_over() {
    let image = Image::killed().await;
    let dir = image.dir.path().join("log");
    fs::write(image.last(), [&image.last_bytes()[..], &[0; 300]].concat()).unwrap();
    let mut rig = Rig::new(open(&dir, options(100 * SEGMENT_BYTES)).unwrap());
    rig.written = image.written.clone();
    rig.append(3, 45..50).await;
    assert_eq!(segments(&dir), image.segments, "the last segment goes on");
    let written = rig.written.clone();
    rig.log.close().await.unwrap();
    drop(rig);
    assert!(!image.last_bytes().ends_with(&[0; 8]));
    assert_eq!(Written::of(&open(&dir, options(SEGMENT_BYTES)).unwrap()).await, written);
}

/// A disk that held this log before, in the same blocks, can show them in the tail after a power cut.
#[tokio::test]
async fn records_of_an_earlier_log_at_the_same_place_are_not_its_own() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    // Read while they are open, so that both consist of the same groups.
    let rigs = dirs.each_ref().map(|dir| Rig::new(open(dir.path(), options(1 << 20)).unwrap()));
    let [mut earlier, mut now] = rigs;
    for index in 0..9 {
        earlier.append(1, index..index + 1).await;
        if index < 4 {
            now.append(1, index..index + 1).await;
        }
    }
    let [earlier_file, file] = dirs.each_ref().map(|dir| segments(dir.path()).remove(0));
    let bytes = fs::read(&file).unwrap();
    let tail = fs::read(earlier_file).unwrap().split_off(bytes.len());
    let image = tempfile::tempdir().unwrap();
    fs::copy(dirs[1].path().join("mark"), image.path().join("mark")).unwrap();
    fs::write(image.path().join(file.file_name().unwrap()), [bytes, tail].concat()).unwrap();
    assert_eq!(Written::of(&open(image.path(), options(1 << 20)).unwrap()).await, now.written);
}

#[tokio::test]
async fn a_torn_log_goes_on_and_opens_again() {
    let image = Image::killed().await;
    let whole = image.last_bytes();
    fs::write(image.last(), [&whole[..], &[0xff; 100]].concat()).unwrap();
    let dir = image.dir.path().join("log");
    let mut rig = Rig::new(open(&dir, options(SEGMENT_BYTES)).unwrap());
    rig.written = image.written.clone();
    rig.append(3, 45..50).await;
    let written = rig.written.clone();
    drop(rig);
    assert_eq!(Written::of(&open(&dir, options(SEGMENT_BYTES)).unwrap()).await, written);
}

/// The crash between making a segment's file and moving the mark to it.
#[tokio::test]
async fn a_segment_that_was_never_finished_is_made_anew() {
    for half in [&b""[..], b"moim-wal\0\0", &[0; 100]] {
        let image = Image::closed().await;
        let dir = image.dir.path().join("log");
        let number: u64 = image.last().file_stem().unwrap().to_str().unwrap().parse().unwrap();
        fs::write(dir.join(format!("{:016}.wal", number + 1)), half).unwrap();
        assert_eq!(Written::of(&open(&dir, options(SEGMENT_BYTES)).unwrap()).await, image.written);
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("mark"), b"").unwrap();
    assert_eq!(Written::of(&open(dir.path(), options(SEGMENT_BYTES)).unwrap()).await, Written::default());
}

/// A power cut can bring back some of the purged files and not others.
#[tokio::test]
async fn purged_segments_that_come_back_are_removed_again() {
    let image = Image::closed().await;
    let dir = image.dir.path().join("log");
    let first = image.segments[0].file_stem().unwrap().to_str().unwrap().parse::<u64>().unwrap();
    assert!(first > 2, "the history must have purged two segments");
    fs::write(dir.join(format!("{:016}.wal", first - 2)), b"of another time").unwrap();
    assert_eq!(Written::of(&open(&dir, options(SEGMENT_BYTES)).unwrap()).await, image.written);
    assert_eq!(segments(&dir), image.segments);
}

#[tokio::test]
async fn a_log_in_use_refuses_a_second_owner() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), options(SEGMENT_BYTES)).unwrap();
    let second = open(dir.path(), options(SEGMENT_BYTES)).err().unwrap().to_string();
    assert!(second.contains("in use"), "{second}");
    drop(log);
    open(dir.path(), options(SEGMENT_BYTES)).unwrap();
}

#[tokio::test]
async fn the_mark_follows_an_idle_log() {
    let dir = tempfile::tempdir().unwrap();
    let quick = || moim_raft::log::Options { mark_every: Duration::from_millis(5), ahead_bytes: 0, ..options(1 << 20) };
    let mut rig = Rig::new(open(dir.path(), quick()).unwrap());
    rig.append(1, 0..3).await;
    // (The commit point is written together with the mark, so the file still grows once.)
    let slots = || fs::read(dir.path().join("mark")).unwrap();
    let length = || fs::metadata(&segments(dir.path())[0]).unwrap().len();
    let caught_up = async |beyond: u64| {
        let there = || length() > beyond && slots().windows(8).any(|number| number == length().to_be_bytes());
        let follows = async {
            while !there() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), follows).await.expect("the mark is at the end of the file");
        length()
    };
    let before = caught_up(0).await;
    // Nothing is written any more, and nobody would wake the log for it.
    rig.log.save_committed(Some(common::id(1, 2))).await.unwrap();
    caught_up(before).await;
    let killed = tempfile::tempdir().unwrap();
    copy(dir.path(), &killed.path().join("copy")).unwrap();
    let mut again = open(&killed.path().join("copy"), quick()).unwrap();
    assert_eq!(again.read_committed().await.unwrap(), Some(common::id(1, 2)));
}
