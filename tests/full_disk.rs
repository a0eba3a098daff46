//! A node as its operator meets it when the disk fills up or fails. A small file system of its own has to be mounted for it (and
//! `strace` be there for a failing one); where that is not possible the test says so and checks nothing.

#[path = "nodes/ports.rs"]
mod ports;

use std::{
    fs::{self, OpenOptions},
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);

/// 16 MiB in memory, gone when dropped.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=16m", "tmpfs"]).arg(dir.path()).output();
        if mounted.as_ref().is_ok_and(|done| done.status.success()) {
            return Some(Self(dir));
        }
        eprintln!("skipped: a small file system cannot be mounted here: {mounted:?}");
        None
    }

    /// Fills it with one file, up to so many percent, without ever being emptier than before and than asked for.
    fn fill(&self, percent: u64) {
        let found = Command::new("df").args(["--output=used,size", "-k"]).arg(self.0.path()).output().unwrap();
        let text = String::from_utf8(found.stdout).unwrap();
        let numbers: Vec<u64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let mut file = OpenOptions::new().create(true).append(true).open(self.filler()).unwrap();
        let now = file.metadata().unwrap().len();
        let wanted = ((numbers[1] * percent / 100) << 10).saturating_sub((numbers[0] << 10) - now);
        match wanted.checked_sub(now) {
            // What does not fit is left out.
            Some(more) => _ = file.write_all(&vec![1; more as usize]),
            None => file.set_len(wanted).unwrap(),
        }
    }

    fn filler(&self) -> PathBuf {
        self.0.path().join("filler")
    }

    fn empty(&self) {
        fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        _ = Command::new("umount").arg(self.0.path()).status();
    }
}

struct Node {
    child: Child,
    admin: SocketAddr,
}

fn serve(program: &mut Command, data: &Path, admin: SocketAddr) -> Child {
    let any = "127.0.0.1:0";
    program
        .args(["serve", "--auth", "open", "--client", any, "--peer", any, "--log-filter", "error"])
        .args(["--admin", &admin.to_string()])
        .arg("--data")
        .arg(data)
        // What an operator may have set for other programs must not make the reason hard to find.
        .env("RUST_BACKTRACE", "1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

impl Node {
    fn start(disk: &SmallDisk) -> Self {
        let admin = ports::address();
        let child = serve(&mut Command::new(env!("CARGO_BIN_EXE_moim")), &disk.0.path().join("data"), admin);
        Self { child, admin }
    }

    /// What it says of its readiness.
    fn ready(&self) -> Option<String> {
        let mut stream = TcpStream::connect(self.admin).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        write!(stream, "GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    #[track_caller]
    fn until(&mut self, wanted: &str) {
        let (began, mut last) = (Instant::now(), None);
        while began.elapsed() < PATIENCE {
            last = self.ready();
            if last.as_ref().is_some_and(|answer| answer.contains(wanted)) {
                return;
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("it has ended: {status}: {}", said(&mut self.child));
            }
            sleep(Duration::from_millis(100));
        }
        panic!("{wanted} does not come: {last:?}");
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

fn said(child: &mut Child) -> String {
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_full_disk_takes_a_node_out_of_service_and_room_brings_it_back() {
    let Some(disk) = SmallDisk::mount() else { return };
    let mut node = Node::start(&disk);
    node.until("200 OK");
    disk.fill(94);
    node.until("disk");
    assert!(node.ready().unwrap().contains("503"));
    disk.fill(88);
    sleep(Duration::from_secs(3));
    assert!(node.ready().unwrap().contains("disk"), "88 % is not room enough yet");
    disk.empty();
    node.until("200 OK");

    // With the last byte taken it still starts, on its reserve.
    let reserve = disk.0.path().join("data/reserve");
    let began = Instant::now();
    while !reserve.exists() && began.elapsed() < PATIENCE {
        sleep(Duration::from_millis(100));
    }
    node.kill();
    disk.fill(200);
    let mut node = Node::start(&disk);
    // A quarter of this small disk: with it given up there is room again, for a moment.
    node.until("200 OK");
    assert!(!reserve.exists());
    disk.fill(95);
    node.until("disk");
    node.kill();

    // Without one it says what is missing, and ends.
    disk.empty();
    disk.fill(200);
    let mut node = Node::start(&disk);
    let status = node.child.wait().unwrap();
    let why = said(&mut node.child);
    assert!(!status.success() && why.contains("No space left"), "{status}: {why}");
    disk.empty();
    let mut node = Node::start(&disk);
    node.until("200 OK");
}

#[test]
fn a_failed_sync_ends_the_node_with_a_line_that_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    if Command::new("strace").arg("-V").output().is_err() {
        return eprintln!("skipped: there is no strace here");
    }
    let mut strace = Command::new("strace");
    let fault = "inject=fdatasync:error=EIO:when=3+";
    strace.args(["-f", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", fault, env!("CARGO_BIN_EXE_moim")]);
    let mut child = serve(&mut strace, &dir.path().join("data"), ports::address());
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() && began.elapsed() < PATIENCE {
        sleep(Duration::from_millis(50));
    }
    let status = child.try_wait().unwrap();
    if status.is_none() {
        child.kill().unwrap();
    }
    let status = child.wait().unwrap();
    let why = said(&mut child);
    assert_eq!(status.code(), Some(1), "{why}");
    // One for the log, and the last word.
    let lines: Vec<&str> = why.lines().collect();
    let [logged, last] = lines[..] else { panic!("{} lines: {why}", lines.len()) };
    assert!(logged.contains("ERROR moim_raft") && last.starts_with("moim: "), "{why}");
    for line in lines {
        assert!(line.contains("Input/output error") && line.contains("start this node again"), "{why}");
    }
}
