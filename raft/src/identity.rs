//! What a data folder knows of itself: whose it is, to which cluster it belongs, how often it was started.
//!
//! A node *is* its data folder: the id is made together with the folder and never used again for another one. What always
//! holds:
//!
//! * a folder is used by one process at a time (a file lock says so);
//! * what is in memory here is on disk: each change is written aside, synced, renamed, and the folder synced, before it counts;
//! * a folder that has belonged to a cluster leaves a [*marker*](crate::marker) beside itself. So an empty folder next to a
//!   marker is known to be one that was lost or not mounted, and forms no new cluster; and an old copy that was put back is
//!   known to be one, and refused.

#[cfg(test)]
mod tests;

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    codec::{self, Kind},
    disk,
    error::{Error, Result},
    marker::{self, Marker},
    raft::{NodeId, Peer},
};

const FILE: &str = "identity";
const LOCK: &str = "lock";
/// How long a locked folder is waited for.
const LOCKED_MAX: Duration = Duration::from_millis(500);
/// On a disk of its own there is always this.
const FOUND: &str = "lost+found";
/// What else may lie in a folder that has no identity (yet, or any more): what a node makes there, and what a file system does.
const KNOWN: [&str; 6] = [LOCK, "reserve", "log", "state", "snapshots", FOUND];
/// Of these, what is made after the identity.
const MADE_LATER: [&str; 3] = ["log", "state", "snapshots"];

/// Id of a cluster: 16 random lower-case base-32 characters.
pub type ClusterId = String;

/// Voters of a cluster that is being formed, by ascending id.
pub type Members = Vec<(NodeId, Peer)>;

/// How far a folder has come to belonging to a cluster. Stored: only ever add variants at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Belongs {
    /// To none yet.
    Nowhere,
    /// `founder` (perhaps this very node) wants to form this cluster. Nobody knows yet whether it came to be.
    Proposed { cluster: ClusterId, founder: NodeId, members: Members },
    /// For good. `founding` is not empty on the founder: the members with which Raft is initialised, again after a crash.
    Settled { cluster: ClusterId, founding: Members },
}

/// The stored form. A changed layout is a new struct under a new codec format.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Stored {
    pub node: NodeId,
    pub incarnation: u64,
    pub belongs: Belongs,
}

/// One opening of a data folder, told from every other, also of a copy of the folder: 16 random bytes.
pub type Process = [u8; 16];

/// The identity of an opened, locked data folder.
#[derive(Debug)]
pub struct Identity {
    dir: PathBuf,
    stored: Stored,
    process: Process,
    /// The cluster that the marker names, when the folder itself was found empty.
    lost: Option<ClusterId>,
    marker: Arc<Marker>,
    lock: File,
}

impl Identity {
    /// Gives the folder up, when nothing of this process writes into it any more. Dropping does the same.
    pub fn unlock(&self) {
        if let Err(e) = self.lock.unlock() {
            tracing::warn!("the lock of {} ends with this process only: {e}", self.dir.display());
        }
    }

    /// Opens the folder, makes it (and a node id) if there is none, and keeps it locked until dropped.
    ///
    /// # Errors
    /// `Refused` when another process uses the folder, it is somebody else's, an older copy, its identity file is damaged, or no
    /// marker can be made beside it; `Fatal` when the disk fails.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self> {
        let dir = named(dir.into())?;
        refuse_foreign(&dir)?;
        marker::check_place(&dir)?;
        make_folder(&dir).map_err(|e| failed(&dir, "make", &e))?;
        let lock = lock(&dir)?;
        let marker = Arc::new(Marker::open(&dir)?);
        let found = read(&dir.join(FILE)).map_err(|e| failed(&dir, "read the identity in", &e))?;
        let new = found.is_none();
        let stored: Stored = match found {
            Some(bytes) => codec::decode(Kind::Identity, &bytes).map_err(|e| damaged(&dir, &e))?,
            None => Stored { node: random_id()?, incarnation: 0, belongs: Belongs::Nowhere },
        };
        // Judged by what the folder says, not by whether it is new: its second start must not forget that it was lost.
        let lost = marker.cluster().filter(|_| stored.belongs == Belongs::Nowhere);
        marker.check_incarnation(&dir, stored.node, stored.incarnation)?;
        let mut process = Process::default();
        getrandom::fill(&mut process).map_err(Error::fatal)?;
        let mut identity = Self { dir, stored: stored.clone(), process, lost, marker, lock };
        match &stored.belongs {
            Belongs::Settled { cluster, .. } => identity.marker.settle(cluster)?,
            _ if new => identity.store(stored)?,
            _ => {}
        }
        Ok(identity)
    }

    pub fn node(&self) -> NodeId {
        self.stored.node
    }

    /// This opening of the folder.
    pub fn process(&self) -> Process {
        self.process
    }

    /// The folder itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn belongs(&self) -> &Belongs {
        &self.stored.belongs
    }

    /// The cluster that this node is in or has agreed to be in.
    pub fn cluster(&self) -> Option<&ClusterId> {
        match &self.stored.belongs {
            Belongs::Nowhere => None,
            Belongs::Proposed { cluster, .. } | Belongs::Settled { cluster, .. } => Some(cluster),
        }
    }

    pub fn is_settled(&self) -> bool {
        matches!(self.stored.belongs, Belongs::Settled { .. })
    }

    /// Whether a node has lived in this folder before, so that there must be a log of what it voted and acknowledged.
    pub fn is_used(&self) -> bool {
        self.stored.incarnation > 0 || self.stored.belongs != Belongs::Nowhere
    }

    /// Why this folder must not take part in forming a new cluster, if it must not. It may still join one.
    pub fn may_form(&self) -> Result<()> {
        let Some(cluster) = &self.lost else { return Ok(()) };
        Err(Error::refused(format!(
            "the data folder {} is empty, but {} says that it belonged to cluster {cluster}. Restore the folder (is its disk \
             mounted?), or join that cluster as a new node (--join), or delete the marker file to really start anew",
            self.dir.display(),
            self.marker.path().display(),
        )))
    }

    /// Number of this start of the node: one more than the last, on disk before it is returned, and in the marker after that.
    pub fn next_incarnation(&mut self) -> Result<u64> {
        let mut next = self.stored.clone();
        next.incarnation += 1;
        let incarnation = next.incarnation;
        self.store(next)?;
        if self.is_settled()
            && let Err(e) = self.marker.started(self.stored.node, incarnation)
        {
            marker::lags(&e);
        }
        Ok(incarnation)
    }

    /// What lies beside the folder.
    pub fn marker(&self) -> Arc<Marker> {
        Arc::clone(&self.marker)
    }

    /// Moves on to `belongs`; on disk (and the marker beside the folder, once settled) when this returns.
    ///
    /// # Errors
    /// `Refused` when the folder is settled in another cluster: that never changes.
    pub fn set_belongs(&mut self, belongs: Belongs) -> Result<()> {
        if let (Belongs::Settled { cluster: old, .. }, new) = (&self.stored.belongs, &belongs)
            && !matches!(new, Belongs::Settled { cluster, .. } if cluster == old)
        {
            return Err(Error::refused(format!("the data folder belongs to cluster {old} for good")));
        }
        if let Belongs::Settled { cluster, .. } = &belongs {
            self.marker.settle(cluster)?; // First: a marker too many is an explained refusal, one too few a second cluster.
        }
        self.store(Stored { belongs, ..self.stored.clone() })?;
        self.lost = None;
        Ok(())
    }

    fn store(&mut self, stored: Stored) -> Result<()> {
        let bytes = codec::encode(Kind::Identity, &stored)?;
        disk::replace(&self.dir.join(FILE), &bytes)?;
        self.stored = stored;
        Ok(())
    }
}

/// A new cluster id.
pub fn new_cluster_id() -> Result<ClusterId> {
    const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(Error::fatal)?;
    Ok(random.iter().map(|byte| char::from(BASE32[usize::from(byte % 32)])).collect())
}

fn random_id() -> Result<NodeId> {
    getrandom::u64().map_err(Error::fatal)
}

/// Nothing is written among what is not ours, and nobody is shut out of it; nor a new identity to what another has left.
fn refuse_foreign(dir: &Path) -> Result<()> {
    let failed = |e: io::Error| failed(dir, "look into", &e);
    let files = match fs::read_dir(dir) {
        Ok(files) => files.collect::<io::Result<Vec<_>>>().map_err(failed)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
    };
    let names: Vec<String> = files.iter().map(|file| file.file_name().to_string_lossy().into_owned()).collect();
    let is_ours = |name: &&String| name.starts_with(FILE) || name.starts_with('.') || KNOWN.contains(&name.as_str());
    if names.iter().any(|name| name == FILE) {
        return Ok(());
    }
    if let Some(other) = names.iter().find(|name| !is_ours(name)) {
        return Err(Error::refused(format!(
            "{} is no data folder: it holds {other}. Name one that is empty or is not there yet",
            dir.display()
        )));
    }
    // An empty one is where a disk is to be mounted, perhaps.
    let left = MADE_LATER.iter().map(|name| dir.join(name)).find(|path| holds_something(path));
    left.map_or(Ok(()), |left| Err(identity_is_gone(dir, &left)))
}

fn holds_something(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|files| files.flatten().any(|file| file.file_name() != FOUND))
}

/// A node with a new id would neither know its cluster nor be bound by what this folder voted.
fn identity_is_gone(dir: &Path, left: &Path) -> Error {
    Error::refused(format!(
        "the data folder {} has lost its file {FILE}, which says whose it is; {} is still there. Put the file back; or move the \
         whole folder aside and start with an empty one: then the node joins its cluster (--join) as a new one",
        dir.display(),
        left.display()
    ))
}

/// Only its owner may look into it: it holds what people wrote.
fn make_folder(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
}

/// By its name in the folder above it, beside which the marker lies: `.` and `..` have none.
fn named(dir: PathBuf) -> Result<PathBuf> {
    match dir.file_name() {
        Some(_) => Ok(dir),
        None => dir.canonicalize().map_err(|e| failed(&dir, "find", &e)),
    }
}

fn lock(dir: &Path) -> Result<File> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(dir.join(LOCK));
    let file = file.map_err(|e| failed(dir, "open the lock in", &e))?;
    match disk::unlocked(LOCKED_MAX, || file.try_lock().map_err(io::Error::from)) {
        Ok(()) => Ok(file),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(Error::refused(format!(
            "another process is using the data folder {}; each node needs its own folder",
            dir.display()
        ))),
        Err(e) => Err(failed(dir, "lock", &e)),
    }
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn failed(dir: &Path, what: &str, error: &io::Error) -> Error {
    Error::fatal(format!("cannot {what} the data folder {}: {error}", dir.display()))
}

fn damaged(dir: &Path, error: &Error) -> Error {
    Error::refused(format!(
        "{} cannot be used ({error}). Move the folder aside, keep it, and join the cluster as a new node",
        dir.join(FILE).display()
    ))
}
