//! Three nodes as processes on loopback, as the parent handles them.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::node::{DATA, LISTEN};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Clock ticks of the kernel's process accounting in a second, on every Linux.
const TICKS: f64 = 100.0;

pub struct Cluster {
    dir: TempDir,
    addresses: Vec<String>,
    nodes: Vec<Node>,
    /// Sessions that were opened so far: the next ones have other numbers.
    sessions: u64,
}

struct Node {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// The numbers of a node's answer, by name.
pub type Answer = HashMap<String, f64>;

impl Cluster {
    /// Forms, and waits until all have started and somebody leads. Data lies below cargo's own folder, because `/tmp` may
    /// not be a disk.
    pub fn start(size: usize) -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder for the data");
        let mut cluster = Self { dir, addresses: Vec::new(), nodes: Vec::new(), sessions: 0 };
        for i in 0..size {
            let mut node = cluster.spawn(i, "127.0.0.1:0");
            cluster.addresses.push(node.line());
            cluster.nodes.push(node);
        }
        let peers = cluster.addresses.join(",");
        cluster.nodes.iter_mut().for_each(|node| node.tell(&peers));
        cluster.settle();
        cluster
    }

    fn data(&self, i: usize) -> PathBuf {
        self.dir.path().join(format!("node-{i}"))
    }

    fn spawn(&self, i: usize, listen: &str) -> Node {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.env(DATA, self.data(i)).env(LISTEN, listen);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a child starts");
        let (input, output) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        Node { child, input, output: BufReader::new(output) }
    }

    pub fn settle(&mut self) {
        let begun = Instant::now();
        while !(0..self.nodes.len()).all(|i| self.ask(i, "status")["started"] == 1.0) || self.leads().is_none() {
            assert!(begun.elapsed() < PATIENCE, "the cluster does not come to itself");
            sleep(Duration::from_millis(50));
        }
    }

    fn leads(&mut self) -> Option<usize> {
        (0..self.nodes.len()).find(|i| self.ask(*i, "status")["leads"] == 1.0)
    }

    pub fn leader(&mut self) -> usize {
        self.settle();
        self.leads().expect("it has just settled")
    }

    /// A node that does not lead.
    pub fn follower(&mut self) -> usize {
        (self.leader() + 1) % self.nodes.len()
    }

    pub fn ask(&mut self, i: usize, question: &str) -> Answer {
        self.nodes[i].tell(question);
        let line = self.nodes[i].line();
        let pair = |word: &str| word.split_once('=').and_then(|(name, n)| Some((name.to_owned(), n.parse().ok()?)));
        line.split_whitespace().map(|word| pair(word).unwrap_or_else(|| panic!("{question}: {line}"))).collect()
    }

    /// New sessions on a node; the number of the first.
    pub fn open(&mut self, node: usize, count: u64) -> u64 {
        let from = self.sessions;
        self.sessions += count;
        let opened = self.ask(node, &format!("open {from} {count}"));
        assert_eq!(opened["failed"], 0.0, "sessions were not opened");
        from
    }

    /// What all nodes together have used.
    pub fn cpu(&self) -> Cpu {
        let mut all = Cpu::default();
        self.nodes.iter().for_each(|node| all.add(node.child.id()));
        all
    }

    pub fn kill(&mut self, i: usize) {
        self.nodes[i].child.kill().expect("it runs");
        self.nodes[i].child.wait().expect("it has ended");
    }

    pub fn runs(&mut self, i: usize) -> bool {
        self.nodes[i].child.try_wait().is_ok_and(|ended| ended.is_none())
    }

    pub fn start_again(&mut self, i: usize) {
        let mut node = self.spawn(i, &self.addresses[i].clone());
        node.line();
        node.tell(&self.addresses.join(","));
        self.nodes[i] = node;
        self.settle();
    }

    /// Stops all nodes, which must have come to the same state.
    pub fn end(mut self) {
        assert!(self.agree(), "the nodes' states differ");
    }

    /// Waits until all have applied as much as the one that has most, and compares the state's hash there.
    fn agree(&mut self) -> bool {
        let begun = Instant::now();
        let index = (0..self.nodes.len()).map(|i| self.ask(i, "status")["applied"]).fold(0.0, f64::max);
        while (0..self.nodes.len()).any(|i| self.ask(i, "status")["applied"] < index) {
            assert!(begun.elapsed() < PATIENCE, "a node does not catch up");
            sleep(Duration::from_millis(50));
        }
        let hashes: Vec<f64> = (0..self.nodes.len()).map(|i| self.ask(i, &format!("hash {index}"))["hash"]).collect();
        hashes[0] != 0.0 && hashes.windows(2).all(|pair| pair[0] == pair[1])
    }
}

impl Node {
    fn tell(&mut self, line: &str) {
        writeln!(self.input, "{line}").and_then(|()| self.input.flush()).expect("the node listens");
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        let read = self.output.read_line(&mut line).expect("the node answers");
        assert!(read > 0, "a node has ended by itself");
        line.trim().to_owned()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// CPU seconds by what the threads are for.
#[derive(Clone, Copy, Default)]
pub struct Cpu {
    log: f64,
    checkpoint: f64,
    rest: f64,
}

impl Cpu {
    fn add(&mut self, pid: u32) {
        let (mut log, mut checkpoint) = (0.0, 0.0);
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            match std::fs::read_to_string(task.path().join("comm")).unwrap_or_default().trim() {
                "log" => log += stat(&task.path().join("stat")),
                "checkpoint" => checkpoint += stat(&task.path().join("stat")),
                _ => {}
            }
        }
        self.log += log;
        self.checkpoint += checkpoint;
        self.rest += cpu(pid) - log - checkpoint;
    }

    pub fn since(&self, before: &Self) -> Self {
        let (log, checkpoint) = (self.log - before.log, self.checkpoint - before.checkpoint);
        Self { log, checkpoint, rest: self.rest - before.rest }
    }

    /// Microseconds of each of so many.
    pub fn over(&self, count: f64) -> String {
        let each = |seconds: f64| seconds * 1e6 / count;
        let all = each(self.log + self.checkpoint + self.rest);
        let (log, checkpoint) = (each(self.log), each(self.checkpoint));
        format!("{all:.1} us ({log:.1} in the log's thread, {checkpoint:.1} in the checkpoint's)")
    }
}

/// CPU seconds of a process and its threads.
pub fn cpu(pid: u32) -> f64 {
    stat(Path::new(&format!("/proc/{pid}/stat")))
}

fn stat(file: &Path) -> f64 {
    let stat = std::fs::read_to_string(file).unwrap_or_default();
    // The command's name, in parentheses, may hold anything; `utime` and `stime` are the 12th and 13th behind it.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / TICKS
}
