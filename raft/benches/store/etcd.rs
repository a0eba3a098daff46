//! etcd beside ours, when it is installed: three nodes on loopback, driven over its JSON gateway (HTTP/1.1, connections
//! that are kept). The gateway and the hop from another process are part of its figures; ours are proposed in-process.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(30);
/// What it needs to come to rest after its election.
const SETTLE: Duration = Duration::from_secs(1);
/// Characters of base 64: about 160 bytes.
const VALUE: usize = 212;

pub struct Etcd {
    nodes: Vec<Node>,
}

struct Node {
    child: Child,
    client: String,
}

/// Of puts.
pub struct Seen {
    pub rate: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
}

impl Etcd {
    /// `None` when it is not installed.
    pub fn start(size: usize, dir: &Path) -> Option<Self> {
        let ports: Vec<(String, String)> = (0..size).map(|_| (free(), free())).collect();
        let all: Vec<String> = ports.iter().enumerate().map(|(i, (peer, _))| format!("n{i}=http://{peer}")).collect();
        let mut nodes = Vec::new();
        for (i, (peer, client)) in ports.into_iter().enumerate() {
            let (peer_url, client_url) = (format!("http://{peer}"), format!("http://{client}"));
            let mut command = Command::new("etcd");
            command.args(["--name", &format!("n{i}"), "--initial-cluster", &all.join(",")]);
            command.arg("--data-dir").arg(dir.join(format!("etcd-{i}")));
            command.args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url]);
            command.args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url]);
            let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
            nodes.push(Node { child, client });
        }
        Some(Self { nodes })
    }

    /// CPU seconds that all nodes together have used.
    pub fn cpu(&self) -> f64 {
        self.nodes.iter().map(|node| crate::cluster::cpu(node.child.id())).sum()
    }

    /// Puts through the leader, by so many clients.
    pub fn put(&self, clients: usize, time: Duration) -> Seen {
        let leader = self.leader();
        let (from, until) = (Instant::now() + time / 10, Instant::now() + time);
        let client = |nth: usize| {
            let mut connection = Connection::open(leader);
            let mut took = Vec::new();
            for i in 0.. {
                let begun = Instant::now();
                if begun >= until {
                    break;
                }
                let put = format!(r#"{{"key":"{nth:04}{i:08}","value":"{}"}}"#, "A".repeat(VALUE));
                connection.post("/v3/kv/put", &put);
                if begun >= from && Instant::now() <= until {
                    took.push(begun.elapsed().as_secs_f64() * 1e3);
                }
            }
            took
        };
        let mut took: Vec<f64> = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..clients).map(|nth| scope.spawn(move || client(nth))).collect();
            clients.into_iter().flat_map(|client| client.join().expect("etcd answers")).collect()
        });
        took.sort_unstable_by(f64::total_cmp);
        let at = |q: f64| took.get((took.len() as f64 * q) as usize).copied().unwrap_or(0.0);
        Seen { rate: took.len() as f64 / (until - from).as_secs_f64(), p50_ms: at(0.5), p99_ms: at(0.99) }
    }

    fn leader(&self) -> &str {
        let begun = Instant::now();
        loop {
            assert!(begun.elapsed() < PATIENCE, "etcd does not find a leader");
            sleep(SETTLE);
            let leads = |node: &&Node| {
                let Ok(stream) = TcpStream::connect(&node.client) else { return false };
                let status = Connection(BufReader::new(stream)).post("/v3/maintenance/status", "{}");
                let field = |name: &str| status.split(&format!(r#""{name}":""#)).nth(1)?.split('"').next();
                field("leader").is_some() && field("leader") == field("member_id")
            };
            if let Some(node) = self.nodes.iter().find(leads) {
                return &node.client;
            }
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// One connection, one question at a time.
struct Connection(BufReader<TcpStream>);

impl Connection {
    fn open(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("etcd listens");
        stream.set_nodelay(true).expect("a TCP option");
        Self(BufReader::new(stream))
    }

    fn post(&mut self, path: &str, body: &str) -> String {
        let request = format!("POST {path} HTTP/1.1\r\nHost: etcd\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        self.0.get_mut().write_all(request.as_bytes()).expect("etcd listens");
        let mut length = 0;
        loop {
            let mut line = String::new();
            assert!(self.0.read_line(&mut line).expect("etcd answers") > 0, "etcd has hung up");
            if line.trim().is_empty() {
                break;
            }
            if let Some((_, n)) = line.to_ascii_lowercase().split_once("content-length:") {
                length = n.trim().parse().expect("a length");
            }
        }
        let mut answer = vec![0; length];
        self.0.read_exact(&mut answer).expect("etcd answers");
        String::from_utf8_lossy(&answer).into_owned()
    }
}

/// An address that nobody listens at just now.
fn free() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("bound").to_string()
}
