//! The handshake: who are you, are you who I wanted, do you know our secret.
//!
//! ```text
//! dialer                                   listener
//!   magic, versions, Hello          ──▶
//!                                   ◀──    magic, versions, Hello   (or Refuse)
//!   Proof                           ──▶
//!                                   ◀──    Proof                    (or Refuse, or Removed)
//! ```
//!
//! A proof is HMAC-SHA256, under the cluster's secret, over the side's role and both hellos: so over both nonces, both ids,
//! the lane and the cluster. It can neither be replayed (the nonces are fresh) nor reflected (the roles differ). Without a
//! secret both prove with an empty key, which is for loopback only ([`super::Secret::check`]).
//!
//! The eight bytes of magic and the two version numbers are the one thing here that no version may ever change.
//! After the handshake the bytes are plain: whoever can write into the connection is inside, as in any protocol without TLS.

use std::{io, time::Duration};

use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{Local, frame, originals::admit};
use crate::{
    error::{Error, Result},
    identity::{ClusterId, Process},
    level::{self, Level, Levels},
    members::REMOVED,
    raft::NodeId,
};

/// Whole handshake, dialing not included.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);
/// Bound of a frame from somebody who has proved nothing yet.
const HELLO_BYTES_MAX: usize = 4096;
const MAGIC: [u8; 8] = *b"moimpeer";
/// Versions that this program speaks, both included.
pub const VERSIONS: (u16, u16) = (1, 1);

/// What a connection is for. Each kind of traffic has its own connection, so that none waits behind another.
/// Sent: only ever add variants at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Lane {
    /// Log entries.
    Raft,
    /// Heartbeats, votes, hand-over of leadership: small and urgent.
    Beat,
    /// Requests of the layers above; also open to nodes that are in no cluster yet.
    Call,
    /// One snapshot a connection.
    Bulk,
    /// Ephemeral bytes, dropped rather than queued.
    Bus,
    /// After the handshake the connection is the layers' above, as a plain stream of bytes.
    Tunnel,
}

/// Who is at the other end; its claims are proved as far as the secret goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    pub node: NodeId,
    pub name: String,
    pub cluster: Option<ClusterId>,
    pub lane: Lane,
    /// Which process of that node; unknown of a version that does not say.
    pub process: Option<Process>,
}

/// What a side says of itself. Sent: a change is a new protocol version.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub lane: Lane,
    pub cluster: Option<ClusterId>,
    /// Whether `cluster` is final; a proposed one may still be given up.
    pub settled: bool,
    pub node: NodeId,
    pub name: String,
    /// Whom the dialer means to reach, where it knows.
    pub wanted: Option<NodeId>,
    /// What its program knows, and the level of its cluster as far as it has applied it.
    pub levels: Levels,
    pub level: Option<Level>,
    /// The process, the same in each of its handshakes, then sixteen fresh bytes. Of a program that does not know
    /// level 2 all are fresh.
    pub nonce: [u8; 32],
}

/// Sent: only ever add variants at the end.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Step {
    Hello(Hello),
    Proof([u8; 32]),
    Refuse(String),
    /// The dialer was removed from this cluster. Proved like a listener's proof, so that nobody else can say it.
    Removed([u8; 32]),
}

/// Dials `addr`, or where `wanted`, the node that has to answer, has said to be since, and proves both sides to each other.
///
/// # Errors
/// `Unavailable` when nobody answers, or not in time; `Refused` when the wrong one does, with its reason or ours, and for a
/// while after that without asking.
pub async fn dial(local: &Local, addr: &str, lane: Lane, wanted: Option<NodeId>) -> Result<(TcpStream, Remote)> {
    if let Some(node) = wanted
        && let Some(at) = local.moved.instead_of(node, addr)
    {
        match knock(local, &at, lane, wanted).await {
            Ok(reached) => return Ok(reached),
            Err(_) => local.moved.is_not_at(node, &at),
        }
    }
    knock(local, addr, lane, wanted).await
}

async fn knock(local: &Local, addr: &str, lane: Lane, wanted: Option<NodeId>) -> Result<(TcpStream, Remote)> {
    let door = (addr.to_owned(), wanted, lane);
    if let Some(why) = local.refusals.waits(&door) {
        return Err(Error::refused(why));
    }
    let dialed = dial_at(local, addr, lane, wanted).await;
    match &dialed {
        Ok(_) => local.refusals.welcomed(&door),
        Err(Error::Refused(why)) => local.refusals.refused(door, why),
        Err(_) => {}
    }
    dialed
}

/// Dials this very address, however often it refused.
pub(super) async fn dial_at(
    local: &Local,
    addr: &str,
    lane: Lane,
    wanted: Option<NodeId>,
) -> Result<(TcpStream, Remote)> {
    let dialing = async {
        let mut stream = TcpStream::connect(addr).await.map_err(|e| match e.kind() {
            io::ErrorKind::ConnectionRefused => Error::unavailable(format!("{addr} does not answer")),
            _ => Error::unavailable(format!("{addr} is not reached: {e}")),
        })?;
        stream.set_nodelay(true).map_err(Error::unavailable)?;
        let remote = shake_as_dialer(local, &mut stream, lane, wanted).await?;
        Ok((stream, remote))
    };
    match timeout(HANDSHAKE_TIMEOUT, dialing).await {
        Ok(Ok(reached)) => Ok(reached),
        Ok(Err(Error::Refused(why))) => Err(Error::refused(format!("{addr}: {why}"))),
        Ok(Err(Error::Unavailable(why))) if !why.contains(addr) => Err(Error::unavailable(format!("{addr}: {why}"))),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(Error::unavailable(format!("{addr} does not answer within {HANDSHAKE_TIMEOUT:?}"))),
    }
}

/// The listener's half, on a connection just accepted.
pub async fn accept(local: &Local, stream: &mut TcpStream) -> Result<Remote> {
    stream.set_nodelay(true).map_err(Error::unavailable)?;
    let shaken = timeout(HANDSHAKE_TIMEOUT, shake_as_listener(local, stream)).await;
    shaken.unwrap_or_else(|_| Err(Error::unavailable("no handshake in time")))
}

async fn shake_as_dialer(local: &Local, stream: &mut TcpStream, lane: Lane, wanted: Option<NodeId>) -> Result<Remote> {
    let mine = hello(local, lane, wanted)?;
    send_prelude(stream).await?;
    send(stream, &Step::Hello(mine.clone())).await?;
    read_prelude(stream).await?;
    let theirs = receive_hello(stream).await?;
    send(stream, &Step::Proof(prove(local, b"dialer", &mine, &theirs)?)).await?;
    let proof = match receive(stream).await? {
        Step::Proof(proof) => proof,
        Step::Removed(proof) if in_one_cluster(&mine, &theirs) => {
            verify(local, b"removed", &mine, &theirs, &proof)?;
            local.expel();
            return Err(Error::refused(REMOVED));
        }
        _ => return Err(unexpected()),
    };
    verify(local, b"listener", &mine, &theirs, &proof)?;
    agree(&mine, &theirs, &mine.wanted, theirs.node)?;
    Ok(remote(theirs, lane))
}

async fn shake_as_listener(local: &Local, stream: &mut TcpStream) -> Result<Remote> {
    // The prelude goes out first, also to a stranger: another version must be able to tell that this is one.
    let theirs = read_prelude(stream).await;
    if !matches!(&theirs, Err(Error::Refused(why)) if why == NOT_US) {
        send_prelude(stream).await?;
    }
    theirs?;
    let theirs = receive_hello(stream).await?;
    let mine = hello(local, theirs.lane, None)?;
    send(stream, &Step::Hello(mine.clone())).await?;
    let Step::Proof(proof) = receive(stream).await? else { return Err(unexpected()) };
    let agreed = verify(local, b"dialer", &theirs, &mine, &proof)
        .and_then(|()| agree(&mine, &theirs, &theirs.wanted, mine.node));
    if let Err(Error::Refused(why)) = &agreed {
        send(stream, &Step::Refuse(why.clone())).await?;
    }
    agreed?;
    if in_one_cluster(&mine, &theirs) && local.is_removed(theirs.node) {
        send(stream, &Step::Removed(prove(local, b"removed", &theirs, &mine)?)).await?;
        return Err(Error::refused(format!("{} (id {}) was removed from this cluster", theirs.name, theirs.node)));
    }
    let (proof, lane) = (prove(local, b"listener", &theirs, &mine)?, theirs.lane);
    let remote = remote(theirs, lane);
    // Who calls is asked with its first request: on that lane the others ask who a process is.
    if lane != Lane::Call
        && let Err(e) = admit(local, &remote).await
    {
        send(stream, &Step::Refuse(e.why().to_owned())).await?;
        return Err(e);
    }
    send(stream, &Step::Proof(proof)).await?;
    Ok(remote)
}

/// The rules, checked at both ends. `wanted` is whom the dialer wants, `reached` whom it got.
fn agree(mine: &Hello, theirs: &Hello, wanted: &Option<NodeId>, reached: NodeId) -> Result<()> {
    if let Some(wanted) = wanted
        && *wanted != reached
    {
        return Err(Error::refused(format!("node {wanted:016x} is wanted, but node {reached:016x} is here")));
    }
    if mine.cluster == theirs.cluster || theirs.cluster.is_none() || mine.cluster.is_none() {
        understands(theirs, mine)?;
        understands(mine, theirs)?;
    }
    let name = |cluster: &Option<ClusterId>| cluster.clone().unwrap_or_else(|| "none".to_owned());
    let foreign = || {
        Err(Error::refused(format!(
            "different clusters: {} is in {}, {} is in {}",
            mine.name,
            name(&mine.cluster),
            theirs.name,
            name(&theirs.cluster)
        )))
    };
    if mine.lane == Lane::Call {
        // Nodes that are in no cluster for good have to talk to find one.
        if mine.settled && theirs.settled && mine.cluster != theirs.cluster {
            return foreign();
        }
        return Ok(());
    }
    if mine.node == theirs.node {
        return Err(Error::refused(format!("node {:016x} is at both ends", mine.node)));
    }
    if mine.cluster.is_none() || mine.cluster != theirs.cluster {
        return foreign();
    }
    Ok(())
}

/// Whether `who` knows the level at which `other` sees the cluster. A node that lags behind may see a level that is no more:
/// only one that has not applied any yet is held to the lower end of its range.
fn understands(who: &Hello, other: &Hello) -> Result<()> {
    match other.level {
        Some(level) if level > who.levels.max || who.level.is_none() => who.levels.check(level, &who.name),
        _ => Ok(()),
    }
}

/// For good, both.
fn in_one_cluster(mine: &Hello, theirs: &Hello) -> bool {
    mine.settled && theirs.settled && mine.cluster == theirs.cluster
}

fn hello(local: &Local, lane: Lane, wanted: Option<NodeId>) -> Result<Hello> {
    let identity = local.identity();
    let mut nonce = [0; 32];
    let (process, fresh) = nonce.split_at_mut(size_of::<Process>());
    process.copy_from_slice(&identity.process());
    getrandom::fill(fresh).map_err(Error::fatal)?;
    Ok(Hello {
        lane,
        cluster: identity.cluster().cloned(),
        settled: identity.is_settled(),
        node: identity.node(),
        name: local.peer.name.clone(),
        wanted,
        levels: local.levels,
        level: local.level(),
        nonce,
    })
}

fn remote(theirs: Hello, lane: Lane) -> Remote {
    let named = (theirs.levels.max >= level::SECOND).then_some(theirs.nonce);
    let process = named.and_then(|nonce| nonce.first_chunk().copied());
    Remote { node: theirs.node, name: theirs.name, cluster: theirs.cluster, lane, process }
}

fn mac(local: &Local, role: &[u8], dialer: &Hello, listener: &Hello) -> Result<Hmac<Sha256>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(local.secret.bytes()).expect("HMAC takes a key of any length");
    mac.update(role);
    mac.update(&frame::encode(dialer)?);
    mac.update(&frame::encode(listener)?);
    Ok(mac)
}

fn prove(local: &Local, role: &[u8], dialer: &Hello, listener: &Hello) -> Result<[u8; 32]> {
    Ok(mac(local, role, dialer, listener)?.finalize().into_bytes().into())
}

/// In constant time.
fn verify(local: &Local, role: &[u8], dialer: &Hello, listener: &Hello, proof: &[u8; 32]) -> Result<()> {
    let right = mac(local, role, dialer, listener)?.verify_slice(proof);
    right.map_err(|_| Error::refused("the cluster secrets differ"))
}

const NOT_US: &str = "this is not a moim peer";

async fn send_prelude(stream: &mut TcpStream) -> Result<()> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSIONS.0.to_be_bytes());
    bytes.extend(VERSIONS.1.to_be_bytes());
    stream.write_all(&bytes).await.map_err(Error::unavailable)
}

/// Magic, then the range of versions, which must share one with ours; the largest shared one is spoken.
async fn read_prelude(stream: &mut TcpStream) -> Result<()> {
    let mut bytes = [0; 12];
    stream.read_exact(&mut bytes).await.map_err(Error::unavailable)?;
    if bytes[..8] != MAGIC {
        return Err(Error::refused(NOT_US));
    }
    let (min, max) = (u16::from_be_bytes([bytes[8], bytes[9]]), u16::from_be_bytes([bytes[10], bytes[11]]));
    if max < VERSIONS.0 || min > VERSIONS.1 {
        return Err(Error::refused(format!(
            "no common protocol version: {min} to {max} there, {} to {} here",
            VERSIONS.0, VERSIONS.1
        )));
    }
    Ok(())
}

async fn send(stream: &mut TcpStream, step: &Step) -> Result<()> {
    stream.write_all(&frame::encode(step)?).await.map_err(Error::unavailable)
}

async fn receive(stream: &mut TcpStream) -> Result<Step> {
    match frame::read(stream, HELLO_BYTES_MAX).await? {
        Some(Step::Refuse(why)) => Err(Error::refused(why)),
        Some(step) => Ok(step),
        None => Err(Error::unavailable("closed during the handshake")),
    }
}

async fn receive_hello(stream: &mut TcpStream) -> Result<Hello> {
    match receive(stream).await? {
        Step::Hello(hello) => Ok(hello),
        _ => Err(unexpected()),
    }
}

fn unexpected() -> Error {
    Error::refused("an unexpected step of the handshake")
}
