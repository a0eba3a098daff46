//! A cluster of processes, what they said, and the verdict on what they hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    process::ExitStatus,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::time::sleep;

use super::{Ledger, Load, Process, parsed, proxy::Links};

/// How long a cluster may take to be whole again, from the end of the last fault on.
pub const HEALS_WITHIN: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(20);

pub struct Options {
    pub nodes: usize,
    /// Whether the nodes reach each other through [`Links`]. A bench wants to do without.
    pub links: bool,
    pub heartbeat: Duration,
    pub election: Duration,
    /// How long a node whose disk is gone is waited for.
    pub replace_after: Duration,
    pub snapshot_every: u64,
    /// Data folders, one a node; by default in a temporary folder.
    pub data: Option<Vec<PathBuf>>,
    /// Joins and messages that every node's proposers make, from [`Fleet::load`] on.
    pub load: Load,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes: 3,
            links: true,
            heartbeat: Duration::from_millis(100),
            election: Duration::from_millis(400),
            replace_after: Duration::from_secs(600),
            snapshot_every: 1000,
            data: None,
            load: Load::default(),
        }
    }
}

/// Processes that are one cluster.
pub struct Fleet {
    pub dir: TempDir,
    pub options: Options,
    pub links: Option<Links>,
    pub nodes: Vec<Option<Process>>,
    /// Each node's id, once it has one.
    pub ids: Vec<u64>,
    pub ledger: Arc<Mutex<Ledger>>,
    pub data: Vec<PathBuf>,
    /// Where each node is reached.
    addrs: Vec<String>,
    /// The last incarnation that was seen of each node, and the last of the process before this one.
    incarnations: Vec<(u64, u64)>,
    loaded: bool,
}

impl Fleet {
    /// Starts all nodes and waits until they are a cluster.
    pub async fn new(options: Options) -> Self {
        let (n, dir) = (options.nodes, tempfile::tempdir().unwrap());
        let data = options.data.clone();
        let data = data.unwrap_or_else(|| (0..n).map(|i| dir.path().join(format!("n{i}"))).collect());
        let links = if options.links { Some(Links::new(n).await) } else { None };
        let ledger = Arc::<Mutex<Ledger>>::default();
        let (addrs, nodes) = (vec![String::new(); n], (0..n).map(|_| None).collect());
        let (ids, incarnations) = (vec![0; n], vec![(0, 0); n]);
        let mut fleet = Self { dir, options, links, nodes, ids, ledger, data, addrs, incarnations, loaded: false };
        for i in 0..n {
            fleet.spawn(i).await;
        }
        for i in 0..n {
            fleet.open(i).await.expect("it opens");
        }
        fleet.all_started().await;
        fleet
    }

    /// The process alone: it listens, and has not looked at its data yet.
    pub async fn spawn(&mut self, i: usize) {
        let ledger = self.ledger.clone();
        let listen = match &self.links {
            Some(_) => "127.0.0.1:0",
            None if self.addrs[i].is_empty() => "127.0.0.1:0",
            None => &self.addrs[i],
        };
        let process = Process::spawn(listen, move |line| ledger.lock().unwrap().hear(i, line)).await;
        match &self.links {
            Some(links) => {
                links.listens(i, &process.addr);
                self.addrs[i] = links.addrs[i].clone();
            }
            None => self.addrs[i] = process.addr.clone(),
        }
        assert!(self.nodes[i].replace(process).is_none(), "the one before is gone");
        self.incarnations[i].1 = self.incarnations[i].0;
    }

    /// Opens the store of a process, or says why it does not open. The process ends then.
    pub async fn open(&mut self, i: usize) -> Result<(), String> {
        let Options { heartbeat, election, replace_after, snapshot_every, nodes, .. } = self.options;
        let order = format!(
            "open data={} name={i} at={} join={} expect={nodes} heartbeat={} election={} replace={} \
             snapshot={snapshot_every}",
            self.data[i].display(),
            self.addrs[i],
            self.addrs.join(","),
            heartbeat.as_millis(),
            election.as_millis(),
            replace_after.as_millis(),
        );
        let id: u64 = parsed(&self.node(i).ask(&order).await?, "node");
        assert!(self.ids[i] == 0 || self.ids[i] == id, "node {i} came back as another one");
        self.ids[i] = id;
        if let Some(links) = &self.links {
            links.is_called(i, id);
        }
        Ok(())
    }

    /// From nothing to an open store; one that does not open leaves nothing.
    pub async fn start(&mut self, i: usize) -> Result<(), String> {
        self.spawn(i).await;
        let opened = self.open(i).await;
        if opened.is_err() {
            self.ended(i).await;
        }
        opened
    }

    pub async fn kill(&mut self, i: usize) {
        self.nodes[i].take().expect("it runs").kill().await;
    }

    /// Its disk is gone: the next start is that of a new node of the same name. It must not run.
    pub fn lose(&mut self, i: usize) {
        assert!(self.nodes[i].is_none(), "it does not run");
        std::fs::remove_dir_all(&self.data[i]).unwrap();
        std::fs::remove_file(moim_raft::marker::path(&self.data[i])).unwrap();
        (self.ids[i], self.incarnations[i]) = (0, (0, 0));
    }

    /// Waits until the voters are the nodes that run, and no others.
    pub async fn all_vote(&self) {
        let began = Instant::now();
        for i in self.running() {
            let all = |status: &str| {
                let voters = super::value(status, "voters").unwrap_or_default();
                voters.split(',').filter_map(|id| id.parse().ok()).collect::<BTreeSet<u64>>()
                    == self.ids.iter().copied().collect()
            };
            self.until(i, "status", all, began).await;
        }
    }

    /// Sees to it that node `i` leads. Asked more than once: a node that has just begun to lead may not know yet whom it
    /// can trust with it.
    pub async fn lead(&self, i: usize) {
        let began = Instant::now();
        while !self.leads(i).await {
            assert!(began.elapsed() < HEALS_WITHIN, "node {i} does not come to lead");
            let leader = self.leader().await;
            if leader != i {
                _ = self.node(leader).ask(&format!("transfer {}", self.ids[i])).await;
            }
        }
    }

    /// Waits until node `i` has ended by itself.
    pub async fn ended(&mut self, i: usize) -> ExitStatus {
        self.nodes[i].take().expect("it runs").ended().await
    }

    pub fn node(&self, i: usize) -> &Process {
        self.nodes[i].as_ref().expect("it runs")
    }

    pub fn links(&self) -> &Links {
        self.links.as_ref().expect("these nodes have links")
    }

    /// The places of all nodes that run.
    pub fn running(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|i| self.nodes[*i].is_some()).collect()
    }

    pub fn place(&self, id: u64) -> Option<usize> {
        self.ids.iter().position(|known| *known == id)
    }

    /// Whether node `i` says that it leads.
    pub async fn leads(&self, i: usize) -> bool {
        let status = self.node(i).ask("status").await;
        status.is_ok_and(|status| parsed::<u64>(&status, "leader") == self.ids[i])
    }

    /// The node that leads, once one does. None may be stopped.
    pub async fn leader(&self) -> usize {
        let patience = Instant::now() + HEALS_WITHIN;
        loop {
            for i in self.running() {
                if self.leads(i).await {
                    return i;
                }
            }
            assert!(Instant::now() < patience, "nobody leads");
            sleep(LOOK).await;
        }
    }

    /// Every running node has started an incarnation that it had not before its process was started, and writes.
    pub async fn all_started(&mut self) -> Duration {
        let began = Instant::now();
        for i in self.running() {
            let started = |status: &str| value_is(status, "started", "true");
            let status = self.until(i, "status", started, began).await;
            let incarnation = parsed(&status, "incarnation");
            let (seen, before) = &mut self.incarnations[i];
            assert!(incarnation > *before && incarnation >= *seen, "node {i} is an older one: {status}");
            *seen = incarnation;
            self.until(i, "write", |_| true, began).await;
        }
        began.elapsed()
    }

    /// Asks node `i` until it gives such an answer, for [`HEALS_WITHIN`] from `began` on.
    pub async fn until(&self, i: usize, order: &str, wanted: impl Fn(&str) -> bool, began: Instant) -> String {
        loop {
            let answer = self.node(i).ask(order).await;
            if let Ok(words) = &answer
                && wanted(words)
            {
                return words.clone();
            }
            let late = began.elapsed() > HEALS_WITHIN;
            let fatal = || self.ledger.lock().unwrap().fatal.clone();
            assert!(
                !late,
                "node {i} is not well {HEALS_WITHIN:?} after the last fault: {order}: {answer:?}, {:?}",
                fatal()
            );
            sleep(LOOK).await;
        }
    }

    /// Lets the proposers of node `i` begin.
    pub async fn load(&mut self, i: usize) {
        self.loaded = true;
        self.node(i).ask(&format!("load {}", self.options.load)).await.expect("it takes the load");
    }

    pub async fn load_all(&mut self) {
        for i in self.running() {
            self.load(i).await;
        }
    }

    /// Ends the load of all nodes that have one.
    pub async fn unload_all(&self) {
        for i in self.running() {
            _ = self.node(i).ask("unload").await;
        }
    }

    /// Waits until so many more writes than now are acknowledged.
    pub async fn acked_more(&self, more: usize) {
        let (began, goal) = (Instant::now(), self.acked() + more);
        while self.acked() < goal {
            assert!(began.elapsed() < super::PATIENCE, "{} of {goal} were acknowledged", self.acked());
            sleep(LOOK).await;
        }
    }

    pub fn acked(&self) -> usize {
        self.ledger.lock().unwrap().acked()
    }

    /// The verdict, of all nodes that run. No fault may be left, and no load: waits until all are as far as the one that
    /// is furthest, within [`HEALS_WITHIN`], compares their hashes there, and holds what each has against the ledger.
    pub async fn agree(&mut self) {
        self.all_started().await;
        let mut index = 0;
        for i in self.running() {
            let status = self.node(i).ask("status").await.unwrap();
            index = index.max(parsed(&status, "applied"));
        }
        let began = Instant::now();
        let mut hashes = BTreeMap::new();
        for i in self.running() {
            let hash = self.until(i, &format!("hash {index}"), |_| true, began).await;
            hashes.entry(hash).or_insert_with(Vec::new).push(i);
        }
        let mut wrong: Vec<String> = Vec::new();
        if hashes.len() != 1 {
            wrong.push(format!("the states differ: {hashes:?}"));
        }
        for i in self.running() {
            let path = self.dir.path().join(format!("dump-{i}"));
            self.node(i).ask(&format!("dump {}", path.display())).await.unwrap();
            let dump = std::fs::read_to_string(&path).unwrap();
            let found = self.ledger.lock().unwrap().violations(&dump);
            wrong.extend(found.into_iter().map(|what| format!("on node {i}: {what}")));
        }
        let shown = wrong.iter().take(10).map(String::as_str).collect::<Vec<_>>().join("\n");
        assert!(wrong.is_empty(), "{} violations, of which:\n{shown}", wrong.len());
    }

    /// Ends all nodes properly.
    pub async fn close(mut self) {
        for i in self.running() {
            let mut node = self.nodes[i].take().unwrap();
            node.ask("close").await.expect("it closes");
            assert!(node.ended().await.success());
        }
    }
}

fn value_is(words: &str, key: &str, wanted: &str) -> bool {
    super::value(words, key) == Some(wanted)
}
