//! Whatever happens to sled's files: the node sees it, says so, and after at most one more start has the state of before.
//!
//! Each start is a process of its own, because what sled does about damage may be to look for a leaf for ever.

#[allow(dead_code, reason = "each test uses what it needs of it")]
mod disk;

use std::{
    fs,
    os::unix::fs::FileExt,
    panic::catch_unwind,
    path::{Path, PathBuf},
    process::{self, Stdio},
    time::Duration,
};

use disk::Disk;
use moim_raft::{
    base::Patience,
    command::{Batch, Command, Holder, Limits, Namespace, NodeInfo, Room, Sid, User},
    state::{Outcome, State},
};
use tempfile::TempDir;

const USERS: u8 = 120;
const ROOMS: u8 = 8;

fn ns() -> Namespace {
    Namespace::new("/").unwrap()
}

fn sid(user: u8) -> Sid {
    Sid::from_random([user; 16])
}

fn open(user: u8) -> Command {
    let name = User::new(format!("user {user}")).unwrap();
    Command::Open { sid: sid(user), ns: ns(), user: name, guest: false, pid: [user; 32] }
}

fn join(user: u8, room: u8) -> Command {
    let by = Holder { sid: sid(user), generation: 1 };
    Command::Join { by, room: Room::new(format!("room {room}")).unwrap() }
}

/// Some thousand pairs' worth of batches and what comes of them.
fn script() -> (Vec<(Batch, Outcome)>, State) {
    let mut commands = vec![vec![Command::Started(NodeInfo::default())], vec![Command::SetLimits(Limits::default())]];
    commands.push((0..USERS).map(open).collect());
    commands.extend((0..ROOMS).map(|room| (0..USERS).map(|user| join(user, room)).collect()));
    let mut state = State::default();
    let batches = (1..).zip(commands).map(|(sequence, commands)| {
        let batch = Batch { node: 1, incarnation: 1, sequence, stamp: sequence, commands };
        let outcome = state.apply(&batch);
        (batch, outcome)
    });
    (batches.collect(), state)
}

/// A folder with checkpoints, two snapshots, and a checkpoint of what came after them.
fn filled() -> TempDir {
    let dir = disk::temporary();
    let mut disk = Disk::at(dir.path(), Vec::new(), Patience::default());
    let (batches, _) = script();
    for (nth, (batch, outcome)) in batches.iter().enumerate() {
        disk.apply(batch, outcome);
        match nth {
            5 | 7 => drop(disk.snapshot()),
            _ => disk.checkpoint(),
        }
    }
    dir
}

#[derive(Clone, Copy, Debug)]
enum Damage {
    Deleted,
    Emptied,
    Halved,
    /// One bit, at so many eighths of the file.
    Flipped(u64),
    /// A block of zeros there.
    Zeroed(u64),
}

impl Damage {
    const ALL: [Self; 6] =
        [Self::Deleted, Self::Emptied, Self::Halved, Self::Flipped(3), Self::Flipped(7), Self::Zeroed(0)];

    fn inflict(self, path: &Path) {
        if let Self::Deleted = self {
            return fs::remove_file(path).unwrap();
        }
        let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let length = file.metadata().unwrap().len();
        match self {
            Self::Deleted => {}
            Self::Emptied => file.set_len(0).unwrap(),
            Self::Halved => file.set_len(length / 2).unwrap(),
            Self::Flipped(eighths) => {
                let at = length * eighths / 8;
                let mut byte = [0];
                if file.read_at(&mut byte, at).unwrap() == 1 {
                    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
                }
            }
            Self::Zeroed(eighths) => {
                let at = length * eighths / 8;
                file.write_all_at(&vec![0; 64.min(length - at) as usize], at).unwrap();
            }
        }
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect();
    files.sort();
    files
}

const FOLDER: &str = "MOIM_TEST_FOLDER";

/// One start, in a process of its own; for the other tests it does nothing. Says what the state adds up to, once all of it
/// was read and found sound.
#[test]
fn one_start() {
    let Some(dir) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let (batches, _) = script();
    let patience = Patience { read: Duration::from_millis(400), write: Duration::from_secs(2) };
    // A read of what is damaged ends the reader.
    let started = catch_unwind(|| {
        let mut disk = Disk::at(&dir, batches, patience);
        let failed = disk.failed();
        failed.map_or_else(|| Ok(format!("{:?}", disk.state.kv().sum())), Err)
    });
    if let Ok(Ok(sum)) = started {
        fs::write(dir.join("sum"), sum).unwrap();
    }
}

/// Starts until a start goes well. How many it took, and what the state adds up to.
fn recover(dir: &Path) -> (usize, String) {
    for nth in 1..=2 {
        let mut start = process::Command::new(std::env::current_exe().unwrap());
        let start = start.args(["--exact", "one_start"]).env(FOLDER, dir).stdout(Stdio::null()).stderr(Stdio::null());
        start.status().unwrap();
        if let Ok(sum) = fs::read_to_string(dir.join("sum")) {
            return (nth, sum);
        }
    }
    panic!("the second start finds damage still");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        match entry.path().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => drop(fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

#[test]
fn any_damage_to_any_file_of_the_checkpoint_ends_in_the_state_of_before() {
    let whole = filled();
    let sum = format!("{:?}", script().1.kv().sum());
    let state = whole.path().join("state");
    let (mut tries, mut starts) = (0, 0);
    for file in files(&state) {
        // Most of sled's files are empty, and can only go missing.
        let empty = fs::metadata(&file).unwrap().len() == 0;
        let file = file.strip_prefix(&state).unwrap();
        for damage in Damage::ALL.into_iter().take(if empty { 1 } else { usize::MAX }) {
            let dir = disk::temporary();
            copy(whole.path(), dir.path());
            damage.inflict(&dir.path().join("state").join(file));
            let (took, found) = recover(dir.path());
            println!("{damage:?} {}: {took}", file.display());
            assert_eq!(found, sum, "{damage:?} {}", file.display());
            let left = fs::read_dir(dir.path().join("state")).unwrap().count();
            assert!(left <= 3, "one that counts, its name, and one aside");
            (tries, starts) = (tries + 1, starts + took);
        }
    }
    println!("{tries} times damaged, {starts} starts");
    assert!(tries > 40 && starts > tries, "some of it must have been found by reading, not by opening");
}

#[test]
fn a_folder_that_is_gone_is_built_again_and_a_damaged_snapshot_passed_over() {
    let whole = filled();
    fs::remove_dir_all(whole.path().join("state")).unwrap();
    Damage::Flipped(7).inflict(&files(&whole.path().join("snapshots")).pop().unwrap());
    assert_eq!(recover(whole.path()), (1, format!("{:?}", script().1.kv().sum())));
}
