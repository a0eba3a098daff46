//! The table of settings: name, default, how it is written, what it is for. Flags, variables, files and help follow it.

use std::{net::SocketAddr, time::Duration};

use super::{
    Config, Drain, History, Limits, Log, LogFormat, Mid, Node, Ping, Presence, Problem, Replay, Session, value,
};

/// One setting. In a file it is `name` under its section, as a flag `--section-name`, as a variable `MOIM_SECTION_NAME`.
pub struct Key {
    /// `section.name`, or the name alone for what says who and where a node is.
    pub name: &'static str,
    /// As it would be written. Empty: not set.
    pub default: &'static str,
    /// The placeholder in help texts.
    pub kind: &'static str,
    pub help: &'static str,
    /// Whether a file holds it as an array.
    pub many: bool,
    /// Parses `text` into its place.
    pub set: fn(&mut Config, &str) -> Result<(), String>,
    /// Writes it as `set` reads it.
    pub show: fn(&Config) -> String,
}

impl Key {
    /// The flag, without its two hyphens.
    pub fn flag(&self) -> String {
        self.name.replace('.', "-")
    }

    /// The environment variable.
    pub fn variable(&self) -> String {
        format!("MOIM_{}", self.name.replace(['.', '-'], "_").to_uppercase())
    }
}

/// The key of this name, or the name of the nearest one.
pub fn find(name: &str) -> Result<&'static Key, &'static str> {
    KEYS.iter().find(|key| key.name == name).ok_or_else(|| nearest(name, KEYS.iter().map(|key| key.name)))
}

/// The candidate that the fewest typing errors lead to. The last part counts too: a right name in the wrong section is near.
pub(super) fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> &'a str {
    let last = |text: &str| text.rsplit('.').next().unwrap_or_default().to_string();
    candidates
        .min_by_key(|other| distance(name, other).min(1 + distance(&last(name), &last(other))))
        .unwrap_or_default()
}

/// Levenshtein's: insertions, removals and replacements between two words.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(left != *right);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

macro_rules! keys {
    ($($name:literal = $default:literal, $($field:ident).+ as $kind:ident $shown:literal: $help:literal;)*) => {
        /// Every setting there is.
        pub static KEYS: &[Key] = &[$(Key {
            name: $name,
            default: $default,
            kind: $shown,
            help: $help,
            many: matches!(stringify!($kind).as_bytes(), b"list" | b"host_ports"),
            set: |config, text| {
                config.$($field).+ = value::$kind::parse(text)?;
                Ok(())
            },
            show: |config| value::$kind::show(&config.$($field).+),
        }),*];
    };
}

keys! {
    "name" = "", name as name "NAME": "This node's name, unique in its cluster [default: the host name, and the client port if it is not 3000]";
    "data" = "data", data as path "DIR": "Folder for this node's log, snapshots and state";
    "client" = "0.0.0.0:3000", client as address "ADDR": "Where chat clients connect";
    "admin" = "127.0.0.1:3100", admin as address "ADDR": "Where operators connect";
    "peer" = "127.0.0.1:3200", peer as address "ADDR": "Where the other nodes connect";
    "advertise-peer" = "", advertise_peer as host_port "HOST:PORT": "How other nodes reach --peer, if not by its own address";
    "join" = "", join as host_ports "HOST:PORT,…": "Peer addresses to find the cluster by; its own may be among them";
    "expect" = "", expect as count_or_none "N": "Form a new cluster when N empty nodes have found each other [default: 1 without --join; with it, only join]";
    "cluster-secret-file" = "", cluster_secret_file as path_or_none "FILE": "The secret that all nodes share; needed when --peer is not loopback";
    "auth" = "", auth as auth "open|jwt": "How a client's user is known: believed (open), or by a signed token (jwt)";
    "namespaces" = "/,/normal-chat,/group-chat", namespaces as list "NS,…": "Namespaces that clients may connect to; a pattern such as /t/{tenant}/chat stands for up to 1000";
    "relay" = "", relay as list "EVENT,…": "Events sent on to a room as they are, volatile";

    "session.ttl" = "120s", session.ttl as duration "TIME": "How long a session without a transport lives";
    "node.timeout" = "5s", node.timeout as duration "TIME": "When a silent node is declared down; one that was killed, after a third of it";
    "node.isolation" = "10s", node.isolation as duration "TIME": "When a node without a leader lets its clients go";
    "node.replace-after" = "10m", node.replace_after as duration "TIME": "When an empty node may take a dead one's place by itself";
    "drain.delay" = "1s", drain.delay as duration "TIME": "Time for the balancer to notice, before the first client is moved";
    "drain.window" = "10s", drain.window as duration "TIME": "Time over which clients are moved";
    "drain.deadline" = "30s", drain.deadline as duration "TIME": "Time from the start of a drain to the end of the process";
    "history.size" = "1000", history.size as count "N": "Entries kept of each room";
    "history.ttl" = "7d", history.ttl as duration "TIME": "How long a room's entries are kept";
    "history.bytes" = "4MiB", history.bytes as bytes "SIZE": "Bytes kept of each room";
    "replay.limit" = "10000", replay.limit as count "N": "Entries that a recovering client is sent at most";
    "replay.bytes" = "8MiB", replay.bytes as bytes "SIZE": "Bytes that a recovering client is sent at most";
    "mid.window" = "10m", mid.window as duration "TIME": "How long a retried message is recognised";
    "mid.per-user" = "1024", mid.per_user as count "N": "Messages of one user that a retry is compared with";
    "presence.grace" = "20s", presence.grace as duration "TIME": "When a user without a transport counts as offline";
    "presence.limit" = "1000", presence.limit as count "N": "Rooms with more members get no presence events";
    "ping.interval" = "25s", ping.interval as duration "TIME": "Between two pings to a client; below the balancer's idle time-out";
    "ping.timeout" = "20s", ping.timeout as duration "TIME": "How long a client may take to answer a ping";
    "limits.text" = "64KiB", limits.text as bytes "SIZE": "Size of one message's text";
    "limits.rooms-per-user" = "128", limits.rooms_per_user as count "N": "Rooms that one user is a member of";
    "limits.sessions-per-user" = "32", limits.sessions_per_user as count "N": "Sessions of one user; the oldest lost one ends first";
    "limits.queue-bytes" = "1MiB", limits.queue_bytes as bytes "SIZE": "Bytes queued for one socket before it is cut off";
    "log.filter" = "info", log.filter as text "FILTER": "What is logged, such as info or moim=debug";
    "log.format" = "text", log.format as log_format "text|json": "How log lines are written";
}

/// The configuration that nobody has changed yet.
pub(super) fn defaults() -> Config {
    let nobody: SocketAddr = ([127, 0, 0, 1], 0).into();
    let zero = Duration::ZERO;
    let mut config = Config {
        name: String::new(),
        data: Default::default(),
        client: nobody,
        admin: nobody,
        peer: nobody,
        advertise_peer: None,
        join: Vec::new(),
        expect: None,
        cluster_secret_file: None,
        auth: None,
        namespaces: Vec::new(),
        relay: Vec::new(),
        session: Session { ttl: zero },
        node: Node { timeout: zero, isolation: zero, replace_after: zero },
        drain: Drain { delay: zero, window: zero, deadline: zero },
        history: History { size: 0, ttl: zero, bytes: 0 },
        replay: Replay { limit: 0, bytes: 0 },
        mid: Mid { window: zero, per_user: 0 },
        presence: Presence { grace: zero, limit: 0 },
        ping: Ping { interval: zero, timeout: zero },
        limits: Limits { text: 0, rooms_per_user: 0, sessions_per_user: 0, queue_bytes: 0 },
        log: Log { filter: String::new(), format: LogFormat::Text },
    };
    for key in KEYS {
        (key.set)(&mut config, key.default).expect("a test parses every default");
    }
    config
}

/// Sets `key`, naming where the value stood when it is wrong.
pub(super) fn set(config: &mut Config, key: &Key, text: &str, place: &str) -> Result<(), Problem> {
    (key.set)(config, text).map_err(|why| Problem::new(format!("{place}: {why}")))
}
