//! How much memory a large snapshot takes: a fraction of its bytes, whether it is built or installed.
//!
//! Each is done in a process of its own, which holds nothing else. Only what is added counts: what sled holds already when a
//! snapshot is begun is not the snapshot's.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use moim_raft::{
    base::{Base, Found, Point},
    kv::Kv,
    raft::LogId,
    snapshot::Snapshots,
    wire::{WireLogId, WireMembership, WireStoredMembership},
};

const MIB: u64 = 1 << 20;
const STATE_BYTES: u64 = 512 * MIB;
const VALUE_BYTES: usize = 4096;
const CHECKPOINT_BYTES: u64 = 16 * MIB;

const FOLDER: &str = "MOIM_TEST_FOLDER";
const STEP: &str = "MOIM_TEST_STEP";

fn id(index: u64) -> WireLogId {
    WireLogId { index, term: 1, node: 1 }
}

fn point(kv: &Kv, index: u64) -> Point {
    let membership = WireStoredMembership { id: None, membership: WireMembership { voters: vec![], nodes: vec![] } };
    Point { applied: Some(id(index)), membership, hash: kv.sum().hash, pairs: kv.sum().pairs }
}

/// Memory of this process, as the kernel counts it.
fn resident(what: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(what)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

fn forget_peak() {
    fs::write("/proc/self/clear_refs", "5").unwrap();
}

fn noise(seed: &mut u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(VALUE_BYTES);
    while bytes.len() < VALUE_BYTES {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        bytes.extend(seed.to_le_bytes());
    }
    bytes
}

fn wait<T>(what: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(what)
}

fn open(dir: &Path) -> (Base, Found) {
    let snapshots = Snapshots::open(&dir.join("snapshots")).unwrap();
    Base::open(&dir.join("state"), &snapshots).unwrap()
}

fn build(dir: &Path) {
    let (mut base, Found { mut kv, .. }) = open(dir);
    let (mut seed, mut index) = (0x9e37_79b9_7f4a_7c15, 0);
    for n in 0..STATE_BYTES / VALUE_BYTES as u64 {
        kv.put([&[0x30][..], &n.to_be_bytes()].concat().into(), noise(&mut seed).into());
        if kv.changed_bytes() as u64 >= CHECKPOINT_BYTES {
            index += 1;
            let point = point(&kv, index);
            base.checkpoint(kv.freeze(), point);
            wait(base.idle()).unwrap();
            base.discard(kv.thaw().unwrap());
        }
    }
    index += 1;
    let point = point(&kv, index);
    base.checkpoint(kv.freeze(), point);
    wait(base.idle()).unwrap();
    let before = resident("VmRSS");
    forget_peak();
    let (path, _) = base.snapshot().blocking_recv().unwrap().unwrap();
    let grown = resident("VmHWM").saturating_sub(before);
    fs::rename(&path, dir.join("built")).unwrap();
    say(dir, before, grown);
}

fn install(dir: &Path) {
    let (base, _) = open(dir);
    let file = dir.join("received");
    fs::rename(dir.with_file_name("one").join("built"), &file).unwrap();
    let expected = moim_raft::snapshot::Reading::open(&file).unwrap().point().applied.map(LogId::from);
    let before = resident("VmRSS");
    forget_peak();
    let found = base.install(&file, expected).blocking_recv().unwrap().unwrap();
    assert_eq!(found.kv.sum().pairs, STATE_BYTES / VALUE_BYTES as u64);
    say(dir, before, resident("VmHWM").saturating_sub(before));
}

fn say(dir: &Path, before: u64, grown: u64) {
    fs::write(dir.join("said"), format!("{before} {grown}")).unwrap();
}

/// One step, in a process of its own; for the other tests it does nothing.
#[test]
fn one_step() {
    let Some(dir) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    match std::env::var(STEP).unwrap().as_str() {
        "build" => build(&dir),
        _ => install(&dir),
    }
}

/// What it held before, and by how much it grew.
fn step(dir: &Path, step: &str) -> (u64, u64) {
    fs::create_dir_all(dir).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap());
    // Without a path sled does not find `sync`, which waits for the whole machine's disks.
    let child = child.args(["--exact", "one_step"]).env(FOLDER, dir).env(STEP, step).env_remove("PATH");
    assert!(child.stdout(Stdio::null()).status().unwrap().success(), "{step}");
    let said = fs::read_to_string(dir.join("said")).unwrap();
    let (before, grown) = said.split_once(' ').unwrap();
    (before.parse().unwrap(), grown.parse().unwrap())
}

#[test]
fn a_snapshot_of_half_a_gibibyte_is_built_and_installed_in_a_fraction_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let (held, built) = step(&dir.path().join("one"), "build");
    let bytes = fs::metadata(dir.path().join("one").join("built")).unwrap().len();
    assert!(bytes >= STATE_BYTES, "{bytes}");
    let (empty, installed) = step(&dir.path().join("two"), "install");
    println!(
        "{} MiB: built with {} MiB more than the {} before, installed with {} more than {}",
        bytes / MIB,
        built / MIB,
        held / MIB,
        installed / MIB,
        empty / MIB
    );
    assert!(built < bytes / 8, "built with {} MiB more", built / MIB);
    assert!(installed < bytes / 2, "installed with {} MiB more", installed / MIB);
}
