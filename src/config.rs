//! Every setting of a node, as one value.
//!
//! Settings come from four places, each stronger than the one before: defaults, a TOML file, `MOIM_…` variables, flags.
//! [`keys::KEYS`] is the one table behind all of them, so a setting cannot exist in one place and be missing in another.
//! A [`Config`] that [`Settings::finish`] has returned is checked: no part of the node looks at relations again, and
//! nothing reads the environment after it. Nobody holds it globally; parts of it are handed down.

pub mod keys;
mod source;
mod value;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use moim_raft::propose::TEXT_BYTES_MAX;

use crate::chat::event;

pub use source::{Origin, Origins, Problem, Settings};

/// What one node runs with. Defaults are in [`keys::KEYS`]; [`Config::default`] is made from them.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The operator's word for this node, unique in its cluster; the host name unless given, with the client port behind
    /// it where that is not the usual one.
    pub name: String,
    /// The folder that holds this node's log, snapshots and state. One node's, never shared.
    pub data: PathBuf,
    /// Where chat clients connect.
    pub client: SocketAddr,
    /// Where operators connect. Loopback by default.
    pub admin: SocketAddr,
    /// Where the other nodes connect.
    pub peer: SocketAddr,
    /// `host:port` under which other nodes reach `peer`, where that is not its own address.
    pub advertise_peer: Option<String>,
    /// `host:port` of peers to find a cluster by; this node's own may be among them. Empty: nobody to look for.
    pub join: Vec<String>,
    /// Form a new cluster when this many empty nodes have found each other. `None`: never form one, only join.
    pub expect: Option<usize>,
    /// A file with the secret that every node of the cluster knows. Needed when `peer` is not loopback.
    pub cluster_secret_file: Option<PathBuf>,
    /// How a client's user is known. `None` only where nobody serves (`moim dev` and `serve` set it).
    pub auth: Option<Auth>,
    /// The namespaces that clients may connect to; `{…}` stands for one part of a path.
    pub namespaces: Vec<String>,
    /// Events that are sent on to a room as they are, volatile.
    pub relay: Vec<String>,
    pub session: Session,
    pub node: Node,
    pub drain: Drain,
    pub history: History,
    pub replay: Replay,
    pub mid: Mid,
    pub presence: Presence,
    pub ping: Ping,
    pub limits: Limits,
    pub log: Log,
}

/// How a client says who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auth {
    /// It is believed. For development and tests.
    Open,
    /// A signed token, whose `sub` is the user.
    Jwt,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Session {
    /// How long a session without a transport lives.
    pub ttl: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// A node that was not heard of for this long is declared down.
    pub timeout: Duration,
    /// A node without a leader for this long lets its clients go.
    pub isolation: Duration,
    /// When an empty node of the same name may take a dead one's place by itself.
    pub replace_after: Duration,
}

/// A planned stop: wait `delay`, close all transports within `window`, be gone at `deadline`.
#[derive(Clone, Debug, PartialEq)]
pub struct Drain {
    /// From "not ready" to the first close: how long the balancer takes to notice.
    pub delay: Duration,
    /// Over how long the closes are spread; over sooner when nobody is left.
    pub window: Duration,
    /// From the start of the drain to the end of the process, whatever happened.
    pub deadline: Duration,
}

/// Bounds on what is kept of each room; the oldest entries go first.
#[derive(Clone, Debug, PartialEq)]
pub struct History {
    /// Entries.
    pub size: usize,
    /// Age.
    pub ttl: Duration,
    /// Bytes.
    pub bytes: usize,
}

/// What one recovering client may be sent; a longer replay is refused, the client then reads `history`.
#[derive(Clone, Debug, PartialEq)]
pub struct Replay {
    /// Entries.
    pub limit: usize,
    /// Bytes.
    pub bytes: usize,
}

/// How a retried message is recognised; a retry past these bounds is a new message.
#[derive(Clone, Debug, PartialEq)]
pub struct Mid {
    pub window: Duration,
    /// The newest so many of each user.
    pub per_user: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Presence {
    /// From a user's last transport lost to `offline`.
    pub grace: Duration,
    /// A room with more members than this gets no presence events.
    pub limit: usize,
}

/// Engine.IO's heartbeat, told to each client at its handshake.
#[derive(Clone, Debug, PartialEq)]
pub struct Ping {
    pub interval: Duration,
    pub timeout: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Bytes of one message's text; a longer one is answered `too_large`.
    pub text: usize,
    /// Rooms that one user is a member of; one more join is answered `too_many_rooms`.
    pub rooms_per_user: usize,
    /// Sessions of one user; past it the oldest lost session ends.
    pub sessions_per_user: usize,
    /// Bytes queued for one socket; a socket past it is cut off and recovers.
    pub queue_bytes: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    /// What is traced, in tracing's filter syntax.
    pub filter: String,
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

impl Config {
    /// The `host:port` under which the other nodes reach this one.
    pub fn peer_address(&self) -> String {
        self.advertise_peer.clone().unwrap_or_else(|| self.peer.to_string())
    }

    /// Fills in what depends on the host and on other settings.
    fn complete(&mut self) -> Result<(), Problem> {
        if self.name.is_empty() {
            let host = host_name().ok_or_else(|| Problem::new("this host has no name; choose one with --name"))?;
            // Several nodes of one host differ in their ports, and nodes of one name form no cluster.
            self.name = match self.client.port() {
                port if port == Self::default().client.port() => host,
                port => format!("{host}-{port}"),
            };
        }
        if self.expect.is_none() && self.join.is_empty() {
            self.expect = Some(1);
        }
        Ok(())
    }

    /// The relations between settings. What fails here would otherwise fail later, in the middle of something.
    fn check(&self) -> Result<(), Problem> {
        let shown = value::duration::show;
        let rule = |holds: bool, text: String| if holds { Ok(()) } else { Err(Problem::new(text)) };

        let addresses = [("client", self.client), ("admin", self.admin), ("peer", self.peer)];
        for (i, (a, left)) in addresses.iter().enumerate() {
            for (b, right) in &addresses[i + 1..] {
                rule(
                    left.port() == 0 || left.port() != right.port(),
                    format!("--{a} and --{b} are both on port {}; give each its own", left.port()),
                )?;
            }
        }
        rule(
            self.admin.ip().is_loopback(),
            format!(
                "--admin {} can be reached from other machines, and it asks nobody for a token yet: choose a loopback \
                 address, and reach it from elsewhere through a tunnel",
                self.admin
            ),
        )?;
        rule(
            self.peer.ip().is_loopback() || self.cluster_secret_file.is_some(),
            format!(
                "--peer {} can be reached from other machines, so nodes must prove that they belong together: \
                 give every node the same --cluster-secret-file, or a loopback --peer",
                self.peer
            ),
        )?;
        rule(
            !self.peer.ip().is_unspecified() || self.advertise_peer.is_some(),
            format!("--peer {} is no address to connect to; say how others reach it with --advertise-peer", self.peer),
        )?;
        if let Some(expect) = self.expect {
            rule(expect >= 1, "--expect 0 is no cluster; leave it out to join one that exists".into())?;
            rule(
                expect == 1 || !self.join.is_empty(),
                format!("--expect {expect} needs --join with the peer addresses of the {expect} nodes"),
            )?;
            rule(
                self.join.is_empty() || expect <= self.join.len() + 1,
                format!("--expect {expect} cannot come true: --join names only {}; name them all", self.join.len()),
            )?;
        }
        rule(
            self.node.isolation > self.node.timeout,
            format!(
                "node.isolation ({}) must be longer than node.timeout ({}), or nodes let clients go before anybody misses them",
                shown(&self.node.isolation),
                shown(&self.node.timeout)
            ),
        )?;
        rule(
            self.session.ttl >= self.node.isolation * 3,
            format!(
                "session.ttl ({}) must be at least three times node.isolation ({}), or sessions end while their node is \
                 still being missed; set it to {} or more",
                shown(&self.session.ttl),
                shown(&self.node.isolation),
                shown(&(self.node.isolation * 3))
            ),
        )?;
        rule(
            self.drain.delay + self.drain.window < self.drain.deadline,
            format!(
                "drain.delay ({}) and drain.window ({}) must together be shorter than drain.deadline ({})",
                shown(&self.drain.delay),
                shown(&self.drain.window),
                shown(&self.drain.deadline)
            ),
        )?;
        for (name, time) in [
            ("node.timeout", self.node.timeout),
            ("ping.interval", self.ping.interval),
            ("ping.timeout", self.ping.timeout),
        ] {
            rule(!time.is_zero(), format!("{name} must be longer than 0s"))?;
        }
        rule(
            self.limits.sessions_per_user > 0,
            "limits.sessions-per-user must be 1 or more, or nobody could connect".into(),
        )?;
        rule(
            self.limits.text <= TEXT_BYTES_MAX,
            format!(
                "limits.text ({}) must be {} or less, which is all that the log takes of one message",
                value::bytes::show(&self.limits.text),
                value::bytes::show(&TEXT_BYTES_MAX)
            ),
        )?;
        for (name, bytes) in [
            ("limits.queue-bytes", self.limits.queue_bytes),
            ("history.bytes", self.history.bytes),
            ("replay.bytes", self.replay.bytes),
        ] {
            rule(
                bytes > self.limits.text,
                format!("{name} ({}) must hold at least one message of limits.text", value::bytes::show(&bytes)),
            )?;
        }
        rule(
            !self.namespaces.is_empty() && self.namespaces.iter().all(|name| name.starts_with('/')),
            "namespaces must name at least one, each beginning with \"/\"".into(),
        )?;
        let taken = self.relay.iter().find(|name| event::is_ours(name));
        rule(
            taken.is_none(),
            format!(
                "relay: \"{}\" is an event of moim or of Socket.IO; choose another name",
                taken.map_or("", |name| name)
            ),
        )
    }
}

fn host_name() -> Option<String> {
    let read = std::fs::read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| std::env::var("HOSTNAME").ok())?;
    Some(read.trim().to_string()).filter(|name| !name.is_empty())
}

impl Default for Config {
    fn default() -> Self {
        keys::defaults()
    }
}

#[cfg(test)]
mod tests;
