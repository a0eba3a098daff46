//! Snapshots are files, and one connection of the `bulk` lane carries one of them.
//!
//! ```text
//! sender: Offer{vote, meta, length}, Chunk…, End{crc32 of all}      receiver: Installed{vote} or Failed
//! ```
//!
//! Neither side holds more than a chunk in memory. The receiver writes to a file of its own and hands it on only when it is
//! whole, checked and synced; TCP itself holds a fast sender back. A transfer that is cancelled or breaks is a closed
//! connection, and the receiver deletes what it had.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};

use super::{consensus::Consensus, frame};
use crate::{
    error::{Error, Result},
    raft::{SnapshotMeta, Vote},
    wire::{WireSnapshotMeta, WireVote},
};

/// File bytes in one frame.
const CHUNK_BYTES: usize = 1 << 20;
/// Bound of a frame on this lane: a chunk and its envelope.
const FRAME_MAX: usize = CHUNK_BYTES + 4096;
/// A receiver gives a sender up that says nothing for so long.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// A snapshot as openraft passes it around: where it lies. Whoever is handed a received one owns the file, and renames or
/// deletes it: what still has its name of arrival at the next start is deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    pub path: PathBuf,
}

/// Sent: only ever add variants at the end.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Part {
    Offer { vote: WireVote, meta: WireSnapshotMeta, len: u64 },
    Chunk(Bytes),
    End { crc: u32 },
    Installed { vote: WireVote },
    Failed(String),
}

/// Streams the file and waits until it is installed; the other side's vote. `step` bounds each chunk, and the installing.
pub(crate) async fn send(
    stream: &mut TcpStream,
    vote: &Vote,
    meta: &SnapshotMeta,
    file: &SnapshotFile,
    step: Duration,
) -> Result<Vote> {
    let mut from = File::open(&file.path).map_err(|e| failed("open", &file.path, &e))?;
    let len = from.metadata().map_err(|e| failed("read", &file.path, &e))?.len();
    write(stream, &Part::Offer { vote: vote.into(), meta: meta.into(), len }, step).await?;
    let mut crc = crc32fast::Hasher::new();
    let mut left = len;
    while left > 0 {
        let want = left.min(CHUNK_BYTES as u64) as usize;
        let chunk;
        (from, chunk) = blocking(move || {
            let mut chunk = vec![0; want];
            from.read_exact(&mut chunk).map(|()| (from, chunk))
        })
        .await
        .map_err(|e| failed("read", &file.path, &e))?;
        crc.update(&chunk);
        left -= chunk.len() as u64;
        write(stream, &Part::Chunk(chunk.into()), step).await?;
    }
    write(stream, &Part::End { crc: crc.finalize() }, step).await?;
    match read(stream, step).await? {
        Part::Installed { vote } => Ok(vote.into()),
        Part::Failed(why) => Err(Error::unavailable(format!("the snapshot was not installed: {why}"))),
        _ => Err(unexpected()),
    }
}

/// The receiver's half: one transfer into `dir`, installed through `consensus`, answered.
pub(crate) async fn receive(stream: &mut TcpStream, dir: &Path, consensus: &dyn Consensus) -> Result<()> {
    let Part::Offer { vote, meta, len } = read(stream, IDLE_MAX).await? else { return Err(unexpected()) };
    let meta = meta.try_into()?;
    let incoming = Incoming::create(dir)?;
    let answer = match receive_file(stream, &incoming.path, len).await {
        Ok(()) => {
            let file = incoming.keep();
            consensus.install(vote.into(), meta, file).await
        }
        Err(e @ Error::Refused(_)) => Err(e),
        Err(gone) => return Err(gone),
    };
    let (part, result) = match answer {
        Ok(vote) => (Part::Installed { vote: (&vote).into() }, Ok(())),
        Err(e) => (Part::Failed(e.to_string()), Err(e)),
    };
    write(stream, &part, IDLE_MAX).await?;
    result
}

async fn receive_file(stream: &mut TcpStream, path: &Path, len: u64) -> Result<()> {
    let io = |e: io::Error| Error::fatal(format!("cannot write {}: {e}", path.display()));
    let mut to = fs::OpenOptions::new().write(true).open(path).map_err(io)?;
    let mut crc = crc32fast::Hasher::new();
    let mut got = 0;
    loop {
        match read(stream, IDLE_MAX).await? {
            Part::Chunk(chunk) => {
                got += chunk.len() as u64;
                if got > len {
                    return Err(Error::refused(format!("a snapshot longer than its {len} bytes")));
                }
                crc.update(&chunk);
                to = blocking(move || to.write_all(&chunk).map(|()| to)).await.map_err(io)?;
            }
            Part::End { crc: right } if got == len && crc.clone().finalize() == right => {
                return blocking(move || to.sync_all()).await.map_err(io);
            }
            Part::End { .. } => return Err(Error::refused("the snapshot is damaged: length or checksum differ")),
            _ => return Err(unexpected()),
        }
    }
}

/// A file being received; deleted unless it is kept.
struct Incoming {
    path: PathBuf,
    kept: bool,
}

impl Incoming {
    fn create(dir: &Path) -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let path = dir.join(format!("incoming-{}.tmp", COUNT.fetch_add(1, Ordering::Relaxed)));
        let created = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&path);
        created.map_err(|e| Error::fatal(format!("cannot create {}: {e}", path.display())))?;
        Ok(Self { path, kept: false })
    }

    fn keep(mut self) -> SnapshotFile {
        self.kept = true;
        SnapshotFile { path: self.path.clone() }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_file(&self.path); // What stays behind is deleted at the next start.
        }
    }
}

/// Deletes what transfers left behind when the process was killed.
pub(crate) fn clean(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.starts_with("incoming-") && name.ends_with(".tmp")) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

async fn write(stream: &mut TcpStream, part: &Part, within: Duration) -> Result<()> {
    let bytes = frame::encode(part)?;
    let written = timeout(within, stream.write_all(&bytes)).await;
    written.map_err(|_| stalled(within))?.map_err(Error::unavailable)
}

async fn read(stream: &mut TcpStream, within: Duration) -> Result<Part> {
    let part = timeout(within, frame::read(stream, FRAME_MAX)).await.map_err(|_| stalled(within))??;
    part.ok_or_else(|| Error::unavailable("the other side ended the transfer"))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Error {
    Error::fatal(format!("cannot {what} the snapshot {}: {error}", path.display()))
}

fn stalled(within: Duration) -> Error {
    Error::unavailable(format!("the snapshot transfer stood still for {within:?}"))
}

fn unexpected() -> Error {
    Error::refused("an unexpected part of a snapshot transfer")
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn received(len: u64, parts: Vec<Part>) -> Result<Vec<u8>> {
        let temp = tempfile::tempdir().unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut receiver, _) = listener.accept().await.unwrap();
        for part in &parts {
            write(&mut sender, part, IDLE_MAX).await.unwrap();
        }
        drop(sender);
        let incoming = Incoming::create(temp.path()).unwrap();
        let got = receive_file(&mut receiver, &incoming.path, len).await;
        let bytes = fs::read(&incoming.path).unwrap();
        drop(incoming);
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0);
        got.map(|()| bytes)
    }

    #[tokio::test]
    async fn only_a_whole_and_right_file_is_taken() {
        let chunk = || Part::Chunk(Bytes::from_static(b"state"));
        let crc = crc32fast::hash(b"statestate");
        let end = || Part::End { crc };
        assert_eq!(received(10, vec![chunk(), chunk(), end()]).await.unwrap(), b"statestate");
        let refused = [
            (10, vec![chunk(), chunk(), Part::End { crc: crc ^ 1 }]),
            (10, vec![chunk(), end()]),
            (9, vec![chunk(), chunk(), end()]),
            (10, vec![chunk(), Part::Failed(String::new())]),
        ];
        for (len, parts) in refused {
            assert!(matches!(received(len, parts).await, Err(Error::Refused(_))));
        }
        assert!(matches!(received(10, vec![chunk(), chunk()]).await, Err(Error::Unavailable(_))), "broken off");
    }

    #[test]
    fn leftovers_are_deleted_and_nothing_else() {
        let temp = tempfile::tempdir().unwrap();
        for name in ["incoming-3.tmp", "identity", "incoming-3", "other.tmp"] {
            fs::write(temp.path().join(name), name).unwrap();
        }
        clean(temp.path()).unwrap();
        let mut left: Vec<_> = fs::read_dir(temp.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["identity", "incoming-3", "other.tmp"]);
    }
}
