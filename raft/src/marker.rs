//! The marker beside a data folder: what a folder that is lost, or was put back from an old copy, cannot say of itself.
//!
//! It is a text of one line for the cluster, and one for each node that has lived in the folder, newest last:
//!
//! ```text
//! abcdefghijklmnop
//! node 00c0ffee00c0ffee incarnation 7 applied 4711
//! ```
//!
//! What always holds:
//!
//! * It lags behind the folder, never runs ahead of it: an incarnation, or what was applied, is noted after the folder has
//!   synced it. So a folder that knows less than its marker is an older one, and not one that a crash left behind.
//! * A node that votes on such a folder could make up a majority that lacks what was acknowledged: it does not start.
//! * A copy of a folder elsewhere has no marker, and starts; so does one whose marker an operator deletes.
//!
//! A version that knew the first line only wrote just that; lines that this one does not know are left out.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::fs::{Access, access};
use tokio::{sync::watch, time::sleep};

use crate::{
    disk,
    error::{Error, Result},
    identity::ClusterId,
    log::Log,
    raft::NodeId,
};

/// Nodes of one folder that are remembered, the newest ones: each is a disk that was lost.
const LIVES_MAX: usize = 8;
/// While a node runs, the marker lags so far behind what it has applied; a copy that is younger is not told from the folder.
const NOTE_EVERY: Duration = Duration::from_secs(10);

/// How far a node has come, as far as its folder had synced it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Life {
    node: NodeId,
    incarnation: u64,
    applied: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Text {
    cluster: ClusterId,
    lives: Vec<Life>,
}

/// The marker of one data folder. One process at a time has it, as it has the folder.
#[derive(Debug)]
pub struct Marker {
    path: PathBuf,
    /// As it lies on the disk; held while it is written.
    text: Mutex<Option<Text>>,
}

impl Marker {
    /// Of the folder `dir`, whose last part is its name.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = path(dir);
        match fs::read(&path) {
            Ok(bytes) => Ok(Self { path, text: Mutex::new(Some(Text::parse(&String::from_utf8_lossy(&bytes)))) }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self { path, text: Mutex::new(None) }),
            Err(e) => Err(disk::failed("read", &path, &e)),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn cluster(&self) -> Option<ClusterId> {
        self.text().as_ref().map(|text| text.cluster.clone())
    }

    /// Notes that the folder belongs to that cluster; synced when this returns.
    pub fn settle(&self, cluster: &str) -> Result<()> {
        let mut held = self.text();
        if held.as_ref().is_some_and(|text| text.cluster == cluster) {
            return Ok(());
        }
        self.write(&mut held, Text { cluster: cluster.to_owned(), lives: Vec::new() })
    }

    /// Notes the start of an incarnation, which the folder must have synced.
    pub fn started(&self, node: NodeId, incarnation: u64) -> Result<()> {
        self.note(node, |life| life.incarnation = life.incarnation.max(incarnation))
    }

    /// Notes how far the node has applied the log, which the folder must have synced so far.
    pub fn applied(&self, node: NodeId, applied: u64) -> Result<()> {
        self.note(node, |life| life.applied = life.applied.max(applied))
    }

    /// Notes what that node has applied, again and again; for ever.
    pub(crate) async fn follow(self: Arc<Self>, node: NodeId, applied: watch::Receiver<u64>, log: Log) {
        let mut failed = false;
        loop {
            sleep(NOTE_EVERY).await;
            let applied = *applied.borrow();
            // Committed by others, it may be applied before this node's own disk has it.
            if !log.is_stored(applied) {
                continue;
            }
            let marker = Arc::clone(&self);
            let noted = tokio::task::spawn_blocking(move || marker.applied(node, applied)).await;
            let noted = noted.unwrap_or_else(|e| Err(Error::fatal(e)));
            if let (Err(e), false) = (&noted, failed) {
                lags(e);
            }
            failed = noted.is_err();
        }
    }

    /// Whether the folder, whose identity says so, has been started as often as the marker knows.
    ///
    /// # Errors
    /// `Refused` when it has not: it is an older copy.
    pub fn check_incarnation(&self, dir: &Path, node: NodeId, incarnation: u64) -> Result<()> {
        match self.life(node).incarnation {
            last if incarnation < last => {
                Err(self.older(dir, format_args!("it was started {incarnation} times, the node {last} times")))
            }
            _ => Ok(()),
        }
    }

    /// Whether what is in the folder reaches up to where the node has applied the log.
    ///
    /// # Errors
    /// `Refused` when it does not: it is an older copy.
    pub fn check_applied(&self, dir: &Path, node: NodeId, reaches: u64) -> Result<()> {
        match self.life(node).applied {
            last if reaches < last => {
                Err(self.older(dir, format_args!("its log ends at {reaches}, the node had applied {last}")))
            }
            _ => Ok(()),
        }
    }

    fn older(&self, dir: &Path, what: fmt::Arguments<'_>) -> Error {
        Error::refused(format!(
            "the data folder {} is older than what this node last ran with ({what}): it lacks what the node voted and \
             acknowledged since. Put the newer folder back; or move this one aside, start with an empty one, and let the new \
             node take the place of the old (\"moim node replace\"); or, if you know that nothing is missing, delete {}",
            dir.display(),
            self.path.display()
        ))
    }

    fn life(&self, node: NodeId) -> Life {
        self.text().as_ref().map(|text| text.life(node)).unwrap_or_default()
    }

    /// Without a cluster there is nothing to note: the folder holds nothing that anybody relies on.
    fn note(&self, node: NodeId, change: impl FnOnce(&mut Life)) -> Result<()> {
        let mut held = self.text();
        let Some(mut text) = held.clone() else { return Ok(()) };
        let before = text.life(node);
        let mut life = before;
        change(&mut life);
        if life == before {
            return Ok(());
        }
        text.lives.retain(|other| other.node != node);
        text.lives.push(life);
        text.lives.drain(..text.lives.len().saturating_sub(LIVES_MAX));
        self.write(&mut held, text)
    }

    fn write(&self, held: &mut Option<Text>, text: Text) -> Result<()> {
        disk::replace(&self.path, text.to_string().as_bytes())?;
        *held = Some(text);
        Ok(())
    }

    fn text(&self) -> MutexGuard<'_, Option<Text>> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Refuses a place where no marker can be made, before anything is: whoever finds that out on settling has joined a cluster
/// that it must leave again.
pub(crate) fn check_place(dir: &Path) -> Result<()> {
    let marker = path(dir);
    if marker.exists() {
        return Ok(());
    }
    // What is missing is made, in the nearest folder that is there.
    let mut above = marker.ancestors().skip(1).map(|above| if above == Path::new("") { Path::new(".") } else { above });
    let Some(above) = above.find(|above| above.exists()) else { return Ok(()) };
    access(above, Access::WRITE_OK | Access::EXEC_OK).map_err(|e| {
        Error::refused(format!(
            "{} cannot be written to by this user ({}), and beside the data folder {} goes its marker {}, which tells an emptied \
             disk from a new node: name a folder inside one that this user owns, such as --data {}",
            above.display(),
            io::Error::from(e),
            dir.display(),
            marker.display(),
            dir.join("n1").display(),
        ))
    })
}

/// Says that something could not be noted. A marker that lags guards less, and nothing that the node promises rests on it.
pub(crate) fn lags(error: &Error) {
    tracing::warn!("an old copy of the data folder could not be told from this one: {}", error.why());
}

/// `<data>.cluster`: outside, so that it is still there when the folder is not.
pub fn path(dir: &Path) -> PathBuf {
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(".cluster");
    dir.with_file_name(name)
}

impl Text {
    fn parse(text: &str) -> Self {
        let mut lines = text.lines();
        let cluster = lines.next().unwrap_or_default().trim().to_owned();
        Self { cluster, lives: lines.filter_map(Life::parse).collect() }
    }

    fn life(&self, node: NodeId) -> Life {
        self.lives.iter().find(|life| life.node == node).copied().unwrap_or(Life { node, ..Life::default() })
    }
}

impl Life {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let mut after = |word: &str| words.next().filter(|found| *found == word).and_then(|_| words.next());
        let node = NodeId::from_str_radix(after("node")?, 16).ok()?;
        let incarnation = after("incarnation")?.parse().ok()?;
        Some(Self { node, incarnation, applied: after("applied")?.parse().ok()? })
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.cluster)?;
        let line = |life: &Life| (life.node, life.incarnation, life.applied);
        self.lives.iter().map(line).try_for_each(|(node, incarnation, applied)| {
            writeln!(f, "node {node:016x} incarnation {incarnation} applied {applied}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_read_back_and_never_goes_down() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("n1");
        let marker = Marker::open(&dir).unwrap();
        marker.started(7, 1).unwrap();
        assert_eq!((marker.cluster(), marker.path().exists()), (None, false), "nothing relies on it yet");
        marker.settle("abc").unwrap();
        marker.started(7, 3).unwrap();
        marker.started(7, 2).unwrap();
        marker.applied(7, 40).unwrap();
        marker.applied(7, 30).unwrap();
        marker.started(8, 1).unwrap();
        let marker = Marker::open(&dir).unwrap();
        marker.settle("abc").unwrap();
        assert_eq!(marker.life(7), Life { node: 7, incarnation: 3, applied: 40 });
        assert_eq!(marker.life(8), Life { node: 8, incarnation: 1, applied: 0 });
        assert!(marker.check_incarnation(&dir, 7, 3).is_ok() && marker.check_incarnation(&dir, 7, 4).is_ok());
        assert!(marker.check_applied(&dir, 7, 40).is_ok() && marker.check_applied(&dir, 9, 0).is_ok());
        let why = marker.check_incarnation(&dir, 7, 2).unwrap_err().to_string();
        assert!(why.contains("it was started 2 times, the node 3 times") && why.contains("n1.cluster"), "{why}");
        let why = marker.check_applied(&dir, 7, 39).unwrap_err().to_string();
        assert!(why.contains("its log ends at 39, the node had applied 40"), "{why}");
    }

    #[test]
    fn the_first_version_of_it_is_read_and_so_is_a_later_one() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("n1");
        fs::write(path(&dir), "abc\n").unwrap();
        let marker = Marker::open(&dir).unwrap();
        assert_eq!((marker.cluster().as_deref(), marker.life(7).incarnation), (Some("abc"), 0));
        fs::write(path(&dir), "abc\ndisk 9\nnode 0000000000000007 incarnation 2 applied 3 mood 4\n").unwrap();
        assert_eq!(Marker::open(&dir).unwrap().life(7), Life { node: 7, incarnation: 2, applied: 3 });
    }

    #[test]
    fn only_the_newest_lives_are_kept() {
        let temp = tempfile::tempdir().unwrap();
        let marker = Marker::open(&temp.path().join("n1")).unwrap();
        marker.settle("abc").unwrap();
        (1..=20).for_each(|node| marker.started(node, 1).unwrap());
        let marker = Marker::open(&temp.path().join("n1")).unwrap();
        assert_eq!(marker.text().as_ref().unwrap().lives.len(), LIVES_MAX);
        assert_eq!(marker.life(20).incarnation, 1);
    }
}
